"""Check the flags of the model."""

import pytest
import torch
from safetensors.torch import load_file

import model as models
from model import hub
from model.weights import save_pretrained
from tests.helpers.flags.register import check, differ
from tests.helpers.small import make_checkpoint
from utils.errors import UserError


@check("model")
def model(experiment, fixtures):
    fixtures["monkeypatch"].setattr(hub, "POCKET_DIR", fixtures["checkpoint"].parent)
    found = experiment(checkpoint=None, model="tiny")
    assert found.result["model"] == "tiny" and found.result["model_reason"] == "named"
    assert not differ(found.tensors, experiment().tensors)  # the same files by another way


@check("checkpoint")
def checkpoint(experiment, fixtures):
    other = make_checkpoint(fixtures["alone"] / "deeper", "see you later " * 9, n_layers=3)
    found = experiment(checkpoint=other)
    assert (found.result["model"], found.result["model_reason"]) == (str(other), "named with --checkpoint")
    assert "blocks.2.attn.q.weight" in found.tensors and "blocks.2.attn.q.weight" not in experiment().tensors


@check("tokenizer")
def tokenizer(experiment, fixtures):
    coarse = make_checkpoint(fixtures["alone"] / "coarse", "text", n_merges=1)  # hardly a merge: more tokens
    assert experiment("--tokenizer", coarse).widths(True)[0] > 1.5 * experiment().widths(True)[0]


@check("weights")
def weights(experiment, fixtures):
    stored = load_file(fixtures["checkpoint"] / "model.safetensors")["transformer.wte.weight"]
    flags = ("--trainable_layers", "all", "--weights")
    pretrained, random = (experiment(*flags, choice, learning_rate=0) for choice in ("pretrained", "random"))
    assert torch.equal(pretrained.tensors["token_embedding.weight"], stored)
    assert (random.tensors["token_embedding.weight"] - stored).std() > 1  # two draws of N(0, 1)
    assert (pretrained.result["weights"], random.result["weights"]) == ("pretrained", "random")


@check("disable_causal_mask")
def disable_causal_mask(experiment, fixtures):
    # The first token sees the others only without the mask.
    flags = ("--trainable_token_pos", "first", "--context_length", 8)
    causal, free = experiment(*flags), experiment(*flags, "--disable_causal_mask")
    assert causal.logged("loss")[0] != free.logged("loss")[0]


@check("dropout")
def dropout(experiment, fixtures):
    without, with_dropout = experiment(learning_rate=0), experiment("--dropout", 0.5, learning_rate=0)
    assert without.logged("loss") != with_dropout.logged("loss")
    assert without.logged("loss", "validation") == with_dropout.logged("loss", "validation")  # only in training


@check("head_labels")
def head_labels(experiment, fixtures):
    folder = make_checkpoint(fixtures["alone"] / "three", "see you later " * 9)
    three = models.from_pretrained(folder, "classifier", 3)
    save_pretrained(three, folder)
    found = experiment("--head_labels", "2,0", checkpoint=folder, learning_rate=0, weight_decay=0)
    assert torch.equal(found.tensors["head.classifier.weight"], three.head.classifier.weight[[2, 0]])
    with pytest.raises(
        UserError, match=r"a classifier for 3 labels \(LABEL_0, LABEL_1, LABEL_2\), the task has 2 .*--head_"
    ):
        experiment(checkpoint=folder)


@check("depth")
def depth(experiment, fixtures):
    assert not any(name.startswith("blocks.1") for name in experiment("--depth", 1).tensors)
    assert any(name.startswith("blocks.1") for name in experiment().tensors)
