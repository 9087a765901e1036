"""Two processes do what one does: the same losses, weights and metrics from the same global batches."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import experiments
from config import Run
from data.batching import Batches, Example
from tests.helpers.distributed_cases import BASE, CASES, COMMANDS, LLAMA_COMMANDS, learn
from tests.helpers.paths import ROOT
from tests.helpers.small import make_llama
from training import distributed
from utils.errors import UserError

pytestmark = pytest.mark.not_quick  # two processes


def environment(**more) -> dict[str, str]:
    return (
        os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | {name: str(value) for name, value in more.items()}
    )


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    return make_llama(tmp_path_factory.mktemp("llama") / "llama")


@pytest.fixture(scope="module")
def pair(tmp_path_factory, small_checkpoint, small_data, llama) -> list[dict]:
    """What each of two processes made of all cases. They are started once, as torchrun would start them."""
    folder, given = tmp_path_factory.mktemp("pair"), [str(small_checkpoint), str(small_data), str(llama)]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": probe.getsockname()[1], "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    command = [sys.executable, "-m", "tests.helpers.distributed_cases", str(folder), *given]
    both = [
        subprocess.Popen(
            command, env=environment(**where, RANK=rank, LOCAL_RANK=rank), stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for rank in (0, 1)
    ]
    said = [one.communicate() for one in both]
    assert [one.returncode for one in both] == [0, 0], b"\n".join(err for _, err in said).decode()
    assert said[0][0] and said[1][0] == b"", "only the first process prints"
    return [torch.load(folder / f"{rank}.pt", weights_only=False) | {"folder": folder} for rank in (0, 1)]


def assert_close(ours: dict, alone: dict, rate: float) -> None:
    """Losses to 1e-5, what is counted exactly, weights to a twentieth of a step: Adam blows rounding up."""
    assert ours["fitted"] == alone["fitted"]
    torch.testing.assert_close(ours["norms"], alone["norms"], rtol=1e-3, atol=1e-5)
    assert len(ours["records"]) == len(alone["records"]) > 3
    for one, other in [*zip(ours["records"], alone["records"], strict=True), (ours["evaluation"], alone["evaluation"])]:
        assert one.keys() == other.keys()
        for name, value in other.items():
            exact = name not in ("loss", "perplexity")
            assert one[name] == (value if exact else pytest.approx(value, rel=1e-5)), name
    for name, tensor in alone["weights"].items():
        if "attn.k.bias" not in name:  # softmax doesn't see it: its gradient is nothing but rounding
            torch.testing.assert_close(ours["weights"][name], tensor, rtol=0, atol=rate / 20, msg=name)


@pytest.mark.parametrize("name", CASES)
def test_a_pair_does_what_one_process_does(name, pair):
    first, second = (found[name] for found in pair)
    alone = learn(**CASES[name])
    assert_close(first, alone, CASES[name].get("learning_rate", 1e-3))
    assert all(torch.equal(first["weights"][key], second["weights"][key]) for key in first["weights"])
    assert first["records"] == second["records"] and first["evaluation"] == second["evaluation"]
    epochs = alone["fitted"].steps  # at most one empty share each
    assert alone["tokens"] <= first["tokens"] <= alone["tokens"] + epochs


def test_the_cases_mean_something():
    full = learn()
    assert full["fitted"].steps == 6 and full["records"][0]["loss"] != full["records"][-1]["loss"]
    assert learn(**CASES["early stopping"])["fitted"].steps < 12
    spare = learn(**CASES["a tensor that nothing uses"])
    assert torch.equal(spare["weights"]["head.spare"], torch.ones(3))  # not even decayed
    clipped, whole = (learn(**CASES[name])["weights"] for name in ("clipped", "all layers"))
    assert any(not torch.equal(clipped[name], whole[name]) for name in whole)


@pytest.mark.parametrize("name", ["resume", "resume, sharded", "resume, LoRA+"])
def test_what_one_of_them_interrupts_all_resume_bit_for_bit(name, pair):
    for found in pair:
        whole, stopped, resumed, again = found[name]
        assert (stopped["fitted"].steps, stopped["fitted"].interrupted) == (2, True)  # both, though one got the signal
        assert whole["fitted"].steps == resumed["fitted"].steps == 6 and not resumed["fitted"].interrupted
        for key in whole["weights"]:
            assert torch.equal(resumed["weights"][key], whole["weights"][key]), key
            assert torch.equal(again["weights"][key], whole["weights"][key]), key
        assert any(not torch.equal(stopped["weights"][key], whole["weights"][key]) for key in whole["weights"])


def test_each_process_draws_its_own_dropout(pair):
    one, other = pair[0]["draws"]
    assert not torch.equal(one, other)
    assert torch.equal(one, torch.rand(4, generator=torch.Generator().manual_seed(5)))  # the first as one process alone


@pytest.mark.parametrize("n_processes", [2, 3, 5])
@pytest.mark.parametrize("n", [1, 9, 13, 30])
def test_every_example_comes_once(n_processes, n, monkeypatch):
    monkeypatch.setattr(distributed, "size", lambda: n_processes)
    examples = [Example([i, i], i % 2) for i in range(n)]
    whole = Batches(examples, 2 * n_processes, 0, None, lambda epoch: [*reversed(range(n))])
    shares = []
    for rank in range(n_processes):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        shares.append([*distributed.share({"train": whole}, -100)["train"].epoch()])
    assert {len(share) for share in shares} == {len(whole)}
    for together, batch in zip(zip(*shares, strict=True), whole.epoch(), strict=True):
        texts = [
            text
            for one in together
            for text, label in zip(one.input_ids.tolist(), one.labels, strict=True)
            if label != -100
        ]
        assert sorted(texts) == sorted(batch.input_ids.tolist())
        sizes = [int((one.labels != -100).sum()) for one in together]
        assert max(sizes) - min(sizes) <= 1


MEANS = ("loss", "margin", "gap", "gap_before")


def assert_same_results(folder: Path, one) -> None:
    """What two processes left in a folder, and the outcome of one."""
    assert {path.name for path in folder.iterdir()} == {path.name for path in one.directory.iterdir()}
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert len(metrics) == len(one.metrics)
    for ours, theirs in zip(metrics, one.metrics, strict=True):
        for name in theirs.keys() - {"seconds"}:
            wanted = pytest.approx(theirs[name], rel=1e-5, abs=1e-5) if name in MEANS else theirs[name]
            assert ours[name] == wanted, (name, ours)
    result = json.loads((folder / "result.json").read_text())
    assert (result["processes"], one.result["processes"]) == (2, 1)
    for name in ("train_accuracy", "validation_accuracy", "test_accuracy", "trainable_parameters", "total_parameters"):
        assert result[name] == one.result[name], name
    tensors = load_file(folder / "trained.safetensors")
    assert tensors.keys() == one.tensors.keys()
    for name, tensor in one.tensors.items():
        if "attn.k.bias" not in name:
            torch.testing.assert_close(tensors[name], tensor, rtol=0, atol=BASE["learning_rate"] / 20, msg=name)


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_leave_the_same(name, pair, experiment):
    flags = [flag for flag in COMMANDS[name] if flag != "--fsdp"]
    assert_same_results(pair[0]["folder"] / name, experiment(*flags, **BASE, batch_size=8))


@pytest.mark.parametrize("name", LLAMA_COMMANDS)
def test_commands_on_a_llama_leave_the_same(name, pair, experiment, llama):
    flags = [flag for flag in LLAMA_COMMANDS[name] if flag != "--fsdp"]
    assert_same_results(pair[0]["folder"] / name, experiment(*flags, **BASE, checkpoint=llama, batch_size=8))


def test_a_table_of_a_pair(pair):
    first, second = pair[0]["table"]
    assert len(first) == 2 and first == second == pair[1]["table"][0]
    lines = json.loads((pair[0]["folder"] / "table" / "table-spam.json").read_text())
    assert [line["row"] for line in lines] == [1, 3] and all(line["measured"] for line in lines)


def test_torchrun(experiment, alone):
    """The command itself: two processes with half the batch each leave what one process leaves."""
    flags = ["--trainable_layers", "lora", "--lora_alpha", 2, "--accumulation_steps", 2]
    one = experiment(*flags, max_steps=3, batch_size=8)
    words = [*flags, "--max_steps", 3, "--batch_size", 4, "--output_dir", alone / "pair"]
    for name in ("checkpoint", "data_dir", "logging_steps", "learning_rate", "amp", "device"):
        words += [f"--{name}", one.result["config"][name]]
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
        str(ROOT / "experiments.py"),
    ]
    found = subprocess.run([*launch, *map(str, words)], env=environment(), capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert "find_unused_parameters" not in found.stderr  # an advice that isn't meant for the user
    for line in ("\ntraining ", "in  2 processes with --batch_size 4 each, so 8 in all", "saved    "):
        assert found.stdout.count(line) == 1, found.stdout
    assert_same_results(alone / "pair", one)


# --- what doesn't go


@pytest.mark.parametrize(
    "run, message",
    [
        (Run(device="cuda"), r"2 processes were started for 0 GPU; start 0, or say --device cpu"),
        (Run(device="mps"), r"--device mps knows one process"),
        (Run(device="cpu", fsdp=True, stages="layer_by_layer"), r"--stages doesn't go with --fsdp"),
        (Run(device="cpu", fsdp=True, eval_generate=3), r"--eval_generate doesn't go with --fsdp"),
        (Run(device="cpu", fsdp=True, compile=True), r"--compile doesn't go with --fsdp"),
        (Run(device="cpu", fsdp=True, amp="fp16"), r"--amp fp16 doesn't go with --fsdp"),
        (Run(device="cpu", fsdp=True, prefix_projection=True), r"--prefix_projection doesn't go with --fsdp"),
    ],
)
def test_what_several_processes_cannot_do(run, message, monkeypatch):
    monkeypatch.setattr(distributed, "size", lambda: 2)
    monkeypatch.setattr(distributed.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(UserError, match=message):
        distributed.check(run)


def test_fsdp_needs_several():
    with pytest.raises(UserError, match="--fsdp spreads a model over processes: torchrun"):
        distributed.check(Run(fsdp=True))


@pytest.mark.parametrize("name", ["generate", "chat", "score", "download", "export_peft", "export_model"])
def test_an_answer_needs_one_process(name, monkeypatch):
    for variable in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(variable, "1")
    with pytest.raises(UserError, match=f"--{name} needs one process"):
        experiments.main([f"--{name}", "x"])
