"""Broken and hostile input by the thousand, see `tests/fuzz.py`; and that it would notice where a check is missing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT
from utils.errors import LONGEST, UserError

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the limits on memory are read from /proc")


def fuzz(*argv, before: str = "") -> subprocess.CompletedProcess:
    """In a process of its own: limits on memory are for good. `before` is run there first."""
    code = f"import sys\nfrom tests import fuzz\n{before}\nsys.exit(fuzz.main(sys.argv[1:]))"
    argv, environment = [sys.executable, "-c", code, *map(str, argv)], os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=3600)


def totals(output: str) -> list[int]:
    """taken, refused, failed, and read from the shell, of all kinds together."""
    return next([int(word) for word in line.split()[1:]] for line in output.splitlines() if line.startswith("all "))


def test_a_part_of_the_cases():
    found = fuzz("--cases", 360, "--seed", 7, "--shells", 2)
    assert found.returncode == 0, found.stdout + found.stderr
    taken, refused, failed, shells = totals(found.stdout)
    assert taken + refused == 360 and min(taken, refused) > 30 and failed == 0 and shells == 2


@pytest.mark.slow
def test_all_cases():
    found = fuzz("--cases", 2000, "--seed", 7, "--shells", 20)
    assert found.returncode == 0, found.stdout + found.stderr
    taken, refused, failed, shells = totals(found.stdout)
    assert taken + refused == 2000 and failed == 0 and shells == 20


@pytest.mark.slow
def test_chatglm_files():
    pytest.importorskip("sentencepiece", reason="needs sentencepiece, whose ids are compared")
    found = fuzz("--cases", 300, "--seed", 7, "--kinds", "chatglm", "--shells", 6)
    assert found.returncode == 0, found.stdout + found.stderr
    taken, refused, failed, shells = totals(found.stdout)
    assert taken + refused == 300 and min(taken, refused) > 60 and failed == 0 and shells == 6


@pytest.mark.parametrize("kind", ["settings", "llama-settings"])
@pytest.mark.parametrize("cases", [60, pytest.param(1000, marks=pytest.mark.slow)])
def test_changed_settings_mean_what_they_mean_to_the_libraries(cases, kind):
    found = fuzz("--cases", cases, "--seed", 7, "--kinds", kind, "--shells", 0)
    assert found.returncode == 0, found.stdout + found.stderr
    taken, refused, failed, _ = totals(found.stdout)
    assert taken + refused == cases and min(taken, refused) > cases / 4 and failed == 0
    assert "changed as in the library" in found.stdout


# Checks taken away, the kind of input in which that must be noticed, and by what.
WITHOUT = {
    "a look at added tokens": (
        "from model.tokenizers.description import Description\nDescription.added_tokens = lambda self, vocab, size: []",
        "settings",
        "Failure: 'ids: theirs",
    ),
    "lists of what is known": (
        "from utils.settings import KnownSettings\nKnownSettings.check = lambda self, place, content: None",
        "settings",
        "theirs",
    ),
    "a look at the space in front": (
        "from model.tokenizers.description import Description\nsetting = Description.setting\n"
        "Description.setting = lambda self, name, default: name != 'add_prefix_space' and setting(self, name, default)",
        "settings",
        "Failure: 'ids: theirs",
    ),
    "lists of what a Llama's settings may be": (
        "from utils.settings import KnownSettings\nKnownSettings.check = lambda self, place, content: None",
        "llama-settings",
        "Failure: 'hidden: theirs",
    ),
    "a look at what ends a ChatGLM's text": (
        "from pipeline import inputs\ninputs.set_chatglm_ends = lambda *given: None",
        "chatglm",
        "Failure: 'a text ends with",
    ),
    "a look at the settings of a ChatGLM's vocabulary": (
        "from model.tokenizers import unigram_file\nunigram_file.check_parts = lambda parts: None",
        "chatglm",
        "theirs",
    ),
    "a limit to brackets within brackets": (
        "import json, model.config_file\nmodel.config_file.read_json = lambda file: json.loads(file.read_text())",
        "config",
        "RecursionError",
    ),
    "a check of where shards are": (
        "import json, model.weights\n"
        "names = lambda index: set(json.loads(index.read_text())['weight_map'].values())\n"
        "model.weights._shard_files = lambda index: [index.parent / str(name) for name in names(index)]",
        "index",
        "Failure: 'reads",
    ),
    "a limit to what is unpacked": (
        "import data.download\ndata.download.LARGEST = 2**40",
        "archive",
        "Failure: 'writes a file of more than",
    ),
    "a refusal of pickles": (
        "import pickle, data.domains, data.files\n"
        "is_pickled = lambda path: path.read_bytes()[:1] == b'\\x80'\n"
        "read = lambda path: pickle.load(path.open('rb')) if is_pickled(path) else data.files.read_text(path)\n"
        "data.domains.read_text = read",
        "records",
        'Failure: "unpickles',
    ),
    "one line for a message": (
        "from utils import errors\nerrors.UserError.__init__ = ValueError.__init__",
        "run",
        "Failure: 'says",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("before, kind, said", WITHOUT.values(), ids=WITHOUT)
def test_a_missing_check_is_noticed(before, kind, said):
    found = fuzz("--cases", 400 if "settings" in kind else 200, "--kinds", kind, "--shells", 0, before=before)
    assert found.returncode == 1 and said in found.stdout, found.stdout + found.stderr


def test_a_message_is_one_printable_line():
    assert str(UserError("no \x1b[31m\nred \ud800 naïve 海")) == "no \\x1b[31m red \\ud800 naïve 海"
    assert len(str(UserError("x" * 10**6))) == LONGEST + 3
