"""Twenty steps from real weights (SmolLM2-135M-Instruct) beside the libraries, from the same start."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from model import from_pretrained
from model.tokenizers.load import load_tokenizer
from model.weights import save_pretrained
from peft import Freeze, attach
from peft.huggingface.read import FromPeft
from tests.helpers.paths import ROOT

pytestmark = pytest.mark.not_quick  # the libraries run in a process of their own
STEPS, BATCHES = 20, 4  # each batch comes five times
RATES = {"lora": 2e-3, "all": 2e-5}

THEIRS = """
import json, sys, torch, transformers, peft
from safetensors.torch import load_file
torch.set_num_threads(1)
folder, method, rate = sys.argv[1], sys.argv[2], float(sys.argv[3])
given, losses = load_file(folder + "/given.safetensors"), []
model = transformers.AutoModelForCausalLM.from_pretrained(folder + "/base", dtype=torch.float32)
if method == "lora":
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules=targets))
    model.save_pretrained(folder + "/start")
optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=rate, weight_decay=0.01)
model.train()
for ids, mask, labels in zip(given["ids"], given["mask"], given["labels"]):
    loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
json.dump(losses, open(folder + "/losses.json", "w"))
"""


def prepare(smollm2: Path, n_layers: int, n_tokens: int, folder: Path) -> None:
    """Write the first layers of the model, and batches of 4 pieces of the README. Two of each have fewer tokens."""
    model = from_pretrained(smollm2)
    model.blocks = model.blocks[:n_layers]
    model.config = replace(model.config, n_layers=n_layers)
    save_pretrained(model, folder / "base")
    ids = load_tokenizer(smollm2).encode((ROOT / "README.md").read_text(encoding="utf-8"))
    ids = torch.tensor(ids[: BATCHES * 4 * n_tokens]).view(BATCHES, 4, n_tokens).repeat(STEPS // BATCHES, 1, 1)
    lengths = torch.tensor([n_tokens, n_tokens - 3, n_tokens, n_tokens // 2])
    mask = (torch.arange(n_tokens) < lengths[:, None]).long().expand_as(ids).contiguous()
    batches = {"ids": ids, "mask": mask, "labels": ids.masked_fill(mask == 0, -100)}
    save_file(batches, folder / "given.safetensors")


def losses_there(folder: Path, method: str) -> list[float]:
    argv = [sys.executable, "-c", THEIRS, str(folder), method, str(RATES[method])]
    done = subprocess.run(argv, cwd=folder, capture_output=True, text=True)
    assert not done.returncode, done.stderr[-3000:]
    return json.loads((folder / "losses.json").read_text())


def losses_here(folder: Path, method: str) -> list[float]:
    model = from_pretrained(folder / "base")
    attach(model.train(), FromPeft(str(folder / "start")) if method == "lora" else Freeze("all"))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATES[method], weight_decay=0.01)
    given, losses = load_file(folder / "given.safetensors"), []
    for ids, mask, labels in zip(given["ids"], given["mask"], given["labels"], strict=True):
        loss = F.cross_entropy(model(ids, mask)[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


CASES = [("lora", 2, 8), *(pytest.param(method, 30, 24, marks=pytest.mark.slow) for method in RATES)]


@pytest.mark.parametrize(("method", "n_layers", "n_tokens"), CASES)
def test_twenty_steps_give_the_libraries_losses(smollm2, method, n_layers, n_tokens, tmp_path):
    prepare(smollm2, n_layers, n_tokens, tmp_path)
    expected = losses_there(tmp_path, method)
    found = losses_here(tmp_path, method)
    apart = max(abs(one - other) for one, other in zip(found, expected, strict=True))
    print(f"{method}, {n_layers} layers: losses {found[BATCHES - 1]:.4f} ... {found[-1]:.4f}, at most {apart:.1e} apart")
    assert apart <= 1e-4
    assert len(found) == STEPS and found[-1] < found[BATCHES - 1] - 0.1  # of the same batch
