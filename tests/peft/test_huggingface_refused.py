"""What can't be exchanged with the Hugging Face library `peft` is refused in one clear line."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import experiments
from model import from_pretrained
from peft import Adapter, BitFit, DoRA, FreezeBlocks, HiRA, Joined, LoRA, PrefixTuning, PromptTuning, VeRA, attach
from peft.huggingface.read import FromPeft, read_adapter
from peft.huggingface.settings import ADAPTER
from peft.huggingface.write import check_expressible, fold_bias, write_adapter
from tests.helpers.exchange import fresh, logits, make_base, trained
from utils.errors import UserError


def an_adapter(folder: Path, **changes) -> Path:
    """A LoRA on q of the DistilBERT of `make_base`, with changes to its settings."""
    folder.mkdir(exist_ok=True)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_lin"]}
    config |= {"layers_to_transform": [1], **changes}
    config = {name: value for name, value in config.items() if value != "left out"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    path = "base_model.model.distilbert.transformer.layer.1.attention.q_lin"
    tensors = {f"{path}.lora_A.weight": torch.ones(2, 16), f"{path}.lora_B.weight": torch.ones(16, 2)}
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


OTHER = {"r": "left out", "lora_alpha": "left out"}  # settings that another kind of adapter doesn't have
MALFORMED = {
    "of an unknown kind": (
        {"peft_type": "OFT"},
        "peft_type = 'OFT'; what can be read: LORA, VERA, HIRA, IA3, PREFIX_TUNING, PROMPT_TUNING",
    ),
    "without a kind": ({"peft_type": "left out"}, "peft_type = None"),
    "without a rank": ({"r": "left out"}, "r = None; it must be int"),
    "with a rank that is none": ({"r": True}, "r = True; it must be int"),
    "with another rank": ({"r": 3}, r"lora_A.weight has shape \[2, 16\], expected \[3, 16\]"),
    "with biases": ({"bias": "all"}, "sets bias to 'all', which isn't supported; it must be 'none'"),
    "that repeats layers": ({"layer_replication": [[0, 1]]}, "layer_replication"),
    "that changes the base": ({"init_lora_weights": "pissa"}, "path_initial_model_for_weight_conversion"),
    "without magnitudes": ({"use_dora": True}, "expected lora_A, lora_B, lora_magnitude_vector"),
    "with a broken pattern": ({"rank_pattern": {"(": 2}}, "is no pattern"),
    "of IA3 with a rank": ({"peft_type": "IA3"}, "sets r to 2, and what that means isn't known here"),
    "without modules": ({"target_modules": "left out"}, "has no target_modules, and the library then takes its own choice"),
    "with a pattern that is null": ({"alpha_pattern": None}, "has alpha_pattern = None; it must be an object"),
    "with a key that nobody knows": ({"lora_gain": 2}, "sets lora_gain to 2, and what that means isn't known here"),
    "of IA3 with products": (OTHER | {"peft_type": "IA3"}, "expected ia3_l"),
    "of VeRA with products": (
        OTHER | {"peft_type": "VERA", "save_projection": False},
        "expected vera_lambda_b, vera_lambda_d",
    ),
    "of VeRA without a rank": (OTHER | {"peft_type": "VERA", "r": 0}, "--vera_rank is 0; it must be at least 1"),
    "of VeRA with biases": (OTHER | {"peft_type": "VERA", "bias": "vera_only"}, "sets bias to 'vera_only'"),
    "of HiRA with products": (OTHER | {"peft_type": "HIRA"}, "expected hira_A, hira_B"),
    "of a prefix without one": (
        OTHER | {"peft_type": "PREFIX_TUNING", "target_modules": "left out", "layers_to_transform": "left out"},
        "prompt_embeddings|no place",
    ),
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
        (
            lambda name: "base_model.model.distilbert.embeddings.word_embeddings.lora_embedding_" + name[-8],
            "adapts distilbert.embeddings.word_embeddings; an adapter of an embedding or of a language model's head isn't",
        ),
        (
            lambda name: "base_model.model.vocab_projector." + ("base_layer.weight" if "_A" in name else "lora_B.weight"),
            "adapts vocab_projector; an adapter of an embedding or of a language model's head isn't supported",
        ),
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


VERA_CHANGES = {
    "no matrices": (
        lambda name, one: None if "vera_A" in name else one,
        {},
        "has no base_model.vera_A, which save_projection",
    ),
    "other matrices": (
        lambda name, one: one[1:] if "vera_B" in name else one,
        {},
        r"vera_B has shape .*, expected \[16, 4\]",
    ),
    "other vectors": (
        lambda name, one: one[1:] if "lambda_b" in name else one,
        {},
        r"lambda_b has shape \[15\], expected \[16\]",
    ),
    "another rank": (lambda name, one: one, {"r": 2**20}, r"lambda_d has shape \[4\], expected \[1048576\]"),
    "a key": (lambda name, one: one, {"projection_prng_key": -1}, "--vera_seed is -1; it must be at least 0"),
    "a dropout": (lambda name, one: one, {"vera_dropout": 2}, "--lora_dropout is 2; it must be below 1"),
}


@pytest.mark.parametrize("what", VERA_CHANGES)
def test_a_vera_that_lacks_something_is_refused(what, tmp_path):
    change, settings, message = VERA_CHANGES[what]
    base = make_base("distilbert", tmp_path / "base")
    model = trained(base, "distilbert", VeRA(rank=4))
    write_adapter(model, fresh(base, "distilbert"), tmp_path / "out", {})
    files = [tmp_path / "out" / f"adapter_{kind}" for kind in ("config.json", "model.safetensors")]
    files[0].write_text(json.dumps(json.loads(files[0].read_text()) | settings))
    tensors = {name: change(name, one) for name, one in load_file(files[1]).items()}
    save_file({name: one.contiguous() for name, one in tensors.items() if one is not None}, files[1])
    with pytest.raises(UserError, match=message):
        attach(fresh(base, "distilbert"), FromPeft(str(tmp_path / "out")))


REFUSED = {
    "a prefix": ("distilbert", PrefixTuning(3), "a prefix or prompt can't be exported"),
    "a prompt before a table of positions": ("gpt2 lm", PromptTuning(3), "a prefix or prompt can't be exported"),
    "a prefix on a few blocks": ("llama lm", PrefixTuning(3, layers="1"), "block 0 has no prefix .*on every block"),
    "a prefix and LoRA": ("llama lm", Joined((PrefixTuning(3), LoRA())), "has added LoRALinear, Prefix"),
    "two VeRAs": ("gpt2 lm", Joined((VeRA(targets="attn.q"), VeRA(seed=1, targets="attn.v"))), "has several VeRAs"),
    "VeRA and HiRA": ("gpt2 lm", Joined((VeRA(targets="attn.q"), HiRA(targets="mlp"))), "has added HiRALinear, VeRALinear"),
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
        ("llama", {"position": "first"}, "reads the position 'first', theirs the last real token"),
        ("llama", {"causal": False}, "--disable_causal_mask; the published LlamaForSequenceClassification"),
    ):
        model = from_pretrained(make_base(kind, tmp_path / kind), head="classifier", **how)
        with pytest.raises(UserError, match=message):
            check_expressible(model)


def test_what_no_checkpoint_can_hold_is_refused(experiment):
    found = experiment("--trainable_layers", "prefix", "--trainable_token_pos", "flexible")
    with pytest.raises(UserError, match="no published layer can hold what prefix adds"):
        experiments.main(["--export_model", "x", "--run_dir", str(found.directory)])


def test_a_bias_that_cannot_be_folded_is_refused(tmp_path):
    model = fresh(make_base("gpt2", tmp_path), "gpt2")
    with torch.no_grad():
        model.head.classifier.weight[1] = model.head.classifier.weight[0]  # whose logits differ by the bias alone
    with pytest.raises(UserError, match="can't be folded"):
        fold_bias(model)


def test_every_harmless_key_of_a_lora_is_taken(tmp_path):
    base = make_base("distilbert", tmp_path / "base")
    keys = dict.fromkeys(ADAPTER["LORA"].names_of_harmless(), "anything")
    first, second = (
        attach(fresh(base, "distilbert"), FromPeft(str(an_adapter(tmp_path / name, **changes)))).eval()
        for name, changes in (("plain", {}), ("more", keys))
    )
    assert torch.equal(logits(first, "distilbert"), logits(second, "distilbert"))


def in_front(folder: Path, kind: str, width: int, **changes) -> FromPeft:
    """An adapter of 3 virtual tokens."""
    folder.mkdir()
    settings = {"peft_type": kind, "num_virtual_tokens": 3, "task_type": "CAUSAL_LM", **changes}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    save_file({"prompt_embeddings": torch.ones(3, width)}, folder / "adapter_model.safetensors")
    return FromPeft(str(folder))


@pytest.mark.parametrize(
    ("kind", "what", "changes", "message"),
    [
        ("gpt2", ("PROMPT_TUNING", 16), {}, "is a prompt, which can be read for models that rotate positions"),
        ("llama", ("PROMPT_TUNING", 8), {}, r"prompt_embeddings has shape \[3, 8\], expected \[3, 16\]"),
        ("llama", ("PROMPT_TUNING", 16), {"token_dim": 32}, "token_dim = 32; the model has 16"),
        ("llama", ("PREFIX_TUNING", 128), {}, r"prompt_embeddings has shape \[3, 128\], expected \[3, 64\]"),
        ("llama", ("PREFIX_TUNING", 64), {"num_attention_heads": 4}, "num_attention_heads = 4; the model has 2"),
        ("llama", ("PREFIX_TUNING", 64), {"num_transformer_submodules": 2}, "num_transformer_submodules to 2"),
    ],
)
def test_what_stands_in_front_and_does_not_fit_is_refused(kind, what, changes, message, tmp_path):
    model = fresh(make_base(kind, tmp_path / "base"), f"{kind} lm")
    with pytest.raises(UserError, match=message):
        attach(model, in_front(tmp_path / "adapter", *what, **changes))


@pytest.mark.parametrize("window", [31, 32])
def test_a_window_that_hides_what_stands_in_front_is_refused(window, tmp_path):
    """Of 32 positions in the library, the last sees the first where a window is as long."""
    base = make_base("mistral", tmp_path / "base")
    for what in (("PREFIX_TUNING", 64), ("PROMPT_TUNING", 16)):
        model = from_pretrained(base, window=window, window_layers=(1,))
        adapter = in_front(tmp_path / f"adapter {what[0]}", *what)
        if window == 32:
            attach(model, adapter)
            continue
        with pytest.raises(UserError, match="some layers here have a window of 31 tokens, where 32 are needed"):
            attach(model, adapter)
    model = from_pretrained(base, window=window, window_layers=(1,))
    with pytest.raises(UserError, match=rf"a window of {window} tokens, where 35 are needed; train a prefix"):
        attach(model, PromptTuning(3))
    attach(model, PrefixTuning(3))  # which every token sees here
    with pytest.raises(UserError, match=rf"a window of {window} tokens, where 35 are needed"):
        write_adapter(model, model, tmp_path / "out", {})
