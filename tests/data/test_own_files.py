"""Where a user's own texts lie: in a file, in a directory with a file for each split, or on a hub that speaks on 127.0.0.1.

huggingface_hub reads its environment once, when it is imported; so what goes to the hub runs in a process of its own.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from config import Run
from data.own import Columns
from data.own_files import choose
from data.own_task import load
from data.registry import get_task
from tests.helpers.own import texts, write
from tests.helpers.paths import ROOT
from tests.helpers.servers import NOWHERE, FakeHub
from utils.errors import UserError

# --- a directory

FIRST, SECOND = "train-00000-of-00002.csv", "train-00001-of-00002.csv"


@pytest.mark.parametrize(
    ("names", "files", "others"),
    [
        (["train.csv", "dev.csv", "test.csv"], ["train: train.csv", "validation: dev.csv", "test: test.csv"], []),
        (["my_train.TSV", "README.md"], ["train: my_train.TSV"], []),
        (
            ["snli_1.0_train.jsonl", "snli_1.0_dev.jsonl"],
            ["train: snli_1.0_train.jsonl", "validation: snli_1.0_dev.jsonl"],
            [],
        ),
        (["train.csv", "labels.csv", ".train.csv"], ["train: train.csv"], ["labels.csv"]),
        (["reviews.csv", "notes.txt"], ["None: reviews.csv"], []),
        (["info.json", "data/train-00000-of-00001.csv"], ["train: data/train-00000-of-00001.csv"], ["info.json"]),
        (["x/train.csv", "x/test.csv"], ["train: x/train.csv", "test: x/test.csv"], []),
        (["train.csv", "x/train.csv"], ["train: train.csv"], ["x/train.csv"]),
        (
            [SECOND, FIRST],
            ["train: train-00000-of-00002.csv train-00001-of-00002.csv"],
            [],
        ),
        (
            ["training.csv", "valid_1.csv", "contest.csv"],
            ["train: training.csv", "validation: valid_1.csv"],
            ["contest.csv"],
        ),
    ],
)
def test_the_names_of_files_say_their_splits(names, files, others):
    found = choose("DIR", names)
    assert [f"{split}: {' '.join(some)}" for split, some in found.files.items()] == files and found.others == others


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ([], "DIR holds no file that ends in .csv, .tsv, .jsonl, .json, .parquet"),
        (
            ["a.csv", "b.csv"],
            "DIR holds a.csv, b.csv; the name of one has to say that it is for training, such as",
        ),
        (["test.csv"], "DIR holds test.csv; the name of one has to say"),
        (["train.csv", "test.csv", "test.tsv"], "DIR has several files for test: test.csv, test.tsv; leave one"),
        (["train.csv", "dev.csv", "valid.csv"], "DIR has several files for validation: dev.csv, valid.csv; leave one"),
        (["train_test.csv"], "DIR: the name of train_test.csv says test and train; rename it"),
        (["a/train.csv", "b/train.csv"], "DIR has files for training in several folders (a, b); name one"),
        (["train-00000-of-00002.csv"], "DIR has 1 of the 2 parts of train: train-00000-of-00002.csv"),
        (["train-00000-of-00002.csv", "train.csv"], "DIR has several files for train"),
    ],
)
def test_names_that_say_too_much_or_too_little_are_refused(names, said):
    with pytest.raises(UserError) as caught:
        choose("DIR", names)
    assert str(caught.value).startswith(said)


def test_a_directory_with_files_of_several_formats(tmp_path):
    write(tmp_path / "train.csv", [["text", "label"], *texts(20, "a", "b")])
    (tmp_path / "dev.jsonl").write_text(
        "\n".join(json.dumps({"Sentence": f"d{i}", "class": "ab"[i % 2]}) for i in range(6))
    )
    write(tmp_path / "test.tsv", [["label", "text"], *(row[::-1] for row in texts(8, "a", "b"))], "\t")
    found = load(str(tmp_path), Columns())
    assert {name: len(some) for name, some in found.splits.items()} == {"train": 20, "validation": 6, "test": 8}
    assert (
        "read: train.csv, dev.jsonl, test.tsv; splits by files; 8 of 8 test texts are training texts too" in found.said[0]
    )
    write(tmp_path / "test.tsv", [["text", "label"], ["x", "c"]], "\t")
    with pytest.raises(UserError, match=r"test\.tsv, line 2: the label is 'c', which no training text has"):
        load(str(tmp_path), Columns())
    write(tmp_path / "test.tsv", [["id", "text", "more"], ["1", "x", "y"]], "\t")
    with pytest.raises(UserError, match=r"test\.tsv: no column has a usual name for the label"):
        load(str(tmp_path), Columns())


def test_a_name_that_is_nothing(tmp_path, alone):
    with pytest.raises(UserError, match=r"no\.csv can't be read: No such file or directory"):
        get_task("no.csv", Run())
    with pytest.raises(UserError, match=r"owner/name is no file or directory, .* HF_HUB_OFFLINE is set: run once"):
        get_task("owner/name", Run())
    for name in ("./owner/name", "some", "a.txt", "a/b/c"):
        with pytest.raises(UserError, match="unknown dataset"):
            get_task(name, Run())


# --- the hub

SCRIPT = """
import json, sys
sys.path.insert(0, ".")
from data.own import Columns
from data.own_task import load
from utils.errors import UserError
try:
    own = load(sys.argv[1], Columns())
    sizes = {name: len(some) for name, some in own.splits.items()}
    print(json.dumps({"labels": own.labels, "said": own.said, "sizes": sizes}))
