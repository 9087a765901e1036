"""What the settings of a peft adapter name is in its file, and what is tied stays as the library has it."""

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from model import from_pretrained, make_head
from model.gpt2 import GPT2, GPT2Config
from model.registry import ARCHITECTURES
from model.weights import save_pretrained
from peft import attach, merge
from peft.huggingface.read import FromPeft
from peft.huggingface.write import write_adapter
from tests.helpers.architectures import small_config
from utils.errors import UserError

pytestmark = pytest.mark.not_quick  # the library runs in a process of its own

DECODERS = ("gpt2", "llama", "qwen2")
KINDS = (*DECODERS, "distilbert", "bert", "roberta")
IDS = torch.arange(5, 25)[None]
LORA = {"r": 4, "lora_alpha": 6}
QUERY = {"gpt2": "c_attn", "distilbert": "q_lin"} | dict.fromkeys(("llama", "qwen2"), "q_proj")
QUERY |= dict.fromkeys(("bert", "roberta"), "query")
EMBEDDING = dict.fromkeys(KINDS, "word_embeddings") | {"gpt2": "wte", "llama": "embed_tokens", "qwen2": "embed_tokens"}
HEAD = dict.fromkeys(DECODERS, "lm_head") | {"distilbert": "vocab_projector", "bert": "decoder", "roberta": "decoder"}

# What the library makes: name -> (kind, task, settings). Whole modules, with and without the order to tie them.
MADE: dict[str, tuple[str, str, dict]] = {}
for one in KINDS:
    for what, saved in {"embedding": [EMBEDDING[one]], "head": [HEAD[one]], "both": [EMBEDDING[one], HEAD[one]]}.items():
        for tie in (False, True):
            settings = {**LORA, "target_modules": [QUERY[one]], "modules_to_save": saved, "ensure_weight_tying": tie}
            MADE[f"{one} {what}{' tied' if tie else ''}"] = (one, "lm", settings)
MADE |= {
    "roberta whole head": ("roberta", "lm", {**LORA, "target_modules": ["query"], "modules_to_save": ["lm_head"]}),
    "bert whole head": ("bert", "lm", {**LORA, "target_modules": ["query"], "modules_to_save": ["cls.predictions"]}),
    "distilbert anchored": (
        "distilbert",
        "body",
        {
            **LORA,
            "target_modules": ["q_lin", "v_lin"],
            "alpha_pattern": {"^transformer.layer.0.attention.q_lin": 64},
            "rank_pattern": {"^transformer.layer.1.attention.v_lin": 2},
        },
    ),
    "gpt2 anchored": (
        "gpt2",
        "body",
        {**LORA, "target_modules": r"h\.\d+\.attn\.c_attn", "alpha_pattern": {r"^h\.0\..*": 32}},
    ),
    "llama whole classifier": (
        "llama",
        "classifier",
        {**LORA, "target_modules": ["gate_proj"], "layers_to_transform": [1], "modules_to_save": ["input_layernorm"]},
    ),
    "gpt2 saved around": (
        "gpt2",
        "lm",
        {**LORA, "target_modules": ["c_attn", "c_fc"], "modules_to_save": ["mlp"]},
    ),
    "qwen2 body": ("qwen2", "body", {**LORA, "target_modules": ["k_proj", "down_proj"], "alpha_pattern": {"k_proj": 9}}),
    "bert pattern": (
        "bert",
        "classifier",
        {**LORA, "target_modules": r".*\.1\..*(query|dense)", "exclude_modules": ["attention.output.dense"]},
    ),
    "bert layers": (
        "bert",
        "body",
        {**LORA, "target_modules": ["value"], "layers_to_transform": 1, "layers_pattern": "layer"},
    ),
    "distilbert classifier": ("distilbert", "classifier", {**LORA, "target_modules": ["q_lin", "lin1"]}),
    "roberta linear": ("roberta", "classifier", {**LORA, "target_modules": "all-linear"}),
}

THEIRS = """
import json, sys, torch, transformers, peft
from safetensors.torch import save_file
torch.set_num_threads(1)
folder = sys.argv[1]
ids = torch.arange(5, 25)[None]
found = {}

def base_of(kind, task, path):
    if task == "body":
        return transformers.AutoModel.from_pretrained(path)
    if task == "classifier":
        return transformers.AutoModelForSequenceClassification.from_pretrained(path, num_labels=3)
    auto = transformers.AutoModelForCausalLM if kind in ("gpt2", "llama", "qwen2") else transformers.AutoModelForMaskedLM
    return auto.from_pretrained(path)

for name, (kind, task, settings, path, out) in json.load(open(f"{folder}/plan.json")).items():
    task_type = {"classifier": "SEQ_CLS"}.get(task)
    model = peft.get_peft_model(base_of(kind, task, path), peft.LoraConfig(task_type=task_type, **settings))
    torch.manual_seed(5)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.3 * torch.randn_like(parameter)
    model.save_pretrained(out)
    again = peft.PeftModel.from_pretrained(base_of(kind, task, path), out).eval()
    with torch.no_grad():
        output = again(input_ids=ids)
    found[name] = (output.last_hidden_state if task == "body" else output.logits).contiguous()
for name, (kind, path, adapter) in json.load(open(f"{folder}/load.json")).items():
    again = peft.PeftModel.from_pretrained(base_of(kind, "lm", path), adapter).eval()
    with torch.no_grad():
        found["load " + name] = again(input_ids=ids).logits.contiguous()
save_file(found, f"{folder}/found.safetensors")
"""


