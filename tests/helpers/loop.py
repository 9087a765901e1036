"""Make a small model, examples, batches and settings for tests of the training loop."""

from dataclasses import replace

import torch

import peft
from config import Run, resolve
from data import spam
from data.batching import IGNORED, Batches, Example
from model.gpt2 import GPT2, GPT2Config
from model.heads import ClassifierHead, LanguageModelHead

CONFIG = GPT2Config(vocab_size=40, context_length=16, dim=32, n_heads=4, n_layers=2)
WIDTH = 12


def make_model(head="classifier", dropout=0.0, layers="all"):
    torch.manual_seed(5)
    model = GPT2(replace(CONFIG, dropout=dropout))
    model.head = ClassifierHead(CONFIG.dim, 2) if head == "classifier" else LanguageModelHead(model.token_embedding)
    return peft.attach(model, peft.Freeze(layers))


def make_examples(n, labels="class"):
    """Make n texts of 3 to 12 tokens. With labels "token" the last k tokens are targets, another k in each text."""
    draw = torch.Generator().manual_seed(2)
    examples = []
    for i in range(n):
        length = int(torch.randint(3, WIDTH + 1, (), generator=draw))
        ids = torch.randint(0, CONFIG.vocab_size, (length,), generator=draw).tolist()
        targets = 1 + i % (length - 1)
        shifted = [*ids[1:], 0]
        examples.append(
            Example(ids, i % 2 if labels == "class" else [IGNORED] * (length - targets) + shifted[length - targets :])
        )
    return examples


def make_batches(examples, batch_size, pad_to=WIDTH, order=None):
    return Batches(examples, batch_size, CONFIG.vocab_size - 1, pad_to, order)


def settings(**changes) -> Run:
    base = {"learning_rate": 1e-3, "batch_size": 4, "num_epochs": 1, "amp": "off", "device": "cpu", "logging_steps": 1}
    return resolve(Run(**(base | changes)), spam.RECIPE)


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_equal(one, other):
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def differ(one, other):
    return any(not torch.equal(one[name], other[name]) for name in one)
