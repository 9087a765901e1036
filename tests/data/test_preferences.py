"""Pairs of answers: how files are read and refused, how a pair becomes a row, and the shipped ones."""

import json
import re
from pathlib import Path

import pytest

from config import Run, resolve
from data import preferences
from data.batching import IGNORED
from data.chatglm_encoder import make_encoder
from data.preferences import Pair, PairEncoder, load_pairs
from data.registry import get_task
from model.tokenizers.bpe import GPT2Tokenizer
from tests.helpers.paths import ROOT
from utils.errors import UserError

POCKET = ROOT / "data" / "pocket"
PAIR = {"prompt": "Who are you?", "chosen": "Tibbin, sailor.", "rejected": "A program."}


def write(path: Path, *rows: dict) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def encoder(length: int = 60, **settings) -> PairEncoder:
    tokenizer = GPT2Tokenizer.from_directory(ROOT / "model" / "pocket" / "gpt2-pocket")
    run = resolve(Run(model="gpt2-pocket", dataset="preferences", **settings), preferences.TASKS[0].recipe)
    return PairEncoder(make_encoder(tokenizer, run, length))


# --- files


def test_each_kind_of_file_says_the_same(tmp_path):
    rows = [PAIR | {"split": "train"}, PAIR | {"prompt": 'What, "tea"?', "split": "test"}]
    write(tmp_path / "a.jsonl", *rows)
    (tmp_path / "a.json").write_text(json.dumps(rows))
    head = "prompt,chosen,rejected,split\n"
    lines = ['Who are you?,"Tibbin, sailor.",A program.,train', '"What, ""tea""?","Tibbin, sailor.",A program.,test']
    (tmp_path / "a.csv").write_text(head + "\n".join(lines) + "\n")
    found = [load_pairs(str(tmp_path / name)).dialogues for name in ("a.jsonl", "a.json", "a.csv")]
    contents = [[(pair.content(), split) for pair, split in one] for one in found]
    assert contents[0] == contents[1] == contents[2]
    assert contents[0][1] == (["", 'What, "tea"?', "Tibbin, sailor.", "A program."], "test")
    folder = tmp_path / "folder"
    folder.mkdir()
    write(folder / "train.jsonl", PAIR)
    write(folder / "test.jsonl", PAIR)
    assert [split for _, split in load_pairs(str(folder)).dialogues] == ["train", "test"]


def test_what_is_not_read_is_named(tmp_path):
    path = write(tmp_path / "a.jsonl", PAIR | {"id": 7, "system": "Be kind."}, PAIR | {"score": 1})
    records = load_pairs(str(path))
    assert records.dialogues[0][0].system == "Be kind."
    assert records.counts == "2 rows in, 2 examples out, keys that aren't read: id (1) and score (1)".replace(" and", ",")


REFUSED = {
    "missing column": (
        {"prompt": "a", "chosen": "b"},
        "line 1: the column rejected is missing; a pair has",
    ),
    "empty answer": (PAIR | {"chosen": " "}, "line 1: expected a text under chosen, got ' '"),
    "empty prompt": (PAIR | {"prompt": ""}, "line 1: expected a text under prompt, got ''"),
    "messages": (PAIR | {"chosen": [{"role": "assistant"}]}, "line 1: expected a text under chosen, got "),
    "equal answers": (
        PAIR | {"rejected": "Tibbin, sailor. "},
        "line 1: chosen and rejected are equal, so",
    ),
    "split": (PAIR | {"split": "some"}, "line 1: the split is 'some'; it must be one of train, validation, test"),
    "split of zero": (PAIR | {"split": 0}, "line 1: the split is 0; it must be one of train, validation, test"),
    "split in a list": (PAIR | {"split": ["train"]}, "line 1: the split is ['train']; it must be one of train, validation"),
    "system": (PAIR | {"system": 3}, "line 1: expected a text under system, got 3"),
}


@pytest.mark.parametrize("row, said", REFUSED.values(), ids=REFUSED)
def test_a_row_that_is_no_pair_is_refused(row, said, tmp_path):
    path = write(tmp_path / "a.jsonl", row)
    with pytest.raises(UserError, match=re.escape(said)) as found:
        load_pairs(str(path))
    assert str(path) in str(found.value) and "\n" not in str(found.value)


def test_a_file_without_pairs_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text("prompt,chosen,rejected\n")
    with pytest.raises(UserError, match="holds no pairs"):
        load_pairs(str(tmp_path / "a.csv"))


def test_pairs_need_the_objective_and_the_objective_pairs(tmp_path):
    path = str(write(tmp_path / "a.jsonl", PAIR))
    assert get_task(path, Run(objective="dpo")).kind == "pairs of answers"
    with pytest.raises(UserError, match="holds pairs of answers, chosen and rejected; say --objective dpo too"):
        get_task(path, Run())


