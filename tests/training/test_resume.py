"""An interrupted training goes on as if nothing had been, bit for bit."""

import errno
import math
import os
import signal
from pathlib import Path

import pytest
import torch

from data.batching import Batches, seeded_order
from model import weights as model_weights
from tests.helpers.interrupt import interrupt_model
from tests.helpers.loop import (
    CONFIG,
    WIDTH,
    assert_equal,
    differ,
    make_batches,
    make_examples,
    make_model,
    settings,
    weights,
)
from train import fit, update
from training.checkpoints import Checkpointer, Progress, newest
from training.meter import Meter
from training.metrics_log import Metrics
from utils.errors import UserError

RESUMING = {"num_epochs": 2, "batch_size": 2, "accumulation_steps": 3, "learning_rate": 1e-2, "lr_scheduler_type": "cosine"}


def start(dropout, folder=None, resume=False, interrupt=None, layers="last_block", batches=None, **changes):
    """3 steps an epoch, of 6, 6 and 2 examples. `folder`: where it is saved."""
    model = make_model(dropout=dropout, layers=layers)
    if interrupt:
        interrupt_model(model, interrupt)
    batches = batches or make_batches(make_examples(14), 2, order=seeded_order(14, 1))
    keeper = Checkpointer(folder, point=newest(folder) if resume else None) if folder else None
    fitted = fit(model, batches, settings(resume=resume, **RESUMING | changes), Metrics(), None, keeper)
    return model, fitted


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("forward, steps", [(2, 1), (4, 2), (7, 3), (9, 4)])
def test_an_interrupted_run_goes_on_bit_for_bit(dropout, forward, steps, tmp_path):
    handler = signal.getsignal(signal.SIGINT)
    whole, fitted = start(dropout)
    assert (fitted.steps, fitted.interrupted) == (6, False)
    half, fitted = start(dropout, tmp_path, interrupt=forward)
    assert (fitted.steps, fitted.interrupted) == (steps, True)  # the step under way is finished
    assert differ(weights(half), weights(whole))
    resumed, fitted = start(dropout, tmp_path, resume=True)
    assert (fitted.steps, fitted.interrupted) == (6, False)
    assert_equal(weights(resumed), weights(whole))
    assert signal.getsignal(signal.SIGINT) is handler


class InterruptedBatches(Batches):
    """Ctrl-C while the very first batch is put together."""

    def epoch(self, number=0):
        if number == 0:
            signal.raise_signal(signal.SIGINT)
        yield from super().epoch(number)


def test_ctrl_c_before_the_first_step_and_while_resuming(tmp_path):
    # Both happen between steps: nothing may be lost, and what is saved must say how far the tensors really are.
    interrupted = InterruptedBatches(make_examples(14), 2, CONFIG.vocab_size - 1, WIDTH, seeded_order(14, 1))
    whole, _ = start(0.2)
    model, fitted = start(0.2, tmp_path, batches=interrupted)
    assert (fitted.steps, fitted.interrupted) == (0, True)
    model, fitted = start(0.2, tmp_path, resume=True, interrupt=10)
    assert (fitted.steps, fitted.interrupted) == (4, True)
    model, fitted = start(0.2, tmp_path, resume=True, batches=interrupted)
    assert (fitted.steps, fitted.interrupted) == (4, True)
    model, fitted = start(0.2, tmp_path, resume=True)
    assert fitted.steps == 6
    assert_equal(weights(model), weights(whole))


def test_sigterm_is_ctrl_c(tmp_path):
    handler = signal.getsignal(signal.SIGTERM)
    model = make_model(layers="last_block")
    model.token_embedding.register_forward_pre_hook(lambda *_: signal.raise_signal(signal.SIGTERM) if not steps else None)
    steps = []
    batches = make_batches(make_examples(14), 2, order=seeded_order(14, 1))
    fitted = fit(model, batches, settings(**RESUMING | {"accumulation_steps": 1}), Metrics(), None, Checkpointer(tmp_path))
    assert (fitted.steps, fitted.interrupted) == (1, True) and newest(tmp_path).step == 1
    assert signal.getsignal(signal.SIGTERM) is handler


def test_a_second_ctrl_c_stops_at_once():
    model = make_model()
    interrupt_model(model, 2)
    interrupt_model(model, 2)
    with pytest.raises(KeyboardInterrupt):
        fit(model, make_batches(make_examples(14), 2), settings(batch_size=2), Metrics())


def flip(place: int):
    """Turns over the lowest bit of a byte."""
    return lambda raw: raw[:place] + bytes([raw[place] ^ 1]) + raw[place:][1:]


UNREADABLE, DAMAGED = "can't be read as safetensors", "is damaged"
DAMAGE = {
    "cut off": (lambda raw: raw[:200], UNREADABLE),
    "empty": (lambda raw: b"", UNREADABLE),
    "a bit of a tensor": (flip(-1), DAMAGED),
    "a digit of the step": (lambda raw: raw.replace(b'\\"step\\": ', b'\\"step\\":1', 1), DAMAGED),
}


def damage(path: Path, how) -> None:
    raw = path.read_bytes()
    path.write_bytes(how(raw))
    assert path.read_bytes() != raw


