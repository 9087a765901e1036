"""torch.compile computes the same: python -m pytest -m slow (it needs a C++ compiler, and takes a minute or so)"""

import shutil

import pytest
import torch

import peft
from model import make_head
from model.llama import Llama
from tests.helpers.architectures import small_config
from tests.helpers.loop import make_batches, make_examples, make_model, settings
from train import evaluate, fit
from training.metrics_log import Metrics

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")]


def make(kind: str):
    if kind == "gpt2":
        return make_model()
    model = Llama(small_config(kind, vocab_size=40, n_layers=2))
    model.head = make_head(model, "classifier")
    return model


@pytest.mark.parametrize("kind", ["gpt2", "qwen3"])
@pytest.mark.parametrize("method", [None, peft.LoRA(rank=4, alpha=8, targets="all"), peft.Freeze("last_block")])
def test_compiled_blocks_train_alike(method, kind):
    results = []
    for compiled in (False, True):
        torch.manual_seed(1)
        model, metrics = make(kind), Metrics()
        if method:
            peft.attach(model, method)
        for block in model.blocks if compiled else ():
            block.compile()
        examples = make_examples(14)  # the last batch is smaller, and texts differ in length
        fit(model, make_batches(examples, 4, pad_to=None), settings(logging_steps=1, num_epochs=3), metrics)
        measured = evaluate(peft.merge(model), make_batches(examples, 8))
        results.append([one["loss"] for one in metrics.records] + [measured["loss"]])
    plain, found = results
    assert len(plain) > 9 and found == pytest.approx(plain, rel=1e-5)
