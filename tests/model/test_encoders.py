"""The encoders by themselves: what heads read, the seam, padding, positions, configurations, sizes, conversion."""

import json
from dataclasses import replace

import pytest
import torch

from model import fast_path, from_pretrained, make_head
from model.bert import Bert, BertConfig, Roberta, RobertaConfig
from model.distilbert import DistilBert, DistilBertConfig
from model.registry import ARCHITECTURES, PUBLISHED, architecture_of
from model.weights import save_pretrained
from tests.helpers.encoder_parity import KINDS, MASK, MASKS, SUFFIXES, TYPES
from tests.helpers.parity import TOLERANCE, distance
from tools.bert_to_distilbert import bert_to_distilbert
from tools.bert_to_roberta import bert_to_roberta
from utils.errors import UserError

transformers = pytest.importorskip("transformers")

TINY = {"vocab_size": 60, "context_length": 20, "dim": 32, "n_heads": 4, "n_layers": 3, "mlp_dim": 48, "dropout": 0.0}
OURS = {
    "distilbert": (DistilBert, DistilBertConfig(**TINY)),
    "bert": (Bert, BertConfig(**TINY)),
    "roberta": (Roberta, RobertaConfig(**TINY)),
}


@pytest.fixture(params=OURS)
def tiny(request):
    model, config = OURS[request.param]
    return model(config).eval()


@pytest.mark.parametrize("side", MASKS)
@pytest.mark.parametrize("position", ["first", "last", "flexible", "average"])
def test_a_classifier_reads_the_position_it_names(tiny, position, side):
    average, mask = position == "average", MASKS[side]
    tiny.head = make_head(tiny, "classifier", 3, None if average else position, average).eval()
    ids, lengths = torch.randint(2, 60, (3, 20)), torch.tensor([20, 13, 6])
    hidden = tiny.encode(ids, mask)
    real = torch.ones(3, 20) if mask is None else mask.float()
    rows = {
        "first": torch.tensor([0, 0, 0]),
        "last": torch.tensor([19, 12, 5]) if side == "right" else torch.tensor([19, 19, 19]),
        "flexible": torch.tensor([19, 19, 19]) if side == "left" else torch.tensor([19, 12, 5]),
    }
    if average:
        state = (hidden * real[..., None]).sum(1) / real.sum(1, keepdim=True)
    else:
        state = hidden[torch.arange(3), rows[position]]
    torch.testing.assert_close(tiny(ids, mask, lengths), tiny.head.classify(state), rtol=1e-5, atol=1e-6)


def test_the_activations_and_dropouts_are_each_architectures_own():
    for model_type, activation in (("distilbert", torch.relu), ("bert", torch.tanh), ("roberta", torch.tanh)):
        config = replace(OURS[model_type][1], dropout=0.5, head_dropout=None)
        head = ARCHITECTURES[model_type].classifier_head(config, 3, "first", False)
        state = torch.randn(1, 32).expand(4000, 32)
        expected = head.classifier(activation(head.dense(state[:1])))
        assert torch.allclose(head.eval().classify(state[:1]), expected)
        into_dense = []
        head.dense.register_forward_hook(lambda module, inputs, output, into=into_dense: into.append(inputs[0]))
        logits = head.train().classify(state)
        assert (into_dense[0] == 0).any() == (model_type == "roberta")
        assert len({tuple(row.tolist()) for row in logits}) > 1000  # dropout before the classifier
    assert DistilBertConfig().classifier_dropout == 0.2 and BertConfig().classifier_dropout == 0.1
    assert DistilBertConfig(dropout=0.0).classifier_dropout == 0.0


