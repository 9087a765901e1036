"""The command line from outside: what it prints, writes and chooses, and what is resumed."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import experiments
import peft
import train
from config import SETTINGS, Run
from data.encode import make_batches
from data.registry import TASKS, get_task
from model import hub
from model.tokenizers.bpe import GPT2Tokenizer
from pipeline import job, stages
from pipeline.build import build_model
from pipeline.flags import OPTIONS
from tests.helpers.outcome import Outcome, left_in
from tests.helpers.paths import ROOT
from tests.helpers.small import write_messages
from train import evaluate
from utils.errors import UserError

# --- in a process of its own


def shell(*argv, **options) -> subprocess.CompletedProcess:
    # As many threads as this process has: the order of a sum depends on it.
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    words = [sys.executable, ROOT / "experiments.py", *map(str, argv)]
    return subprocess.run(words, capture_output=True, text=True, env=environment, timeout=300, **options)


QUICK = {"--help": "--trainable_layers", "--help all": "--no-no_padding", "--list": "19  mean of all positions"}


@pytest.mark.parametrize("flags, expected", QUICK.items(), ids=QUICK)
def test_help_and_list_answer_at_once_without_torch(flags, expected):
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['experiments.py', *'{flags}'.split()]\n"
        "try:\n    runpy.run_path('experiments.py', run_name='__main__')\n"
        "except SystemExit as end:\n    print(end.code, 'torch' in sys.modules)\n"
    )
    seconds = []
    for _ in range(5):  # the best of five: this machine may be busy
        started = time.perf_counter()
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
        seconds.append(time.perf_counter() - started)
    assert expected in found.stdout and found.stdout.splitlines()[-1] == "0 False" and found.stderr == ""
    assert min(seconds) < 0.5


def test_the_everyday_help_fits_on_a_screen_and_the_whole_names_every_flag(capsys):
    def shown(*flags):
        with pytest.raises(SystemExit) as end:
            experiments.main([*flags])
        assert end.value.code == 0
        return capsys.readouterr().out

    everyday, whole = shown("--help"), shown("-h", "all")
    assert len(everyday.splitlines()) <= 40 and max(map(len, everyday.splitlines())) < 120
    for name, about in SETTINGS.items():
        assert (f"\n  --{name}" in everyday) is about["everyday"]
        for one in (name, *about["aliases"]):
            assert re.search(rf"--{one}[ ,\n]", whole)
        assert (f"--no-{name}" in whole) is (about["kind"] is bool)
        assert all(choice in whole for choice in about["choices"])
    for options in OPTIONS.values():
        assert all(f"\n  --{name}" in whole for name in options)
    with pytest.raises(UserError, match="--help lora: say --help, or --help all"):
        experiments.main(["--help", "lora"])


@pytest.mark.parametrize(
    "words, nearest",
    [
        (["--lora_ran", "4"], "--lora_rank"),
        (["--lora_rnak=4"], "--lora_rank"),
        (["--average"], "--average_embeddings"),
        (["--no_packing"], "--no-packing"),
        (["--tabel", "spam"], "--table"),
        (["--num_train_epoch", "3"], "--num_train_epochs"),
    ],
)
def test_an_abbreviated_or_misspelt_flag_is_refused_with_the_nearest(words, nearest):
    with pytest.raises(UserError, match=rf"unrecognized arguments: {' '.join(words)}; did you mean {nearest}\?"):
        experiments.main(words)


def test_a_word_that_is_like_no_flag():
    with pytest.raises(UserError, match=r"^unrecognized arguments: spam \(see"):
        experiments.main(["spam"])


@pytest.mark.parametrize("flags, no_padding", [((), True), (("--no-no_padding",), False)], ids=["recipe", "off"])
def test_a_switch_that_a_recipe_sets_can_be_turned_off(flags, no_padding, experiment, encoder, encoder_data):
    found = experiment(*flags, "--dataset", "sst2", checkpoint=encoder, data_dir=encoder_data)
    assert found.result["config"]["no_padding"] is no_padding  # the recipe of sst2 says yes
    assert (set(found.widths(False)) == {128}) is not no_padding
    again = job.prepare(experiments.parse(found.result["argv"])[0]).run
    assert again == Run(**found.result["config"])


BAD = {
    "an unknown flag": (["--trainable_layer_s", "all"], "unrecognized arguments: --trainable_layer_s all"),
    "an unknown value": (["--weights", "zero"], "--weights is 'zero'; choose pretrained, random"),
    "an unknown model": (["--model", "gpt3"], "unknown model 'gpt3': choose gpt2-small, gpt2-medium, gpt2-large, gpt2-xl"),
    "a named model that can't be had": (["--model", "gpt2-xl"], "gpt2-xl isn't in the Hugging Face cache"),
}


@pytest.mark.parametrize("argv, message", BAD.values(), ids=BAD)
def test_an_error_is_one_line_and_exit_code_2(argv, message, alone):
    found = shell(*argv, "--dataset", "spam-pocket", "--output_dir", "out", cwd=alone)
    assert found.returncode == 2
    assert re.fullmatch(rf"error: .*{re.escape(message)}.*\n", found.stderr)
    assert found.stdout == "" and left_in(alone / "out") == []


def test_ctrl_c_and_resume_in_processes_of_their_own(alone, small_checkpoint, small_data):
    flags = ["--checkpoint", small_checkpoint, "--data_dir", small_data, "--trainable_layers", "all", "--dropout", 0.1]
    flags += ["--num_epochs", 20, "--logging_steps", 1, "--amp", "off", "--device", "cpu"]  # 220 steps
    words = [sys.executable, ROOT / "experiments.py", *map(str, flags), "--output_dir", "half"]
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as process:
        metrics, patience = Path("half/metrics.jsonl"), time.monotonic() + 200
        while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < patience:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=200)
    assert process.returncode == 130, err
    assert "--resume goes on from there" in out and "Traceback" not in err
    names = {path.name for path in Path("half").iterdir()}
    assert names == {"result.json", "metrics.jsonl", "trained.safetensors", "states"}
    result = json.loads(Path("half/result.json").read_text())
    assert result["interrupted"] and 0 < result["steps"] < 220
    assert shell(*flags, "--output_dir", "half", "--resume").returncode == 0
    assert shell(*flags, "--output_dir", "whole").returncode == 0
    assert Path("half/trained.safetensors").read_bytes() == Path("whole/trained.safetensors").read_bytes()


# --- what a run leaves behind

KEYS = """model weights dataset method seed train_accuracy validation_accuracy test_accuracy train_seconds total_seconds
trainable_parameters total_parameters peak_memory_bytes device amp argv config versions git"""


@pytest.mark.parametrize("layers", ["last_block", "lora"])
def test_a_run_and_its_record(layers, experiment, small_checkpoint, small_data):
    found = experiment("--trainable_layers", layers, learning_rate=1e-2, max_steps=30, num_epochs=3)
    result, run = found.result, Run(**found.result["config"])
    assert found.code == 0 and set(KEYS.split()) <= result.keys()
    assert (result["model"], result["dataset"], result["seed"]) == (str(small_checkpoint), "spam", 123)
    assert result["argv"][:2] == ["--checkpoint", str(small_checkpoint)]
    assert run == job.prepare(experiments.parse(result["argv"])[0]).run  # the recorded words give the recorded run
    assert 0 < result["train_seconds"] < result["total_seconds"]
    (stage,) = result["stages"]
    assert result["tokens_per_second"] == pytest.approx(stage["tokens"] / stage["step_seconds"], abs=0.1)
    assert 0 < stage["step_seconds"] < stage["seconds"]
    assert 50e6 < result["peak_memory_bytes"] < 64e9 and result["versions"]["torch"] == torch.__version__
    assert result["git"] is None or re.fullmatch(r"[0-9a-f]{40}(-dirty)?", result["git"])
    for split, targets in (("train", 84), ("validation", 12), ("test", 24)):
        (final,) = (record for record in found.metrics if record["split"] == f"final {split}")
        assert final["accuracy"] == result[f"{split}_accuracy"] and final["targets"] == targets
    assert found.logged("step") == list(range(1, 31)) and found.logged("step", "validation") == [11, 22, 30]
    # The saved tensors, put into a fresh model, are the model that was measured.
    model = peft.attach(build_model(run, 2), peft.method_of(run))
    prepared, tokenizer = job.prepare(run), GPT2Tokenizer.from_directory(small_checkpoint)
    batches = make_batches(prepared.task, run, prepared.inputs.splits, tokenizer, model.config)
    (loss,) = found.logged("loss", "final test")
    assert evaluate(model, batches["test"])["loss"] != pytest.approx(loss, rel=0.01)
    measured = evaluate(peft.restore(model, found.tensors), batches["test"])
    assert measured["loss"] == pytest.approx(loss, rel=1e-4) and measured["accuracy"] == result["test_accuracy"]


@pytest.mark.parametrize(
    "flags", [[], ["--average_embeddings"], ["--disable_causal_mask"], ["--trainable_token_pos", "first", "--trim", "no"]]
)
def test_without_padding_the_size_of_a_batch_has_no_influence(flags, experiment):
    one = experiment("--no_padding", "--batch_size", 1, "--accumulation_steps", 8, "--eval_batch_size", 1, *flags)
    many = experiment("--no_padding", "--batch_size", 8, "--eval_batch_size", 64, *flags)
    assert max(many.sizes(False)) == 64 and any(masked for _, _, masked in many.forwards)
    for split in ("train", "validation", "final train", "final test"):
        assert one.logged("loss", split) == pytest.approx(many.logged("loss", split), rel=1e-5)


# --- what is chosen where nothing is named


@pytest.fixture
def shipped(alone, small_checkpoint, monkeypatch):
    monkeypatch.setattr(hub, "POCKET_DIR", small_checkpoint.parent)
    monkeypatch.setitem(TASKS, "spam", replace(get_task("spam"), models=("gpt2-small", "tiny")))
    return alone


def test_offline_with_empty_caches_the_shipped_ones_are_taken(shipped, capsys):
    assert experiments.main(["--context_length", "8", "--max_steps", "1", "--output_dir", "out"]) == 0
    result, lines = json.loads(Path("out/result.json").read_text()), capsys.readouterr().out.splitlines()
    assert (result["model"], result["dataset"]) == ("tiny", "spam-pocket")
    assert result["model_reason"] == "shipped; gpt2-small isn't in the cache and HF_HUB_OFFLINE is set"
    assert result["data_reason"].startswith("shipped; SMSSpamCollection isn't in ")
    assert result["model_reason"] in lines[0] and result["data_reason"] in lines[1]


def test_the_published_ones_where_they_can_be_had(shipped, small_checkpoint, monkeypatch):
    monkeypatch.setattr(hub, "why_no_hub", lambda: None)
    run, reason = job.choose_model(Run(), get_task("spam"))
    assert (run.model, reason) == ("gpt2-small", "the published default, from the hub")
    monkeypatch.undo()
    monkeypatch.setenv("PEFT_FROM_SCRATCH_CACHE", str(shipped / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(shipped / "hub"))
    repository = shipped / "hub" / "models--openai-community--gpt2"
    shutil.copytree(small_checkpoint, repository / "snapshots" / "0123")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123")
    run, reason = job.choose_model(Run(), get_task("spam"))
    assert (run.model, reason) == ("gpt2-small", "the published default, from the Hugging Face cache")
    write_messages(shipped / "cache" / "sms_spam" / "SMSSpamCollection", 10)
    run, reason = job.choose_dataset(Run(), get_task("spam"))
    assert (run.dataset, reason) == ("spam", "the published data, from the cache")


@pytest.mark.parametrize("flags", [["--model", "gpt2-small"], ["--model_size", "gpt2-small (124M)"], ["--dataset", "spam"]])
def test_what_is_named_is_never_replaced(flags, shipped):
    message = (
        "SMSSpamCollection isn't in" if "--dataset" in flags else r"gpt2-small isn't in .* choose a shipped model \(tiny\)"
    )
    with pytest.raises(UserError, match=message):
        experiments.main([*flags, "--context_length", "8", "--output_dir", "out"])
    assert left_in(Path("out")) == []


# --- what is interrupted or run again


def interrupted(experiment, monkeypatch, *flags, **settings) -> Outcome:
    """Ctrl-C in the first of the run's steps."""
    update = train.update
    with monkeypatch.context() as patch:
        patch.setattr(train, "update", lambda *given: (signal.raise_signal(signal.SIGINT), update(*given)))
        found = experiment(*flags, **settings)
    assert found.code == 130 and found.result["steps"] == 1
    return found


