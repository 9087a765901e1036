"""benchmarks/gpu.py on the CPU with small models: commands parse, rows and steps run, what is derived is right."""

import argparse
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from benchmarks import gpu, inputs, measure, step
from benchmarks import run as benchmark
from config import Run, resolve
from data.spam import RECIPE
from model import config_of
from model.gpt2 import GPT2Config
from pipeline.flags import parse
from tests.helpers.paths import ROOT
from utils.errors import UserError

NAMES = ("gpt2-small", "gpt2-medium", "gpt2-large", "gpt2-xl")
H100 = "cuda (NVIDIA H100 80GB HBM3)"


@pytest.fixture
def where(small_checkpoint) -> gpu.Where:
    """The CPU, and models that differ in depth alone."""
    size = config_of(small_checkpoint).vocab_size
    sizes = {name: GPT2Config(size, 256, 32, 4, n_layers) for n_layers, name in enumerate(NAMES, start=1)}
    return gpu.Where(measure.CPU, sizes, steps=3, shape=(4, 16))


@pytest.fixture
def args(small_data, small_checkpoint, tmp_path) -> argparse.Namespace:
    """Flags of benchmarks/run.py, for small texts with the vocabulary of small models."""
    data = tmp_path / "data"
    shutil.copytree(small_data, data)
    (data / "tokenizers" / "gpt2").mkdir(parents=True)
    inputs.copy_tokenizer(small_checkpoint, data / "tokenizers" / "gpt2", inputs.LIBRARY_PAIR)
    return argparse.Namespace(amp="auto", fraction=1.0, data_dir=str(data))


def words_of(side: measure.Side, program: list[str]) -> list[str]:
    """The flags behind the program's name."""
    assert side.command[: 1 + len(program)] == [sys.executable, *program]
    return side.command[1 + len(program) :]


def test_all_19_rows_are_commands_at_the_size_that_the_row_names(args, where, tmp_path):
    found = [*gpu.comparisons([*gpu.SPAM], args, tmp_path, where)]
    assert [one.row for one in found] == [*range(1, 20)] and all(one.theirs is None for one in found)
    for one in found:
        run, options = parse(words_of(one.ours, ["experiments.py"]))
        assert options == {"row": str(one.row)}
        assert config_of(run.checkpoint) == where.sizes[gpu.SPAM[one.row].run.model or "gpt2-small"]
        assert (run.device, run.amp, run.data_dir, run.max_steps) == ("cpu", "auto", args.data_dir, None)
    depths = {one.row: config_of(parse(words_of(one.ours, ["experiments.py"]))[0].checkpoint).n_layers for one in found}
    assert {row: depth for row, depth in depths.items() if depth > 1} == {6: 2, 7: 3, 8: 4, 9: 4, 12: 4}


def test_all_steps_are_commands_and_each_check_changes_one_thing(args, where, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "precision_of", lambda amp, device: {"auto": "bf16", "off": "fp32"}.get(amp, amp))
    differ = {}
    for one in gpu.comparisons([*gpu.STEPS], args, tmp_path, where):
        row, sides = gpu.STEPS[one.row], [one.ours, *([one.theirs] if one.theirs and one.theirs.cwd == ROOT else [])]
        ours, *others = [vars(step.parse(words_of(side, ["-m", "benchmarks.step"]))) for side in sides]
        assert (ours["trainable_layers"], ours["device"], ours["length"], ours["steps"]) == (row.method, "cpu", 16, 3)
        assert config_of(ours["model"]) == where.sizes[row.model]
        for other in others:
            differ[one.row] = [(name, ours[name], other[name]) for name in ours if ours[name] != other[name]], one.precision
    assert differ == {
        25: ([("amp", "bf16", "off")], "bf16 / fp32"),
        26: ([("amp", "fp16", "off")], "fp16 / fp32"),
        27: ([("ddp", True, False)], "bf16 / bf16"),
        28: ([("compile", True, False)], "bf16 / bf16"),
        29: ([("compile", True, False)], "bf16 / bf16"),
    }


def test_the_rows_own_shapes_are_those_on_a_gpu():
    shapes = {row: (one.model, one.method, one.batch_size, one.length) for row, one in gpu.STEPS.items()}
    assert shapes[20] == ("gpt2-small", "lora", 8, 120) and shapes[23] == ("gpt2-small", "all", 32, 512)
    assert shapes[24] == shapes[29] == ("gpt2-xl", "all", 8, 120)
    assert gpu.shape_of(gpu.STEPS[22], gpu.Where()) == ["--batch_size", "32", "--length", "512", "--steps", "20"]
    assert gpu.Where().sizes["gpt2-xl"].n_layers == 48 and gpu.Where().device.type == "cuda"


def run_row(row: int, args, where, folder, run=measure.run_side) -> dict:
    """The record of one row, measured."""
    (one,) = gpu.comparisons([row], args, folder, where)
    return measure.measure(one, 1, {}, run) | {"machine": {"cpu": "this"}, "versions": {}}


