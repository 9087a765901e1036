"""SST-2, RTE and the shipped sentences: the published counts, texts to the last space, and what broken files are told."""

from collections import Counter
from pathlib import Path

import pytest

from data.glue import ENTAILMENTS, SENTIMENT_FILE, SENTIMENTS, read_pocket, read_rte, read_sentences, read_sst2
from data.registry import get_task
from tests.helpers.paths import ROOT
from utils.errors import UserError

GOOD = {
    "sst2": ["sentence\tlabel", "hide new secretions \t0", 'a "charming film\t1', "dull\t0"],
    "rte": ["index\tsentence1\tsentence2\tlabel", "0\tIt rains.\tIt is wet.\tentailment", "1\tA b.\tC d.\tnot_entailment"],
}
FOLDERS = {"sst2": "glue_sst2", "rte": "glue_rte"}


def counts(task: str, splits: dict) -> dict[str, dict[str, int]]:
    labels = get_task(task).labels
    return {split: dict(Counter(labels[example.label] for example in examples)) for split, examples in splits.items()}


# --- the real files


def test_sst2_is_the_published_one(shared: Path):
    splits = read_sst2(shared / "data")
    assert counts("sst2", splits) == {
        "train": {"negative": 29_780, "positive": 37_569},
        "validation": {"negative": 428, "positive": 444},
    }
    assert splits["train"][0] == ("hide new secretions from the parental units ", 0, None)  # the space belongs to it
    assert splits["validation"][0] == ("it 's a charming and often affecting journey . ", 1, None)


def test_rte_is_the_published_one(shared: Path):
    splits = read_rte(shared / "data")
    assert counts("rte", splits) == {
        "train": {"entailment": 1249, "not_entailment": 1241},
        "validation": {"entailment": 146, "not_entailment": 131},
    }
    first = splits["train"][0]
    assert first.text == "No Weapons of Mass Destruction Found in Iraq Yet."
    assert (first.label, first.pair) == (1, "Weapons of Mass Destruction Found in Iraq.")


# --- quotes and line ends


def write(folder: Path, task: str, lines: list[str] | bytes, name: str = "train.tsv", end: str = "\n") -> Path:
    """A data directory whose files are good, except that the named one holds these lines."""
    (folder / FOLDERS[task]).mkdir(exist_ok=True)
    for file in ("train.tsv", "dev.tsv"):
        content = lines if file == name else GOOD[task]
        path = folder / FOLDERS[task] / file
        path.write_bytes(content if isinstance(content, bytes) else "".join(line + end for line in content).encode())
    return folder / FOLDERS[task] / name


@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["unix", "windows"])
def test_quotes_mean_nothing_and_spaces_stay(tmp_path: Path, end: str):
    write(tmp_path, "sst2", GOOD["sst2"], end=end)
    assert read_sst2(tmp_path)["train"] == [
        ("hide new secretions ", 0, None),
        ('a "charming film', 1, None),
        ("dull", 0, None),
    ]


def test_only_a_newline_ends_a_line(tmp_path: Path):
    write(tmp_path, "sst2", ["sentence\tlabel", "one\u2028two\x85three\x0cfour\t1"])
    assert read_sst2(tmp_path)["train"] == [("one\u2028two\x85three\x0cfour", 1, None)]


def test_columns_are_found_by_name(tmp_path: Path):
    write(tmp_path, "rte", ["label\tsentence2\tsentence1", "entailment\tsecond\tfirst"])
    assert read_rte(tmp_path)["train"] == [("first", 0, "second")]


# --- broken files


def complaint(read, *args) -> str:
    with pytest.raises(UserError) as caught:
        read(*args)
    assert str(caught.value).isprintable()  # one line, and what stands in the file can't control the terminal
    return str(caught.value)


BROKEN = {
    "unknown label": ("sst2", 3, "fine\t2", "the label is '2'; it must be one of 0, 1"),
    "label in words": ("sst2", 3, "fine\tpositive", "the label is 'positive'; it must be one of 0, 1"),
    "no label": ("sst2", 3, "fine\t", "expected a text under label"),
    "no tab": ("sst2", 3, "fine", "expected 2 columns (sentence, label), got 1: ['fine']"),
    "two tabs": ("sst2", 3, "fine\tfilm\t1", "expected 2 columns (sentence, label), got 3"),
    "blank line": ("sst2", 3, "", "expected 2 columns (sentence, label), got 1"),
    "no text": ("sst2", 3, "  \t1", "expected a text under sentence, got '  '"),
    "escape": ("sst2", 3, "\x1b[31mred\t7\r8", "the label is '7\\r8'"),
    "number as label": ("rte", 3, "1\ta\tb\t0", "the label is '0'; it must be one of entailment, not_entailment"),
    "no second text": ("rte", 3, "1\ta\t\tentailment", "expected a text under sentence2"),
    "one text": ("rte", 3, "1\ta\tentailment", "expected 4 columns (index, sentence1, sentence2, label), got 3"),
    "no header": ("sst2", 1, "fine\t1", "expected the column sentence, got ['fine', '1']"),
    "one column of a pair": ("rte", 1, "index\tsentence1\tlabel", "expected the column sentence2"),
    "no label column": ("rte", 1, "index\tsentence1\tsentence2", "expected the column label"),
    "long": ("sst2", 3, "x" * 5000, "expected 2 columns"),
}


