"""What a newcomer sees: at most twelve lines that say what was chosen, what came out, and what to type next."""

import os
import shlex
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from torch import nn

import experiments
from config import Run, resolve
from pipeline import plots, screen
from pipeline.job import prepare
from tests.helpers.paths import ROOT
from tests.helpers.small import write_dialogues
from utils.errors import UserError

LINES, CHARACTERS = 12, 1800
SHORT = ("--num_epochs", "2", "--train_samples", "40", "--device", "cpu", "--output_dir", "out")
PLAIN = {
    "classes": ("--model", "gpt2-pocket", "--dataset", "spam-pocket"),
    "LoRA": ("--trainable_layers", "lora", "--lora_rank", "16"),  # nothing is named, so what stands in and why is printed
    "an encoder": ("--model", "distilbert-pocket"),
    "dialogues": ("--dataset", "persona"),
}


def run_program(flags: tuple[str, ...], terminal: bool) -> tuple[str, str]:
    """Return what a run prints on standard output and on standard error, each a terminal of its own or a pipe."""
    words = [sys.executable, str(ROOT / "experiments.py"), *flags]
    if not terminal:
        found = subprocess.run(words, capture_output=True, text=True, timeout=300)
        assert found.returncode == 0, found.stderr
        return found.stdout, found.stderr
    termios = pytest.importorskip("termios", reason="a terminal of Unix")
    pairs = [os.openpty(), os.openpty()]
    for _, end in pairs:
        termios.tcsetwinsize(end, (40, 120))
    shown = [b"", b""]

    def read(number: int) -> None:
        try:
            while part := os.read(pairs[number][0], 4096):
                shown[number] += part
        except OSError:  # nobody writes to it any longer
            pass

    readers = [threading.Thread(target=read, args=(number,)) for number in (0, 1)]
    with subprocess.Popen(words, stdout=pairs[0][1], stderr=pairs[1][1]) as process:
        for _, end in pairs:
            os.close(end)
        for reader in readers:
            reader.start()
    for reader in readers:
        reader.join()
    for own, _ in pairs:
        os.close(own)
    assert process.returncode == 0, shown
    return shown[0].decode().replace("\r\n", "\n"), shown[1].decode()


def assert_short(out: str) -> list[str]:
    lines = out.splitlines()
    assert len(lines) <= LINES and len(out) <= CHARACTERS, out
    begin = [line[:9].strip() for line in lines]
    assert begin[:2] == ["model", "dataset"] and begin[-3:] == ["time", "saved", "next"]
    assert {"method", "training"} <= set(begin) and "settings" not in begin
    return lines


@pytest.mark.parametrize("name", PLAIN)
def test_a_plain_run_prints_few_lines(name, alone):
    out, err = run_program((*PLAIN[name], *SHORT), terminal=False)
    assert_short(out)
    assert err == ""  # no progress bar where there is no terminal


def test_in_a_terminal_too_where_the_progress_bar_is_on_standard_error(alone):
    out, err = run_program((*PLAIN["classes"], *SHORT), terminal=True)
    assert_short(out)
    assert err.count("validation loss") == 2 and "train: 100%" in err and "loss=" in err and "examples/s" in err


def test_the_lines_say_what_was_chosen_and_why(experiment, small_checkpoint, small_data):
    found = experiment("--learning_rate", "0.00012345678", "--trainable_layers", "lora", "--lora_rank", 4)
    lines = found.out.splitlines()
    assert (
        lines[0]
        == f"model    {small_checkpoint}, pretrained weights (named with --checkpoint); in no file, so drawn: score"
    )
    assert lines[1].startswith("dataset  spam, 84 / 12 / 24 texts to train / validate / test, ")
    assert lines[1].endswith(f"(the published data, from {small_data})")
    trained, total = found.result["trainable_parameters"], found.result["total_parameters"]
    assert lines[2] == (
        f"method   lora: {trained:,} of {total:,} parameters train ({trained / total:.2%}); lora_rank 4, lora_alpha 8, "
        "lora_target all, lora_scaling alpha, lora_init wide, the LoRA product is multiplied by 8"
    )
    assert lines[3] == (
        "training 5 epochs, at most 2 steps, batch size 8, learning rate 0.000123457 (constant), weight decay 0.1, seed "
        "123, on cpu, amp off"
    )
    changed = "trainable_layers lora (recipe: last_block), lora_rank 4 (recipe: 8), max_steps 2 (recipe: 0), "
    assert lines[4] == f"changed  {changed}learning_rate 0.00012345678 (recipe: 5e-05), logging_steps 1 (recipe: 10)"
    assert "accuracy train " in found.out and f"saved    {found.directory}/" in lines


