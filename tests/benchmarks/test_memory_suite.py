"""The suite that holds computed memory against measured."""

from argparse import Namespace

import pytest

from benchmarks import measure, memory
from config import Run
from model.llama import LlamaConfig
from tools import memory_report

TINY = LlamaConfig(vocab_size=400, dim=64, n_heads=4, n_kv_heads=2, head_dim=16, n_layers=2, mlp_dim=128)


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(memory.MODELS, "SmolLM2-1.7B", TINY)


def test_a_row_is_a_step_whose_need_was_computed(tiny, tmp_path):
    (found,) = memory.comparisons([4], Namespace(amp="off"), tmp_path)
    assert found.extra["computed_bytes"] == memory.budget_of(TINY, "lora", "nf4").total
    record = measure.measure(found, 1, {})
    assert record["ours_load_peak_bytes"] >= 0 and record["ours_trainable_parameters"] > 0
    assert record["ours_peak_bytes"] > 0 and len(record["ours_losses"]) > 3
    assert "--base_precision nf4" in record["ours_command"]


def test_less_is_needed_column_by_column(tiny):
    all_layers, *with_lora = [float(cell) for cell in memory.fitting_rows()[3][1:]]  # GPT-2 large
    assert all_layers > 2 * with_lora[0] and with_lora == sorted(with_lora, reverse=True)


def test_what_is_printed_is_for_the_precision_that_the_run_takes():
    run = Run(model="gpt2-pocket", trainable_layers="lora", device="cpu")
    of = {amp: memory_report.budgets(Run(**vars(run) | {"amp": amp}), 64)[1][1].activations for amp in ("off", "bf16")}
    assert of["bf16"] < of["off"]
