"""VeRA and HiRA: their formulas, their settings, and 20 steps of training beside the reference library."""

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from peft import HiRA, VeRA, attach, export, restore, share
from peft.hira import HiRALinear
from peft.huggingface.write import write_adapter
from peft.vera import SharedMatrices, VeRALinear, draw_matrices
from pipeline import memory
from tests.helpers.exchange import fresh, inputs, logits, make_base
from tests.helpers.methods import tiny_gpt2
from utils.errors import UserError

LARGE = torch.float64


def drawn(layer: nn.Module) -> nn.Module:
    """In float64, with everything that it trains drawn, so that it matters."""
    torch.manual_seed(4)
    for name, parameter in layer.named_parameters():
        if name not in ("weight", "bias"):
            nn.init.normal_(parameter, std=0.5)
    return layer.to(LARGE)


def of_vera(base: nn.Linear, dropout: float = 0.0) -> nn.Module:
    return VeRALinear(
        base, draw_matrices(3, 9, 8, seed=2), dropout, first_row=1
    )  # larger than the layer, and not from row 0


def of_hira(base: nn.Linear, dropout: float = 0.0) -> nn.Module:
    return HiRALinear(base, 3, dropout)


def change_of(layer) -> torch.Tensor:
    """What is added to the weight, entry by entry: no matrix product of torch that could be transposed."""
    added = torch.zeros(layer.out_features, layer.in_features, dtype=LARGE)
    for i in range(layer.out_features):
        for j in range(layer.in_features):
            if isinstance(layer, HiRALinear):
                added[i, j] = layer.weight[i, j] * sum(layer.hira_b[i, k] * layer.hira_a[k, j] for k in range(3))
            else:
                a, b = layer.shared.a, layer.shared.b
                added[i, j] = layer.vera_b[i] * sum(b[1 + i, k] * layer.vera_d[k] * a[k, j] for k in range(3))
    return added


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("make", [of_vera, of_hira])
@torch.no_grad()
def test_the_formula_entry_by_entry(make, bias):
    base, x = nn.Linear(7, 5, bias=bias).to(LARGE), torch.randn(4, 2, 7, dtype=LARGE)
    before = base(x)
    layer = make(base).to(LARGE)
    assert torch.equal(layer(x), before)  # it starts as the layer that it replaces
    drawn(layer)
    expected = before + x @ change_of(layer).T
    assert (expected - before).abs().max() > 0.1
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(layer.merged()(x), expected)
    torch.testing.assert_close(layer(x[0, 0]), expected[0, 0])  # a single vector


@pytest.mark.parametrize("make", [of_vera, of_hira])
def test_dropout_is_on_the_input_of_what_is_added(make):
    base, x = nn.Linear(7, 5).to(LARGE), torch.randn(200, 7, dtype=LARGE)
    before = base(x)
    layer = drawn(make(base, 0.5))
    torch.testing.assert_close(layer.eval()(x), before + x @ change_of(layer).T)
    torch.manual_seed(1)
    found = layer.train()(x)
    torch.manual_seed(1)
    dropped = F.dropout(x, 0.5)
    torch.testing.assert_close(found, before + dropped @ change_of(layer).T)


def test_all_layers_have_the_same_two_matrices():
    model = attach(tiny_gpt2(), VeRA(rank=6, targets="attn.q,mlp"))
    layers = [one for one in model.modules() if isinstance(one, VeRALinear)]
    assert len(layers) == 9 and len({layer.shared for layer in layers}) == 1
    assert {name.split(".")[-1] for name in export(model)} == {"vera_d", "vera_b", "weight", "bias"}  # and of the head
    assert [tuple(one.shape) for one in model.buffers()] == [(6, 128), (128, 6)]
    assert not [name for name in model.state_dict() if "shared" in name]  # no file has them
    again, other = (attach(tiny_gpt2(), VeRA(rank=6, seed=seed, targets="mlp")) for seed in (0, 1))
    found = [next(one for one in each.modules() if isinstance(one, SharedMatrices)).a for each in (model, again, other)]
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
    assert {one.data_ptr() for one in share(model).buffers()} == {one.data_ptr() for one in model.buffers()}


