"""The budget that is printed before training."""

import pytest
import torch

import peft
from model import fast_path
from model.gpt2 import GPT2, GPT2Config
from model.heads import ClassifierHead
from model.llama import Llama, LlamaConfig, Rope
from model.transformer import Transformer
from pipeline import memory
from pipeline.memory import Budget
from tests.helpers.architectures import small_config

CONFIG = GPT2Config(vocab_size=40, context_length=16, dim=32, n_heads=4, n_layers=3, dropout=0.1)


def build() -> GPT2:
    return GPT2(CONFIG, ClassifierHead(CONFIG.dim, 2))


def build_llama(config: LlamaConfig) -> Llama:
    return Llama(config, ClassifierHead(config.dim, 2, bias=False))


def test_three_billion_parameters_in_full():
    """The log's arithmetic: 12 GB of weights, 12 of gradients, 24 of Adam's moments."""
    budget = Budget(weights=12_000_000_000, trained=3_000_000_000)
    assert [budget.weights, budget.gradients, budget.optimizer, budget.total] == [12e9, 12e9, 24e9, 48e9]
    assert Budget(12_000_000_000, 0).total == 12e9


def saved_for_real(model: Transformer, batch_size: int, length: int) -> int:
    own = {parameter.data_ptr() for parameter in model.parameters()}
    kept = []  # the tensors themselves, so that no memory is used twice

    def note(tensor):
        if tensor.untyped_storage().data_ptr() not in own:
            kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        fast_path.logits(model, model.embed(torch.zeros(batch_size, length, dtype=torch.long)))
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept}.values())


@pytest.mark.parametrize("layers", ["all", "last_block", "last_layer"])
def test_activations_are_those_that_autograd_keeps(layers):
    model = peft.attach(build(), peft.Freeze(layers))  # with dropout the CPU takes the unfused attention, as meta does
    with torch.device("meta"):
        counted = memory.budget(peft.attach(build(), peft.Freeze(layers)), 4, 10).activations
    assert counted == saved_for_real(model.train(), 4, 10) > 0


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("layers", ["all", "last_block", "last_layer"])
def test_activations_of_llamas(kind, layers):
    config = small_config(kind, dropout=0.1)
    model = peft.attach(build_llama(config), peft.Freeze(layers))
    with torch.device("meta"):
        counted = memory.budget(peft.attach(build_llama(config), peft.Freeze(layers)), 4, 10).activations
    assert counted == saved_for_real(model.train(), 4, 10) > 0


SMOLLM2 = LlamaConfig()
LLAMA3 = LlamaConfig(
    vocab_size=128256, dim=2048, n_heads=32, n_kv_heads=8, n_layers=16, mlp_dim=8192, rope=Rope(500000.0, 32.0)
)


@pytest.mark.parametrize(("config", "parameters"), [(SMOLLM2, 134_515_008), (LLAMA3, 1_235_814_400)])
def test_models_of_true_size_need_no_memory_to_be_counted(config, parameters):
    method = peft.LoRA(rank=16, targets="attn.q,attn.v")
    text = memory.report(*memory.budgets(lambda in_full: build_llama(config), method, 8, 120), 8, 120)
    cells = [[float(cell.replace(",", "")) for cell in line.split()[1:]] for line in text.splitlines()[1:]]
    full, lora = zip(*cells, strict=True)
    weights = 4e-6 * (parameters + 2 * config.dim)  # MB; with the classifier
    added = 16 * config.n_layers * (3 * config.dim + config.n_kv_heads * config.head_dim)
    assert full[:3] == pytest.approx([weights, weights, 2 * weights], abs=0.1)
    assert lora[:2] == pytest.approx([weights + 4e-6 * added, 4e-6 * (added + 2 * config.dim)], abs=0.1)
    assert lora[3] < full[3] and lora[4] == pytest.approx(sum(lora[:4]), abs=0.3)


@pytest.mark.parametrize("method", [peft.Freeze("all"), peft.LoRA(rank=2)])
def test_activations_under_autocast(method):
    model = peft.attach(build(), method).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        really = saved_for_real(model, 4, 10)
    with torch.device("meta"):
        attached = peft.attach(build(), method)
    counted = memory.budget(attached, 4, 10, "bf16").activations
    assert counted == really != memory.budgets(lambda in_full: build(), method, 4, 10)[1].activations


def test_a_method_needs_less_than_everything():
    text = memory.report(*memory.budgets(lambda in_full: build(), peft.LoRA(rank=2), 4, 10), 4, 10)
    cells = {line.split()[0]: [float(cell.replace(",", "")) for cell in line.split()[1:]] for line in text.splitlines()[1:]}
    full, lora = zip(*(cells[name] for name in ("weights", "gradients", "optimizer", "activations", "total")), strict=True)
    parameters = sum(parameter.numel() for parameter in build().parameters())
    assert full[0] == pytest.approx(4e-6 * parameters, abs=0.05) and full[2] == pytest.approx(2 * full[1], abs=0.11)
    assert lora[1] < full[1] and lora[2] < full[2] and lora[3] < full[3] and lora[4] < full[4]


def test_checkpointing_keeps_what_enters_the_blocks():
    whole, less = (
        memory.budgets(lambda in_full: build(), peft.Freeze("all"), 4, 10, checkpointing)[0].activations
        for checkpointing in (False, True)
    )
    hidden = 4 * 10 * CONFIG.dim * memory.BYTES
    assert CONFIG.n_layers * hidden < less < (CONFIG.n_layers + 2) * hidden < whole / 3
