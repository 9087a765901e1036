"""Restaurants, citations and news: the published counts and split, few-shot draws, and what broken files are told."""

import hashlib
import json
from collections import Counter
from pathlib import Path

import pytest

from data.files import TextExample
from data.registry import TASKS, get_task
from data.spam import read_pocket
from data.task import few_shot_sample
from model import config_of
from pipeline.result import data_sha256
from tests.helpers.paths import ROOT
from utils.errors import UserError

FULL = ("restaurant_sup", "acl_sup", "agnews_sup")


# --- the real files

COUNTS = {
    "restaurant_sup": {
        "train": {"positive": 2094, "negative": 779, "neutral": 579},
        "validation": {"positive": 70, "negative": 26, "neutral": 54},
        "test": {"positive": 728, "negative": 196, "neutral": 196},
    },
    "acl_sup": {
        "train": {
            "Background": 867,
            "Uses": 317,
            "CompareOrContrast": 305,
            "Motivation": 76,
            "Extends": 63,
            "Future": 60,
        },
        "validation": {"Background": 59, "Uses": 21, "CompareOrContrast": 21, "Motivation": 5, "Extends": 4, "Future": 4},
        "test": {"Background": 71, "Uses": 26, "CompareOrContrast": 25, "Motivation": 7, "Extends": 5, "Future": 5},
    },
}


@pytest.mark.parametrize("name", COUNTS)
def test_the_data_are_the_published_ones(shared: Path, name: str):
    task = get_task(name)
    splits = task.read(shared / "data")
    found = {split: dict(Counter(task.labels[one.label] for one in examples)) for split, examples in splits.items()}
    assert found == COUNTS[name]


def test_an_aspect_comes_before_its_sentence(shared: Path):
    first = get_task("restaurant_sup").read(shared / "data")["train"][0]
    assert first == ("server", 0, "Our server was very helpful and friendly.")


def test_the_news_are_split_as_the_library_datasets_does_it(shared: Path):
    """The hashes are those of train_test_split(test_size=0.1, seed=2022) of datasets 5.2.0 on the descriptions."""
    splits = get_task("agnews_sup").read(shared / "data")
    found = {
        split: (len(examples), hashlib.sha256("".join(f"{e.label}\t{e.text}\n" for e in examples).encode()).hexdigest())
        for split, examples in splits.items()
    }
    assert found == {
        "train": (6840, "36aa72ba5ad1926241ad8dcdc8dcf433fc219e210b522b53a072132ab07f78ef"),
        "test": (760, "837174f4a5d3f7cc982e23a2f4afac39be0347e302b00759d4498a7621832148"),
    }
    assert Counter(e.label for examples in splits.values() for e in examples) == dict.fromkeys(range(4), 1900)


def test_news_are_their_descriptions_with_their_topics(shared: Path):
    topics = {example.text: example.label for example in get_task("agnews_sup").read(shared / "data")["train"]}
    labels = get_task("agnews_sup").labels
    yahoo = next(text for text in topics if text.startswith("Yahoo may glow in the halo effect of the popular Adobe"))
    assert labels[topics[yahoo]] == "Sci/Tech"


@pytest.fixture(scope="module")
def tokenizers(shared: Path) -> list:
    transformers = pytest.importorskip("transformers")
    folder = shared / "tokenizers"
    names = ("bert-base-uncased", "scibert-scivocab-uncased")
    roberta = [str(folder / "roberta-base" / file) for file in ("vocab.json", "merges.txt")]
    return [
        *(transformers.BertTokenizerFast(str(folder / name / "vocab.txt")) for name in names),
        transformers.RobertaTokenizerFast(*roberta),
    ]