def base(kind: str, folder: Path) -> Path:
    torch.manual_seed(1)
    sizes = {"vocab_size": 40, "context_length": 32, "dim": 16, "n_heads": 2, "n_layers": 2}
    if kind == "gpt2":
        model = GPT2(GPT2Config(**sizes))
    elif kind in DECODERS:  # a Llama with a head of its own, a Qwen2 with the embedding's
        model = ARCHITECTURES[kind].model(small_config(kind, **sizes, tied=kind == "qwen2"))
    else:
        more = {"mlp_dim": 24, "dropout": 0.0, "head_dropout": 0.0, "pad_id": 1 if kind == "roberta" else 0}
        model = ARCHITECTURES[kind].model(ARCHITECTURES[kind].config(**sizes, **more))
    model.head = make_head(model, "lm")
    save_pretrained(model, folder)
    if kind == "bert":  # as published: with the pooler
        file = folder / "model.safetensors"
        pooler = {"bert.pooler.dense.weight": torch.randn(16, 16), "bert.pooler.dense.bias": torch.randn(16)}
        save_file(load_file(file) | pooler, file, {"format": "pt"})
    return folder


@dataclass
class Made:
    folder: Path
    there: dict[str, torch.Tensor]  # what the library computes with an adapter that it has made, saved and read again

    def base(self, name: str) -> nn.Module:
        torch.manual_seed(2)
        kind, task, _ = MADE[name]
        head = {"lm": "lm", "body": None, "classifier": "classifier"}[task]
        return from_pretrained(self.folder / kind, head=head, num_labels=3, dropout=0.0)

    def adapter(self, name: str) -> Path:
        return self.folder / "made" / name

    def read(self, name: str) -> nn.Module:
        return attach(self.base(name), FromPeft(str(self.adapter(name)))).eval()


def run_library(folder: Path, plan: dict, load: dict) -> dict[str, torch.Tensor]:
    asked = subprocess.run([sys.executable, "-c", "import importlib.metadata as m; m.version('peft')"], cwd=folder)
    if asked.returncode:
        pytest.skip("the library peft isn't installed")
    (folder / "plan.json").write_text(json.dumps(plan))
    (folder / "load.json").write_text(json.dumps(load))
    done = subprocess.run([sys.executable, "-c", THEIRS, str(folder)], cwd=folder, capture_output=True, text=True)
    assert not done.returncode, done.stderr[-3000:]
    return load_file(folder / "found.safetensors")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Made:
    folder = tmp_path_factory.mktemp("promises")
    for kind in KINDS:
        base(kind, folder / kind)
    plan = {
        name: (kind, task, settings, str(folder / kind), str(folder / "made" / name))
        for name, (kind, task, settings) in MADE.items()
    }
    return Made(folder, run_library(folder, plan, {}))


@torch.no_grad()
def output(model: nn.Module) -> torch.Tensor:
    return model(IDS) if model.head else model.encode(IDS)


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("name", MADE)
def test_an_adapter_gives_the_same_as_in_the_library(made, name):
    model = made.read(name)
    assert (output(made.base(name).eval()) - made.there[name]).abs().max() > 0.01 * made.there[name].abs().max()
    assert_same(output(model), made.there[name])
    assert_same(output(merge(model)), made.there[name])


def test_a_trained_embedding_leaves_the_head_and_goes_out_again(made, tmp_path):
    """As an adapter and as a whole model; neither ties what was apart."""
    load = {}
    for name in (f"{kind} {what}" for kind in DECODERS for what in ("embedding", "head", "both")):
        model, base, (kind, what) = made.read(name), made.base(name), name.split()
        assert not model.config.tied and base.config.tied == (kind != "llama")
        assert torch.equal(model.token_embedding.weight, base.token_embedding.weight) == (what == "head")
        assert torch.equal(model.head.weight, base.head.weight) == (what == "embedding")
        assert model.token_embedding.weight.requires_grad == (what != "head")
        write_adapter(model, base, tmp_path / name, {})
        saved = json.loads((tmp_path / name / "adapter_config.json").read_text())["modules_to_save"]
        assert len(saved) == (2 if what == "both" else 1)  # what wasn't trained isn't in the file
        load[name] = (kind, str(made.folder / kind), str(tmp_path / name))
        save_pretrained(model, tmp_path / f"whole {name}")
        assert_same(output(from_pretrained(tmp_path / f"whole {name}").eval()), made.there[name])
    found = run_library(tmp_path, {}, load)
    for name in load:
        assert_same(found[f"load {name}"], made.there[name])


