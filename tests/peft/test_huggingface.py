"""Adapters to and from the Hugging Face library `peft`: the same logits there and here."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.weights import save_pretrained
from peft import IA3, BitFit, DoRA, FreezeBlocks, HiRA, Joined, LoRA, PrefixTuning, PromptTuning, VeRA, attach, merge
from peft.huggingface.read import FromPeft
from peft.huggingface.write import fold_bias, write_adapter
from tests.helpers.exchange import LABELS, PAD, fresh, inputs, logits, make_base, trained

pytestmark = pytest.mark.not_quick  # the library runs in a process of its own

ROTATING = ("llama", "mistral", "qwen2", "qwen3", "smollm3")
KINDS = ("distilbert", "bert", "roberta", "gpt2", *ROTATING)
EVERYTHING = "attn.q,attn.k,attn.v,attn.out,mlp.up,mlp.down"

# What is trained here, on a published model without a classifier: name -> (its kind, the method).
TRAINED_HERE = {
    "distilbert lora": ("distilbert", LoRA(rank=3)),
    "distilbert ia3": ("distilbert", IA3()),
    "distilbert pissa": ("distilbert", LoRA(rank=3, init="pissa", targets=EVERYTHING)),
    "bert lora on everything": ("bert", LoRA(rank=3, alpha=2, scaling="alpha", targets="all")),
    "bert lora, frozen head": ("bert", LoRA(rank=3, train_head=False)),
    "bert lora and norms": ("bert", Joined((LoRA(rank=2), FreezeBlocks(part="norm")))),
    "bert dora": ("bert", DoRA(rank=3, targets="attn.v,mlp.down")),
    "roberta rslora": ("roberta", LoRA(rank=3, alpha=5, scaling="alpha/sqrt(r)", targets="attn.q,mlp", layers="1")),
    "gpt2 lora, as the spam rows": ("gpt2", LoRA(rank=2, alpha=2, scaling="alpha", init="wide", targets="all")),
    "gpt2 lora on q and v": ("gpt2 lm", LoRA(rank=3)),
    "gpt2 lora on one block": ("gpt2 lm", LoRA(rank=3, targets="attn.v,attn.out,mlp.down", layers="1")),
    "gpt2 pissa": ("gpt2 lm", LoRA(rank=2, init="pissa", targets="attn.q,attn.k,mlp")),
    "gpt2 dora": ("gpt2 lm", DoRA(rank=3, targets="attn.q,attn.v,mlp.up")),
    "gpt2 ia3": ("gpt2 lm", IA3()),
    "distilbert vera": ("distilbert", VeRA(rank=6, targets="attn.q,mlp")),
    "distilbert hira": ("distilbert", HiRA(rank=3)),
    "bert vera on everything": ("bert", VeRA(rank=5, targets="all")),
    "bert hira in one block": ("bert", HiRA(rank=3, targets="attn,mlp.up", layers="1")),
    "roberta vera": ("roberta", VeRA(rank=4, seed=3, targets="attn.v,mlp.down")),
    "gpt2 vera": ("gpt2 lm", VeRA(rank=5)),
    "gpt2 vera on queries": ("gpt2 lm", VeRA(rank=5, targets="attn.q")),
    "gpt2 vera beside other modules": ("gpt2", VeRA(rank=5, targets="attn.q,attn.v,attn.out,mlp")),
    "gpt2 hira": ("gpt2 lm", HiRA(rank=3)),
    "gpt2 hira on everything": ("gpt2", HiRA(rank=3, targets="all")),
    "qwen2 vera and norms": ("qwen2", Joined((VeRA(rank=4, targets="attn"), FreezeBlocks(part="norm")))),
    "qwen3 hira": ("qwen3 lm", HiRA(rank=2, targets="attn.q,attn.k,mlp.down")),
    "mistral vera": ("mistral lm", VeRA(rank=4, targets="attn.k,mlp.gate", layers="1")),
    "llama lora": ("llama", LoRA(rank=3, targets="attn.q,mlp.gate", layers="1")),
    "llama lora on everything": ("llama lm", LoRA(rank=3, targets="all")),
    "llama dora": ("llama lm", DoRA(rank=3, targets="attn.k,mlp")),
    "llama lora and norms": ("llama", Joined((LoRA(rank=2, targets="all"), FreezeBlocks(part="norm")))),
    "llama prefix": ("llama lm", PrefixTuning(5, projection=True)),
    "llama prefix classifier": ("llama", PrefixTuning(5)),
    "llama prompt": ("llama lm", PromptTuning(5)),
    "mistral pissa": ("mistral", LoRA(rank=2, init="pissa", targets="attn.v,mlp.down")),
    "mistral prompt classifier": ("mistral", PromptTuning(3)),
    "qwen2 dora": ("qwen2 lm", DoRA(rank=3, targets="attn")),
    "qwen2 lora and biases": ("qwen2", Joined((LoRA(rank=2, targets="attn.out"), BitFit()))),
    "qwen3 ia3": ("qwen3", IA3()),
    "qwen3 prefix": ("qwen3 lm", PrefixTuning(5)),
    "smollm3 prefix": ("smollm3 lm", PrefixTuning(5)),
}
# What the library makes: name -> (kind, class of its configuration, settings).
LORA = {"r": 4, "lora_alpha": 6}
VERA = {"r": 6}
PREFIX = {"num_virtual_tokens": 5}
MADE_THERE = {
    "distilbert patterns": (
        "distilbert",
        "LoraConfig",
        {
            **LORA,
            "target_modules": ["q_lin", "v_lin", "ffn.lin1"],
            "rank_pattern": {"q_lin": 2, "layer.1.attention.v_lin": 3},
            "alpha_pattern": {"lin1": 9},
            "modules_to_save": ["pre_classifier"],
        },
    ),
    "bert all-linear, rslora": ("bert", "LoraConfig", {**LORA, "target_modules": "all-linear", "use_rslora": True}),
    "bert ia3": ("bert", "IA3Config", {}),
    "bert prefix": ("bert", "PrefixTuningConfig", PREFIX),
    "roberta dora": ("roberta", "LoraConfig", {**LORA, "target_modules": ["query", "output.dense"], "use_dora": True}),
    "roberta prefix": ("roberta", "PrefixTuningConfig", PREFIX),
    "gpt2 classifier": ("gpt2", "LoraConfig", {**LORA, "target_modules": ["c_attn"], "layers_to_transform": [1]}),
    "gpt2 lora": ("gpt2 lm", "LoraConfig", {**LORA, "target_modules": ["c_attn", "c_fc", "c_proj"]}),
    "gpt2 dora": ("gpt2 lm", "LoraConfig", {**LORA, "target_modules": ["c_attn"], "use_dora": True}),
    "gpt2 ia3": ("gpt2 lm", "IA3Config", {}),
    "gpt2 prefix": ("gpt2 lm", "PrefixTuningConfig", PREFIX),
    "gpt2 prefix classifier": ("gpt2", "PrefixTuningConfig", PREFIX),
    "distilbert vera": (
        "distilbert",
        "VeraConfig",
        {**VERA, "target_modules": ["q_lin", "lin1"], "layers_to_transform": 1},
    ),
    "bert vera, drawn again": (
        "bert",
        "VeraConfig",
        {**VERA, "target_modules": ["query", "dense"], "projection_prng_key": 7, "save_projection": False},
    ),
    "bert hira": ("bert", "HiraConfig", {"r": 4, "target_modules": "all-linear", "rank_pattern": {"query": 2}}),
    "roberta hira": ("roberta", "HiraConfig", {"r": 4, "target_modules": ["value"], "modules_to_save": ["LayerNorm"]}),
    "gpt2 vera": ("gpt2 lm", "VeraConfig", {**VERA, "target_modules": ["c_attn"]}),
    "gpt2 vera beside other modules": ("gpt2", "VeraConfig", {**VERA, "target_modules": ["c_attn", "c_fc", "c_proj"]}),
    "gpt2 hira": ("gpt2 lm", "HiraConfig", {"r": 4, "target_modules": ["c_attn", "c_fc"]}),
    "qwen3 vera": ("qwen3 lm", "VeraConfig", {**VERA, "target_modules": ["q_proj", "k_proj", "up_proj"]}),
    "llama hira": ("llama", "HiraConfig", {"r": 4, "target_modules": r".*\.1\..*(q|down)_proj"}),
    "llama patterns": (
        "llama",
        "LoraConfig",
        {
            **LORA,
            "target_modules": ["q_proj", "v_proj", "gate_proj"],
            "rank_pattern": {"q_proj": 2, "layers.1.self_attn.v_proj": 3},
            "alpha_pattern": {"mlp.gate_proj": 9},
        },
    ),
    "llama all-linear": ("llama lm", "LoraConfig", {**LORA, "target_modules": "all-linear", "use_rslora": True}),
    "llama dora": ("llama lm", "LoraConfig", {**LORA, "target_modules": ["k_proj", "down_proj"], "use_dora": True}),
    "llama ia3": ("llama", "IA3Config", {}),
    "llama prefix": ("llama lm", "PrefixTuningConfig", PREFIX),
    "llama prefix, projected": ("llama lm", "PrefixTuningConfig", PREFIX | {"prefix_projection": True}),
    "llama prefix classifier": ("llama", "PrefixTuningConfig", PREFIX),
    "llama prompt": ("llama lm", "PromptTuningConfig", PREFIX),
    "llama prompt classifier": ("llama", "PromptTuningConfig", PREFIX),
    "mistral lora": ("mistral", "LoraConfig", {**LORA, "target_modules": r".*\.0\..*\.(q|o)_proj"}),
    "mistral prefix": ("mistral", "PrefixTuningConfig", PREFIX),
    "qwen2 dora": ("qwen2", "LoraConfig", {**LORA, "target_modules": ["q_proj", "up_proj"], "use_dora": True}),
    "qwen2 ia3": ("qwen2 lm", "IA3Config", {}),
    "qwen2 prefix": ("qwen2 lm", "PrefixTuningConfig", PREFIX),
    "qwen3 lora": ("qwen3 lm", "LoraConfig", {**LORA, "target_modules": ["q_proj", "o_proj"]}),
    "qwen3 prefix": ("qwen3 lm", "PrefixTuningConfig", PREFIX),
    "qwen3 prompt": ("qwen3 lm", "PromptTuningConfig", PREFIX),
    "smollm3 prefix": ("smollm3", "PrefixTuningConfig", PREFIX),
}
WHOLE = (*KINDS, "gpt2 lm", "llama lm", "qwen2 lm", "qwen3 lm")

THEIRS = """
import json, sys, torch, transformers
import peft
from safetensors.torch import load_file, save_file
torch.set_num_threads(1)
folder = sys.argv[1]
given = load_file(f"{folder}/ids.safetensors")