@pytest.fixture
def in_this_process(monkeypatch, capsys):
    """Take steps of ours here, without the seconds in which products are timed, and large ones for a small model."""
    monkeypatch.setattr(step, "LEARNING_RATE", 1e-4)
    monkeypatch.setattr(step, "product_rate", lambda *given: 1e9)

    def run(side: measure.Side) -> dict:
        if side.command[1:3] != ["-m", "benchmarks.step"]:
            return measure.run_side(side)
        step.main(side.command[3:])
        return side.read(capsys.readouterr().out)

    return run


def test_a_row_of_the_table_runs(args, where, tmp_path):
    record = run_row(9, args, where, tmp_path)
    assert record["ours_seconds"] > 0 and record["ours_steps"] == 5 * 11 and record["time_ratio"] is None
    assert record["ours_trainable_parameters"] > 4 * 12 * 32 * 32  # all four blocks


@pytest.mark.parametrize("row", [25, 27])
def test_ways_to_take_a_step_run_and_agree(row, args, where, tmp_path, in_this_process):
    args.amp = "off"
    record = gpu.judged(run_row(row, args, where, tmp_path, in_this_process))
    losses = record["ours_losses"]
    assert len(losses) == 1 + 1 + 3 and losses == sorted(losses, reverse=True)  # counted, warm, timed
    assert losses[-1] < losses[0] - 2 * record["tolerance"]
    assert record["agree"] and record["loss_difference"] <= record["tolerance"]
    assert (row == 27) == (losses == pytest.approx(record["peer_losses"], rel=1e-6))


def test_the_libraries_step_has_the_same_losses(args, where, tmp_path, in_this_process):
    try:
        measure.need_packages(gpu.PACKAGES)
    except UserError as error:
        pytest.skip(str(error))
    args.amp = "off"
    record = gpu.judged(run_row(21, args, where, tmp_path, in_this_process))
    assert record["ours_losses"] == pytest.approx(record["peer_losses"], rel=1e-3)
    assert record["ours_trainable_parameters"] == record["peer_trainable_parameters"] + 2  # its classifier has no bias
    assert record["peer_seconds"] > 0 and record["peer_peak_bytes"] > 0 and record["agree"]


@pytest.mark.slow
@pytest.mark.parametrize("row", [20, 24])
def test_other_steps_run(row, args, where, tmp_path):
    args.amp = "off"
    record = gpu.judged(run_row(row, args, where, tmp_path))
    assert record["mfu"] > 0 and record.get("agree", True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("row", [9, 12, 24, 25, 26, 27])
def test_rows_run_on_a_gpu(row, args, where, tmp_path):
    record = run_row(row, args, replace(where, device=gpu.DEVICE), tmp_path)
    assert record["ours_seconds"] > 0 and record["ours_peak_bytes"] > 0
    assert row < 20 or gpu.judged(record).get("agree", True)


def test_fp16_counts_no_loss_of_a_step_that_was_left_out():
    run = resolve(Run(model="gpt2-pocket", trainable_layers="all", batch_size=2, amp="fp16"), RECIPE)
    one = step.Step(run, 16, measure.CPU)
    one.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)  # too large for fp16
    before = one.model.final_norm.weight.detach().clone()
    one()
    assert one.losses == [] and torch.equal(one.model.final_norm.weight, before)
    one.scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    one()
    assert len(one.losses) == 1 and not torch.equal(one.model.final_norm.weight, before)


def test_counted_operations_are_those_of_the_formula(monkeypatch):
    """A multiplication and an addition for each weight and token, twice that backwards; attention by pairs of tokens."""
    monkeypatch.setattr(step, "product_rate", lambda *given: 1e9)
    run = resolve(Run(model="gpt2-pocket", trainable_layers="all", batch_size=2, amp="off"), RECIPE)
    found = step.measure(run, 32, 1, measure.CPU)
    config, batch, length = config_of("gpt2-pocket"), 2, 32
    dim, tokens = config.dim, batch * length
    whole = 2 * 12 * dim**2 * tokens  # of a block forward: q, k, v, out, and 4 + 4 of the MLP
    last = 2 * (2 * dim**2 * tokens + 10 * dim**2 * batch)  # all keys and values, the rest for one position of each text
    pairs = 2 * dim * tokens * length  # of a block: one product of [T, d] and [d, T] for all heads
    attention = (2 + 5) * pairs * (config.n_layers - 1)  # forward two products, backward five; of one query next to nothing
    assert found["flops"] == pytest.approx(3 * ((config.n_layers - 1) * whole + last) + attention, rel=5e-3)


def measured(row: int, work: str, precision: str = "bf16", **more) -> dict:
    one = measure.Comparison(row, work, "-", precision, measure.Side(["ours"], ROOT, json.loads))
    return measure.record_of(one, [{"seconds": 2.0, "peak_bytes": 100} | more], [], {}) | {
        "machine": {"gpu": "one"},
        "versions": {},
        "fraction": 1.0,
    }


