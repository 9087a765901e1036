"""What the command line refuses: values, damaged files, and a disk that can't be written."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import experiments
import model.weights
from pipeline import answers, execute
from tests.helpers.outcome import left_in
from tests.helpers.paths import ROOT
from tests.helpers.small import make_encoder
from utils.errors import UserError

REFUSED = {
    "trainable_layers": (
        ["--trainable_layers", "some"],
        "unknown --trainable_layers 'some': choose adapter, bitfit,",
    ),
    "rank": (["--trainable_layers", "lora", "--lora_rank", "0"], "--lora_rank is 0; it must be at least 1"),
    "no number": (
        ["--batch_size", "many"],
        "argument --batch_size/--per_device_train_batch_size: invalid int value: 'many'",
    ),
    "dropout": (["--dropout", "1.5"], "--dropout is 1.5; it must be below 1"),
    "lora_dropout": (["--trainable_layers", "lora", "--lora_dropout", "1"], "--lora_dropout is 1.0; it must be"),
    "seed": (["--seed", str(2**64)], f"--seed is {2**64}; it must be below"),
    "warmup": (["--warmup_ratio", "nan"], "--warmup_ratio is nan; it must be a finite number"),
    "context_length too long": (["--context_length", "257"], "--context_length is 257, the model's context 256; choose"),
    "context_length no number": (
        ["--context_length", "long"],
        "--context_length is 'long'; choose longest_training_example,",
    ),
    "context_length 0": (["--context_length", "0"], "or a number of tokens from 1 to 256"),
    "two models": (["--model", "gpt2-small"], "both name a model; give one of them"),
    "dataset": (["--dataset", "ham"], "unknown dataset 'ham': choose spam, spam-pocket"),
    "nothing to train": (["--trainable_layers", "last_layer", "--train_head", "no"], "leaves nothing to train"),
    "seeds": (["--table", "spam", "--seeds", "0"], "--seeds is 0; it must be at least 1"),
    "resuming a table": (["--table", "spam", "--resume"], "--resume goes with one run"),
    "rows": (["--table", "spam", "--rows", "x"], "--rows is 'x'; write numbers and ranges such as 1,3-5"),
    "resume": (["--resume"], "holds no interrupted run; train anew without --resume"),
    "a list with flags": (["--list"], "--checkpoint doesn't go with --list"),
    "no data": (["--data_dir", "nowhere"], "--data_dir nowhere isn't there; name a directory with data sets"),
    "another kind of file": (["--dataset", __file__], f"{__file__} is a file of an unknown kind; what is read: .csv"),
}


@pytest.mark.parametrize("flags, said", REFUSED.values(), ids=REFUSED)
def test_bad_values(flags, said, experiment, alone):
    refused(experiment, alone, said, *flags)


def refused(experiment, alone, said, *flags, **replaced):
    """Expect one line that names the matter, and no file left behind."""
    with pytest.raises((UserError, OSError)) as found:  # both end as `error: ...` and exit code 2
        experiment(*flags, **replaced)
    assert said in str(found.value) and "\n" not in str(found.value)
    assert left_in(alone / "out") == []


def edit_config(folder, **changes):
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | changes))


def edit_tensor(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["transformer.h.1.mlp.c_fc.weight"] = torch.zeros(32, 127)
    save_file(tensors, folder / "model.safetensors")


DAMAGE = {
    "missing": (lambda folder: (folder / "model.safetensors").unlink(), "has neither model.safetensors nor"),
    "truncated": (lambda folder: os.truncate(folder / "model.safetensors", 9000), "can't be read as safetensors"),
    "wrong shape": (edit_tensor, "h.1.mlp.c_fc.weight has shape [32, 127], expected [32, 128]"),
    "other architecture": (lambda folder: edit_config(folder, model_type="t5"), "a model of type 't5'; the types"),
    "no tokenizer": (lambda folder: (folder / "merges.txt").unlink(), "pass --tokenizer DIR"),
    "no directory": (shutil.rmtree, "is no directory"),
}


@pytest.mark.parametrize("damage, said", DAMAGE.values(), ids=DAMAGE)
def test_damaged_checkpoints(damage, said, experiment, alone, small_checkpoint):
    folder = Path(shutil.copytree(small_checkpoint, alone / "damaged"))
    damage(folder)
    refused(experiment, alone, said, checkpoint=folder)


DATA = {
    "empty": ("", "0 ham and 0 spam messages"),
    "another label": ("ham\thello\nmaybe\tperhaps\n", "line 2: expected ham or spam, a tab and a text"),
    "no tab": ("ham hello\n", "line 1: expected ham or spam"),
    "no text": ("spam\t \n", "line 1: expected ham or spam"),
    "absent": (None, "has no sms_spam"),
}


@pytest.mark.parametrize("content, said", DATA.values(), ids=DATA)
def test_malformed_data(content, said, experiment, alone):
    (alone / "data" / "sms_spam").mkdir(parents=True)
    if content is not None:
        (alone / "data" / "sms_spam" / "SMSSpamCollection").write_text(content)
    refused(experiment, alone, said, data_dir=alone / "data")


def test_an_encoder_has_no_causal_mask(experiment, alone, encoder_data):
    flags = {"checkpoint": make_encoder(alone / "ck", "bert", encoder_data), "data_dir": encoder_data, "dataset": "sst2"}
    refused(experiment, alone, "ck, an encoder, which has no causal mask", "--disable_causal_mask", **flags)


def test_answers_need_dialogues_that_are_held_out(experiment, alone, monkeypatch):
    monkeypatch.setattr(answers, "need_scorers", lambda model_config: None)
    Path("own.jsonl").write_text("".join(f'{{"instruction": "say {i}", "output": "{i}"}}\n' for i in range(20)))
    flags = {"dataset": "own.jsonl", "test_share": 0, "eval_generate": 2}
    with pytest.raises(
        UserError, match="--eval_generate: no dialogues are held out to be answered; it takes those of test"
    ):
        experiment(**flags, data_dir=None)
    trained = experiment(**flags | {"eval_generate": 0}, data_dir=None).directory
    with pytest.raises(UserError, match="no dialogues are held out to be answered"):
        experiments.main(["--score", str(trained), "--device", "cpu"])
    assert json.loads((trained / "result.json").read_text())["config"]["eval_generate"] == 0


@pytest.mark.parametrize("action", ["export_model", "export_peft"])
def test_an_export_can_not_go_where_a_file_is(action, experiment):
    trained = experiment(trainable_layers="lora").directory
    Path("file").write_text("kept")
    with pytest.raises(UserError, match=f"--{action} file can't be written: file is a file; name a directory"):
        experiments.main([f"--{action}", "file", "--run_dir", str(trained)])
    assert Path("file").read_text() == "kept"


def test_what_a_new_run_replaces_is_said(experiment, monkeypatch):
    said = []
    monkeypatch.setattr(execute, "note", said.append)
    directory = experiment().directory
    experiment()  # the same run again
    assert said == []
    experiment(seed=5)
    assert said.pop() == f"{directory} held a run with other values of seed; it is replaced"
    result = json.loads((directory / "result.json").read_text())
    (directory / "result.json").write_text(json.dumps(result | {"interrupted": True}))
    experiment(seed=5)  # of which nothing was saved
    assert said.pop() == f"{directory} held an interrupted run; it is replaced"
    (directory / "result.json").write_text(json.dumps(result | {"interrupted": True}))
    (directory / "states").mkdir()
    (directory / "states" / "step-000001.safetensors").touch()
    experiment(seed=5)
    assert said.pop() == f"{directory} held an interrupted run, which --resume would have gone on with; it is replaced"


def test_an_epoch_without_a_batch(experiment):
    with pytest.raises(UserError, match="fewer examples than --batch_size 85"):  # the published order drops a short batch
        experiment("--data_order", "published", "--batch_size", 85)


def test_an_output_dir_below_a_file(experiment, alone):
    (alone / "file").write_text("kept")
    refused(experiment, alone, "can't be written", output_dir=alone / "file" / "out")
    assert (alone / "file").read_text() == "kept"


@pytest.mark.parametrize("target", ["trained.safetensors", "result.json"])
def test_a_full_disk_leaves_no_half_file(target, experiment, alone, monkeypatch):
    real_text = Path.write_text

    def full(path):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    if target == "result.json":
        monkeypatch.setattr(Path, "write_text", lambda p, *a, **k: full(p) if target in p.name else real_text(p, *a, **k))
    else:
        monkeypatch.setattr(model.weights, "save_file", lambda tensors, path, metadata: full(path))
    with pytest.raises((UserError, OSError), match="No space left on device"):
        experiment()
    assert {path.name for path in (alone / "out").iterdir()} <= {"metrics.jsonl", "result.json"} - {target}


LIMITED = """
import resource, sys
import experiments
from utils.errors import run_program
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
run_program(lambda: experiments.main(sys.argv[2:]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="the limit is one of Unix")
@pytest.mark.parametrize("room, code", [(90_000, 0), (20_000, 2)], ids=["no room for states", "none for the result"])
def test_files_that_the_system_refuses_to_write(room, code, alone, small_checkpoint, small_data):
    flags = [
        "--checkpoint",
        small_checkpoint,
        "--data_dir",
        small_data,
        "--save_steps",
        2,
        "--max_steps",
        5,
        "--amp",
        "off",
    ]
    words = [sys.executable, "-c", LIMITED, room, *flags, "--device", "cpu", "--output_dir", alone / "out"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    found = subprocess.run(list(map(str, words)), capture_output=True, text=True, env=environment, timeout=300)
    *notes, end = [line for line in found.stderr.splitlines() if line] + [""] * (code == 0)
    assert found.returncode == code and len(notes) == 2
    assert all(line.startswith("note     not saved at step ") and "File too large" in line for line in notes)
    assert end == "" or re.match(r"error: can't write .*trained\.safetensors: .*File too large", end)
    assert json.loads((alone / "out" / "result.json").read_text())["interrupted"] is (code == 2)
    left = {path.name for path in (alone / "out").rglob("*")}
    assert left == {"result.json", "metrics.jsonl", "states" if code else "trained.safetensors"}


@pytest.mark.parametrize("whole", [True, False], ids=["beside a model", "alone"])
@pytest.mark.parametrize("flags", [["--dataset", "persona"], ["--generate", "Hi"]], ids=["training", "answering"])
def test_an_adapter_that_no_flag_names_is_not_passed_over(alone, small_checkpoint, whole, flags):
    """The library loads it with the model whose directory it lies in."""
    shutil.copytree(small_checkpoint, "model") if whole else Path("model").mkdir()
    Path("model/adapter_config.json").write_text('{"peft_type": "LORA"}')
    message = "^model holds adapter_config.json, so the library would load that adapter.* and --adapter model, or move"
    for flag in ("--checkpoint", "--model"):
        with pytest.raises(UserError, match=message):
            experiments.main([flag, "model", *flags])
    if whole:  # named, it is read
        with pytest.raises(UserError, match=r"--adapter model has no adapter_model\.safetensors"):
            experiments.main(["--checkpoint", "model", "--adapter", "model", "--dataset", "persona"])