def base_of(kind, name, labels):
    if kind.endswith(" lm"):
        return transformers.AutoModelForCausalLM.from_pretrained(name)
    more = {"num_labels": labels} if labels else {}
    model = transformers.AutoModelForSequenceClassification.from_pretrained(name, **more)
    model.config.pad_token_id = given["pad"].item()
    return model

def logits(kind, model):
    pads = "roberta" if kind == "roberta" else "other"
    with torch.no_grad():
        found = model.eval()(input_ids=given[f"ids {pads}"], attention_mask=given["mask"]).logits
    if kind.endswith(" lm"):  # without a prompt's own positions
        found = found[:, -given["mask"].shape[1] :]
    return found.contiguous()

plan, found, info = json.load(open(f"{folder}/plan.json")), {}, {}
for name, (kind, base, adapter) in plan["load"].items():
    model = peft.PeftModel.from_pretrained(base_of(kind, base, plan["labels"]), adapter)
    found["load " + name] = logits(kind, model)
for name, (kind, base, which, settings, out) in plan["make"].items():
    torch.manual_seed(5)
    task = "CAUSAL_LM" if kind.endswith(" lm") else "SEQ_CLS"
    model = peft.get_peft_model(base_of(kind, base, plan["labels"]), getattr(peft, which)(task_type=task, **settings))
    for one, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data += 0.3 * torch.randn_like(parameter)
    model.save_pretrained(out)
    found["make " + name] = logits(kind, model)
