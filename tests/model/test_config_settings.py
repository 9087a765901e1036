"""Each key of config.json is used, harmless or refused by name; what it means is what it means to transformers."""

import json
from pathlib import Path

import pytest
import torch

from model import from_pretrained
from model.config_settings import HARMLESS
from tests.helpers.exchange import make_base
from utils.errors import UserError

PUBLISHED = {  # keys of the published configurations of each kind, beside those that fix the sizes
    "gpt2": {
        "architectures": ["GPT2LMHeadModel"],
        "n_ctx": 1024,
        "summary_activation": None,
        "summary_first_dropout": 0.1,
        "summary_proj_to_labels": True,
        "summary_type": "cls_index",
        "summary_use_proj": True,
        "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
        "attn_pdrop": 0.1,
        "embd_pdrop": 0.1,
        "resid_pdrop": 0.1,
        "initializer_range": 0.02,
        "_num_labels": 1,
        "id2label": {"0": "LABEL_0"},
        "label2id": {"LABEL_0": 0},
    },
    "distilbert": {
        "attention_dropout": 0.1,
        "qa_dropout": 0.1,
        "initializer_range": 0.02,
        "sinusoidal_pos_embds": False,
        "tie_weights_": True,
        "finetuning_task": "sst-2",
        "output_past": True,
        "transformers_version": "4.10.0.dev0",
    },
    "bert": {
        "gradient_checkpointing": False,
        "position_embedding_type": "absolute",
        "use_cache": True,
        "_name_or_path": "nreimers/MiniLM-L6-H384-uncased",
        "directionality": "bidi",
        "pooler_fc_size": 768,
        "pooler_num_attention_heads": 12,
        "pooler_num_fc_layers": 3,
        "pooler_size_per_head": 128,
        "pooler_type": "first_token_transform",
    },
    "roberta": {"bos_token_id": 0, "eos_token_id": 2, "attention_probs_dropout_prob": 0.1, "torch_dtype": "float32"},
}


def change(folder: Path, drop: tuple = (), **changes) -> Path:
    file = folder / "config.json"
    content = {name: value for name, value in json.loads(file.read_text()).items() if name not in drop} | changes
    file.write_text(json.dumps(content))
    return folder


def hidden(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        return from_pretrained(folder, head=None).eval().encode(torch.arange(3, 15)[None])


def their_hidden(folder: Path) -> torch.Tensor:
    import transformers

    with torch.no_grad():
        model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
        return model(torch.arange(3, 15)[None]).last_hidden_state


@pytest.fixture(params=PUBLISHED)
def base(request, tmp_path) -> Path:
    return make_base(request.param, tmp_path / request.param)


def test_the_keys_of_published_configurations_change_nothing(base):
    before = hidden(base)
    assert torch.equal(hidden(change(base, **PUBLISHED[base.name])), before)


def test_every_harmless_key_is_taken(base):
    names = {name: "anything" for names in HARMLESS for name in names.split()}
    before = hidden(base)
    assert torch.equal(hidden(change(base, **names)), before)


@pytest.mark.parametrize("name, value", {"rope_parameters": {"base": 1}, "alibi": True, "hidden_sise": 64}.items())
def test_a_key_that_nobody_knows_is_refused_by_name(base, name, value):
    with pytest.raises(UserError, match=rf"config\.json sets {name} to .*, and what that means isn't known"):
        hidden(change(base, **{name: value}))
    assert hidden(change(base, **{name: None})).shape[-1]  # null is no setting


REFUSED = {
    "problem_type": "multi_label_classification",
    "pruned_heads": {"0": [1]},
    "quantization_config": {"bits": 4},
    "is_encoder_decoder": True,
    "add_cross_attention": True,
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_key_with_another_meaning_is_refused_by_name(base, name):
    with pytest.raises(UserError, match=f"config.json sets {name} to "):
        hidden(change(base, **{name: REFUSED[name]}))


@pytest.mark.parametrize(
    "kind, name", [("gpt2", "scale_attn_weights"), ("bert", "hidden_act"), ("distilbert", "activation")]
)
def test_a_setting_of_the_architecture_needs_a_value(tmp_path, kind, name):
    base = make_base(kind, tmp_path)
    with pytest.raises(UserError, match=f"config.json sets {name} to None; {kind} has "):
        hidden(change(base, **{name: None}))


ALIASES = {
    "gpt2": {"n_head": "num_attention_heads", "n_layer": "num_hidden_layers", "n_positions": "max_position_embeddings"},
    "distilbert": {"n_heads": "num_attention_heads", "n_layers": "num_hidden_layers", "dim": "hidden_size"},
}


@pytest.mark.parametrize("kind, name", [(kind, name) for kind in ALIASES for name in ALIASES[kind]])
def test_a_second_name_means_the_same_as_to_transformers(tmp_path, kind, name):
    base, alias = make_base(kind, tmp_path), ALIASES[kind][name]
    value = json.loads((base / "config.json").read_text())[name]
    before = hidden(base)
    change(base, drop=(name,), **{alias: value})
    assert torch.equal(hidden(base), before)
    assert torch.allclose(their_hidden(base), before, atol=1e-5)
    with pytest.raises(UserError, match=f"sets {alias} to {value} and {name} to 1, which are two names"):
        hidden(change(base, **{name: 1}))


def test_heads_by_their_second_name_change_the_result_as_in_transformers(tmp_path):
    base = make_base("gpt2", tmp_path)
    before = hidden(base)
    change(base, drop=("n_head",), num_attention_heads=1)
    assert not torch.allclose(hidden(base), before, atol=1e-3)
    assert torch.allclose(hidden(base), their_hidden(base), atol=1e-5)


def test_what_roberta_lacks_is_what_the_library_takes(tmp_path):
    base = make_base("roberta", tmp_path)
    change(base, layer_norm_eps=1e-2)
    change(base, drop=("layer_norm_eps",))
    assert from_pretrained(base, head=None).config.layer_norm_eps == 1e-12
    assert torch.allclose(hidden(base), their_hidden(base), atol=1e-5)