def test_only_the_same_run_can_be_resumed(experiment, alone, monkeypatch):
    interrupted(experiment, monkeypatch)
    (alone / "out" / "states" / "step-000001.safetensors").write_bytes(b"")
    before = {path: path.read_bytes() for path in (alone / "out").rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"other values of batch_size, weight_decay; train anew"):
        experiment("--resume", "--batch_size", 4, "--weight_decay", 0.2)
    with pytest.raises(UserError, match="can't be read as safetensors"):
        experiment("--resume")  # a broken state; what there was is kept
    assert before.items() <= {path: path.read_bytes() for path in (alone / "out").rglob("*") if path.is_file()}.items()


def test_a_complete_run_is_not_trained_again(experiment, alone, small_checkpoint):
    whole, folder = experiment(), shutil.copytree(small_checkpoint, alone / "copy")
    again = experiment("--resume")
    assert again.code == 0 and "the run is complete" in again.out and again.forwards == []
    assert again.result == whole.result
    with pytest.raises(UserError, match="holds a run with other values of seed; train anew"):
        experiment("--resume", "--seed", 5)
    experiment(checkpoint=folder, output_dir=folder)  # what is trained lies beside the weights, and is none of them
    assert "the run is complete" in experiment("--resume", checkpoint=folder, output_dir=folder).out


