"""Adapters to and from the Hugging Face library `peft`: the same logits there and here."""

import json
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
from peft import IA3, Adapter, BitFit, DoRA, FreezeBlocks, Joined, LoRA, PrefixTuning, attach, merge
from peft.huggingface.read import FromPeft, read_adapter
from peft.huggingface.write import check_expressible, fold_bias, write_adapter
from tests.helpers.small import make_encoder
from utils.errors import UserError

pytestmark = pytest.mark.not_quick  # the library runs in a process of its own

PAD, LABELS, LAYERS = 0, 3, 2
KINDS = ("distilbert", "bert", "roberta", "gpt2")
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
}
# What the library makes: name -> (kind, class of its configuration, settings).
LORA = {"r": 4, "lora_alpha": 6}
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
}

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


def inputs(kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Three texts of 9, 6 and 4 tokens, padded on the right. RoBERTa tells padding by its id."""
    ids = torch.randint(5, 40, (3, 9), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    for text, length in ((1, 6), (2, 4)):
        ids[text, length:], mask[text, length:] = 1 if kind == "roberta" else PAD, 0
    return ids, mask


def fresh(base: Path, kind: str) -> nn.Module:
    torch.manual_seed(2)
    head = {"head": "lm"} if kind.endswith(" lm") else {"head": "classifier", "num_labels": LABELS}
    return from_pretrained(base, **head, dropout=0.0).eval()


@torch.no_grad()
def logits(model: nn.Module, kind: str) -> torch.Tensor:
    return model.eval()(*inputs(kind))


def trained(base: Path, kind: str, method) -> nn.Module:
    """After four steps, so that all that trains has moved."""
    model = attach(fresh(base, kind), method)
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=5e-2)
    for _ in range(4):
        optimizer.zero_grad()
        model(*inputs(kind)).log_softmax(-1)[..., 1].mean().neg().backward()
        optimizer.step()
    return model.eval()


@dataclass
class Exchanged:
    folder: Path
    bases: dict[str, Path]
    here: dict[str, torch.Tensor]  # logits of what was trained here
    there: dict[str, torch.Tensor]  # logits that the library computed
    info: dict[str, list[str]]  # keys that didn't fit, by whole checkpoint


def make_base(kind: str, folder: Path) -> Path:
    torch.manual_seed(1)
    sizes = {"vocab_size": 40, "context_length": 32, "dim": 16, "n_heads": 2, "n_layers": LAYERS}
    if kind == "gpt2":
        model = GPT2(GPT2Config(**sizes))
    else:
        sizes |= {"mlp_dim": 24, "dropout": 0.0, "head_dropout": 0.0}
        model = ARCHITECTURES[kind].model(ARCHITECTURES[kind].config(**sizes, pad_id=1 if kind == "roberta" else PAD))
    if kind == "bert":
        model.head = make_head(model, "classifier", LABELS)
    save_pretrained(model, folder)
    if kind == "bert":  # as published: it has the pooler, which is our head's dense layer, and no classifier
        file = folder / "model.safetensors"
        kept = {name: tensor for name, tensor in load_file(file).items() if not name.startswith("classifier")}
        save_file(kept, file, {"format": "pt"})
    return folder


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
    for kind in (*KINDS, "gpt2 lm"):
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


def assert_same(found: torch.Tensor, expected: torch.Tensor, kind: str) -> None:
    """At real tokens. The tolerance is a part of the scale."""
    if kind.endswith(" lm"):
        real = inputs(kind)[1].bool()
        found, expected = found[real], expected[real]
    assert (found - expected).abs().max() <= 1e-5 * max(1.0, expected.abs().max().item())


@pytest.mark.parametrize("name", TRAINED_HERE)
def test_what_is_trained_here_gives_the_same_logits_there(exchanged, name):
    assert_same(exchanged.there[f"load {name}"], exchanged.here[name], TRAINED_HERE[name][0])


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
    assert_same(logits(model, kind), exchanged.there[f"make {name}"], kind)


@pytest.mark.parametrize("name", [name for name, made in MADE_THERE.items() if made[1] != "PrefixTuningConfig"])
def test_a_round_trip_changes_no_tensor(exchanged, name, tmp_path):
    kind = MADE_THERE[name][0]
    base, source = exchanged.bases[kind.split()[0]], exchanged.folder / "made" / name
    write_adapter(attach(fresh(base, kind), FromPeft(str(source))), fresh(base, kind), tmp_path, {})
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (source, tmp_path))
    for one, tensor in before.items():
        if "pooler" not in one:  # which belongs to the head here, and is written whole
            torch.testing.assert_close(after[one], tensor, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", [*KINDS, "gpt2 lm"])
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


# --- what can't be exchanged


def an_adapter(folder: Path, **changes) -> Path:
    """A LoRA on q of the DistilBERT of `make_base`, with changes to its settings."""
    folder.mkdir(exist_ok=True)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_lin"], **changes}
    config = {name: value for name, value in config.items() if value != "left out"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    path = "base_model.model.distilbert.transformer.layer.1.attention.q_lin"
    tensors = {f"{path}.lora_A.weight": torch.ones(2, 16), f"{path}.lora_B.weight": torch.ones(16, 2)}
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


MALFORMED = {
    "of an unknown kind": ({"peft_type": "VERA"}, "peft_type = 'VERA'; what can be read: LORA, IA3, PREFIX_TUNING"),
    "without a kind": ({"peft_type": "left out"}, "peft_type = None"),
    "without a rank": ({"r": "left out"}, "r = None; it must be int"),
    "with a rank that is none": ({"r": True}, "r = True; it must be int"),
    "with another rank": ({"r": 3}, r"lora_A.weight has shape \[2, 16\], expected \[3, 16\]"),
    "with biases": ({"bias": "all"}, "bias = 'all', which isn't supported; it must be 'none'"),
    "that repeats layers": ({"layer_replication": [[0, 1]]}, "layer_replication"),
    "that changes the base": ({"init_lora_weights": "pissa"}, "path_initial_model_for_weight_conversion"),
    "without magnitudes": ({"use_dora": True}, "expected lora_A, lora_B, lora_magnitude_vector"),
    "with a broken pattern": ({"rank_pattern": {"(": 2}}, "is no pattern"),
    "of IA3 with products": ({"peft_type": "IA3"}, "expected ia3_l"),
    "of a prefix without one": ({"peft_type": "PREFIX_TUNING"}, "prompt_embeddings|no place"),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_a_malformed_adapter_is_one_clear_line(what, tmp_path):
    changes, message = MALFORMED[what]
    base = make_base("distilbert", tmp_path / "base")
    with pytest.raises(UserError, match=message) as found:
        attach(fresh(base, "distilbert"), FromPeft(str(an_adapter(tmp_path / "adapter", **changes))))
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    "rename, message",
    [
        (lambda name: name.removeprefix("base_model.model."), "doesn't begin with base_model.model."),
        (lambda name: name.replace("q_lin", "q_proj"), "q_proj.lora_A.weight, for which the model has no place"),
        (lambda name: name.replace("attention.q_lin", "sa_layer_norm"), "sa_layer_norm, which is no Linear layer"),
        (lambda name: name.replace("lora_B", "lora_C"), "no place"),
        (lambda name: name.replace("lora_B", "lora_A") if "lora_B" in name else "base_model.model.x", "no place"),
    ],
)
def test_a_tensor_without_a_place_is_an_error(rename, message, tmp_path):
    base, adapter = make_base("distilbert", tmp_path / "base"), an_adapter(tmp_path / "adapter")
    file = adapter / "adapter_model.safetensors"
    save_file({rename(name): tensor for name, tensor in load_file(file).items()}, file)
    with pytest.raises(UserError, match=message):
        attach(fresh(base, "distilbert"), FromPeft(str(adapter)))


def test_pickles_and_what_is_nowhere_are_refused(tmp_path):
    adapter = an_adapter(tmp_path / "adapter")
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    model = fresh(make_base("distilbert", tmp_path / "base"), "distilbert")
    with pytest.raises(UserError, match=r"a pickled adapter_model\.bin is never loaded"):
        attach(model, FromPeft(str(adapter)))
    with pytest.raises(UserError, match=r"no readable adapter_config\.json"):
        attach(model, FromPeft(str(tmp_path)))
    with pytest.raises(UserError, match="'nowhere' is no directory, and no repository"):
        attach(model, FromPeft("nowhere"))


def test_an_adapter_by_its_name_comes_from_the_cache(alone):
    repository = alone / "hf" / "hub" / "models--owner--lora"
    for folder in ("refs", "snapshots"):
        (repository / folder).mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    an_adapter(repository / "snapshots" / ("0" * 40), r=2)
    found = read_adapter("owner/lora")
    assert (found.config["r"], len(found.tensors)) == (2, 2)
    with pytest.raises(UserError, match="owner/other isn't in the Hugging Face cache and HF_HUB_OFFLINE is set"):
        read_adapter("owner/other")


REFUSED = {
    "a prefix": ("distilbert", PrefixTuning(3), "a prefix can't be exported"),
    "bottlenecks": ("distilbert", Adapter(reduction_factor=4), "has added AdapterLinear, Bottleneck"),
    "two kinds": ("gpt2 lm", Joined((LoRA(targets="attn.q"), DoRA(targets="attn.v"))), "added DoRALinear, LoRALinear"),
    "nothing added": ("distilbert", BitFit(), "has added nothing"),
    "whole modules alone": ("distilbert", Joined((LoRA(), FreezeBlocks(part="qkv"))), "use --export_model"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_the_library_has_no_form_for_is_refused(what, tmp_path):
    kind, method, message = REFUSED[what]
    base = make_base(kind.split()[0], tmp_path / "base")
    with pytest.raises(UserError, match=message):
        write_adapter(trained(base, kind, method), fresh(base, kind), tmp_path / "out", {})
    assert not (tmp_path / "out").exists()


def test_a_classifier_that_reads_elsewhere_is_refused(tmp_path):
    for kind, how, message in (
        ("distilbert", {"position": "last"}, "reads the position 'last', theirs the first position"),
        ("gpt2", {"position": "first"}, "reads the position 'first', theirs the last real token"),
        ("gpt2", {"average": True}, "reads the mean of all positions"),
        ("gpt2", {"causal": False}, "--disable_causal_mask"),
    ):
        model = from_pretrained(make_base(kind, tmp_path / kind), head="classifier", **how)
        with pytest.raises(UserError, match=message):
            check_expressible(model)


def test_what_no_checkpoint_can_hold_is_refused(experiment):
    import experiments

    found = experiment("--trainable_layers", "prefix", "--trainable_token_pos", "flexible")
    with pytest.raises(UserError, match="no published layer can hold what prefix adds"):
        experiments.main(["--export_model", "x", "--run_dir", str(found.directory)])


def test_a_bias_that_cannot_be_folded_is_refused(tmp_path):
    model = fresh(make_base("gpt2", tmp_path), "gpt2")
    with torch.no_grad():
        model.head.classifier.weight[1] = model.head.classifier.weight[0]  # whose logits differ by the bias alone
    with pytest.raises(UserError, match="can't be folded"):
        fold_bias(model)


# --- the commands


def test_commands_export_and_read_again(experiment, alone, capsys):
    import experiments

    flags = ("--trainable_layers", "lora", "--lora_rank", 4, "--trainable_token_pos", "flexible")
    first = experiment(*flags, learning_rate=1e-2, max_steps=8)
    assert experiments.main(["--export_peft", "adapter", "--run_dir", str(first.directory)]) == 0
    said = capsys.readouterr().out
    assert "pad_token_id" in said and "PeftModel.from_pretrained(AutoModelForSequenceClassification" in said
    again = experiment("--trainable_token_pos", "flexible", "--num_epochs", 0, adapter="adapter", output_dir="again")
    for name in ("train_accuracy", "validation_accuracy", "test_accuracy"):
        assert again.result[name] == first.result[name]
    assert (again.result["method"], again.result["steps"]) == ("peft", 0)
    further = experiment("--trainable_token_pos", "flexible", adapter="adapter", output_dir="further")
    assert any("lora_a" in name for name in further.tensors)
    for what in ("export_peft", "export_model"):  # of a run that itself began with an adapter
        assert experiments.main([f"--{what}", what, "--run_dir", str(further.directory)]) == 0
    whole = experiment(
        "--trainable_token_pos", "flexible", "--num_epochs", 0, checkpoint="export_model", output_dir="whole"
    )
    read = experiment("--trainable_token_pos", "flexible", "--num_epochs", 0, adapter="export_peft", output_dir="read")
    for name in ("train_accuracy", "validation_accuracy", "test_accuracy"):
        assert whole.result[name] == read.result[name] == further.result[name]


def test_commands_that_make_no_sense(experiment, alone, encoder_data):
    import experiments

    for argv, message in (
        (["--export_peft", "x"], "--run_dir with that of an earlier run"),
        (["--export_peft", "x", "--run_dir", "y", "--seed", "1"], "--seed doesn't go with --export_peft"),
        (["--export_model", "x", "--run_dir", "nowhere"], "nowhere is no directory"),
        (["--model", "gpt2-pocket", "--trainable_layers", "peft"], "needs --adapter"),
        (["--model", "gpt2-pocket", "--adapter", "x", "--trainable_layers", "lora"], "peft[+]lora"),
    ):
        with pytest.raises(UserError, match=message):
            experiments.main(argv)


def test_an_encoder_by_command(alone, encoder_data, tmp_path, capsys):
    import experiments

    checkpoint = make_encoder(tmp_path / "base", "distilbert", encoder_data)
    base = ["--checkpoint", str(checkpoint), "--data_dir", str(encoder_data), "--dataset", "sst2", "--device", "cpu"]
    assert experiments.main([*base, "--trainable_layers", "lora", "--max_steps", "4", "--output_dir", "one"]) == 0
    assert experiments.main(["--export_peft", "adapter", "--run_dir", "one"]) == 0
    assert experiments.main([*base, "--adapter", "adapter", "--num_epochs", "0", "--output_dir", "two"]) == 0
    one, two = (json.loads(Path(folder, "result.json").read_text()) for folder in ("one", "two"))
    assert one["validation_accuracy"] == two["validation_accuracy"]