@pytest.mark.parametrize("how, said", DAMAGE.values(), ids=DAMAGE)
def test_a_state_that_cannot_be_read(tmp_path, how, said):
    start(0.0, tmp_path, interrupt=4)
    damage(tmp_path / "states" / "step-000002.safetensors", how)
    with pytest.raises(UserError, match=rf"step-000002\.safetensors {said}: .* train anew"):
        newest(tmp_path)


@pytest.mark.parametrize("how, said", DAMAGE.values(), ids=DAMAGE)
def test_the_newest_state_that_can_be_read(tmp_path, how, said, capsys):
    keeper = Checkpointer(tmp_path, limit=2)
    whole = make_model(dropout=0.2, layers="last_block")
    batches = make_batches(make_examples(14), 2, order=seeded_order(14, 1))
    fit(whole, batches, settings(save_steps=1, **RESUMING), Metrics(), None, keeper)
    files = sorted((tmp_path / "states").iterdir())
    assert [file.name for file in files] == ["step-000004.safetensors", "step-000005.safetensors"]
    assert newest(tmp_path).step == 5 and capsys.readouterr().err == ""
    damage(files[1], how)
    resumed, _ = start(0.2, tmp_path, resume=True)
    err = capsys.readouterr().err
    assert f"step-000005.safetensors {said}" in err and "going on from" in err and "step-000004" in err
    assert_equal(weights(resumed), weights(whole))


def test_a_later_state_that_cannot_be_read_is_not_kept_in_place_of_the_newest(tmp_path):
    batches = make_batches(make_examples(14), 2, order=seeded_order(14, 1))
    run = settings(save_steps=2, **RESUMING)
    fit(make_model(layers="last_block"), batches, run, Metrics(), None, Checkpointer(tmp_path, limit=2))
    damage(tmp_path / "states" / "step-000004.safetensors", flip(-1))
    _, fitted = start(0.0, tmp_path, resume=True, interrupt=1)  # with a limit of 1 now
    assert (fitted.steps, fitted.interrupted) == (3, True)
    assert newest(tmp_path).step == 3 and len(list((tmp_path / "states").iterdir())) == 1


def test_a_disk_that_is_full_for_a_while_costs_nothing_but_that_state(tmp_path, monkeypatch, capsys):
    # RLIMIT_FSIZE would hit other files too; here the very write of the second state stops half-way.
    save_file, saved = model_weights.save_file, []

    def full(tensors, path, metadata):
        if "step-000002" in str(path):
            Path(path).write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        saved.append(Path(path).name)
        save_file(tensors, path, metadata)

    monkeypatch.setattr(model_weights, "save_file", full)
    whole, _ = start(0.2)
    kept = []
    monkeypatch.setattr("train.update", lambda *given: (update(*given), kept.append(newest(tmp_path))))
    model, fitted = start(0.2, tmp_path, save_steps=1)
    assert fitted.steps == 6 and [point and point.step for point in kept] == [None, 1, 1, 3, 4, 5]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("note     not saved at step 2, the run goes on: ") and "No space left on device" in line
    assert "the last good state is" in line and "step-000001" in line
    assert_equal(weights(model), weights(whole))
    assert [file.name for file in tmp_path.rglob("*.safetensors")] and not list(tmp_path.rglob(".*"))


@pytest.mark.parametrize("learning_rate, when", [(1e30, "the loss is nan at step 2"), (math.nan, "after step 1")])
def test_what_is_no_number_is_never_saved(tmp_path, learning_rate, when):
    """In the first case the weights are finite for a step and too large for the next; in the second they are no numbers
    when the first state is due, though no loss has been."""
    run = {"save_steps": 1, "num_epochs": 1}
    if math.isnan(learning_rate):
        model = make_model(layers="last_block")
        calls = []
        model.head.register_full_backward_hook(lambda *_: calls.append(0))

        def spoil(*given):
            update(*given)
            next(parameter for parameter in model.parameters() if parameter.requires_grad).data[0] = math.nan

        with pytest.MonkeyPatch.context() as patch, pytest.raises(UserError, match=f"{when}.*; try a smaller"):
            patch.setattr("train.update", spoil)
            batches = make_batches(make_examples(14), 2, order=seeded_order(14, 1))
            fit(model, batches, settings(**RESUMING | run), Metrics(), None, Checkpointer(tmp_path))
        assert newest(tmp_path) is None
        return
    with pytest.raises(UserError, match=rf"{when}; try a smaller --learning_rate.*; the last good state is .*step-000001"):
        start(0.0, tmp_path, **run | {"learning_rate": learning_rate, "logging_steps": 100})
    assert newest(tmp_path).step == 1


def test_a_gpu_is_asked_for_a_broken_loss_only_when_something_is_read_anyway():
    class OnGPU(torch.Tensor):
        """Says that it lies on a GPU."""

        device = torch.device("cuda")

    def loss(value):
        return torch.tensor(value).as_subclass(OnGPU)

    meter = Meter(Metrics(), settings(logging_steps=100), 50, make_batches(make_examples(14), 2), Progress())
    for step, value in enumerate((1.0, math.inf, 1.0, 1.0), start=1):
        meter.add(loss(value), torch.tensor(1), torch.tensor([3]))
        meter.step(step, 0, 1, 0.1)
    meter.add(loss(1.0), torch.tensor(1), torch.tensor([3]))
    with pytest.raises(UserError, match="at step 2"):
        meter.step(5, 0, 1, 0.1, must_check=True)