def test_the_matrices_are_counted_once_and_do_not_train():
    """By the memory report, which attaches on the meta device."""
    with torch.device("meta"):
        base = memory.budget(tiny_gpt2(), 2, 8)
        vera = memory.budget(attach(tiny_gpt2(), VeRA(rank=6, targets="attn.q", train_head=False)), 2, 8)
    assert vera.trained == 3 * (6 + 32)
    assert vera.weights - base.weights == 4 * (vera.trained + 2 * 6 * 32)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: VeRA(rank=0), "--vera_rank is 0; it must be at least 1"),
        (lambda: VeRA(seed=-1), "--vera_seed is -1; it must be at least 0"),
        (lambda: VeRA(dropout=1.0), "--lora_dropout is 1.0; it must be below 1"),
        (lambda: HiRA(rank=0), "--lora_rank is 0; it must be at least 1"),
        (lambda: HiRA(matching="ends"), "--lora_matching is 'ends'; choose components, endswith"),
    ],
)
def test_settings_that_make_no_sense(make, words):
    with pytest.raises(UserError, match=words):
        make()


# --- beside the library

STEPS = 20
RATE = 0.01
TRAINED = {
    "vera on a Llama": ("llama lm", VeRA(rank=6, targets="attn,mlp")),
    "vera on a DistilBERT": ("distilbert", VeRA(rank=6, seed=5, targets="attn.q,attn.v,mlp.up")),
    "vera on a GPT-2": ("gpt2 lm", VeRA(rank=6, targets="attn.out,mlp")),
    "hira on a Llama": ("llama lm", HiRA(rank=3, targets="attn,mlp")),
    "hira on a BERT": ("bert", HiRA(rank=3, targets="attn.q,mlp.down")),
    "hira on a GPT-2": ("gpt2 lm", HiRA(rank=3, targets="attn.out,mlp")),
}
THEIRS = """
import json, sys, torch, transformers
import peft
from safetensors.torch import load_file, save_file
torch.set_num_threads(1)
plan, steps, rate = json.load(open(sys.argv[1])), int(sys.argv[2]), float(sys.argv[3])
for name, (kind, base, start, out) in plan.items():
    given = load_file(out + " given")
    if kind.endswith(" lm"):
        model = transformers.AutoModelForCausalLM.from_pretrained(base)
    else:
        model = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    model = peft.PeftModel.from_pretrained(model, start, is_trainable=True).eval()  # no dropout
    own = {one: parameter for one, parameter in model.named_parameters() if parameter.requires_grad}
    optimizer, found = torch.optim.AdamW([*own.values()], lr=rate, weight_decay=0.0), {}
    for step in range(steps):
        optimizer.zero_grad()
        logits = model(input_ids=given["ids"], attention_mask=given["mask"]).logits
        logits.log_softmax(-1)[..., 1].mean().neg().backward()
        if step == 0:
            found["logits"] = logits.detach().contiguous()
            found |= {"gradient of " + one.replace(".default", ""): p.grad.clone() for one, p in own.items()}
        optimizer.step()
    with torch.no_grad():
        found["trained logits"] = model(input_ids=given["ids"], attention_mask=given["mask"]).logits.contiguous()
    found |= {"trained " + one.replace(".default", ""): parameter.detach() for one, parameter in own.items()}
    save_file(found, out)
"""


def own_step(model: nn.Module, kind: str) -> torch.Tensor:
    """Return the logits at which the gradients of a step are."""
    found = model(*(one[:1] for one in inputs(kind)))  # the text without padding
    found.log_softmax(-1)[..., 1].mean().neg().backward()
    return found.detach()


def start(base: Path, kind: str, method) -> nn.Module:
    """A model with the method, and with what it adds moved, so that every part of it has a gradient."""
    model = attach(fresh(base, kind), method)
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "vera_" in name or "hira_" in name:
                parameter += 0.3 * torch.randn_like(parameter)
    return model.eval()


