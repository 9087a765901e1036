"""Language-model heads that are the token embedding's tensor, and heads that are one of their own."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from model import from_pretrained, weights
from model.vocabulary_loss import vocabulary_loss
from peft import BitFit, Freeze, LoRA, attach
from tests.helpers.encoder_parity import KINDS, transformers
from tests.helpers.parity import TOLERANCE, distance, reference
from utils.errors import UserError

EMBEDDINGS = {"gpt2": "transformer.wte.weight"} | {
    name: f"{name}.embeddings.word_embeddings.weight" for name in ("distilbert", "bert", "roberta")
}
HEADS = {
    "gpt2": "lm_head.weight",
    "distilbert": "vocab_projector.weight",
    "bert": "cls.predictions.decoder.weight",
    "roberta": "lm_head.decoder.weight",
}
OWN_BIASES = {"bert": "cls.predictions.decoder.bias", "roberta": "lm_head.decoder.bias"}  # beside the head's `bias`
ALL = sorted(HEADS)
IDS = torch.arange(5, 45)[None]


def make(kind: str, folder: Path) -> dict[str, torch.Tensor]:
    """Save a small model of the library with its head tied. Return its tensors."""
    theirs = reference("GPT2LMHeadModel") if kind == "gpt2" else KINDS[kind].make("ForMaskedLM")
    theirs.save_pretrained(folder)
    return load_file(folder / "model.safetensors")


def rewrite(folder: Path, tensors: dict[str, torch.Tensor], **settings) -> None:
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | settings))


@torch.no_grad()
def theirs(kind: str, folder: Path) -> torch.Tensor:
    auto = transformers.AutoModelForCausalLM if kind == "gpt2" else transformers.AutoModelForMaskedLM
    model, report = auto.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["mismatched_keys"], report
    return model.eval()(IDS).logits


@torch.no_grad()
def logits(model: nn.Module) -> torch.Tensor:
    return model.eval()(IDS)


def trained_apart(kind: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors of a model whose head, and its second bias where there is one, were trained apart."""
    apart = tensors[EMBEDDINGS[kind]] + 0.3 * torch.randn_like(tensors[EMBEDDINGS[kind]])
    tensors = tensors | {HEADS[kind]: apart}
    if kind in OWN_BIASES:
        tensors[OWN_BIASES[kind]] = torch.randn(len(apart))
    return tensors


@pytest.mark.parametrize("says", ["tied", "untied"])
@pytest.mark.parametrize("kind", ALL)
def test_a_head_that_was_trained_apart_is_used_and_exported_so(kind, says, tmp_path):
    tensors = make(kind, tmp_path)
    tied = theirs(kind, tmp_path)
    rewrite(tmp_path, trained_apart(kind, tensors), tie_word_embeddings=says == "tied")
    expected, model = theirs(kind, tmp_path), from_pretrained(tmp_path, dropout=0.0)
    assert distance(tied, expected) > 0.1
    assert distance(logits(model), expected) <= TOLERANCE
    assert not model.config.tied
    weights.save_pretrained(model, tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["tie_word_embeddings"] is False
    assert distance(theirs(kind, tmp_path / "again"), expected) <= TOLERANCE
    assert torch.equal(logits(from_pretrained(tmp_path / "again", dropout=0.0)), logits(model))


@pytest.mark.parametrize("kind", ALL)
def test_a_copy_of_the_embedding_is_dropped(kind, tmp_path):
    tensors = make(kind, tmp_path)
    expected = theirs(kind, tmp_path)
    rewrite(tmp_path, tensors | {HEADS[kind]: tensors[EMBEDDINGS[kind]].clone()})
    model = from_pretrained(tmp_path, dropout=0.0)
    assert model.head.weight is model.token_embedding.weight  # one tensor, trained once
    assert distance(logits(model), expected) <= TOLERANCE
    weights.save_pretrained(model, tmp_path / "again")
    assert HEADS[kind] not in load_file(tmp_path / "again" / "model.safetensors")


@pytest.mark.parametrize("kind", ALL)
def test_a_tied_tensor_may_bear_the_name_of_the_head_alone(kind, tmp_path):
    """safetensors' `save_model` keeps one of the two names, and not always the embedding's."""
    tensors = make(kind, tmp_path)
    expected = theirs(kind, tmp_path)
    tensors[HEADS[kind]] = tensors.pop(EMBEDDINGS[kind])
    if kind in OWN_BIASES:
        tensors[OWN_BIASES[kind]] = tensors.pop(OWN_BIASES[kind].replace("decoder.", ""))
    rewrite(tmp_path, tensors)
    assert distance(theirs(kind, tmp_path), expected) <= TOLERANCE
    assert distance(logits(from_pretrained(tmp_path, dropout=0.0)), expected) <= TOLERANCE
    body = from_pretrained(tmp_path, head="classifier", num_labels=2)
    assert torch.equal(body.token_embedding.weight, tensors[HEADS[kind]])


@pytest.mark.parametrize("kind", ALL)
def test_what_is_missing_or_of_another_size_is_refused(kind, tmp_path):
    tensors = make(kind, tmp_path)
    rewrite(tmp_path, tensors, tie_word_embeddings=False)
    with pytest.raises(UserError, match=f"missing {HEADS[kind]}"):
        from_pretrained(tmp_path)
    from_pretrained(tmp_path, head="classifier", num_labels=2)  # which has no such head
    embedding = tensors.pop(EMBEDDINGS[kind])
    rewrite(tmp_path, tensors | {HEADS[kind]: embedding})
    with pytest.raises(UserError, match=f"missing {EMBEDDINGS[kind]}"):
        from_pretrained(tmp_path)
    padded = torch.cat([embedding, embedding[:12]])
    rewrite(tmp_path, tensors | {EMBEDDINGS[kind]: embedding, HEADS[kind]: padded}, tie_word_embeddings=True)
    with pytest.raises(UserError, match=rf"{HEADS[kind]} has shape \[512, 96\], expected \[500, 96\]"):
        from_pretrained(tmp_path)


def test_a_head_of_its_own_trains_where_the_model_itself_does(tmp_path):
    rewrite(tmp_path, trained_apart("gpt2", make("gpt2", tmp_path)))

    def trains(method) -> bool:
        return attach(from_pretrained(tmp_path), method).head.weight.requires_grad

    assert trains(Freeze("all")) and trains(Freeze("last_layer"))
    assert not trains(LoRA(rank=2)) and not trains(BitFit()) and not trains(Freeze("all", train_head=False))


def test_the_fast_loss_reads_a_head_of_its_own(tmp_path):
    rewrite(tmp_path, trained_apart("gpt2", make("gpt2", tmp_path)))
    model = from_pretrained(tmp_path, dropout=0.0).eval()
    loss, _ = vocabulary_loss(model.encode(IDS)[0, :-1], model.head, IDS[0, 1:], -100)
    expected = nn.functional.cross_entropy(model(IDS)[0, :-1], IDS[0, 1:], reduction="sum")
    torch.testing.assert_close(loss, expected)