except UserError as error:
    print(json.dumps({"error": str(error)}))
"""


@pytest.fixture
def attempt(tmp_path):
    """Return a function that reads a data set by its name in a process of its own, with a cache of this test."""

    def start(name: str, endpoint: str = NOWHERE, offline: bool = False) -> dict:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        environment |= {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": endpoint, "NO_PROXY": "127.0.0.1"}
        environment |= {"HF_HUB_OFFLINE": "1"} if offline else {}
        words = [sys.executable, "-c", SCRIPT, name]
        done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0 and not re.search(r"\d%\|", done.stderr), done.stderr
        result = json.loads(done.stdout)
        assert "\n" not in result.get("error", "")
        return result

    return start


def csv_of(tmp_path: Path, n: int, *labels: str) -> bytes:
    return write(tmp_path / "some.csv", [["text", "label"], *texts(n, *labels)]).read_bytes()


@pytest.fixture
def fake_hub(tmp_path):
    train, test = csv_of(tmp_path, 30, "no", "yes"), csv_of(tmp_path, 10, "yes", "no")
    serving = FakeHub(
        {"README.md": b"# some", "data/train.csv": train, "data/test.csv": test, "info.json": b"{}", "a.py": b"1"}
    )
    yield serving
    serving.server.shutdown()
    serving.server.server_close()


@pytest.mark.parametrize("name", ["owner/some", "owner/some@main"])
def test_a_data_set_is_downloaded_once_and_then_read_without_network(fake_hub, attempt, name):
    found = attempt(name, fake_hub.endpoint)
    assert found["labels"] == ["no", "yes"] and found["sizes"] == {"train": 26, "validation": 4, "test": 10}
    assert "read: data/train.csv, data/test.csv; not read: info.json" in found["said"][0]
    fetched = [one.rsplit("/", 1)[1] for one in fake_hub.requests if one.startswith("GET") and "/resolve/" in one]
    assert sorted(fetched) == ["test.csv", "train.csv"]  # and nothing else
    assert all("/datasets/" in one for one in fake_hub.requests if "/resolve/" in one)
    asked = len(fake_hub.requests)
    for how in ({"endpoint": fake_hub.endpoint}, {"endpoint": NOWHERE}, {"offline": True}):
        again = attempt(name, **how)
        assert again.get("sizes") == found["sizes"], again
    assert len(fake_hub.requests) == asked


def test_a_data_set_that_was_interrupted_is_not_taken_for_whole(fake_hub, attempt):
    fake_hub.hang_up_on = r"/resolve/.*/data/train\.csv"
    assert "the data set owner/some can't be downloaded from" in attempt("owner/some", fake_hub.endpoint)["error"]
    assert "isn't in the Hugging Face cache" in attempt("owner/some", offline=True)["error"]
    fake_hub.hang_up_on = None
    assert attempt("owner/some", fake_hub.endpoint)["sizes"]["test"] == 10


def test_what_the_hub_lacks_is_said(fake_hub, attempt, tmp_path):
    fake_hub.instead = [(r"/api/datasets/owner/none", lambda request: request.send_error(404))]
    assert "can't be downloaded" in attempt("owner/none", fake_hub.endpoint)["error"]
    del fake_hub.files["data/train.csv"], fake_hub.etags["data/train.csv"]
    assert "has to say that it is for training" in attempt("owner/some", fake_hub.endpoint)["error"]
    assert "doesn't answer: run once with a network" in attempt("owner/other", NOWHERE)["error"]


def test_content_that_differs_from_its_published_hash_is_refused(fake_hub, attempt):
    fake_hub.etags["data/test.csv"] = "ab" * 32
    assert "test.csv was downloaded with sha256" in attempt("owner/some", fake_hub.endpoint)["error"]
    fake_hub.etags["data/test.csv"] = hashlib.sha256(fake_hub.files["data/test.csv"]).hexdigest()
    assert attempt("owner/some", fake_hub.endpoint)["sizes"]["test"] == 10
