"""Event files for TensorBoard hold the numbers of metrics.jsonl, also after a run was interrupted."""

import builtins
import json

import pytest

from tests.helpers.interrupt import interrupt_run
from training.metrics_log import Metrics
from training.tensorboard import EventFiles, need_tensorboard
from utils.errors import UserError


def scalars(directory) -> dict[str, list[tuple[int, float]]]:
    """Return what TensorBoard reads of a directory: (step, value) by tag."""
    package = "tensorboard.backend.event_processing.event_accumulator"
    reader = pytest.importorskip(package, reason="event files need tensorboard").EventAccumulator(str(directory))
    reader.Reload()
    return {tag: [(one.step, one.value) for one in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}


def expected(records: list[dict]) -> dict[str, list[tuple[int, float]]]:
    """Return the same of the records of a run with one stage."""
    found: dict[str, list[tuple[int, float]]] = {}
    for record in records:
        for name in record.keys() - {"step", "split"}:
            tag = f"{name}/{record['split'].replace(' ', '_')}"
            found.setdefault(tag, []).append((record["step"], pytest.approx(record[name], rel=1e-6)))
    return found


@pytest.mark.not_quick
def test_a_run_writes_the_numbers_of_its_log(experiment):
    pytest.importorskip("tensorboard", reason="event files need tensorboard")
    run = experiment("--log", "tensorboard", max_steps=3)
    found = scalars(run.directory)
    assert found == expected(run.metrics)
    assert {"loss/train", "accuracy/train", "learning_rate/train", "loss/validation", "accuracy/final_test"} <= found.keys()


@pytest.mark.not_quick
def test_a_complete_run_gets_event_files_later(experiment):
    pytest.importorskip("tensorboard", reason="event files need tensorboard")
    experiment(max_steps=3)
    run = experiment("--log", "tensorboard", "--resume", max_steps=3)
    assert run.forwards == [] and scalars(run.directory) == expected(run.metrics)


@pytest.mark.not_quick
def test_a_resumed_run_has_each_step_once(experiment, monkeypatch):
    pytest.importorskip("tensorboard", reason="event files need tensorboard")
    interrupt_run(monkeypatch, 3)
    experiment("--log", "tensorboard", max_steps=5)
    run = experiment("--log", "tensorboard", "--resume", max_steps=5)
    found = scalars(run.directory)
    assert found == expected(run.metrics) and [step for step, _ in found["loss/train"]] == [1, 2, 3, 4, 5]


def test_stages_follow_one_another(tmp_path):
    pytest.importorskip("tensorboard", reason="event files need tensorboard")
    metrics = Metrics(tmp_path / "metrics.jsonl", events=EventFiles(tmp_path))
    for stage in (1, 2):
        metrics.stage = stage
        for step in (1, 2):
            metrics.write(step=step, split="train", loss=float(stage), accuracy=0.5)
    metrics.close()
    assert scalars(tmp_path)["loss/train"] == [(1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0)]


def test_without_the_package_the_error_says_how_to_install_it(monkeypatch, experiment):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith(("tensorboard", "torch.utils.tensorboard")):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match="--log tensorboard needs the package tensorboard: pip install tensorboard"):
        need_tensorboard()
    with pytest.raises(UserError, match="pip install tensorboard"):  # before any time is spent
        experiment("--log", "tensorboard")
    with pytest.raises(UserError, match="--log is 'wandb'; choose jsonl, tensorboard"):
        experiment("--log", "wandb")


def test_a_full_disk_ends_no_run(tmp_path, monkeypatch, capsys):
    class Full:
        def __init__(self, directory): ...

        def add_scalar(self, tag, value, step):
            raise OSError(28, "No space left on device")

        def close(self): ...

    monkeypatch.setattr("training.tensorboard.need_tensorboard", lambda: Full)
    metrics = Metrics(tmp_path / "metrics.jsonl", events=EventFiles(tmp_path))
    for step in (1, 2):
        metrics.write(step=step, split="train", loss=1.0, accuracy=0.5)
    metrics.close()
    assert len([json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "can't write event files in" in line and "the run goes on" in line and "No space left" in line
