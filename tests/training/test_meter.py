"""What is recorded of a training: metrics as they come, tokens, and the time that steps take."""

import json
import time
from dataclasses import replace

import pytest

import train
from tests.helpers.loop import WIDTH, make_batches, make_examples, make_model, settings
from train import fit
from training.checkpoints import Checkpointer, newest
from training.metrics_log import Metrics

pytestmark = pytest.mark.not_quick  # it sleeps, to see whose time that is


def test_metrics_are_written_as_they_come(tmp_path):
    def records(name, **changes):
        metrics = Metrics(tmp_path / name)
        fit(
            make_model(),
            make_batches(make_examples(18), 4),
            settings(**changes),
            metrics,
            make_batches(make_examples(3), 2),
        )
        metrics.close()
        lines = [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
        assert lines == metrics.records
        return lines

    each, pairs = records("each"), records("pairs", logging_steps=2, eval_steps=3)
    assert [(r["step"], r["split"]) for r in pairs] == [
        (2, "train"), (3, "validation"), (4, "train"), (5, "train"), (5, "validation"),
    ]  # fmt: skip
    keys = {"step", "epoch", "split", "loss", "accuracy", "seconds"}
    assert [set(r) - keys for r in pairs if r["split"] == "train"] == [{"learning_rate"}] * 3
    assert [set(r) - keys for r in pairs if r["split"] == "validation"] == [{"targets", "macro_f1"}] * 2
    # What is logged is the mean over the targets since the last record; the last step of the epoch has 2, not 4.
    losses = [r["loss"] for r in each if r["split"] == "train"]
    logged = [r["loss"] for r in pairs if r["split"] == "train"]
    assert logged == pytest.approx([(losses[0] + losses[1]) / 2, (losses[2] + losses[3]) / 2, losses[4]], rel=1e-6)


def test_tokens_and_the_time_for_them_leave_out_padding_and_evaluations(monkeypatch):
    examples, measure = make_examples(14), train.evaluate
    assert {len(one.ids) for one in examples} != {WIDTH}  # some are padded
    monkeypatch.setattr(train, "evaluate", lambda *args: time.sleep(0.5) or measure(*args))
    validation = make_batches(examples, 14)
    fitted = fit(make_model(), make_batches(examples, 4), settings(num_epochs=3), Metrics(), validation)
    assert fitted.tokens == 3 * sum(len(one.ids) for one in examples)
    started = time.perf_counter()
    plain = fit(make_model(), make_batches(examples, 4), settings(num_epochs=3), Metrics())
    assert 0 < plain.step_seconds < time.perf_counter() - started
    assert fitted.step_seconds < 1.5  # of three evaluations, none


def test_saves_and_replayed_steps_are_no_time_of_steps(tmp_path, monkeypatch):
    """Each save takes 0.2 s and so does skipping a step that was done; neither counts as a step's time."""
    save = Checkpointer.save

    def slow_save(self, *args, **how):
        time.sleep(0.2)
        save(self, *args, **how)

    monkeypatch.setattr(Checkpointer, "save", slow_save)
    batches, run = make_batches(make_examples(20), 2), settings(batch_size=2, save_steps=2, num_epochs=1)
    stopped = fit(make_model(), batches, replace(run, max_steps=8), Metrics(), None, Checkpointer(tmp_path))
    assert stopped.steps == 8 and stopped.step_seconds < 0.4  # of 3 saves
    epoch = batches.epoch

    def slow_epoch(number=0):
        for batch in epoch(number):
            time.sleep(0.2)
            yield batch

    point = newest(tmp_path)
    monkeypatch.setattr(batches, "epoch", slow_epoch)
    resumed = fit(
        make_model(), batches, replace(run, resume=True, max_steps=8), Metrics(), None, Checkpointer(tmp_path, point=point)
    )
    assert point.step == 6 and resumed.steps == 8
    assert resumed.step_seconds < 0.4 + 2 * 0.2 + 0.2  # two steps read slowly, six are skipped