@pytest.mark.parametrize("name", [*FULL, "sst2", "rte"])
def test_the_limit_on_the_length_cuts_no_text(shared: Path, tokenizers: list, name: str):
    """Shown for the 500 longest texts by characters of each split, which saves most of the time."""
    task = get_task(name)
    for examples in task.read(shared / "data").values():
        longest = sorted(examples, key=lambda one: len(one.text) + len(one.pair or ""))[-500:]
        pairs = [one.pair for one in longest] if longest[0].pair else None
        for tokenizer in tokenizers:
            ids = tokenizer([one.text for one in longest], pairs)["input_ids"]
            assert max(map(len, ids)) <= int(task.recipe["context_length"])


# --- few-shot


@pytest.mark.parametrize("name", FULL)
def test_few_shot_draws_from_the_training_split_alone(shared: Path, name: str):
    full, few = get_task(name), get_task(name.replace("_sup", "_fs"))
    splits = few.read(shared / "data")
    assert splits == full.read(shared / "data")
    assert full.sample_training(splits["train"], 1) is splits["train"]
    drawn = few.sample_training(splits["train"], 1)
    if name == "acl_sup":
        assert Counter(one.label for one in drawn) == dict.fromkeys(range(6), 8)
    else:
        assert len(drawn) == 32
    assert not Counter(drawn) - Counter(splits["train"])  # without replacement
    assert drawn == few.sample_training(splits["train"], 1)
    assert drawn != few.sample_training(splits["train"], 2)
    differ = {name for name, value in vars(few).items() if value != vars(full)[name]}
    assert differ == {"name", "few_shot", "recipe", "shipped"} and get_task(few.shipped).few_shot


def numbered(n: int, n_labels: int) -> list[TextExample]:
    return [TextExample(str(i), i % n_labels) for i in range(n)]


def test_few_shot_takes_classes_as_they_come_up_to_four_of_them():
    """4 classes are drawn without regard to them, 5 evenly."""
    examples = numbered(400, 4)
    draws = [few_shot_sample(examples, 4, seed) for seed in range(20)]
    assert all(len(draw) == 32 for draw in draws)
    assert any(Counter(one.label for one in draw) != dict.fromkeys(range(4), 8) for draw in draws)
    assert len({tuple(draw) for draw in draws}) == 20
    for seed in range(5):
        assert Counter(one.label for one in few_shot_sample(numbered(400, 5), 5, seed)) == dict.fromkeys(range(5), 8)


def test_few_shot_reaches_every_example():
    seen = {one.text for seed in range(40) for one in few_shot_sample(numbered(64, 2), 2, seed)}
    assert len(seen) == 64


@pytest.mark.parametrize(
    ("n", "n_labels", "said"),
    [(31, 2, "32 examples of the training split, which has only 31"), (39, 5, "8 examples of a class, which has only 7")],
)
def test_too_few_for_few_shot(n: int, n_labels: int, said: str):
    assert few_shot_sample(numbered(n + 1, n_labels), n_labels, 0)
    with pytest.raises(UserError, match=said):
        few_shot_sample(numbered(n, n_labels), n_labels, 0)


# --- what identifies the data


def test_data_without_pairs_keep_the_hash_that_earlier_results_recorded():
    results = (ROOT / "results").rglob("result.json")
    recorded = {
        result["data_sha256"] for path in results if (result := json.loads(path.read_text()))["dataset"] == "spam-pocket"
    }
    assert recorded == {data_sha256(read_pocket(None))}


def test_a_pair_changes_the_hash():
    hashes = {data_sha256({"train": [TextExample("a", 0, pair)]}) for pair in (None, "", "b", "c")}
    assert len(hashes) == 4


# --- broken files

RECORD = {"polarity": "positive", "term": "server", "id": "1_0", "sentence": "Our server was friendly."}
CITATION = {"text": "As shown by Smith ( 1999 ) .", "label": "Background", "metadata": {}}
NEWS = '"3","A title","A ""quoted"" description"'
FILES = {
    "restaurant_sup": dict.fromkeys(("train.json", "dev.json", "test.json"), json.dumps({"1_0": RECORD}, indent=1)),
    "acl_sup": dict.fromkeys(("train.jsonl", "dev.jsonl", "test.jsonl"), f"{json.dumps(CITATION)}\n" * 3),
    "agnews_sup": {"test.csv": f"{NEWS}\n" * 20},
}