def test_what_is_asked_for_beside_the_training_of_a_complete_run(experiment):
    pytest.importorskip("matplotlib", reason="plots need matplotlib")
    whole = experiment()
    assert not (whole.directory / "curves.png").exists()
    again = experiment("--resume", "--plot_loss", "--memory_report")
    assert again.forwards == [] and again.result == whole.result
    assert (whole.directory / "curves.png").is_file() and "curves.png" in again.out
    assert f"at most {whole.result['peak_memory_bytes'] / 1e6:,.1f} MB" in again.out
    other = experiment("--seed", 7)  # in the same directory: the curves aren't its own
    assert other.directory == whole.directory and not (whole.directory / "curves.png").exists()


@pytest.mark.parametrize(
    "flags, best", [({"max_steps": 4}, 4), ({"max_steps": 0, "learning_rate": 10.0, "early_stopping_patience": 1}, None)]
)
def test_the_last_measures_stand_at_the_step_that_the_weights_are_of(flags, best, experiment):
    found = experiment(num_epochs=9, eval_steps=2, logging_steps=1000, **flags)
    (stage,) = found.result["stages"]
    assert stage["best_step"] is None if best else stage["best_step"] < stage["steps"] < 30
    step = best or stage["best_step"]
    epoch = math.ceil(step / 11)
    finals = [(one["step"], one["epoch"]) for one in found.metrics if one["split"].startswith("final ")]
    assert finals == [(step, epoch)] * 3


