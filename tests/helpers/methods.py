"""List every method with settings to test it by, and make small models to attach it to."""

import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from config import Run, resolve
from data.spam import RECIPE
from model.gpt2 import GPT2, GPT2Config
from model.heads import ClassifierHead, LanguageModelHead
from model.registry import ARCHITECTURES
from peft import (
    METHODS,
    Adapter,
    BitFit,
    Bypass,
    DoRA,
    FreezeBlocks,
    Joined,
    LoRA,
    PrefixTuning,
    PromptTuning,
    method_of,
)
from tests.helpers.architectures import small_config

CONFIG = GPT2Config(vocab_size=50, context_length=16, dim=32, n_heads=4, n_layers=3)
IDS = torch.randint(50, (6, 9), generator=torch.Generator().manual_seed(5))  # [B, T]
LABELS = torch.tensor([0, 1, 1, 0, 1, 0])
# Parameters of `tiny`, a GPT-2.
HEAD = {"head.classifier.weight", "head.classifier.bias"}
FINAL_NORM = {"final_norm.weight", "final_norm.bias"}
ADDED = {
    "lora on a few": LoRA(rank=4, targets="attn.q,2.mlp"),
    "lora with scaling alpha, drawn wide": LoRA(rank=4, alpha=3, scaling="alpha", init="wide"),
    "lora without the head": LoRA(rank=4, targets="all", train_head=False),
    "lora in the top block": LoRA(rank=4, targets="all", layers="last1"),
    "lora from the principal parts": LoRA(rank=4, targets="attn.q,2.mlp", init="pissa", plus_ratio=4),
    "dora without the head": DoRA(rank=4, targets="attn,head", train_head=False),
    "adapters in two places": Adapter("houlsby", 2, layers="1-2", train_head=False),
    "deep branches": Bypass("1,2,3,attn.1,attn.3", depth=3, into="dense", train_head=False),
    "biases alone": BitFit(train_head=False),
    "norms of a block": FreezeBlocks("1", "norm", train_head=False),
    "lora and branches": Joined((LoRA(rank=4, train_head=False), Bypass("attn.1,2", depth=2, train_head=False))),
    "adapters under lora": Joined((Adapter(train_head=False), LoRA(rank=4, targets="attn,up,head"))),
    "a prefix in two blocks, and lora": Joined((PrefixTuning(5, layers="1-2"), LoRA(rank=4, targets="all"))),
    "a prompt, lora and branches": Joined((PromptTuning(3), LoRA(rank=4), Bypass("2", train_head=False))),
    "branches, then everything": Joined((Bypass(train_head=False), LoRA(targets="all", train_head=False), BitFit(False))),
}
# What --trainable_layers accepts, each with the settings of the spam task, and some settings beyond those.
OWN = [name for name in METHODS if name != "peft"]  # which needs an adapter's files: test_exchange.py
ALL = {name: method_of(resolve(Run(trainable_layers=name), RECIPE)) for name in OWN} | ADDED
# An adapter's activation, a branch past the blocks, and what stands in front of a text have no plain layer that computes
# the same; the last is also no change of the function that could start from nothing.
FOLDED = {name: chosen for name, chosen in ALL.items() if not re.search("Adapter|Bypass|Prefix|Prompt", str(chosen))}
NEUTRAL = {name: chosen for name, chosen in ALL.items() if not re.search("Prefix|Prompt|pissa", str(chosen))}


def every_method(test):
    """Run a test with every method, on every architecture."""
    return pytest.mark.usefixtures("architecture")(pytest.mark.parametrize("chosen", ALL.values(), ids=ALL.keys())(test))


ARCHITECTURE = "gpt2"  # of `tiny`; the fixture `architecture` puts others in its place


def tiny(seed: int = 1) -> nn.Module:
    """Make a small classifier of the current ARCHITECTURE."""
    torch.manual_seed(seed)
    entry = ARCHITECTURES[ARCHITECTURE]
    config = small_config(ARCHITECTURE)
    return entry.model(config, entry.classifier_head(config, 2, entry.position, False))


def snapshot(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def trained_names(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def train(model: nn.Module, steps: int = 3) -> nn.Module:
    """Train for a few steps, without weight decay: it would move a parameter that gets no gradient."""
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.0)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(IDS), LABELS).backward()
        optimizer.step()
    return model


@torch.no_grad()
def logits(model: nn.Module) -> torch.Tensor:
    return model.eval()(IDS)


def tiny_gpt2(seed: int = 1, head: str = "classifier", n_layers: int = 3) -> GPT2:
    torch.manual_seed(seed)
    model = GPT2(GPT2Config(vocab_size=50, context_length=24, dim=32, n_heads=4, n_layers=n_layers))
    model.head = ClassifierHead(32, 2) if head == "classifier" else LanguageModelHead(model.token_embedding)
    return model.eval()


class DenseHead(ClassifierHead):
    """Put a dense layer, an activation and dropout before the classifier, as the encoders do."""

    def __init__(self, dim: int, num_labels: int, position: str = "last", average: bool = False):
        super().__init__(dim, num_labels, position, average)
        self.dense = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(0.4)
        self.activation = torch.relu

    def classify(self, state: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.dropout(self.activation(self.dense(state))))
