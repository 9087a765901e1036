"""The commands that export adapters and models, and read them again."""

import json
from pathlib import Path

import pytest

import experiments
from tests.helpers.small import make_encoder
from utils.errors import UserError


def test_commands_export_and_read_again(experiment, alone, capsys):
    flags = ("--trainable_layers", "lora", "--lora_rank", 4, "--trainable_token_pos", "flexible")
    first = experiment(*flags, learning_rate=1e-2, max_steps=8)
    assert experiments.main(["--export_peft", "adapter", "--run_dir", str(first.directory)]) == 0
    said = capsys.readouterr().out
    assert "pad_token_id" in said and "PeftModel.from_pretrained(AutoModelForSequenceClassification" in said
    again = experiment("--trainable_token_pos", "flexible", "--num_epochs", 0, adapter="adapter", output_dir="again")
    for name in ("train_accuracy", "validation_accuracy", "test_accuracy"):
        assert again.result[name] == first.result[name]
    assert (again.result["method"], again.result["steps"]) == ("peft", 0)
    further = experiment("--trainable_token_pos", "flexible", adapter="adapter", output_dir="further")
    assert any("lora_a" in name for name in further.tensors)
    for what in ("export_peft", "export_model"):  # of a run that itself began with an adapter
        assert experiments.main([f"--{what}", what, "--run_dir", str(further.directory)]) == 0
    whole = experiment(
        "--trainable_token_pos", "flexible", "--num_epochs", 0, checkpoint="export_model", output_dir="whole"
    )
    read = experiment("--trainable_token_pos", "flexible", "--num_epochs", 0, adapter="export_peft", output_dir="read")
    for name in ("train_accuracy", "validation_accuracy", "test_accuracy"):
        assert whole.result[name] == read.result[name] == further.result[name]


def test_commands_that_make_no_sense(experiment, alone, encoder_data):
    for argv, message in (
        (["--export_peft", "x"], "--run_dir with that of an earlier run"),
        (["--export_peft", "x", "--run_dir", "y", "--seed", "1"], "--seed doesn't go with --export_peft"),
        (["--export_model", "x", "--run_dir", "nowhere"], "nowhere is no directory"),
        (["--model", "gpt2-pocket", "--trainable_layers", "peft"], "needs --adapter"),
        (["--model", "gpt2-pocket", "--adapter", "x", "--trainable_layers", "lora"], "peft[+]lora"),
    ):
        with pytest.raises(UserError, match=message):
            experiments.main(argv)


def test_an_encoder_by_command(alone, encoder_data, tmp_path, capsys):
    checkpoint = make_encoder(tmp_path / "base", "distilbert", encoder_data)
    base = ["--checkpoint", str(checkpoint), "--data_dir", str(encoder_data), "--dataset", "sst2", "--device", "cpu"]
    assert experiments.main([*base, "--trainable_layers", "lora", "--max_steps", "4", "--output_dir", "one"]) == 0
    assert experiments.main(["--export_peft", "adapter", "--run_dir", "one"]) == 0
    assert experiments.main([*base, "--adapter", "adapter", "--num_epochs", "0", "--output_dir", "two"]) == 0
    one, two = (json.loads(Path(folder, "result.json").read_text()) for folder in ("one", "two"))
    assert one["validation_accuracy"] == two["validation_accuracy"]


def test_a_run_on_a_base_in_fewer_bits(experiment, alone, capsys):
    """The exported model holds the base that was trained on; the adapter fits that base and, nearly, the whole one."""
    flags = ("--trainable_layers", "lora", "--lora_rank", 4, "--trainable_token_pos", "flexible")
    first = experiment(*flags, "--base_precision", "int4", learning_rate=1e-2, max_steps=8, amp="off")
    for what in ("export_peft", "export_model"):
        assert experiments.main([f"--{what}", what, "--run_dir", str(first.directory)]) == 0
    evaluate = ("--trainable_token_pos", "flexible", "--num_epochs", 0)
    whole = experiment(*evaluate, checkpoint="export_model", output_dir="whole", amp="off")
    kept = experiment(*evaluate, "--base_precision", "int4", adapter="export_peft", output_dir="kept", amp="off")
    other = experiment(*evaluate, adapter="export_peft", output_dir="other", amp="off")
    for split in ("final validation", "final test"):
        [before] = first.logged("loss", split)
        assert whole.logged("loss", split) == pytest.approx([before], rel=1e-3)
        assert kept.logged("loss", split) == pytest.approx([before], rel=1e-5)
        assert other.logged("loss", split) == pytest.approx([before], rel=0.2)
        assert other.logged("loss", split) != pytest.approx([before], rel=1e-5)
