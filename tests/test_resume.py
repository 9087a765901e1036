"""An interrupted training goes on as if nothing had been, bit for bit."""

import signal

import pytest
from test_train import CONFIG, WIDTH, assert_equal, differ, make_batches, make_examples, make_model, settings, weights

import peft
from data.batching import Batches, seeded_order
from errors import UserError
from train import Metrics, fit


def interrupt_at(model, forward):
    """Ctrl-C as the model is about to run for the n-th time."""
    calls = []

    def look(module, args):
        calls.append(0)
        if len(calls) == forward:
            signal.raise_signal(signal.SIGINT)

    return model.token_embedding.register_forward_pre_hook(look)


RESUMING = {"num_epochs": 2, "batch_size": 2, "accumulation_steps": 3, "learning_rate": 1e-2, "lr_scheduler_type": "cosine"}


def start(dropout, state_file=None, tensors=None, interrupt=None, layers="last_block", batches=None):
    """3 steps an epoch, of 6, 6 and 2 examples. `tensors`: those to resume from."""
    model = make_model(dropout=dropout, layers=layers)
    if tensors:
        peft.restore(model, tensors)
    if interrupt:
        interrupt_at(model, interrupt)
    batches = batches or make_batches(make_examples(14), 2, order=seeded_order(14, 1))
    fitted = fit(model, batches, settings(resume=tensors is not None, **RESUMING), Metrics(), None, state_file)
    return model, fitted


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("forward, steps", [(2, 1), (4, 2), (7, 3), (9, 4)])
def test_an_interrupted_run_goes_on_bit_for_bit(dropout, forward, steps, tmp_path):
    handler = signal.getsignal(signal.SIGINT)
    whole, fitted = start(dropout)
    assert (fitted.steps, fitted.interrupted) == (6, False)
    half, fitted = start(dropout, tmp_path / "state", interrupt=forward)
    assert (fitted.steps, fitted.interrupted) == (steps, True)  # the step under way is finished
    assert differ(weights(half), weights(whole))
    resumed, fitted = start(dropout, tmp_path / "state", tensors=peft.export(half))
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
    state, model, fitted = tmp_path / "state", *start(0.2, tmp_path / "state", batches=interrupted)
    assert (fitted.steps, fitted.interrupted) == (0, True)
    model, fitted = start(0.2, state, tensors=peft.export(model), interrupt=10)
    assert (fitted.steps, fitted.interrupted) == (4, True)
    model, fitted = start(0.2, state, tensors=peft.export(model), batches=interrupted)
    assert (fitted.steps, fitted.interrupted) == (4, True)
    model, fitted = start(0.2, state, tensors=peft.export(model))
    assert fitted.steps == 6
    assert_equal(weights(model), weights(whole))


def test_a_second_ctrl_c_stops_at_once():
    model = make_model()
    interrupt_at(model, 2)
    interrupt_at(model, 2)
    with pytest.raises(KeyboardInterrupt):
        fit(model, make_batches(make_examples(14), 2), settings(batch_size=2), Metrics())


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[:200])])
def test_a_state_that_cannot_be_read(tmp_path, damage):
    half, _ = start(0.0, tmp_path / "state", interrupt=4)
    damage(tmp_path / "state")
    with pytest.raises(UserError, match=r"state can't be read as safetensors: "):
        start(0.0, tmp_path / "state", tensors=peft.export(half))