@pytest.fixture(scope="module")
def theirs(tmp_path_factory) -> Path:
    """The folder with what the library computes from the adapters as they are at the start. One process for all."""
    if not list(metadata.distributions(name="peft")):
        pytest.skip("the library peft isn't installed")
    folder, plan = tmp_path_factory.mktemp("theirs"), {}
    for name, (kind, method) in TRAINED.items():
        base = folder / kind.split()[0]
        if not base.exists():
            make_base(kind.split()[0], base)
        write_adapter(start(base, kind, method), fresh(base, kind), folder / name, {"base_model_name_or_path": str(base)})
        ids, mask = (one[:1] for one in inputs(kind))
        save_file({"ids": ids.contiguous(), "mask": mask.contiguous()}, folder / f"{name} trained given")
        plan[name] = (kind, str(base), str(folder / name), str(folder / f"{name} trained"))
    (folder / "plan.json").write_text(json.dumps(plan))
    words = [sys.executable, "-c", THEIRS, str(folder / "plan.json"), str(STEPS), str(RATE)]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
    assert not done.returncode, done.stderr[-2000:]
    return folder


@pytest.mark.not_quick  # the library runs in a process of its own
@pytest.mark.parametrize("name", TRAINED)
def test_logits_gradients_and_training_are_the_librarys(name, theirs, tmp_path):
    kind, method = TRAINED[name]
    base, expected = theirs / kind.split()[0], load_file(theirs / f"{name} trained")
    model, gradients = start(base, kind, method), start(base, kind, method)
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=RATE, weight_decay=0.0)
    for step in range(STEPS):
        optimizer.zero_grad()
        found = own_step(model, kind)
        if step == 0:
            close(found, expected["logits"], 1e-5)
            for path, parameter in added_by(gradients).items():
                parameter.data = model.get_parameter(path).grad.clone()
        optimizer.step()
    with torch.no_grad():
        trained = model(*(one[:1] for one in inputs(kind)))
    assert (trained - expected["logits"]).abs().max() > 0.01 * expected[
        "trained logits"
    ].abs().max()  # so there was something to learn
    close(trained, expected["trained logits"], 1e-4)
    n_added = len(added_by(model))
    for what, one, part in (("gradient of ", gradients, 1e-5), ("trained ", model, 1e-4)):
        found = by_published_name(one, base, kind, tmp_path / what)
        assert len(found) == n_added > 3
        for path, tensor in found.items():
            other = expected[what + path]
            assert (tensor - other).abs().max() <= part * other.abs().max(), path


def added_by(model: nn.Module) -> dict[str, nn.Parameter]:
    return {path: one for path, one in model.named_parameters() if "vera_" in path or "hira_" in path}


def by_published_name(model: nn.Module, base: Path, kind: str, folder: Path) -> dict[str, torch.Tensor]:
    """What was added, by its names in an adapter. None of these modules is several layers here."""
    write_adapter(model, fresh(base, kind), folder, {})
    tensors = load_file(folder / "adapter_model.safetensors")
    return {name: one for name, one in tensors.items() if "vera_lambda" in name or "hira_" in name}


def close(found: torch.Tensor, expected: torch.Tensor, part: float) -> None:
    """At most this part of the scale apart."""
    assert (found - expected).abs().max() <= part * expected.abs().max()


def test_what_is_exported_restores_to_the_same_logits_in_a_new_model(tmp_path):
    """Only the vectors are kept: the seed draws the matrices again."""
    base = make_base("gpt2", tmp_path / "base")
    model = start(base, "gpt2", VeRA(rank=6, seed=9))
    torch.manual_seed(99)  # what is drawn doesn't hang on torch's own generator
    again = restore(attach(fresh(base, "gpt2"), VeRA(rank=6, seed=9)), export(model))
    assert torch.equal(logits(again, "gpt2"), logits(model, "gpt2"))
    other = restore(attach(fresh(base, "gpt2"), VeRA(rank=6, seed=8)), export(model))
    assert not torch.allclose(logits(other, "gpt2"), logits(model, "gpt2"), atol=1e-4)
