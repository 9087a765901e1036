"""Bring the figures of the published ChatGLM code, and the small model that they are about."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from model import from_pretrained
from model.chatglm import ChatGLM
from model.heads import LanguageModelHead

PAD = 3
TOLERANCE = 1e-4  # the least of the mistakes that were tried moves logits by 5.7e-4


@pytest.fixture(scope="module")
def golden(shared) -> Path:
    return shared / "golden/chatglm"


@pytest.fixture(scope="module")
def tensors(golden) -> dict[str, torch.Tensor]:
    return load_file(golden / "model_tiny.safetensors")


@pytest.fixture(scope="module")
def figures(golden) -> dict:
    return json.loads((golden / "model_tiny.json").read_text())


@pytest.fixture(scope="module")
def checkpoint(golden, tensors, figures, tmp_path_factory) -> Path:
    """Return a directory with the small model under its published names."""
    folder = tmp_path_factory.mktemp("chatglm")
    weights = {name.removeprefix("state."): one for name, one in tensors.items() if name.startswith("state.")}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(figures["config"] | {"model_type": "chatglm"}))
    return folder


def untied(checkpoint, **changes) -> ChatGLM:
    """Return the model with the head of the file, as the published class has it before weights are loaded."""
    tied = from_pretrained(checkpoint).eval()
    model = ChatGLM(replace(tied.config, tied=False, **changes)).eval()
    model.head = LanguageModelHead(model.token_embedding, tied=False)
    state = tied.state_dict() | {"head.weight": load_file(checkpoint / "model.safetensors")["lm_head.weight"]}
    model.load_state_dict(state)
    return model


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)


def loss_of(model: ChatGLM, tensors: dict) -> torch.Tensor:
    logits, labels = model(tensors["A.input_ids"]), tensors["A.labels"]
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


def losses_of_ten_steps(model: ChatGLM, optimizer: torch.optim.Optimizer, tensors: dict) -> list[float]:
    """Train for ten steps on batch A. Return the loss before each step and behind the last."""
    losses = []
    for _ in range(10):
        loss = loss_of(model, tensors)
        optimizer.zero_grad()
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    return [*losses, loss_of(model, tensors).item()]
