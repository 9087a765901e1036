"""Work that is saved, or memory: nothing changes by it."""

import pytest
import torch

import experiments
import peft
from model import fast_path
from model.gpt2 import GPT2, GPT2Config
from model.heads import ClassifierHead
from pipeline import job
from tests.helpers.outcome import THIRTY_STEPS, assert_same_losses
from training import activation_cache, device
from training.activation_cache import n_frozen_blocks

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
        (peft.PromptTuning(length=2), 0),
        (peft.Bypass(taps="3"), 4),  # what the head listens to is kept too
        (peft.Joined((peft.LoRA(targets="3.attn.q"), peft.Bypass(taps="2"))), 1),  # it listens to block 1, which has to run
        (peft.Joined((peft.LoRA(targets="3.attn.q"), peft.Bypass(taps="attn.3"))), 2),
    ],
    ids=str,
)
def test_how_many_blocks_never_change(method, expected):
    assert n_frozen_blocks(make(method)) == expected


CASES = {
    "last_layer": ["--trainable_layers", "last_layer"],
    "last_block": ["--trainable_layers", "last_block"],
    "head, first token": ["--trainable_layers", "last_layer", "--trainable_token_pos", "first"],
    "head, mean": ["--trainable_layers", "last_layer", "--average_embeddings"],
    "head, flexible": ["--trainable_layers", "last_layer", "--trainable_token_pos", "flexible"],
    "first token": ["--trainable_token_pos", "first"],
    "mean": ["--average_embeddings"],
    "flexible": ["--trainable_token_pos", "flexible"],
    "no causal mask": ["--disable_causal_mask"],
    "no padding": ["--no_padding"],
    "no padding, mean": ["--no_padding", "--average_embeddings"],
    "one by one": ["--no_padding", "--batch_size", 1, "--accumulation_steps", 3],
    "LoRA above": ["--trainable_layers", "lora", "--lora_target", "1.attn.q,1.mlp", "--lora_alpha", 2],
    "adapters above": ["--trainable_layers", "adapter", "--layers", "1", "--reduction_factor", 4],
    "bypass": ["--trainable_layers", "bypass", "--bypass_init", "default"],
    "bypass, deep": ["--trainable_layers", "bypass", "--bypass_taps", "attn.1,1x2", "--bypass_into", "dense"],
    "LoRA and bypass": ["--trainable_layers", "lora+bypass", "--bypass_taps", "2", "--lora_target", "1.mlp"],
    "equal texts": ["--context_length", 2],
    "freeze": ["--trainable_layers", "freeze", "--layers", "1", "--part", "mlp"],
}


@pytest.mark.parametrize("flags", CASES.values(), ids=CASES)
def test_thirty_steps_are_the_same_with_and_without(flags, experiment):
    with_it = experiment(*flags, **THIRTY_STEPS)
    without = experiment(*flags, "--reuse_frozen", "no", **THIRTY_STEPS)
    assert "frozen   1 of 2 blocks" in with_it.out or "frozen   2 of 2 blocks" in with_it.out
    assert "\nfrozen " not in without.out
    assert_same_losses(with_it, without)


@pytest.mark.not_quick  # whole commands
@pytest.mark.parametrize("name", ["last_layer", "last_block", "LoRA above", "bypass"])
def test_thirty_steps_in_bf16_are_nearly_the_same(name, experiment):
    with_it = experiment(*CASES[name], amp="bf16", **THIRTY_STEPS)
    without = experiment(*CASES[name], "--reuse_frozen", "no", amp="bf16", **THIRTY_STEPS)
    assert_same_losses(with_it, without, 2e-2)


TRIMMED = {
    "flexible, last block": ["--trainable_token_pos", "flexible"],
    "flexible, all": ["--trainable_token_pos", "flexible", "--trainable_layers", "all"],
    "flexible, LoRA": ["--trainable_token_pos", "flexible", "--trainable_layers", "lora", "--lora_alpha", 2],
    "flexible, accumulated": ["--trainable_token_pos", "flexible", "--batch_size", 2, "--accumulation_steps", 4],
    "flexible, adapters": ["--trainable_token_pos", "flexible", "--trainable_layers", "adapter", "--reduction_factor", 4],
    "first, all": ["--trainable_token_pos", "first", "--trainable_layers", "all"],
    "first, bypass": ["--trainable_token_pos", "first", "--trainable_layers", "bypass", "--bypass_init", "default"],
}


@pytest.mark.not_quick  # whole commands
@pytest.mark.parametrize("flags", TRIMMED.values(), ids=TRIMMED)
def test_positions_that_nothing_reads_make_no_difference(flags, experiment):
    trimmed = experiment(*flags, **THIRTY_STEPS)
    widths = trimmed.widths(training=True)
    whole = experiment(*flags, "--trim", "no", **THIRTY_STEPS)
    assert "is left out, which no position that is read can see" in trimmed.out and "left out" not in whole.out
    assert max(widths) < max(whole.widths(training=True)) or len({*widths}) > 1
    assert_same_losses(trimmed, whole)