def changed(made: Made, name: str, out: Path, keep=lambda name: True, **settings) -> FromPeft:
    """Return an adapter of the library of which some tensors are left out and some settings changed."""
    shutil.copytree(made.adapter(name), out)
    file = out / "adapter_model.safetensors"
    save_file({one: tensor for one, tensor in load_file(file).items() if keep(one)}, file, {"format": "pt"})
    config = json.loads((out / "adapter_config.json").read_text())
    (out / "adapter_config.json").write_text(json.dumps(config | settings))
    return FromPeft(str(out))


LACKING = {
    "no classifier": ("distilbert classifier", lambda n: "classifier" not in n, "lacks pre_classifier.weight and 3 more"),
    "half a classifier": (
        "distilbert classifier",
        lambda n: "pre_classifier" not in n,
        "lacks pre_classifier.weight and 1",
    ),
    "no bias": ("roberta linear", lambda n: "out_proj.bias" not in n, "lacks classifier.out_proj.bias"),
    "half of the targets": ("distilbert classifier", lambda n: "lin1" not in n, "no tensors for .*ffn.lin1 and 1 more"),
    "a layer": ("distilbert classifier", lambda n: "layer.1." not in n, "no tensors for .*layer.1.attention.q_lin and 1"),
    "a layer of a body": (
        "distilbert anchored",
        lambda n: "0.attention.v_lin" not in n,
        "for transformer.layer.0.att.*v_lin",
    ),
    "one of a pattern": ("gpt2 anchored", lambda n: "h.1." not in n, r"no tensors for h.1.attn.c_attn"),
    "of all linear ones": ("roberta linear", lambda n: "1.output.dense" not in n, "no tensors for roberta.*1.output.dense"),
    "an embedding": ("gpt2 embedding", lambda n: "wte" not in n, "lacks transformer.wte.weight"),
    "a head": ("gpt2 both", lambda n: "lm_head" not in n, "lacks lm_head.weight"),
    "a bias of a head": ("bert whole head", lambda n: "transform.dense.bias" not in n, "lacks cls.*transform.dense.bias"),
}


@pytest.mark.parametrize("what", LACKING)
def test_what_the_settings_name_and_the_file_lacks_is_an_error(made, what, tmp_path):
    name, keep, message = LACKING[what]
    with pytest.raises(UserError, match=message) as found:
        attach(made.base(name), changed(made, name, tmp_path / "adapter", keep))
    assert "adapter_config.json" in str(found.value) and len(str(found.value).splitlines()) == 1


def test_all_linear_layers_are_named_in_any_case(made, tmp_path):
    model = made.base("roberta linear")
    attach(model, changed(made, "roberta linear", tmp_path / "adapter", target_modules="ALL-LINEAR"))
    assert_same(output(model.eval()), made.there["roberta linear"])


def test_a_classifier_is_promised_by_the_task_alone(made, tmp_path):
    adapter = changed(
        made, "distilbert classifier", tmp_path / "a", lambda name: "classifier" not in name, modules_to_save=None
    )
    with pytest.raises(UserError, match=r"task_type SEQ_CLS.*lacks pre_classifier\.weight"):
        attach(made.base("distilbert classifier"), adapter)


def test_an_adapter_for_another_task_promises_no_classifier(made, tmp_path):
    """As in the RoBERTa notes, whose adapter was declared to be for language modelling, and froze the head."""
    adapter = changed(
        made,
        "roberta linear",
        tmp_path / "a",
        lambda name: "classifier" not in name,
        task_type="CAUSAL_LM",
        modules_to_save=None,
    )
    attach(made.base("roberta linear"), adapter)


@pytest.mark.parametrize("named", [["q_lin"], "transformer.*q_lin", ["attention.q_lin", "0.attention.v_lin"]])
def test_tensors_that_the_settings_do_not_name_are_refused(made, named, tmp_path):
    """The library ignores them."""
    adapter = changed(made, "distilbert anchored", tmp_path / "a", target_modules=named)
    with pytest.raises(UserError, match=r"has tensors for transformer.layer.\d.attention.v_lin, which target_modules"):
        attach(made.base("distilbert anchored"), adapter)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_modules": "("}, "a broken pattern in target_modules"),
        ({"target_modules": 3}, "target_modules = 3; it must be str or list"),
        ({"target_modules": ["q_lin", None]}, "target_modules.*a list of names"),
        ({"modules_to_save": "score"}, "modules_to_save = 'score'; it must be list"),
        ({"layers_to_transform": "all"}, "layers_to_transform = 'all'; it must be int or list"),
        ({"layers_to_transform": [0], "layers_pattern": "("}, "a broken pattern in layers_pattern"),
        ({"exclude_modules": ["v_lin"]}, "has tensors for transformer.layer.0.attention.v_lin"),
        ({"layers_to_transform": [0]}, "has tensors for transformer.layer.1.attention.q_lin"),
    ],
)
def test_settings_that_name_modules_are_checked(made, settings, message, tmp_path):
    with pytest.raises(UserError, match=message):
        attach(made.base("distilbert anchored"), changed(made, "distilbert anchored", tmp_path / "a", **settings))