@pytest.mark.parametrize("name", ["train.tsv", "dev.tsv"])
@pytest.mark.parametrize("task, number, line, said", BROKEN.values(), ids=BROKEN)
def test_a_broken_line_is_named(tmp_path: Path, task: str, number: int, line: str, said: str, name: str):
    lines = [*GOOD[task][: number - 1], line, *GOOD[task][number:]]
    path = write(tmp_path, task, lines, name)
    message = complaint(get_task(task).read, tmp_path)
    assert f"{path}, line {number}: " in message and said in message
    assert len(message) < 300 + len(str(path))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", " is empty"),
        (b"\n \n", " is empty"),
        (b"sentence\tlabel\n", " holds no examples"),
        (b"sentence\tlabel\nfine\t1\ncaf\xe9\t1\n", ", line 3: expected UTF-8, got the byte 0xe9"),
        ("sentence\tlabel\nfine\t1\n".encode("utf-16"), ", line 1: expected UTF-8"),
    ],
    ids=["nothing", "blank", "header alone", "latin-1", "utf-16"],
)
def test_a_file_that_is_no_such_table(tmp_path: Path, content: bytes, said: str):
    path = write(tmp_path, "sst2", content)
    assert f"{path}{said}" in complaint(read_sst2, tmp_path)


@pytest.mark.parametrize("task", ["sst2", "rte"])
def test_a_directory_without_the_file(tmp_path: Path, task: str):
    write(tmp_path, task, GOOD[task])
    (tmp_path / FOLDERS[task] / "dev.tsv").unlink()
    assert f"the data directory {tmp_path} has no {FOLDERS[task]}/dev.tsv" in complaint(get_task(task).read, tmp_path)


# --- the shipped sentences

SENTENCES = ["train\tpositive\ta fine film", "validation\tnegative\ta dull one", "test\tpositive\tgo and see it"]


def sentences(folder: Path, lines: list[str]) -> Path:
    path = folder / "sentences.tsv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_the_shipped_sentences():
    if not (ROOT / "data" / "pocket" / SENTIMENT_FILE).is_file():
        pytest.skip(f"data/pocket/{SENTIMENT_FILE} isn't written yet")
    splits = read_pocket(None)
    assert all({example.label for example in examples} == {0, 1} for examples in splits.values())
    texts = [example.text.lower() for examples in splits.values() for example in examples]
    assert len(set(texts)) == len(texts)


def test_sentences_are_read_into_their_splits(tmp_path: Path):
    assert read_sentences(sentences(tmp_path, SENTENCES)) == {
        "train": [("a fine film", 1, None)],
        "validation": [("a dull one", 0, None)],
        "test": [("go and see it", 1, None)],
    }


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("dev\tpositive\tfine", "expected train, validation, test, a tab, a label, a tab and a sentence, got ['dev'"),
        ("train\tpositive", "expected train, validation, test"),
        ("train\t1\tfine", "the label is '1'; it must be one of negative, positive"),
        ("train\tpositive\t ", "expected a text under sentence"),
    ],
    ids=["split", "columns", "label", "text"],
)
def test_a_broken_sentence(tmp_path: Path, line: str, said: str):
    path = sentences(tmp_path, [SENTENCES[0], line, *SENTENCES[1:]])
    message = complaint(read_sentences, path)
    assert f"{path}, line 2: " in message and said in message


def test_each_split_has_sentences(tmp_path: Path):
    path = sentences(tmp_path, SENTENCES[:2])
    assert complaint(read_sentences, path) == f"{path}: the split test holds no examples"


# --- the tasks


def test_labels_are_in_the_order_of_glue():
    assert SENTIMENTS == ("negative", "positive") and ENTAILMENTS == ("entailment", "not_entailment")


def test_recipes_take_as_many_steps_as_the_logs(shared: Path):
    """SST-2: 4.24 steps a second in 496.6463 seconds. RTE: 468 steps."""
    for name, published in (("sst2", 4.24 * 496.6463), ("rte", 468)):
        task = get_task(name)
        batches = -(-len(task.read(shared / "data")["train"]) // task.recipe["batch_size"])
        assert batches * task.recipe["num_epochs"] == pytest.approx(published, rel=5e-4)


def test_what_stands_in():
    assert get_task("sst2").shipped == "sentiment-pocket"
    assert get_task("sentiment-pocket").labels == get_task("sst2").labels
    assert get_task("rte").shipped == "sentiment-pocket"
