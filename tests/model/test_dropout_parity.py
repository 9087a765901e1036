"""Dropout where the reference library has it, with its rates: what no comparison without dropout shows.

Both libraries draw differently, so dropout here multiplies by 1 + p instead of drawing. Everything else stays as it is.
"""

import copy

import pytest
import torch
from torch.nn import functional as F

from model import from_pretrained
from tests.helpers.encoder_parity import KINDS, SUFFIXES
from tests.helpers.parity import TOLERANCE, distance, reference

RATES = {
    "gpt2": dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.1),
    "distilbert": {"dropout": 0.1, "attention_dropout": 0.1, "seq_classif_dropout": 0.3},
    "bert": {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1, "classifier_dropout": 0.3},
    "roberta": {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1, "classifier_dropout": 0.3},
}


@pytest.fixture
def scaling_dropout(monkeypatch):
    attention = F.scaled_dot_product_attention

    def dropout(x, p=0.5, training=True, inplace=False):
        return x * (1 + p) if training else x

    def attention_with(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, **more):
        return attention(query, key, value, attn_mask, is_causal=is_causal, **more) * (1 + dropout_p)

    monkeypatch.setattr(F, "dropout", dropout)
    monkeypatch.setattr(F, "scaled_dot_product_attention", attention_with)


def make_theirs(kind: str, head: str):
    if kind == "gpt2":
        return reference("GPT2LMHeadModel", **RATES[kind])
    changed = copy.deepcopy(KINDS[kind])
    for name, rate in RATES[kind].items():
        setattr(changed.config, name, rate)
    return changed.make(SUFFIXES[head])


@pytest.mark.parametrize("kind, head", [("gpt2", "lm"), *((kind, head) for kind in KINDS for head in ("lm", "classifier"))])
def test_dropout_is_where_theirs_is(kind, head, scaling_dropout, tmp_path):
    torch.manual_seed(1)
    theirs = make_theirs(kind, head)
    theirs.save_pretrained(tmp_path)
    ours = from_pretrained(tmp_path, head=head, dropout=0.1)
    ids = torch.randint(5, 60, (3, 20))
    with torch.no_grad():
        plain = theirs.eval()(ids).logits
        expected = theirs.train()(ids).logits
        assert distance(expected, plain) > 1e-3  # the rates change something at all
        assert distance(ours.train()(ids), expected) <= TOLERANCE
        assert distance(ours.eval()(ids), plain) <= TOLERANCE
