"""A published BERT, all-MiniLM-L6-v2, on sentences of SST-2: ours computes and learns what transformers' does."""

import copy
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from model import from_pretrained
from model.tokenizers.load import load_tokenizer
from tests.helpers.parity import TOLERANCE, distance, gradients_by_their_names
from tests.helpers.texts import rows_of

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.not_quick  # seconds

NO_DROPOUT = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"), 0.0)


@pytest.fixture(scope="module")
def examples(shared) -> list[list[str]]:
    """Return 22 sentences, each with its label."""
    return rows_of(shared / "data/glue_sst2/dev.tsv")[::40]


@pytest.fixture(scope="module")
def sentences(examples) -> list[str]:
    return [sentence for sentence, _ in examples]


def batch_of(directory: Path, sentences: list[str], side: str) -> dict[str, torch.Tensor]:
    """Return ids and mask [B, T], padded on one side."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory, padding_side=side)
    batch = tokenizer(sentences, padding=True, return_tensors="pt")
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


def test_ids_equal_theirs(minilm, sentences):
    ours, batch = load_tokenizer(minilm), batch_of(minilm, sentences, "right")
    for sentence, ids, mask in zip(sentences, batch["input_ids"], batch["attention_mask"], strict=True):
        assert ours.build(ours.encode(sentence))[0] == ids[mask.bool()].tolist()


@torch.no_grad()
@pytest.mark.parametrize("side", ["right", "left"])
def test_every_layer_equals_theirs(minilm, sentences, side):
    theirs, ours = transformers.BertModel.from_pretrained(minilm).eval(), from_pretrained(minilm, head=None).eval()
    batch = batch_of(minilm, sentences, side)
    mask = batch["attention_mask"]
    assert len(sentences) == 22 and mask.sum(1).unique().numel() > 10  # of many lengths
    expected = theirs(**batch, output_hidden_states=True).hidden_states
    hidden = ours.embed(batch["input_ids"])
    assert distance(hidden, expected[0]) <= TOLERANCE
    for i in range(6):
        hidden = ours.run_blocks(hidden, mask, i, i + 1)
        assert distance(hidden[mask.bool()], expected[i + 1][mask.bool()]) <= TOLERANCE
    assert distance(ours.encode(**batch)[mask.bool()], expected[6][mask.bool()]) <= TOLERANCE


def test_a_step_of_fine_tuning_equals_theirs(minilm, sentences, examples, tmp_path):
    theirs = transformers.BertForSequenceClassification.from_pretrained(minilm, num_labels=2, **NO_DROPOUT)
    theirs.save_pretrained(tmp_path)
    ours = from_pretrained(tmp_path, head="classifier", num_labels=2)
    batch, labels = batch_of(minilm, sentences, "right"), torch.tensor([int(label) for _, label in examples])
    before = copy.deepcopy(ours.state_dict())
    losses = {"theirs": [], "ours": []}
    for name, model in (("theirs", theirs), ("ours", ours)):
        model.train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01)
        for _ in range(2):
            output = model(**batch)
            loss = F.cross_entropy(output if name == "ours" else output.logits, labels)
            losses[name].append(loss.item())
            if len(losses[name]) == 1:
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    assert losses["ours"] == pytest.approx(losses["theirs"], rel=TOLERANCE)
    assert losses["ours"][1] < losses["ours"][0] - 0.01  # the step did something
    assert not all(torch.equal(tensor, before[name]) for name, tensor in ours.state_dict().items())

    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    translated = gradients_by_their_names(ours)
    assert translated.keys() == gradients.keys()
    scale = max(gradient.abs().max() for gradient in gradients.values())
    for name, expected in gradients.items():
        # The key's bias adds the same to a query's every score, so its gradient is zero but for rounding.
        own = scale if name.endswith("key.bias") else expected.abs().max()
        assert (translated[name] - expected).abs().max() <= TOLERANCE * own, name