def test_a_scale_of_another_method_is_not_called_lora_s(monkeypatch):
    shift, model = SimpleNamespace(scale="wide"), nn.Linear(3, 2)
    monkeypatch.setattr(screen, "method_of", lambda run: shift)
    run = resolve(Run(trainable_layers="bitfit"), {})
    assert screen.method_line([run], model) == "method   bitfit: 8 of 8 parameters train (100.00%)"


def test_what_isnt_changed_isnt_listed(alone, capsys):
    assert experiments.main([*PLAIN["classes"], "--num_epochs", "0", "--device", "cpu", "--output_dir", "out"]) == 0
    out = capsys.readouterr().out
    assert "changed  num_epochs 0 (recipe: 5)\n" in out and "training none (--num_epochs 0); seed 123, on cpu, amp " in out


def test_switches_are_on_or_off_and_notes_are_one_line(experiment, alone):
    flags = ("--packing", "--max_target_length", 1)
    lines = experiment("--dataset", write_dialogues(alone / "some.json"), *flags).out.splitlines()
    assert any("packing on (recipe: off)" in line for line in lines if line.startswith("changed  "))
    (note,) = (line for line in lines if line.startswith("note     "))
    assert "40 dialogues lost the end of an answer; 32 dialogues share" in note


def test_verbose_prints_every_setting(experiment, small_checkpoint):
    plain, verbose = experiment(), experiment("--verbose")
    (line,) = (line for line in verbose.out.splitlines() if line.startswith("settings "))
    config = {name: value for name, value in verbose.result["config"].items() if value is not None}
    assert [word.partition("=")[0] for word in line.split()[1:]] == list(config)
    assert {"batch_size=8", "no_padding=False", "verbose=True"} <= set(line.split())
    assert f"; tokenizer from {small_checkpoint}\n" in verbose.out
    assert "settings " not in plain.out and "tokenizer from" not in plain.out
    assert {**plain.result["config"], "verbose": True} == verbose.result["config"]


def test_a_long_line_is_cut_unless_verbose(experiment):
    flags = ("--trainable_layers", "lora", "--lora_target", ",".join(["attn.q"] * 60))
    short, whole = experiment(*flags), experiment(*flags, "--verbose")
    assert max(map(len, short.out.splitlines())) == screen.LONGEST < max(map(len, whole.out.splitlines()))
    assert " ... (--verbose)\n" in short.out and "(--verbose)" not in whole.out


def test_the_tokenizer_is_named_where_it_isnt_the_models(experiment, small_checkpoint):
    assert f"; tokenizer from {small_checkpoint}" in experiment("--tokenizer", small_checkpoint).out


def test_an_interrupted_run_says_how_it_goes_on(experiment, capsys):
    found = experiment()
    screen.print_result(
        prepare(experiments.parse(found.result["argv"])[0]), found.result | {"interrupted": True, "steps": 1}
    )
    out = capsys.readouterr().out
    assert "interrupted after 1 steps; what was trained is saved, --resume goes on from there" in out


NEXT = {
    "the head": (),
    "LoRA": ("--trainable_layers", "lora"),
    "IA3 and biases": ("--trainable_layers", "ia3+bitfit"),
    "the last real token": ("--trainable_token_pos", "flexible"),
    "adapters": ("--trainable_layers", "adapter", "--reduction_factor", 4),
    "a prefix": ("--trainable_layers", "prefix"),
    "the mean": ("--average_embeddings",),
    "no mask": ("--disable_causal_mask",),
    "the first token": ("--trainable_token_pos", "first"),
    "fewer blocks": ("--depth", 1),
}


@pytest.mark.parametrize("flags", NEXT.values(), ids=NEXT)
def test_what_to_type_next_can_be_typed(flags, experiment, alone, capsys, monkeypatch):
    found = experiment(*flags)
    words = shlex.split(found.out.split("next     ")[1])
    if words[:2] == ["python", "experiments.py"]:
        assert words[2:4] == ["--export_model", "exported"]
        assert experiments.main(words[2:]) == 0 and Path("exported/model.safetensors").is_file()
        return
    # Where the other is offered, the model can't be exported.
    with pytest.raises(UserError):
        experiments.main(["--export_model", "exported", "--run_dir", str(found.directory)])
    assert words[:3] == ["python", "-m", "pipeline.plots"]
    monkeypatch.setattr(sys, "argv", words[2:])
    assert plots.main() == 0 and capsys.readouterr().out.startswith("step,epoch,")


def test_a_model_that_answers_is_asked_next(experiment, alone, capsys):
    found = experiment("--dataset", write_dialogues(alone / "some.json"))
    words = shlex.split(found.out.split("next     ")[1])
    assert words == ["python", "experiments.py", "--generate", "Who are you?", "--run_dir", str(found.directory)]
    assert experiments.main(words[2:]) == 0


def test_a_directory_with_a_space_is_quoted(experiment, alone):
    found = experiment(output_dir=alone / "my run")
    assert shlex.split(found.out.split("next     ")[1])[-1] == str(alone / "my run")
