"""What makes a result stale: the code that a run depends on, and no other."""

from pathlib import Path

import pytest

from config import Run
from pipeline.comparison import code_hash
from pipeline.comparison.code_hash import ROOT, closure, code_of, code_sha256, hash_of
from pipeline.comparison.jobs import comparisons_of, prepare_one
from pipeline.comparison.methods import ENTRIES

BY_TITLE = {entry.title: entry for entry in ENTRIES}


def job_of(title: str, **flags):
    """Return the job of a method on the shipped encoder."""
    (comparison,) = comparisons_of(Run(**({"dataset": "sentiment-pocket"} | flags)))
    return prepare_one(comparison, BY_TITLE[title], 1e-3, 0, with_test=False)


def files_of(monkeypatch, job) -> set[str]:
    """Return the files of which a job's hash is taken."""
    found = []
    monkeypatch.setattr(code_hash, "hash_of", lambda files: found.extend(files) or "")
    code_sha256(job)
    return {file.relative_to(ROOT).as_posix() for file in found}


def test_the_hash_is_taken_of_what_the_run_depends_on(monkeypatch):
    files = files_of(monkeypatch, job_of("LoRA, r = 16"))
    assert files >= {"train.py", "model/distilbert.py", "model/heads.py", "peft/lora.py", "peft/targets.py"}
    assert files >= {"pipeline/comparison/runs.py", "training/optimizer.py", "data/batching.py", "data/encode.py"}
    others = {"peft/ia3.py", "peft/prefix.py", "pipeline/screen.py", "pipeline/comparison/table.py", "config.py"}
    assert not files & others and not any(name.endswith("registry.py") for name in files)


def test_a_method_depends_on_its_own_file(monkeypatch):
    ia3, lora = (files_of(monkeypatch, job_of(title)) for title in ("IA3", "LoRA, r = 16"))
    assert "peft/ia3.py" in ia3 - lora and "peft/lora.py" in lora - ia3


def test_preferences_depend_on_their_loss_and_on_what_they_refer_to(monkeypatch):
    files = files_of(monkeypatch, job_of("DPO, LoRA r = 16", dataset="persona"))
    assert files >= {"data/preferences.py", "model/preference_loss.py", "training/references.py", "peft/lora.py"}


def test_each_rank_of_lora_has_the_same_code():
    assert code_sha256(job_of("LoRA, r = 4")) == code_sha256(job_of("LoRA, r = 64"))
    assert code_sha256(job_of("LoRA, r = 4")) != code_sha256(job_of("IA3"))
    assert code_sha256(job_of("LoRA, r = 4")) != code_sha256(job_of("LoRA, r = 4", dataset="persona"))


@pytest.fixture
def house(tmp_path, monkeypatch) -> Path:
    """Return a made-up checkout of two files, the first of which imports the second."""
    monkeypatch.setattr(code_hash, "ROOT", tmp_path)
    (tmp_path / "peft").mkdir()
    (tmp_path / "peft" / "one.py").write_text(
        '"""One."""\nfrom peft import two, registry\nimport torch\nx = two.y  # why\n'
    )
    (tmp_path / "peft" / "two.py").write_text("y = 1\n")
    (tmp_path / "peft" / "registry.py").write_text("import peft.three\n")
    (tmp_path / "peft" / "three.py").write_text("")
    yield tmp_path
    code_of.cache_clear()
    code_hash.imports_of.cache_clear()


def test_imports_are_followed_and_lists_are_not(house):
    assert closure([house / "peft" / "one.py"]) == {house / "peft" / "one.py", house / "peft" / "two.py"}


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ('"""Another."""\nfrom peft import two, registry\n\n\nimport torch\nx = two.y\n', True),
        ("from peft import two, registry\nimport torch\nx = (  # because\n    two.y\n)\n", True),
        ('"""One."""\nfrom peft import two, registry\nimport torch\nx = two.y + 1\n', False),
    ],
)
def test_comments_docstrings_and_layout_do_not_count(house, text, same):
    file = house / "peft" / "one.py"
    before = hash_of([file])
    file.write_text(text)
    code_of.cache_clear()
    assert (hash_of([file]) == before) == same


def test_a_function_with_nothing_but_a_docstring_is_read(house):
    file = house / "peft" / "one.py"
    file.write_text('class A:\n    """Be."""\n\n    def f(self):\n        """Do."""\n')
    code_of.cache_clear()
    assert code_of(file) == "class A:\n\n    def f(self):\n        pass"
