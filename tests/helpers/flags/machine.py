"""Check the flags of the machine and the record."""

import os
import re

import pytest
import torch

import train
from tests.helpers.flags.register import LORA, check, differ
from tests.helpers.interrupt import interrupt_run
from training.meter import Meter
from utils.errors import UserError


@check("amp")
def amp(experiment, fixtures):
    full, half = experiment(amp="off"), experiment(amp="bf16")
    assert (full.result["amp"], half.result["amp"]) == ("off", "bf16")
    assert full.logged("loss") != half.logged("loss") == pytest.approx(full.logged("loss"), rel=0.05)
    with pytest.raises(UserError, match="--amp fp16 needs a GPU"):
        experiment(amp="fp16")


@check("base_precision")
def base_precision(experiment, fixtures):
    whole, kept = experiment(*LORA), experiment(*LORA, "--base_precision", "int8")
    assert whole.logged("loss") != kept.logged("loss") == pytest.approx(whole.logged("loss"), rel=0.05)
    assert (
        kept.tensors.keys() == whole.tensors.keys() and kept.result["total_parameters"] == whole.result["total_parameters"]
    )
    again = experiment(*LORA, "--quantization_bit", 8, output_dir="bits")  # the same by the name of another tool
    assert again.logged("loss") == kept.logged("loss") and again.result["config"]["base_precision"] == "int8"
    hira = ["--trainable_layers", "hira"]
    for flags in (["--trainable_layers", "all"], ["--lora_init", "pissa", *LORA], ["--stages", "layer_by_layer"], hira):
        with pytest.raises(UserError, match="base_precision"):
            experiment("--base_precision", "int4", *flags)


@check("device")
def device(experiment, fixtures):
    fixtures["monkeypatch"].setattr(torch.cuda, "is_available", lambda: False)
    assert experiment(device="cpu").result["device"].startswith("cpu (")
    with pytest.raises(UserError, match="--device cuda isn't available here; choose auto,"):
        experiment(device="cuda")


@check("logging_steps")
def logging_steps(experiment, fixtures):
    assert experiment(logging_steps=3, max_steps=7).logged("step") == [3, 6, 7]


@check("log")
def log(experiment, fixtures):
    pytest.importorskip("tensorboard", reason="event files need tensorboard")
    assert [*experiment("--log", "tensorboard").directory.glob("events.*")]
    assert not [*experiment().directory.glob("events.*")]  # not even those of the earlier run


@check("eval_steps")
def eval_steps(experiment, fixtures):
    assert experiment(max_steps=7).logged("step", "validation") == [7]
    assert experiment("--eval_steps", 3, max_steps=7).logged("step", "validation") == [3, 6, 7]


@check("output_dir")
def output_dir(experiment, fixtures):
    folder = fixtures["alone"] / "some" / "where"
    assert experiment(output_dir=folder).directory == folder
    assert {path.name for path in folder.iterdir()} == {"result.json", "metrics.jsonl", "trained.safetensors"}
    # Without it the configuration names the directory: another one for another configuration, never for the same.
    plain, same, other = experiment(output_dir=None), experiment(output_dir=None), experiment("--seed", 7, output_dir=None)
    assert re.fullmatch(r"runs/spam-tiny-last_block-seed123-[0-9a-f]{8}", str(plain.directory))
    assert plain.directory == same.directory != other.directory


@check("resume")
def resume(experiment, fixtures):
    whole = experiment("--dropout", 0.1, max_steps=5)
    interrupt_run(fixtures["monkeypatch"], 3)
    half = experiment("--dropout", 0.1, max_steps=5)
    assert (half.code, half.result["interrupted"], half.result["steps"]) == (130, True, 3)
    assert half.result["test_accuracy"] is None and "--resume goes on from there" in half.out
    rest = experiment("--dropout", 0.1, "--resume", max_steps=5)
    assert (rest.code, rest.result["interrupted"], rest.result["steps"]) == (0, False, 5)
    assert rest.logged("step") == [1, 2, 3, 4, 5] and rest.logged("loss") == whole.logged("loss")
    assert not differ(rest.tensors, whole.tensors)
    assert not (rest.directory / "states").exists()


@check("save_total_limit")
def save_total_limit(experiment, fixtures):
    left, step = [], Meter.step

    def look(meter, number, *given, **named):
        left.append(sorted(path.name for path in (fixtures["alone"] / "out").glob("states/*")))
        return step(meter, number, *given, **named)

    fixtures["monkeypatch"].setattr(Meter, "step", look)
    experiment("--save_steps", 1, "--save_total_limit", 2, max_steps=4)
    assert left[-1] == ["step-000002.safetensors", "step-000003.safetensors"]
    experiment("--save_steps", 1, max_steps=4)
    assert left[-1] == ["step-000003.safetensors"]
    with pytest.raises(UserError, match="--save_total_limit is 0; it must be at least 1"):
        experiment("--save_total_limit", 0)


@check("deterministic")
def deterministic(experiment, fixtures):
    seen = []
    fixtures["monkeypatch"].setattr(train, "update", lambda *_: seen.append(torch.are_deterministic_algorithms_enabled()))
    experiment("--deterministic")
    experiment()
    assert seen == [True, True, False, False] and os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


@check("compile")
def compiled(experiment, fixtures):
    seen, real = [], torch.nn.Module.compile

    def stand_in(module):  # the same way in, without the minutes of a compiler
        real(module, backend="eager")
        seen.append(type(module).__name__)

    plain = [experiment(*flags) for flags in ((), LORA)]
    fixtures["monkeypatch"].setattr(torch.nn.Module, "compile", stand_in)
    for before, flags in zip(plain, ((), LORA), strict=True):
        found = experiment("--compile", *flags)
        assert found.logged("loss") == pytest.approx(before.logged("loss"), rel=1e-5)
        assert found.tensors.keys() == before.tensors.keys()
    assert len(seen) == 4 and set(seen) == {"Block"}


@check("fsdp")
def fsdp(experiment, fixtures):
    with pytest.raises(UserError, match="--fsdp spreads a model over processes"):  # over two: test_distributed.py
        experiment("--fsdp")


@check("memory_report")
def memory_report(experiment, fixtures):
    found = experiment("--memory_report").out
    assert "memory   for 8 x 21 tokens" in found and "MB were in use" in found
    assert "memory" not in experiment().out.replace("memory_report", "")


@check("verbose")
def verbose(experiment, fixtures):
    assert "\nsettings " in experiment("--verbose").out  # what it prints: test_screen.py
    assert "\nsettings " not in experiment().out


@check("plot_loss")
def plot_loss(experiment, fixtures):
    pytest.importorskip("matplotlib", reason="plots need matplotlib")
    assert (experiment("--plot_loss", output_dir=fixtures["alone"] / "drawn").directory / "curves.png").is_file()
    assert not (experiment().directory / "curves.png").exists()
