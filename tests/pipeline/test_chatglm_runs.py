"""The command line with a ChatGLM, from dialogues to result.json and answers."""

import json

import pytest

import experiments
from tests.helpers.interrupt import interrupt_run
from tests.helpers.outcome import assert_same_losses
from tests.helpers.small import write_dialogues
from tools.chatglm_tiny import make
from utils.errors import UserError


@pytest.fixture(scope="module")
def tiny(shared, tmp_path_factory):
    """Return a drawn ChatGLM of 3 blocks with its tokenizer. Tests only read it."""
    folder = tmp_path_factory.mktemp("chatglm") / "tiny"
    make(shared / "golden/chatglm/small_ice", folder, dim=16, n_layers=3)
    return folder


@pytest.fixture
def chat(tiny, experiment, tmp_path):
    """Return a function that trains it on dialogues."""
    file = write_dialogues(tmp_path / "dialogues.jsonl", 30)
    base = {"checkpoint": tiny, "dataset": file, "data_dir": None, "batch_size": 4}
    return lambda *flags, **replaced: experiment(*flags, **base | replaced)


METHODS = {
    "lora": ["--lora_target", "query_key_value"],
    "freeze": ["--layers", "last1", "--part", "qkv"],
    "prefix": ["--prefix_length", 4, "--prefix_dropout", 0.1],
    "all": [],
}


@pytest.mark.parametrize("method", METHODS)
def test_a_method_trains_and_answers(method, chat, capsys):
    found = chat("--trainable_layers", method, *METHODS[method], max_steps=3)
    assert found.code == 0 and found.result["test_loss"] > 0
    assert "ChatGLM's own" in found.out
    flags = ["--generate", "see 1home", "--run_dir", str(found.directory), "--max_new_tokens", "3"]
    assert experiments.main(flags) == 0


def test_frozen_blocks_run_once_and_give_the_same(chat):
    flags = ["--trainable_layers", "freeze", "--layers", "last1", "--part", "mlp"]
    kept, computed = (chat(*flags, "--reuse_frozen", how, "--eval_steps", 1, max_steps=6) for how in ("yes", "no"))
    assert "2 of 3 blocks run once per text" in kept.out
    assert_same_losses(kept, computed)


def test_what_was_interrupted_goes_on(chat, monkeypatch):
    flags = ["--trainable_layers", "lora", "--lora_target", "query_key_value", "--lora_dropout", 0]
    whole = chat(*flags, "--eval_steps", 1, max_steps=6, output_dir="whole")
    with monkeypatch.context() as patch:
        interrupt_run(patch, 3)
        assert chat(*flags, "--eval_steps", 1, max_steps=6, output_dir="cut").code == 130
    assert_same_losses(chat(*flags, "--eval_steps", 1, "--resume", max_steps=6, output_dir="cut"), whole)


def test_memory_is_counted_without_weights(chat):
    found = chat("--trainable_layers", "lora", "--lora_target", "query_key_value", "--memory_report")
    assert "activations" in found.out


def test_what_makes_no_sense_is_refused(chat, tiny, capsys):
    with pytest.raises(UserError, match="--packing can't be used with a ChatGLM"):
        chat("--packing")
    with pytest.raises(UserError, match="--template is alpaca; a ChatGLM has only its own"):
        chat("--template", "alpaca")
    with pytest.raises(UserError, match="has no classifier"):
        chat(dataset="spam-pocket")
    with pytest.raises(UserError, match="choose prefix"):
        chat("--trainable_layers", "prompt")


def test_the_files_say_which_tokenizer(tiny):
    config = json.loads((tiny / "config.json").read_text())
    assert config["model_type"] == "chatglm" and (tiny / "ice_text.model").is_file()