@pytest.mark.parametrize(
    "flags", [[], ["--trainable_token_pos", "flexible", "--average_embeddings"], ["--disable_causal_mask"]], ids=str
)
def test_nothing_is_trimmed_that_is_seen(flags, experiment):
    found = experiment(*flags, *([] if flags else ["--trainable_token_pos", "last"]))
    assert "left out" not in found.out and len({*found.widths(training=True)}) == 1


CHECKPOINTED = {
    "all, dropout": ["--trainable_layers", "all", "--dropout", 0.1],
    "LoRA": ["--trainable_layers", "lora", "--lora_alpha", 2, "--lora_dropout", 0.1],
    "bypass of attention": ["--trainable_layers", "lora+bypass", "--lora_alpha", 2, "--bypass_taps", "attn.1"],
    "last block": [],
}


@pytest.mark.not_quick  # whole commands
@pytest.mark.parametrize("flags", CHECKPOINTED.values(), ids=CHECKPOINTED)
def test_what_is_computed_twice_is_the_same_both_times(flags, experiment):
    twice = experiment(*flags, "--gradient_checkpointing", **THIRTY_STEPS)
    assert_same_losses(twice, experiment(*flags, **THIRTY_STEPS))


def test_no_frozen_block_runs_twice(experiment, monkeypatch):
    calls, frozen, trained = [], GPT2.run_blocks, fast_path.run_blocks

    def spy(model, hidden, attention_mask, start, stop, *positions):
        calls.append((start, stop, len(hidden)))
        return frozen(model, hidden, attention_mask, start, stop, *positions)

    def other_spy(model, hidden, start, *inputs, stop=None):
        calls.append((start, stop, len(hidden)))
        return trained(model, hidden, start, *inputs, stop=stop)

    monkeypatch.setattr(GPT2, "run_blocks", spy)
    monkeypatch.setattr(fast_path, "run_blocks", other_spy)
    experiment(max_steps=20, num_epochs=4)
    below = [n for start, stop, n in calls if (start, stop) == (0, 1)]
    assert sum(below) == 84 + 12 + 24 and len(calls) > 20 and {call[:2] for call in calls} == {(0, 1), (1, 1)}
    calls.clear()
    found = experiment("--context_length", 2)
    config = experiments.parse(found.result["argv"])[0]
    inputs = job.prepare(config).inputs
    different = [{tuple(inputs.tokenizer.encode(one.text)[:2]) for one in examples} for examples in inputs.splits.values()]
    assert sum(n for start, stop, n in calls if (start, stop) == (0, 1)) == sum(map(len, different)) < 120


def test_texts_are_computed_together_with_others_of_their_length(monkeypatch):
    monkeypatch.setattr(activation_cache, "FEWEST_TOKENS", 20)
    monkeypatch.setattr(activation_cache, "MOST_TOKENS", 100)

    def batches(*lengths) -> list[tuple[int, ...]]:
        return [lengths[part] for part in activation_cache.cut(list(lengths))]

    assert batches() == [] and batches(300) == [(300,)]
    assert batches(5, 9, 10, 11, 30) == [(5, 9, 10), (11, 30)]  # short ones wait until they are 20 tokens
    assert batches(20, 23, 24, 25) == [(20, 23, 24), (25,)]
    assert batches(30, 31, 32, 33, 34) == [(30, 31, 32), (33, 34)]  # a fourth would make 132
    assert batches(90, 91, 200) == [(90,), (91,), (200,)]


def test_nothing_is_kept_of_what_is_random(experiment):
    found = experiment("--dropout", 0.1)
    assert "1 of 2 blocks run each time: --dropout 0.1 draws anew each time" in found.out and found.code == 0


def test_what_would_not_fit_is_computed_anew(experiment, monkeypatch):
    monkeypatch.setattr(activation_cache, "available_bytes", lambda device: 1000)
    found = experiment()
    assert "of 0 MB available" in found.out and found.code == 0
    decision = found.result["stages"][0]["activation_cache"]
    assert decision["kept"] is False and decision["frozen_blocks"] == 1 and "available" in decision["reason"]


def test_the_result_says_whether_states_were_kept(experiment):
    decision = experiment().result["stages"][0]["activation_cache"]
    assert decision["kept"] is True and decision["frozen_blocks"] == 1 and decision["bytes"] > 0
    assert experiment("--reuse_frozen", "no").result["stages"][0]["activation_cache"] is None


MEMINFO = "MemTotal:       24000000 kB\nMemFree:          100000 kB\nMemAvailable:    9000000 kB\n"


def test_available_memory_is_what_the_machine_and_the_container_leave(tmp_path):
    """Files that the system caches count as available, and a container's limit counts too."""
    statistics = f"anon 1\ninactive_file {100 << 20}\n"
    files = {"meminfo": MEMINFO, "max": f"{1 << 30}", "current": f"{600 << 20}", "stat": statistics}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert device.available_on_machine(str(tmp_path / "meminfo")) == 9_000_000 * 1024
    names = [str(tmp_path / name) for name in ("max", "current", "stat")]
    assert device.available_in_container(*names) == (1024 - 600 + 100) << 20
    (tmp_path / "max").write_text("max\n")  # no limit
    assert device.available_in_container(*names) is None
    assert device.available_on_machine(str(tmp_path / "nothing")) is None
    assert device.available_bytes(torch.device("cpu")) > 0