def stepped(precision: str = "bf16", device: str = H100, **more) -> dict:
    about = {"seconds": 0.01, "flops": 2e12, "rate": 5e14, "device": device, "losses": [2.0, 1.0]}
    return measured(24, "a step", precision, **about | more)


@pytest.mark.parametrize(
    ("precision", "device", "peak", "source"),
    [
        ("bf16", H100, 989e12, "data sheet"),
        ("fp16 / fp32", H100, 989e12, "data sheet"),
        ("fp32", H100, 5e14, "measured"),
        ("bf16 / bf16", "cuda (NVIDIA H100 unheard of)", 5e14, "measured"),
        ("bf16", "cpu (x86_64, 2 threads)", 5e14, "measured"),
    ],
)
def test_utilisation_is_held_against_the_device_or_what_was_measured(precision, device, peak, source):
    record = gpu.judged(stepped(precision, device))
    assert record["mfu"] == pytest.approx(2e12 / 0.01 / peak) and source in record["note"]
    assert f"MFU {200e12 / peak:.1%} of " in measure.markdown([record], "title")


def test_losses_that_differ_or_are_not_finite_are_seen():
    assert gpu.loss_difference([2.0, 1.5, 9.0], [2.0, 1.0]) == 0.25  # as many as both have
    assert gpu.loss_difference([2.1, 1.5], [2.0, 1.0], 1) == pytest.approx(0.05)
    assert gpu.loss_difference([2.0, float("nan")], [2.0, 1.0], 1) is None
    assert gpu.loss_difference([2.0], [float("inf")]) is None and gpu.loss_difference([], [1.0]) is None
    both = stepped() | {"tolerance": 0.05, "compared_losses": None, "peer_losses": [2.0, 1.2]}
    assert gpu.judged(both | {"ours_losses": [2.0, 1.29]})["agree"] is True
    for losses in ([2.0, 1.4], [2.0, float("nan")]):
        assert gpu.judged(both | {"ours_losses": losses})["agree"] is False


def rows(**changes) -> list[dict]:
    return [measured(number, f"row {number}: {row.title}") | changes for number, row in gpu.SPAM.items()]


def test_the_total_is_that_of_all_rows_measured_alike():
    records = benchmark.with_derived(rows(), gpu)
    (total,) = [one for one in records if one.get("derived")]
    assert total["ours_seconds"] == 38.0 and total["ours_peak_bytes"] == 100 and total["work"] == "all 19 rows"
    assert "| 19 | all 19 rows | - | bf16 | 38 |" in measure.markdown(records, "title")
    assert benchmark.with_derived(records, gpu) == records
    records[3] |= {"machine": {"gpu": "another"}}  # the total of before is true no longer
    assert [one for one in benchmark.with_derived(records, gpu) if one.get("derived")] == []
    assert gpu.totals(rows()[1:]) == []
    assert len(gpu.totals([*rows(), *rows(precision="fp32")])) == 2


def test_a_run_whose_losses_disagree_fails_and_keeps_its_table(monkeypatch, tmp_path, capsys):
    allowed = {"tolerance": 0.05, "compared_losses": None, "peer_losses": [2.0, 1.0]}
    right, wrong = stepped() | allowed, stepped() | allowed | {"row": 25, "ours_losses": [2.0, 1.9]}
    found = iter([right, wrong])
    for name, value in {
        "needed": lambda rows: {},
        "DEVICE": measure.CPU,
        "comparisons": lambda *given: [COMPARED] * 2,
    }.items():
        monkeypatch.setattr(gpu, name, value)
    monkeypatch.setattr(measure, "measure", lambda *given: next(found))
    assert benchmark.main(["--suite", "gpu", "--rows", "24,25", "--json", str(tmp_path / "found.json")]) == 1
    said = capsys.readouterr()
    assert said.err == "error: the losses of both sides don't agree: row 25\n" and "MFU 20.2%" in said.out
    assert [one["agree"] for one in json.loads((tmp_path / "found.json").read_text())] == [True, False]
    assert "DON’T AGREE" in (tmp_path / "found.md").read_text()


COMPARED = measure.Comparison(24, "a step", "-", "bf16", None)


@pytest.mark.parametrize(("cuda", "said"), [(None, "is built without CUDA"), ("13.0", "and torch finds none")])
def test_without_a_gpu_one_line_says_what_is_missing(cuda, said, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    with pytest.raises(UserError, match=f"--suite gpu needs a CUDA GPU, .*{said}"):
        benchmark.main(["--suite", "gpu"])


def test_without_a_gpu_the_exit_status_is_2_and_nothing_is_written(tmp_path):
    file = tmp_path / "found.json"
    command = [sys.executable, "benchmarks/run.py", "--suite", "gpu", "--json", str(file)]
    hidden = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=hidden)
    assert done.returncode == 2 and done.stderr.startswith("error: --suite gpu") and done.stderr.count("\n") == 1
    assert not file.exists() and not done.stdout


def test_libraries_are_needed_by_the_rows_beside_them_alone(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert gpu.needed([1, 19, 24, 29]) == {} and gpu.needed([1, 20]) == gpu.PACKAGES
