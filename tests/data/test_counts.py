"""What a run says of its texts: how many came in, how many are used, how many were cut. And what isn't trained."""

import json

import pytest

from config import DEFAULTS, Run
from data.batching import IGNORED
from data.dialogue_encoder import DialogueEncoder
from data.dialogues import Dialogue, Turn
from model.tokenizers.bpe import GPT2Tokenizer
from tests.helpers.small import write_dialogues


@pytest.fixture(scope="module")
def tokenizer(small_checkpoint):
    return GPT2Tokenizer.from_directory(small_checkpoint)


def encode(tokenizer, dialogue, length=250, **settings):
    return DialogueEncoder(tokenizer, Run(**{name: DEFAULTS[name] for name in DEFAULTS} | settings), length).encode(
        dialogue
    )


# --- answers that aren't trained


def dialogue(*trained: bool) -> Dialogue:
    return Dialogue(tuple(Turn(f"q{i}", "", f"z{i}", one) for i, one in enumerate(trained)))


@pytest.mark.parametrize("trained", [(True, True), (False, True), (False, False, True), (True, False, True)])
@pytest.mark.parametrize("template", ["default", "alpaca"])
def test_an_answer_that_is_not_trained_is_read_and_is_no_target(tokenizer, trained, template):
    found, whole = (encode(tokenizer, dialogue(*each), template=template) for each in (trained, [True] * len(trained)))
    assert found.ids == whole.ids
    targets = [token for token in found.label if token != IGNORED]
    said = [[*tokenizer.encode(f"z{i}"), tokenizer.end_of_text] for i, one in enumerate(trained) if one]
    assert targets == [token for answer in said for token in answer]
    assert all(one in (IGNORED, other) for one, other in zip(found.label, whole.label, strict=True))


def test_the_last_answer_is_trained_however_much_is_cut(tokenizer):
    found = encode(tokenizer, dialogue(False, False, True), max_source_length=4)
    assert [token for token in found.label if token != IGNORED] == [*tokenizer.encode("z2"), tokenizer.end_of_text]


def test_a_run_learns_nothing_from_an_answer_of_weight_0(experiment, alone):
    def train(said: str, weight: int, name: str):
        lines = [
            {"role": "user", "content": "see"},
            {"role": "assistant", "content": said, "weight": weight},
            {"role": "user", "content": "home"},
            {"role": "assistant", "content": "later"},
        ]
        path = alone / f"{name}.jsonl"
        path.write_text("\n".join([json.dumps({"messages": lines})] * 20))
        flags = {"dataset": path, "data_dir": None, "test_share": 0, "output_dir": alone / name}
        return experiment("--num_epochs", 1, max_steps=None, **flags)

    one, other = train("prize", 0, "a"), train("prize", 1, "b")
    n_one, n_other = (
        sum(record["targets"] for record in run.metrics if record["split"] == "final train") for run in (one, other)
    )
    assert n_one < n_other and one.result["train_loss"] != other.result["train_loss"]
    assert one.result["data_sha256"] != other.result["data_sha256"]


# --- dialogues in, examples out, texts cut


def note(found) -> str:
    (line,) = (line for line in found.out.splitlines() if line.startswith("note     "))
    return line.removeprefix("note     ")


def test_one_line_counts_what_came_in_what_is_used_and_what_was_cut(experiment, alone):
    path, other = write_dialogues(alone / "some.json"), alone / "other.jsonl"
    good = {"instruction": "see", "output": "home", "lang": "en"}
    other.write_text("\n".join([*[json.dumps(good)] * 9, "nonsense", "", json.dumps(good | {"output": 3})]))
    found = experiment(dataset=other, data_dir=None)
    counts = f"{other}: 11 lines in, 9 examples out, keys that aren't read: lang (9)"
    assert note(found).startswith(f"{counts}; 0 texts cut; {other}: 2 of 11 records skipped: line 10: no JSON: ")
    assert found.result["notes"][0].startswith(f"{counts}; 0 texts cut; {other}: 2 of 11 records skipped")
    found = experiment("--max_target_length", 2, dataset=path, data_dir=None, general_dataset=other, test_share=0.2)
    assert note(found).startswith(f"{path}: 40 records in, 40 examples out; {counts}; 40 texts cut")  # "prize 3" is longer


def test_shipped_dialogues_are_counted_by_their_names(experiment):
    found = experiment(dataset="persona", data_dir=None)
    assert note(found).startswith("persona: 400 lines in, 400 examples out; general: 190 lines in, 190 examples out; ")


# --- texts of classes that are cut


def write_spam(folder, longest: dict[str, int]):
    """Write a data directory in whose split the longest text of each part has so many words."""
    from data.spam import read_spam

    path = folder / "sms_spam" / "SMSSpamCollection"
    path.parent.mkdir(parents=True)
    lines = [f"{'spam' if i % 2 else 'ham'}\tq z {i}" for i in range(40)]
    path.write_text("\n".join(lines) + "\n")
    for name, size in longest.items():
        text = read_spam(folder)[name][0].text
        content = path.read_text()
        path.write_text(content.replace(f"\t{text}\n", f"\t{text}{' q' * size}\n"))
    return folder


CUT = {
    "none": ({"train": 30, "test": 10}, {}, None),
    "test": ({"test": 30}, {}, "1 of 8 test texts"),
    "validation and test": ({"validation": 30, "test": 30}, {}, "1 of 4 validation texts, 1 of 8 test texts"),
    "by a number of tokens": ({"train": 30, "test": 30}, {"context_length": 12}, "1 of 28 train texts, 1 of 8 test texts"),
    "padding that isn't read": ({"test": 30}, {"trainable_token_pos": "flexible"}, "1 of 8 test texts"),
    "what isn't read": ({"test": 30}, {"trainable_token_pos": "first"}, None),
    "the longest of all": ({"test": 30}, {"no_padding": True}, None),
}


@pytest.mark.parametrize("longest, settings, said", CUT.values(), ids=CUT)
def test_texts_that_are_cut_get_a_note(experiment, alone, longest, settings, said):
    flags = ["--no_padding"] if settings.pop("no_padding", False) else []
    found = experiment(*flags, data_dir=write_spam(alone / "data", longest), **settings)
    cut = [one for one in found.result["notes"] if one.startswith("cut to ")]
    assert [one.partition(": ")[2] for one in cut] == ([said] if said else [])
    assert all(one in found.out for one in cut)