for name, (kind, directory) in plan["whole"].items():
    auto = transformers.AutoModelForCausalLM if kind.endswith(" lm") else transformers.AutoModelForSequenceClassification
    _, loading = auto.from_pretrained(directory, output_loading_info=True)
    info[name] = sorted(map(str, [*loading["missing_keys"], *loading["unexpected_keys"], *loading["mismatched_keys"]]))
    found["whole " + name] = logits(kind, base_of(kind, directory, None))
save_file(found, f"{folder}/found.safetensors")
json.dump(info, open(f"{folder}/info.json", "w"))
"""


@dataclass
class Exchanged:
    folder: Path
    bases: dict[str, Path]
    here: dict[str, torch.Tensor]  # logits of what was trained here
    there: dict[str, torch.Tensor]  # logits that the library computed
    info: dict[str, list[str]]  # keys that didn't fit, by whole checkpoint


@pytest.fixture(scope="module")
def exchanged(tmp_path_factory) -> Exchanged:
    """Everything at once: importing the library takes longer than all that it does here."""
    folder = tmp_path_factory.mktemp("exchange")
    asked = subprocess.run([sys.executable, "-c", "import importlib.metadata as m; m.version('peft')"], cwd=folder)
    if asked.returncode:
        pytest.skip("the library peft isn't installed")
    bases = {kind: make_base(kind, folder / kind) for kind in KINDS}
    plan, here = {"labels": LABELS, "load": {}, "make": {}, "whole": {}}, {}
    for name, (kind, method) in TRAINED_HERE.items():
        base, out = bases[kind.split()[0]], folder / "out" / name
        model = trained(base, kind, method)
        here[name] = logits(model, kind)
        assert (here[name] - logits(fresh(base, kind), kind)).abs().max() > 0.005
        write_adapter(model, fresh(base, kind), out, {"base_model_name_or_path": str(base)})
        plan["load"][name] = (kind, str(base), str(out))
    for name, (kind, which, settings) in MADE_THERE.items():
        plan["make"][name] = (kind, str(bases[kind.split()[0]]), which, settings, str(folder / "made" / name))
    for kind in WHOLE:
        model = merge(trained(bases[kind.split()[0]], kind, LoRA(rank=2)))
        here[f"whole {kind}"] = logits(model, kind)
        fold_bias(model)
        save_pretrained(model, folder / "whole" / kind)
        plan["whole"][kind] = (kind, str(folder / "whole" / kind))
    given = {"ids roberta": inputs("roberta")[0], "ids other": inputs("")[0], "mask": inputs("")[1]}
    save_file(given | {"pad": torch.tensor(PAD)}, folder / "ids.safetensors")
    (folder / "plan.json").write_text(json.dumps(plan))
    done = subprocess.run([sys.executable, "-c", THEIRS, str(folder)], cwd=folder, capture_output=True, text=True)
    assert not done.returncode, done.stderr[-3000:]
    info = json.loads((folder / "info.json").read_text())
    return Exchanged(folder, bases, here, load_file(folder / "found.safetensors"), info)


def assert_same(found: torch.Tensor, expected: torch.Tensor, kind: str, name: str = "") -> None:
    """At real tokens. The tolerance is a part of the scale.

    Behind a prompt, the library's classifier reads the last position, padding or not: the first text has none.
    """
    if name.endswith("prompt classifier"):
        found, expected = found[:1], expected[:1]
    if kind.endswith(" lm"):
        real = inputs(kind)[1].bool()
        found, expected = found[real], expected[real]
    assert (found - expected).abs().max() <= 1e-5 * max(1.0, expected.abs().max().item())


@pytest.mark.parametrize("name", TRAINED_HERE)
def test_what_is_trained_here_gives_the_same_logits_there(exchanged, name):
    assert_same(exchanged.there[f"load {name}"], exchanged.here[name], TRAINED_HERE[name][0], name)


@pytest.mark.parametrize("name", TRAINED_HERE)
def test_what_is_written_here_can_be_read_here(exchanged, name):
    kind = TRAINED_HERE[name][0]
    model = attach(fresh(exchanged.bases[kind.split()[0]], kind), FromPeft(str(exchanged.folder / "out" / name)))
    assert_same(logits(model, kind), exchanged.here[name], kind)
    assert_same(logits(merge(model), kind), exchanged.here[name], kind)


@pytest.mark.parametrize("name", MADE_THERE)
def test_what_is_made_there_gives_the_same_logits_here(exchanged, name):
    kind = MADE_THERE[name][0]
    base = fresh(exchanged.bases[kind.split()[0]], kind)
    assert (logits(base, kind) - exchanged.there[f"make {name}"]).abs().max() > 0.02
    model = attach(base, FromPeft(str(exchanged.folder / "made" / name)))
    assert_same(logits(model, kind), exchanged.there[f"make {name}"], kind, name)


ONE_WAY = {name for name, made in MADE_THERE.items() if "Prefix" in made[1] and not name.startswith(ROTATING)}


@pytest.mark.parametrize("name", [name for name in MADE_THERE if name not in ONE_WAY])
def test_a_round_trip_changes_no_tensor(exchanged, name, tmp_path):
    kind = MADE_THERE[name][0]
    base, source = exchanged.bases[kind.split()[0]], exchanged.folder / "made" / name
    write_adapter(attach(fresh(base, kind), FromPeft(str(source))), fresh(base, kind), tmp_path, {})
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (source, tmp_path))
    for one, tensor in before.items():
        if "pooler" not in one:  # which belongs to the head here, and is written whole
            torch.testing.assert_close(after[one], tensor, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", WHOLE)
def test_whole_checkpoints_load_strictly_there(exchanged, kind):
    assert exchanged.info[kind] == []
    assert_same(exchanged.there[f"whole {kind}"], exchanged.here[f"whole {kind}"], kind)


def test_what_was_read_trains_on(tmp_path):
    base = make_base("gpt2", tmp_path / "base")
    write_adapter(trained(base, "gpt2", LoRA(rank=2)), fresh(base, "gpt2"), tmp_path / "out", {})
    model = trained(base, "gpt2", FromPeft(str(tmp_path / "out")))
    before = attach(fresh(base, "gpt2"), FromPeft(str(tmp_path / "out")))
    moved = {name for name, one in before.named_parameters() if not torch.equal(one, model.get_parameter(name))}
    trains = {name for name, one in model.named_parameters() if one.requires_grad}
    assert moved == trains and "blocks.0.attn.q.lora_a" in trains and "blocks.0.mlp.up.weight" not in trains
