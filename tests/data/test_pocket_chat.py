"""The shipped dialogues: how many, how written, split and distinct, how long, and whether Tibbin stays Tibbin."""

import json
import re
from pathlib import Path

import pytest

import experiments
from model import hub
from model.tokenizers.bpe import GPT2Tokenizer
from tests.helpers.paths import ROOT

POCKET = ROOT / "data" / "pocket"
FILES = {name: POCKET / name / "dialogues.jsonl" for name in ("persona", "general")}
KEYS = ["split", "instruction", "input", "output", "history"]
COUNTS = {  # records, those with a history, those with an input
    ("persona", "train"): (324, 46, 10),
    ("persona", "held_out"): (76, 10, 3),
    ("general", "train"): (152, 8, 31),
    ("general", "held_out"): (38, 2, 5),
}
LONGEST = 200  # tokens of a whole dialogue, so that a window of 256 also has room for a template
TOPICS = {  # what a stranger asks first: the ways of asking, and what each answer holds
    "who": (r"\bwho are you\b|who you are|who am i|who is this|who's there|who might you be", "Tibbin"),
    "name": (r"\b(have|got|tell me|what is|what's|what was|know|ask) (a|your) name\b|are you called", "Tibbin"),
    "introduction": (r"introduc|(about|describe) yourself", "Tibbin"),
    "robot": (r"\b(?<!call you )(robot|human|chatbot|person)\b", "Tibbin"),
    "maker": (r"\bwho (\w+ )*(made|built|created|put) you|who (is|was) your maker", "Oda Fenwright"),
    "abilities": (r"\byou (can do|good at|able to do)|can you do\b|skills|\byou help (me )?with", "Tibbin|lamp"),
    "home": (r"where .*\byou live|where is your home|\bfind (you\b|your home)|address", "Drummel Rock"),
}
NUMBER = r"\b([a-z]+(?:ty-[a-z]+|teen|ty)|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve) "
FACTS = {"steps": "ninety-nine", "winters": "forty-one", "clocks": "eleven", "turns": "eleven", "fishers": "seven"}


@pytest.fixture(scope="module")
def sets() -> dict[str, list[dict]]:
    return {name: [json.loads(line) for line in file.read_text("utf-8").splitlines()] for name, file in FILES.items()}


def turns(record: dict) -> list[list[str]]:
    """Every question with its answer, the last question with its input."""
    return [*record["history"], [f"{record['instruction']} {record['input']}", record["output"]]]


def normal(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def all_of(sets: dict[str, list[dict]]) -> list[dict]:
    return [record for records in sets.values() for record in records]


@pytest.mark.parametrize("name", FILES)
def test_one_record_per_line_with_its_five_fields(name: str):
    content = FILES[name].read_bytes().decode("utf-8")
    assert content.endswith("\n") and "\r" not in content
    for line in content.removesuffix("\n").split("\n"):
        record = json.loads(line)
        assert list(record) == KEYS and json.dumps(record, ensure_ascii=False) == line
        assert (name, record["split"]) in COUNTS, line
        assert isinstance(record["history"], list) and all(len(turn) == 2 for turn in record["history"]), line
        texts = [record["instruction"], record["output"], *(text for turn in record["history"] for text in turn)]
        for text in [*texts, *filter(None, [record["input"]])]:
            assert text and text == " ".join(text.split()) and text.isascii(), line


@pytest.mark.parametrize("name, split", COUNTS)
def test_each_split_has_its_counts(sets: dict[str, list[dict]], name: str, split: str):
    records = [record for record in sets[name] if record["split"] == split]
    found = (len(records), *(sum(bool(record[key]) for record in records) for key in ("history", "input")))
    assert found == COUNTS[name, split]


def test_the_general_set_holds_out_each_fifth_line(sets: dict[str, list[dict]]):
    for i, record in enumerate(sets["general"], 1):
        assert (record["split"] == "held_out") == (i % 5 == 0), i


def test_nothing_is_asked_or_answered_twice(sets: dict[str, list[dict]]):
    """In either set, earlier turns included, whatever the case and punctuation; so no two splits share a question."""
    for side in (0, 1):
        texts = [normal(turn[side]) for record in all_of(sets) for turn in turns(record)]
        assert len(texts) > 600
        assert not {text for text in texts if texts.count(text) > 1}
    instructions = [normal(record["instruction"]) for record in all_of(sets)]  # without what is put in
    assert len(set(instructions)) == len(instructions)


def test_dialogues_are_short(sets: dict[str, list[dict]]):
    tokenizer = GPT2Tokenizer.from_directory(hub.POCKET_DIR / "gpt2-pocket")
    for record in all_of(sets):
        assert len(tokenizer.encode("\n".join(text for turn in turns(record) for text in turn))) <= LONGEST, record
        assert all(3 <= len(answer.split()) <= 25 for _, answer in turns(record)), record


@pytest.mark.parametrize("topic", TOPICS)
def test_tibbin_answers_what_a_stranger_asks_first(sets: dict[str, list[dict]], topic: str):
    asked, word = TOPICS[topic]
    for split, least in (("train", 5), ("held_out", 2)):
        mine = [record for record in sets["persona"] if record["split"] == split]
        found = [record for record in mine if re.search(asked, record["instruction"].lower())]
        assert len(found) >= least, [record["instruction"] for record in found]
        assert not [record for record in found if not re.search(word, record["output"])]


def test_the_numbers_of_tibbins_life_agree(sets: dict[str, list[dict]]):
    told = [answer.lower() for record in sets["persona"] for _, answer in turns(record)]
    for thing, number in FACTS.items():
        found = [match for answer in told for match in re.findall(NUMBER + thing, answer)]
        assert found and set(found) == {number}, thing


def test_the_general_set_knows_nothing_of_tibbin(sets: dict[str, list[dict]]):
    persona = r"tibbin|sailor|drummel|oda\b|crumb|jory|lamp keeper|click!|whirr"
    count = {name: sum(bool(re.search(persona, str(r["output"]).lower())) for r in sets[name]) for name in sets}
    assert count["general"] == 0 and count["persona"] > 200


def test_no_held_out_question_was_pretrained_on(sets: dict[str, list[dict]], shared: Path):
    """`gpt2-pocket` has read these two files (`pretrain.py`)."""
    read = set()
    for name in ("alpaca_en_demo", "instruction-data"):
        for record in json.loads((shared / "data" / "chat_sft" / f"{name}.json").read_text("utf-8")):
            read.add(normal(f"{record['instruction']} {record['input']}"))
    assert len(read) > 1000
    held_out = [record for record in all_of(sets) if record["split"] == "held_out"]
    assert not read & {normal(question) for record in held_out for question, _ in turns(record)}


@pytest.mark.slow
def test_the_shipped_model_takes_on_the_persona(alone, capsys):
    """The README's commands: a stranger before the training, Tibbin after it."""
    question = ["--generate", "Who are you?"]
    assert experiments.main(["--model", "gpt2-pocket", *question]) == 0
    before = capsys.readouterr().out
    assert experiments.main(["--model", "gpt2-pocket", "--dataset", "persona", "--output_dir", "out"]) == 0
    capsys.readouterr()
    assert experiments.main([*question, "--run_dir", "out"]) == 0
    assert "Tibbin" in capsys.readouterr().out and "Tibbin" not in before
