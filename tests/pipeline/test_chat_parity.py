"""Answers as targets: loss, gradients and twenty steps of training equal to those of transformers' GPT-2."""

import copy

import pytest
import torch

from config import Run, resolve
from data import spam
from data.batching import IGNORED, Batches, seeded_order
from data.dialogue_encoder import DialogueEncoder
from data.dialogues import Dialogue, Turn
from model import fast_path
from model.tokenizers.bpe import GPT2Tokenizer
from tests.helpers.parity import TOLERANCE, distance, gradients_by_their_names
from train import fit
from training.metrics_log import Metrics

WORDS = ("home", "later", "see", "you", "tonight", "lunch", "free", "prize", "好", "吗")
RUN = {"learning_rate": 1e-3, "weight_decay": 0.1, "lr_scheduler_type": "constant", "amp": "off", "device": "cpu"}
RUN |= {"batch_size": 3, "accumulation_steps": 2, "num_epochs": 5, "logging_steps": 1}


@pytest.fixture(scope="module")
def tokenizer(small_checkpoint):
    return GPT2Tokenizer.from_directory(small_checkpoint)


@pytest.fixture(scope="module")
def examples(tokenizer):
    """24 dialogues of one or two turns, at most 60 tokens."""
    draw = torch.Generator().manual_seed(3)

    def words(most):
        n = int(torch.randint(1, most + 1, (), generator=draw))
        return " ".join(WORDS[i] for i in torch.randint(len(WORDS), (n,), generator=draw).tolist())

    run = resolve(Run(max_target_length=12), spam.RECIPE)
    turns = [tuple(Turn(words(6), "", words(6)) for _ in range(1 + i % 2)) for i in range(24)]
    return [DialogueEncoder(tokenizer, run, 60).encode(Dialogue(one)) for one in turns]


def as_theirs(tokenizer, examples):
    """Their form: every token, the last one too; labels at the tokens themselves; padding on the right, masked."""
    rows = [[*one.ids, tokenizer.end_of_text] for one in examples]
    marked = [[IGNORED, *one.label] for one in examples]
    width = max(map(len, rows))
    ids = torch.tensor([row + [tokenizer.pad_id] * (width - len(row)) for row in rows])
    labels = torch.tensor([row + [IGNORED] * (width - len(row)) for row in marked])
    return ids, labels, (torch.arange(width) < torch.tensor([len(row) for row in rows])[:, None]).long()


def their_loss(theirs, tokenizer, examples):
    """The sum over the targets, and their number."""
    ids, labels, mask = as_theirs(tokenizer, examples)
    mean = theirs(ids, attention_mask=mask, position_ids=torch.arange(ids.shape[1])[None], labels=labels).loss
    targets = int((labels != IGNORED).sum())
    return mean * targets, targets


def test_loss_and_gradients(pair, tokenizer, examples):
    theirs, ours = (copy.deepcopy(model) for model in pair)
    assert sum(IGNORED in one.label[1:] for one in examples) > len(examples) / 2  # questions in between
    expected, targets = their_loss(theirs, tokenizer, examples)
    (expected / targets).backward()
    batch = next(Batches(examples, len(examples), tokenizer.pad_id).epoch())
    loss, *_ = fast_path.loss(ours, batch.to(torch.device("cpu")), IGNORED)
    (loss / targets).backward()
    assert distance(loss, expected) <= TOLERANCE
    found = gradients_by_their_names(ours)
    for name, parameter in theirs.named_parameters():
        assert distance(found[name], parameter.grad) <= TOLERANCE, name


def test_twenty_steps(pair, tokenizer, examples):
    """Two batches of three to a step, weighted by the targets that they hold."""
    theirs, ours = (copy.deepcopy(model).train() for model in pair)
    order, metrics = seeded_order(len(examples), 5), Metrics()
    fitted = fit(ours, Batches(examples, 3, tokenizer.pad_id, None, order), resolve(Run(**RUN), spam.RECIPE), metrics)
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=1e-3, weight_decay=0.1)
    expected = []
    for epoch in range(5):
        for start in range(0, 24, 6):
            loss, targets = their_loss(theirs, tokenizer, [examples[i] for i in order(epoch)[start : start + 6]])
            optimizer.zero_grad()
            (loss / targets).backward()
            optimizer.step()
            expected.append((loss / targets).item())
    measured = [record["loss"] for record in metrics.records]
    assert fitted.steps == len(measured) == 20 and expected[-1] < 0.7 * expected[0]
    assert measured == pytest.approx(expected, abs=1e-4, rel=0)