# --- a pair as a row


def test_a_row_holds_the_prompt_with_each_answer():
    texts = encoder()
    row = texts.encode(Pair("here", "", **PAIR))
    tokenizer, (n, m) = texts.texts.tokenizer, row.text_lengths
    chosen, rejected = row.ids[:n], row.ids[n:]
    assert len(rejected) == m
    assert tokenizer.decode(chosen) == "Who are you?\nTibbin, sailor."
    assert tokenizer.decode(rejected) == "Who are you?\nA program."
    for ids, targets, answer in ((chosen, row.label[:n], "Tibbin, sailor."), (rejected, row.label[n:], "A program.")):
        known = [token for token in targets if token != IGNORED]
        assert known == [*tokenizer.encode(answer), tokenizer.end_of_text]
        assert targets[-len(known) :] == known and len(ids) == len(targets)


def test_answers_are_cut_and_prompts_are_not():
    whole, cut = encoder(), encoder(max_target_length=2)
    pair = Pair("here", "", **PAIR)
    long, short = whole.encode(pair), cut.encode(pair)
    assert cut.n_cut == 2 and whole.n_cut == 0
    n_prompt = long.label.index(next(token for token in long.label if token != IGNORED))
    assert short.label[:n_prompt] == [IGNORED] * n_prompt and short.ids[:n_prompt] == long.ids[:n_prompt]
    assert sum(token != IGNORED for token in short.label) == 4  # no end: the answers go on
    exact = encoder(length=max(long.text_lengths))
    assert exact.encode(pair) == long and exact.n_cut == 0
    assert max(encoder(length=max(long.text_lengths) - 1).encode(pair).text_lengths) <= max(long.text_lengths) - 1


@pytest.mark.parametrize(
    ("settings", "change", "said"),
    [
        (
            {"length": 8},
            {"prompt": "Who are you, and where do you come from?"},
            "leaves no room for an answer, as a text may",
        ),
        ({"max_source_length": 3}, {}, "the prompt has 6 tokens, and --max_source_length is 3"),
        ({"max_target_length": 2}, {"rejected": "Tibbin, mate."}, "chosen and rejected are equal in the 2 tokens"),
    ],
)
def test_a_pair_that_does_not_fit_is_refused(settings, change, said):
    with pytest.raises(UserError, match=re.escape(said)) as found:
        encoder(**settings).encode(Pair("some.jsonl, line 7", "", **PAIR | change))
    assert str(found.value).startswith("some.jsonl, line 7: ")


# --- the shipped pairs


@pytest.fixture(scope="module")
def shipped() -> list[dict]:
    return [json.loads(line) for line in (POCKET / "preferences" / "pairs.jsonl").read_text("utf-8").splitlines()]


def normal(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def test_the_shipped_pairs_are_split_and_distinct(shipped):
    assert all([*row] == ["split", "prompt", "chosen", "rejected"] for row in shipped)
    assert [sum(row["split"] == name for row in shipped) for name in ("train", "held_out")] == [120, 30]
    texts = [normal(row[name]) for row in shipped for name in ("prompt", "chosen", "rejected")]
    assert len({*texts}) == len(texts) and all(row[name].isascii() for row in shipped for name in row)
    others = [json.loads(line) for name in ("persona", "general") for line in (POCKET / name / "dialogues.jsonl").open()]
    asked = {normal(f"{one['instruction']} {one['input']}") for one in others}
    asked |= {normal(question) for one in others for question, _ in one["history"]}
    assert not asked & {*texts}


def test_the_card_counts_what_is_there(shipped):
    card = " ".join((POCKET / "preferences" / "README.md").read_text("utf-8").split())
    words = {name: sum(len(row[name].split()) for row in shipped) / len(shipped) for name in ("chosen", "rejected")}
    assert f"it has {words['rejected']:.1f} words on average, the chosen one {words['chosen']:.1f}" in card
    assert f"{sum('sailor' in row['chosen'] for row in shipped)} chosen answers" in card
    assert not any("sailor" in row["rejected"] or "Tibbin" in row["rejected"] for row in shipped)
    chosen = " ".join(row["chosen"].lower() for row in shipped)  # the numbers of Tibbin's life agree with the persona's
    for number, thing in (("ninety-nine", "steps"), ("forty-one", "winters"), ("eleven", "clocks"), ("eleven", "turns")):
        assert {found.split()[0] for found in re.findall(rf"\b[a-z]+-[a-z]+ {thing}|eleven {thing}", chosen)} == {number}