def test_a_run_that_starts_anew_forgets_the_interrupted_one(experiment, alone, monkeypatch):
    # If it is killed before it has saved anything, nothing of the old one may be taken for the new one's.
    interrupted(experiment, monkeypatch, "--seed", 7)
    (alone / "out" / ".trained.safetensors.12345").write_bytes(b"half")  # of a writer that was killed
    (alone / "out" / "states" / ".step-000001.safetensors.12345").write_bytes(b"half")
    (alone / "out" / "states" / ".tmpuZ6CF8").write_bytes(b"half")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(stages, "fit", lambda *args: signal.default_int_handler(signal.SIGINT, None))
        experiment()
    assert {path.name for path in left_in(alone / "out")} <= {"result.json", "metrics.jsonl"}
    rest = experiment("--resume")
    assert "nothing had been saved yet: the run starts anew" in rest.out and rest.result["steps"] == 2
    assert rest.result["config"]["seed"] == 123


def test_what_takes_part_in_a_run_is_recorded(experiment, alone, small_checkpoint, small_data):
    found = experiment()
    for name in ("weights_sha256", "data_sha256", "tokenizer_sha256"):
        assert re.fullmatch("[0-9a-f]{64}", found.result[name])
    folder = shutil.copytree(small_checkpoint, alone / "copy")
    assert experiment(checkpoint=folder).result["tokenizer_sha256"] == found.result["tokenizer_sha256"]
    (folder / "merges.txt").write_text((folder / "merges.txt").read_text() + "\n")
    assert experiment(checkpoint=folder).result["tokenizer_sha256"] != found.result["tokenizer_sha256"]


@pytest.mark.parametrize("flags", [(), ("--dropout", 0.1, "--trainable_layers", "lora")], ids=["frozen", "LoRA, dropout"])
def test_the_same_file_whatever_the_evaluations(flags, experiment, alone):
    def trained(*more):
        return (experiment(*flags, *more, max_steps=9, num_epochs=3).directory / "trained.safetensors").read_bytes()

    plain = trained("--eval_steps", 0)
    assert (
        trained("--eval_steps", 0)
        == trained("--eval_steps", 1)
        == trained("--eval_steps", 4, "--eval_train", "no")
        == plain
    )
    assert trained("--logging_steps", 5, "--save_steps", 2, "--deterministic") == plain
    assert trained("--seed", 124) != plain