def write(folder: Path, name: str, file: str = "", content: str | bytes = "") -> Path:
    """A data directory whose files are good, except that the named one has this content."""
    (folder / name).mkdir()
    for one, good in FILES[name].items():
        raw = content if one == file else good
        (folder / name / one).write_bytes(raw if isinstance(raw, bytes) else raw.encode())
    return folder / name / file


def complaint(name: str, folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        get_task(name).read(folder)
    assert str(caught.value).isprintable()
    return str(caught.value)


@pytest.mark.parametrize("name", FULL)
def test_small_good_files_are_read(tmp_path: Path, name: str):
    """The other tests break these in one place, so they must be fine as they are."""
    write(tmp_path, name)
    splits = get_task(name).read(tmp_path)
    if name == "agnews_sup":
        assert {split: len(examples) for split, examples in splits.items()} == {"train": 18, "test": 2}
        assert splits["test"][0] == ('A "quoted" description', 2, None)
    else:
        acl = [("As shown by Smith ( 1999 ) .", 0, None)] * 3
        content = acl if name == "acl_sup" else [("server", 0, "Our server was friendly.")]
        assert splits == {"train": content, "validation": content, "test": content}


def without(record: dict, key: str) -> dict:
    return {name: value for name, value in record.items() if name != key}


def record(**changes) -> str:
    return json.dumps({"1_0": RECORD, "2_0": RECORD | changes}, indent=1)


def citations(line: str) -> str:
    return f"{json.dumps(CITATION)}\n{line}\n{json.dumps(CITATION)}\n"


def news(line: str) -> str:
    return f"{NEWS}\n{line}\n{NEWS}\n"


POLARITIES = "it must be one of positive, negative, neutral"
INTENTS = "it must be one of Background, Uses, CompareOrContrast, Motivation, Extends, Future"
BROKEN = {
    "unknown polarity": (
        "dev.json",
        record(polarity="conflict"),
        f", record '2_0': the polarity is 'conflict'; {POLARITIES}",
    ),
    "no term": ("test.json", record(term=""), ", record '2_0': expected a text under term, got ''"),
    "term of another type": ("train.json", record(term=3), ", record '2_0': expected a text under term, got 3"),
    "no sentence": (
        "train.json",
        json.dumps({"1": without(RECORD, "sentence")}),
        ", record '1': expected a text under sente",
    ),
    "no record": ("train.json", '{"1": []}', ", record '1': expected an object with term, sentence, polarity, got []"),
    "a list of records": ("train.json", "[1]", ": expected an object of records by their ids, got [1]"),
    "no records": ("train.json", "{}", ": expected an object of records by their ids"),
    "comma": ("train.json", '{\n"1_0": {"term": "a"\n"b": 1}}', ", line 3: no JSON: Expecting ',' delimiter"),
    "empty": ("train.json", "", ", line 1: no JSON: Expecting value"),
    "latin-1": ("train.json", b'{\n"caf\xe9": 1}', ", line 2: expected UTF-8, got the byte 0xe9"),
    "brackets": ("train.json", "[" * 200_000, ", line 1: no JSON: "),
    "digits": ("train.json", "[" + "1" * 5000 + "]", ", line 1: no JSON: "),
    "unknown intent": (
        "dev.jsonl",
        citations(json.dumps(CITATION | {"label": "Use"})),
        f", line 2: the label is 'Use'; {INTENTS}",
    ),
    "no label": ("test.jsonl", citations(json.dumps(without(CITATION, "label"))), ", line 2: expected a text under label"),
    "no text": (
        "train.jsonl",
        citations(json.dumps(CITATION | {"text": None})),
        ", line 2: expected a text under text, got N",
    ),
    "cut line": ("train.jsonl", citations(json.dumps(CITATION)[:-5]), ", line 2: no JSON: "),
    "blank line": ("train.jsonl", citations(""), ", line 2: no JSON: Expecting value"),
    "no object": ("train.jsonl", citations('"a"'), ", line 2: expected an object with text, label, got 'a'"),
    "empty lines": ("train.jsonl", "", " is empty"),
    "lines in latin-1": ("train.jsonl", citations("@").encode().replace(b"@", b"\xe9"), ", line 2: expected UTF-8"),
    "class 0": ("test.csv", news('"0","a","b"'), ", line 2: the class is '0'; it must be one of 1, 2, 3, 4"),
    "two columns": ("test.csv", news('"1","a"'), ", line 2: expected 3 columns (class, title, description), got 2"),
    "no description": ("test.csv", news('"1","a",""'), ", line 2: expected a text under description, got ''"),
    "open quote": ("test.csv", news('"1","a","b'), ", line 3: "),
    "no news": ("test.csv", "", " has 0 examples; a split needs at least 2"),
    "one piece of news": ("test.csv", f"{NEWS}\n", " has 1 examples; a split needs at least 2"),
    "news in latin-1": ("test.csv", news("@").encode().replace(b"@", b"\xe9"), ", line 2: expected UTF-8"),
}


@pytest.mark.parametrize("file, content, said", BROKEN.values(), ids=BROKEN)
def test_a_broken_file(tmp_path: Path, file: str, content: str | bytes, said: str):
    name = {".json": "restaurant_sup", ".jsonl": "acl_sup", ".csv": "agnews_sup"}[Path(file).suffix]
    path = write(tmp_path, name, file, content)
    message = complaint(name, tmp_path)
    assert f"{path}{said}" in message
    assert len(message) < 300 + len(str(path))


@pytest.mark.parametrize("name", FULL)
def test_a_directory_without_the_file(tmp_path: Path, name: str):
    write(tmp_path, name)
    file = max(FILES[name])
    (tmp_path / name / file).unlink()
    assert f"the data directory {tmp_path} has no {name}/{file}" in complaint(name, tmp_path)


# --- the tasks


def test_the_recipe_is_the_published_one():
    for name in (*FULL, "restaurant_fs", "acl_fs", "agnews_fs"):
        task = TASKS[name]
        published = {"num_epochs": 3, "learning_rate": 2e-5, "weight_decay": 0.01, "batch_size": 128}
        ours = {"num_epochs": 20, "batch_size": 8} if task.few_shot else {}
        assert (published | ours).items() <= task.recipe_for(config_of("roberta-base")).items()
        assert task.metrics == ("accuracy", "macro_f1")
    assert TASKS["sst2"].metrics == TASKS["spam"].metrics == ("accuracy",)


@pytest.mark.parametrize(
    "first, last",
    [('"1","a","b', 'c"'), ('"1","a","b', '"4","d","e""'), ('1,a,"b', '4,d,e"'), ('1,"a', '2,b",c')],
    ids=["text", "a quoted row", "a row", "a title"],
)
def test_a_quote_that_swallows_news_is_named_by_the_line_where_it_opens(tmp_path: Path, first: str, last: str):
    path = write(tmp_path, "agnews_sup", "test.csv", "\n".join([NEWS, NEWS, first, NEWS.replace('"', ""), last, NEWS, ""]))
    message = complaint("agnews_sup", tmp_path)
    assert f"{path}, line 3: a quote opens that swallows" in message or "; a quote opens in line 3" in message


def test_news_over_two_lines_is_one_piece(tmp_path: Path):
    write(tmp_path, "agnews_sup", "test.csv", f'{NEWS}\n"3","a","2004, a year\nof 3 things"\n{NEWS}\n')
    splits = get_task("agnews_sup").read(tmp_path)
    assert sum(map(len, splits.values())) == 3
