"""What only a GPU can show. Skipped without one; on a machine that has one: python -m pytest -m gpu"""

import pytest
import torch

from config import Run, resolve
from data.batching import Batches, Example, seeded_order
from data.spam import RECIPE
from model.gpt2 import GPT2, GPT2Config
from model.heads import ClassifierHead
from peft import LoRA, attach
from train import evaluate, fit
from training.device import pick_amp, pick_device
from training.metrics_log import Metrics

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]


def small_model() -> GPT2:
    torch.manual_seed(1)
    model = GPT2(GPT2Config(vocab_size=100, context_length=32, dim=64, n_heads=4, n_layers=2))
    model.head = ClassifierHead(64, 2)
    return model


def separable(n: int = 64) -> Batches:
    """Texts of class 1 hold token 7, the others don't."""
    draw = torch.Generator().manual_seed(0)
    examples = []
    for i in range(n):
        ids = torch.randint(10, 100, (12,), generator=draw).tolist()
        examples.append(Example([*ids, 7] if i % 2 else ids, i % 2))
    return Batches(examples, 8, pad_id=0, order=seeded_order(n, 0))


def test_logits_equal_the_cpus():
    model, ids = small_model(), torch.randint(0, 100, (3, 20))
    expected = model(ids)
    found = model.cuda()(ids.cuda()).cpu()
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
@pytest.mark.parametrize("method", [None, LoRA(rank=4, alpha=8, targets="all")])
def test_every_precision_learns_and_trains_float32(amp, method):
    model = small_model()
    if method:
        attach(model, method)
    model.cuda()
    run = resolve(Run(amp=amp, device="cuda", learning_rate=3e-3, num_epochs=10), RECIPE)
    before = evaluate(model, separable(), amp)["loss"]
    fit(model, separable(), run, Metrics())
    assert evaluate(model, separable(), amp)["loss"] < 0.5 * before
    assert all(p.dtype == torch.float32 for p in model.parameters() if p.requires_grad)


def test_auto_takes_the_gpu_and_its_native_precision():
    device = pick_device("auto")
    assert device.type == "cuda"
    native = torch.cuda.get_device_capability() >= (8, 0)
    assert pick_amp("auto", device) == ("bf16" if native else "fp16")