@pytest.mark.parametrize("head", ["lm", "first", "average"])
def test_logits_continue_from_any_block(tiny, head):
    tiny.head = make_head(tiny, "lm" if head == "lm" else "classifier", average=head == "average").eval()
    ids = torch.randint(2, 60, (3, 20))
    whole = tiny(ids, MASK)
    for start in range(4):
        hidden = tiny.run_blocks(tiny.embed(ids), MASK, stop=start)
        torch.testing.assert_close(fast_path.logits(tiny, hidden, MASK, start=start), whole, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(fast_path.logits(tiny, tiny.embed(ids), MASK, start=1), whole)


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_content_cannot_reach_real_positions(tiny, side):
    mask = MASKS[side].bool()
    one, other = (torch.randint(2, 60, (3, 20)) for _ in range(2))
    other = torch.where(mask, one, other)
    assert torch.equal(tiny.encode(one, mask)[mask], tiny.encode(other, mask)[mask])
    assert not torch.equal(tiny.encode(one)[mask], tiny.encode(other)[mask])


def test_token_types_matter_where_there_are_two(tiny):
    ids = torch.randint(2, 60, (3, 20))
    same = torch.equal(tiny.encode(ids), tiny.encode(ids, token_type_ids=TYPES))
    assert same == (tiny.config.n_token_types < 2)
    assert torch.equal(tiny.encode(ids), tiny.encode(ids, token_type_ids=torch.zeros_like(ids)))


def test_robertas_positions_count_real_tokens_and_fill_its_context():
    model = Roberta(RobertaConfig(**TINY)).eval()
    assert model.position_embedding.num_embeddings == 22
    ids = torch.tensor([[1, 1, 7, 8, 1, 9]])  # 1 is padding
    assert model.position_ids(ids).tolist() == [[1, 1, 2, 3, 1, 4]]
    assert model.position_ids(torch.full((1, 20), 5)).max() == 21
    with pytest.raises(UserError, match=r"\b21\b.*\b20\b"):
        model.encode(torch.full((1, 21), 5))


# Configurations and sizes


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"hidden_act": "relu"}, "hidden_act.*'relu'.*'gelu'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"is_decoder": True}, "is_decoder"),
        ({"num_attention_heads": 5}, "width 96.*heads, 5"),
        ({"hidden_dropout_prob": 1.0}, "hidden_dropout_prob.*1.0.*below 1"),
        ({"pad_token_id": -1}, "pad_token_id.*-1"),
        ({"pad_token_id": 500}, "500.*500"),
        ({"type_vocab_size": 0}, "type_vocab_size.*0"),
        ({"id2label": {"0": "a", "2": "b"}}, "id2label"),
        ({"num_labels": "3"}, "num_labels"),
    ],
)
def test_a_config_that_is_no_bert(tmp_path, settings, said):
    KINDS["bert"].make("Model").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    stated = {name: value for name, value in json.loads(path.read_text()).items() if name not in ("id2label", "label2id")}
    path.write_text(json.dumps(stated | settings))
    with pytest.raises(UserError, match=said):
        from_pretrained(tmp_path, head=None)


def test_a_field_that_an_architecture_lacks_is_named(tmp_path):
    save_pretrained(Bert(BertConfig(**TINY)), tmp_path)
    with pytest.raises(UserError, match=r"BertConfig has no causal; its fields: vocab_size.*dropout"):
        from_pretrained(tmp_path, head=None, causal=False)
    assert from_pretrained(tmp_path, head=None, dropout=0.3).blocks[0].mlp_dropout.p == 0.3


THEIR_DEFAULTS = {
    "distilbert-base-uncased": ("DistilBert", {}),
    "bert-base-uncased": ("Bert", {}),
    "roberta-base": (
        "Roberta",
        {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5},
    ),
}


@pytest.mark.parametrize("name", THEIR_DEFAULTS)
@pytest.mark.parametrize("head", SUFFIXES)
def test_parameter_counts_of_the_published_sizes(name, head):
    prefix, settings = THEIR_DEFAULTS[name]
    config = PUBLISHED[name]
    with torch.device("meta"):
        ours = architecture_of(config).model(config)
        ours.head = make_head(ours, head)
        pooler = {"add_pooling_layer": False} if head is None and prefix != "DistilBert" else {}
        theirs = getattr(transformers, prefix + SUFFIXES[head])(
            getattr(transformers, f"{prefix}Config")(**settings), **pooler
        )
    count = sum(parameter.numel() for parameter in ours.parameters())
    assert count == sum(parameter.numel() for parameter in theirs.parameters())
    if head is None:
        assert count == {"DistilBert": 66_362_880, "Bert": 108_891_648, "Roberta": 124_055_040}[prefix]


def test_convert_refuses_what_is_no_bert(tmp_path):
    with pytest.raises(UserError, match="this is a Roberta"):
        bert_to_distilbert(Roberta(RobertaConfig(**TINY)))
    with pytest.raises(UserError, match="this is a Roberta"):
        bert_to_roberta(Roberta(RobertaConfig(**TINY)))
    with pytest.raises(UserError, match=r"1e-12.*1e-05"):
        bert_to_distilbert(Bert(BertConfig(**TINY, layer_norm_eps=1e-5)))
    bert = Bert(BertConfig(**TINY)).eval()
    ids = torch.randint(2, 60, (3, 20))
    distil = bert_to_distilbert(bert).eval()
    assert distance(distil.encode(ids, MASK), bert.encode(ids, MASK)) <= TOLERANCE
    roberta = bert_to_roberta(bert).eval()
    real = MASK.bool()
    ids = ids.masked_fill(~real, 0)  # the padding, which RoBERTa tells by its id
    assert distance(roberta.encode(ids, MASK)[real], bert.encode(ids, MASK)[real]) <= TOLERANCE


def test_a_bert_config_from_before_types_were_written_down(tmp_path):
    """SciBERT's config.json has no model_type."""
    save_pretrained(Bert(OURS["bert"][1]), tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    del settings["model_type"]
    (tmp_path / "config.json").write_text(json.dumps(settings))
    assert type(from_pretrained(tmp_path, head=None)) is Bert
