"""What frozen blocks make of a text is computed once, and nothing changes by it."""

import pytest
import torch

import frozen
import peft
from frozen import frozen_blocks
from model.gpt2 import GPT2, GPT2Config
from model.heads import ClassifierHead

CONFIG = GPT2Config(vocab_size=40, context_length=16, dim=32, n_heads=4, n_layers=4)


def make(method, **changes) -> GPT2:
    config = GPT2Config(**{**vars(CONFIG), **changes})
    return peft.attach(GPT2(config, ClassifierHead(config.dim, 2)), method)


@pytest.mark.parametrize(
    "method, expected",
    [
        (peft.Freeze("last_layer"), 4),
        (peft.Freeze("last_block"), 3),
        (peft.Freeze("last_two_blocks"), 2),
        (peft.Freeze("all"), 0),
        (peft.FreezeBlocks(layers="2"), 2),
        (peft.LoRA(targets="attn.q"), 0),
        (peft.LoRA(targets="3.attn.q,2.mlp"), 2),
        (peft.LoRA(targets="3.attn.q", dropout=0.5), 3),  # random, but not below
        (peft.Adapter(reduction_factor=4, layers="last3"), 1),
        (peft.BitFit(), 0),
        (peft.Bypass(taps="3"), 2),  # the head listens to block 2 (counted from 0), which has to run
        (peft.Bypass(taps="attn.2"), 1),
    ],
    ids=str,
)
def test_how_many_blocks_never_change(method, expected):
    assert frozen_blocks(make(method)) == expected
    assert frozen_blocks(make(method, dropout=0.1)) == 0


CASES = {
    "last_layer": ["--trainable_layers", "last_layer"],
    "last_block": ["--trainable_layers", "last_block"],
    "first token": ["--trainable_token_pos", "first"],
    "mean": ["--average_embeddings"],
    "flexible": ["--trainable_token_pos", "flexible"],
    "no causal mask": ["--disable_causal_mask"],
    "no padding": ["--no_padding"],
    "no padding, mean": ["--no_padding", "--average_embeddings"],
    "one by one": ["--no_padding", "--batch_size", 1, "--accumulation_steps", 3],
    "LoRA above": ["--trainable_layers", "lora", "--lora_target", "1.attn.q,1.mlp", "--lora_alpha", 2],
    "adapters above": ["--trainable_layers", "adapter", "--layers", "1", "--reduction_factor", 4],
    "bypass": ["--trainable_layers", "bypass", "--bypass_taps", "2", "--bypass_init", "default"],
    "freeze": ["--trainable_layers", "freeze", "--layers", "1", "--part", "mlp"],
}


@pytest.mark.parametrize("flags", CASES.values(), ids=CASES)
def test_thirty_steps_are_the_same_with_and_without(flags, experiment):
    settings = {"max_steps": 30, "num_epochs": 40, "eval_steps": 7}
    with_it = experiment(*flags, **settings)
    without = experiment(*flags, "--reuse_frozen", "no", **settings)
    assert "frozen   what 1 of 2 blocks" in with_it.out or "frozen   what 2 of 2 blocks" in with_it.out
    assert "frozen " not in without.out
    for split in ("train", "validation"):
        ours, theirs = (torch.tensor(found.logged("loss", split)) for found in (with_it, without))
        assert len(ours) >= 5 and torch.allclose(ours, theirs, rtol=1e-5, atol=1e-6)
        assert with_it.logged("accuracy", split) == without.logged("accuracy", split)
    for split in ("train", "validation", "test"):
        assert with_it.result[f"{split}_accuracy"] == without.result[f"{split}_accuracy"]


def test_no_frozen_block_runs_twice(experiment, monkeypatch):
    calls = []
    run_blocks = GPT2.run_blocks

    def spy(model, hidden, attention_mask=None, start=0, stop=None):
        calls.append((start, stop))
        return run_blocks(model, hidden, attention_mask, start, stop)

    monkeypatch.setattr(GPT2, "run_blocks", spy)
    experiment(max_steps=20, num_epochs=4)
    below = [call for call in calls if call[0] == 0]
    assert below == [(0, 1)] * 4  # 84 training texts, 12 and 24: two batches of at most 64, one, one
    assert len(calls) > 20 and set(calls) == {(0, 1), (1, 1)}


def test_what_would_not_fit_is_computed_anew(experiment, monkeypatch):
    monkeypatch.setattr(frozen, "free_bytes", lambda device: 1000)
    found = experiment()
    assert "of 0 free: it is computed anew" in found.out and found.code == 0
