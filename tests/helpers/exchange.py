"""Make small models, and train methods on them, to exchange with the Hugging Face library `peft`."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from model import from_pretrained, make_head
from model.gpt2 import GPT2, GPT2Config
from model.llama import LlamaConfig
from model.registry import ARCHITECTURES
from model.weights import save_pretrained
from peft import attach
from tests.helpers.architectures import small_config

PAD, LABELS, LAYERS = 0, 3, 2


def inputs(kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return three texts of 9, 6 and 4 tokens, padded on the right. RoBERTa tells padding by its id."""
    ids = torch.randint(5, 40, (3, 9), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    for text, length in ((1, 6), (2, 4)):
        ids[text, length:], mask[text, length:] = 1 if kind == "roberta" else PAD, 0
    return ids, mask


def fresh(base: Path, kind: str) -> nn.Module:
    torch.manual_seed(2)
    head = {"head": "lm"} if kind.endswith(" lm") else {"head": "classifier", "num_labels": LABELS}
    return from_pretrained(base, **head, dropout=0.0).eval()


@torch.no_grad()
def logits(model: nn.Module, kind: str) -> torch.Tensor:
    return model.eval()(*inputs(kind))


def trained(base: Path, kind: str, method) -> nn.Module:
    """Attach a method and train for four steps, so that all that trains has moved."""
    model = attach(fresh(base, kind), method)
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=5e-2)
    for _ in range(4):
        optimizer.zero_grad()
        model(*inputs(kind)).log_softmax(-1)[..., 1].mean().neg().backward()
        optimizer.step()
    return model.eval()


def make_base(kind: str, folder: Path) -> Path:
    torch.manual_seed(1)
    sizes = {"vocab_size": 40, "context_length": 32, "dim": 16, "n_heads": 2, "n_layers": LAYERS}
    if kind == "gpt2":
        model = GPT2(GPT2Config(**sizes))
    elif issubclass(ARCHITECTURES[kind].config, LlamaConfig):  # H d isn't D
        sizes |= {"n_heads": 4, "head_dim": 8, "tied": "qwen" in kind}
        sizes |= {"layers_without_rotation": (1,)} if kind == "smollm3" else {}
        model = ARCHITECTURES[kind].model(small_config(kind, **sizes))
        model.head = make_head(model, "lm")
    else:
        sizes |= {"mlp_dim": 24, "dropout": 0.0, "head_dropout": 0.0}
        model = ARCHITECTURES[kind].model(ARCHITECTURES[kind].config(**sizes, pad_id=1 if kind == "roberta" else PAD))
    if kind == "bert":
        model.head = make_head(model, "classifier", LABELS)
    save_pretrained(model, folder)
    if kind == "bert":  # as published: it has the pooler, which is our head's dense layer, and no classifier
        file = folder / "model.safetensors"
        kept = {name: tensor for name, tensor in load_file(file).items() if not name.startswith("classifier")}
        save_file(kept, file, {"format": "pt"})
    return folder
