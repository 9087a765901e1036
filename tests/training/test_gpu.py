"""What only a GPU can show. Skipped without one; on a machine that has one: python -m pytest -m gpu"""

import copy
from pathlib import Path

import pytest
import torch
from torch import distributed as dist

from config import Run, resolve
from data.batching import IGNORED, Batches, Example, collate, seeded_order
from data.packing import pack
from data.spam import RECIPE
from model import fast_path
from model.generation import generate, left_padded
from model.gpt2 import GPT2, GPT2Config
from model.heads import ClassifierHead
from model.registry import ARCHITECTURES
from model.transformer import Transformer
from peft import Freeze, LoRA, attach
from tests.helpers.architectures import small_config
from tests.helpers.interrupt import interrupt_model
from tests.helpers.parity import distance
from train import evaluate, fit
from training import distributed
from training.activation_cache import cached
from training.checkpoints import Checkpointer, newest
from training.device import pick_amp, pick_device
from training.metrics_log import Metrics

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]
CUDA = torch.device("cuda")


def small_model(dropout: float = 0.0) -> GPT2:
    torch.manual_seed(1)
    model = GPT2(GPT2Config(vocab_size=100, context_length=32, dim=64, n_heads=4, n_layers=2, dropout=dropout))
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
    found = model.to(CUDA)(ids.to(CUDA)).cpu()
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
@pytest.mark.parametrize("method", [None, LoRA(rank=4, alpha=8, targets="all")])
def test_every_precision_learns_and_trains_float32(amp, method):
    model = small_model()
    if method:
        attach(model, method)
    model.to(CUDA)
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


def language_model(kind: str) -> Transformer:
    """A small one whose next tokens are far from being equally likely."""
    torch.manual_seed(1)
    entry = ARCHITECTURES[kind]
    model = entry.model(small_config(kind, context_length=64))
    model.head = entry.lm_head(model)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def dialogues(*lengths: int) -> list[Example]:
    """Texts of which the second half are targets."""
    made = []
    for length in lengths:
        ids = torch.randint(1, 50, (length + 1,)).tolist()
        made.append(Example(ids[:-1], [IGNORED] * (length // 2) + ids[1 + length // 2 :]))
    return made


@pytest.mark.parametrize("kind", ["gpt2", "qwen3"])
def test_answers_are_the_cpus_and_draws_repeat(kind):
    model = language_model(kind)
    ids, mask = left_padded([one.ids for one in dialogues(9, 1, 20)])
    expected = generate(model, ids, mask, max_new_tokens=12)
    model.to(CUDA)
    ids, mask = ids.to(CUDA), mask.to(CUDA)
    assert generate(model, ids, mask, max_new_tokens=12) == expected
    drawn = [generate(model, ids, mask, max_new_tokens=12, temperature=2.0, top_k=20, seed=seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize("kind", ["gpt2", "qwen3"])
def test_packed_rows_are_the_cpus_texts_one_by_one(kind):
    model, alone = language_model(kind), dialogues(5, 9, 1, 12, 7, 20, 3, 2)
    on_gpu, rows = copy.deepcopy(model).to(CUDA), pack(alone, 24)
    assert len(rows) < len(alone)
    expected = sum(fast_path.loss(model, collate([one], 0, None).to(torch.device("cpu")), IGNORED)[0] for one in alone)
    found, *_ = fast_path.loss(on_gpu, collate(rows, 0, None).to(CUDA), IGNORED)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    expected.backward()
    found.backward()
    for (name, one), other in zip(model.named_parameters(), on_gpu.parameters(), strict=True):
        if not name.endswith("attn.k.bias"):  # shifts all of a query's scores alike: no gradient, only rounding
            assert distance(other.grad.cpu(), one.grad) <= 1e-4, name


@pytest.mark.parametrize(("amp", "rounding"), [("off", 1e-4), ("bf16", 2e-2)])
@pytest.mark.parametrize("layers", ["last_block", "last_layer"])
def test_frozen_blocks_run_once_per_text_and_change_no_loss(layers, amp, rounding):
    losses = []
    for reuse in (True, False):
        model, metrics = attach(small_model(), Freeze(layers)).to(CUDA), Metrics()
        batches = {"train": separable(), "train_in_order": separable()}
        if reuse:
            batches, decision = cached(model, batches, amp)
            assert decision.kept and next(batches["train"].epoch()).cached.states.device.type == CUDA.type
        run = resolve(Run(amp=amp, learning_rate=1e-2, num_epochs=3, logging_steps=1), RECIPE)
        fit(model, batches["train"], run, metrics)
        losses.append([one["loss"] for one in metrics.records])
    assert losses[0] == pytest.approx(losses[1], rel=rounding) and losses[0][-1] < losses[0][0]


def losses_of(folder: Path, resume: bool, forward: int | None, amp: str) -> list[float]:
    """The losses of steps, with a dropout that draws on the GPU, up to Ctrl-C in that forward pass."""
    model, metrics = attach(small_model(dropout=0.3), Freeze("last_two_blocks")).to(CUDA), Metrics()
    if forward:
        interrupt_model(model, forward)
    run = resolve(Run(amp=amp, learning_rate=1e-2, num_epochs=1, logging_steps=1, resume=resume), RECIPE)
    fit(model, separable(), run, metrics, None, Checkpointer(folder, point=newest(folder) if resume else None))
    return [one["loss"] for one in metrics.records]


@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
def test_an_interrupted_run_goes_on_as_if_nothing_had_been(amp, tmp_path):
    whole = losses_of(tmp_path, False, None, amp)
    half = losses_of(tmp_path, False, 3, amp)
    rest = losses_of(tmp_path, True, None, amp)
    assert (len(half), len(rest), len(whole)) == (3, 5, 8)
    assert half + rest == pytest.approx(whole, rel=1e-3)


def test_one_process_in_ddp_has_the_gradients_of_one_alone():
    model = small_model().to(CUDA)
    batch = next(separable().epoch()).to(CUDA)
    alone = copy.deepcopy(model)
    expected, *_ = fast_path.loss(alone, batch, IGNORED)
    expected.backward()
    dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1)
    try:
        in_ddp = distributed.in_ddp(model)  # a name, as its backward pass only refers to it
        found, *_ = in_ddp(batch, IGNORED)
        found.backward()
    finally:
        dist.destroy_process_group()
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    for (name, one), other in zip(model.named_parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-6, msg=name)
