"""Broken and hostile input by the thousand, see `tests/fuzz.py`; and that the fuzzer would notice if it were taken badly."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from errors import LONGEST, UserError

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the limits on memory are read from /proc")


def fuzz(*argv, before: str = "") -> subprocess.CompletedProcess:
    """In a process of its own: limits on memory are for good. `before` is run there first."""
    code = f"import sys\nfrom tests import fuzz\n{before}\nsys.exit(fuzz.main(sys.argv[1:]))"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, argv)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=3600
    )


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


# Checks that are missing, and the kind of input in which that must be noticed.
BROKEN = {
    "the shapes are compared too late": ("config", "import model; model.weights.fit = lambda *_: []", "RuntimeError"),
    "brackets within brackets": ("config", "import json, model.weights as w; w.read_json = lambda f: json.loads(f.read_text())", "RecursionError"),
    "shards may be anywhere": ("index", "import model.weights as w, json\nw._shard_files = lambda i: [i.parent / n for n in set(json.loads(i.read_text())['weight_map'].values())]", "reads "),
    "an archive may be as large as it likes": ("archive", "import data.download; data.download.LARGEST = 2**40", "writes a file of more than"),
    "a dataset is unpickled": ("records", "import pickle, data.domains as d\nd.read_text = lambda p: pickle.loads(p.read_bytes()) if p.read_bytes()[:1] == b'\\x80' else p.read_text()", "unpickles"),
    "lines break": ("run", "import errors; errors.UserError.__init__ = ValueError.__init__", "says "),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind, before, said", BROKEN.values(), ids=BROKEN)
def test_a_missing_check_is_noticed(kind, before, said):
    found = fuzz("--cases", 150, "--kinds", kind, "--shells", 0, before=before)
    assert found.returncode == 1 and said in found.stdout, found.stdout + found.stderr


def test_a_message_is_one_printable_line():
    assert str(UserError("no \x1b[31m\nred \ud800 naïve 海")) == "no \\x1b[31m red \\ud800 naïve 海"
    assert len(str(UserError("x" * 10**6))) == LONGEST + 3
