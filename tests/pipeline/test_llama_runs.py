"""The command line with decoders of Llama's family, from texts to result.json, answers and exports."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import experiments
from config import Run
from model.tokenizers.files import TOKENIZER_FILES
from pipeline.job import prepare
from tests.helpers.interrupt import interrupt_run
from tests.helpers.outcome import THIRTY_STEPS, assert_same_losses
from tests.helpers.paths import ROOT
from tests.helpers.small import make_checkpoint, make_encoder, make_llama, write_dialogues, write_sentences
from utils.errors import UserError

WINDOWS = {"window": 6, "window_layers": (0, 2)}
MEMBERS = {
    "llama": {},
    "qwen2": {},  # its biases are what BitFit needs
    "qwen3": {"tied": False, "head_dim": 16, **WINDOWS},
    "smollm3": {"layers_without_rotation": (1,)},
}
NARROW = {"adapter": ["--reduction_factor", 4]}
LORA = ["--trainable_layers", "lora", "--lora_alpha", 2]


@pytest.fixture(scope="module")
def members(tmp_path_factory):
    """Return the checkpoints of four members by their kinds. Tests only read them."""
    folder = tmp_path_factory.mktemp("members")
    return {kind: make_llama(folder / kind, kind, **settings) for kind, settings in MEMBERS.items()}


@pytest.fixture(params=MEMBERS)
def run(request, experiment, members):
    """Return a function that runs the command line with each member in turn."""
    return lambda *flags, **replaced: experiment(*flags, **{"checkpoint": members[request.param]} | replaced)


@pytest.fixture
def llama(experiment, members):
    """Return a function that runs the command line with one of them."""
    return lambda *flags, **replaced: experiment(*flags, **{"checkpoint": members["qwen3"]} | replaced)


def test_a_run_reads_the_last_real_token_and_a_published_row_the_last_position(run, alone, capsys):
    found = run()
    assert found.code == 0 and found.result["config"]["trainable_token_pos"] == "flexible"
    assert found.result["dataset"] == "spam"
    assert run("--row", 1).result["config"]["trainable_token_pos"] == "last"
    run_flags = [f"--{name}={found.result['config'][name]}" for name in ("checkpoint", "data_dir", "amp", "device")]
    flags = ["--table", "spam", "--rows", "1,2,16", *run_flags, "--max_steps", "1", "--output_dir", "tables"]
    assert experiments.main(flags) == 0
    lines = json.loads((alone / "here" / "tables" / "table-spam.json").read_text())
    assert all(line["measured"] for line in lines)
    places = [line["command"].partition("--trainable_token_pos ")[2].split(" ")[0] for line in lines]
    assert places == ["last", "first", "flexible"]


def test_without_a_data_set_the_default_is_spam(members, alone):
    assert prepare(Run(checkpoint=str(members["llama"]))).run.dataset == "spam-pocket"


@pytest.mark.parametrize(
    "method",
    [
        *("all", "last_two_blocks", "last_layer", "freeze", "bitfit", "lora", "lora_alternative", "dora", "ia3", "adapter"),
        *("vera", "hira", "bypass", "prefix", "prompt", "lora+bypass", "lora+prefix"),
    ],
)
def test_every_method_trains(method, experiment, members):
    flags = ("--trainable_layers", method, *NARROW.get(method, ()))
    flags += ("--lora_scaling", "alpha/r") if {*method.split("+")} & {"lora", "lora_alternative", "dora"} else ()
    found = experiment(*flags, checkpoint=members["qwen2"], max_steps=40, num_epochs=40, learning_rate=3e-3)
    losses = found.logged("loss")
    assert sum(losses[-5:]) < 0.99 * sum(losses[:5])


def test_bitfit_says_where_there_are_no_biases(run, experiment, members):
    with pytest.raises(UserError, match="bitfit trains biases, and the blocks of this Llama have none"):
        experiment("--trainable_layers", "bitfit", checkpoint=members["llama"])


@pytest.mark.parametrize(
    "flags",
    [
        *(["--disable_causal_mask"], ["--average_embeddings"], ["--weights", "random"], ["--no_padding"]),
        *(["--trainable_token_pos", "first"], ["--trainable_token_pos", "last"], ["--dropout", "0.3"]),
    ],
    ids=str,
)
def test_a_flag_changes_what_it_says(flags, run):
    base = [] if flags != ["--no_padding"] else ["--trainable_token_pos", "last"]  # else padding has no influence anyway
    plain, changed = (run(*base, *more, "--trainable_layers", "all").logged("loss") for more in ([], flags))
    assert changed != pytest.approx(plain, rel=1e-4)


@pytest.mark.parametrize("flags", [[], ["--average_embeddings"], ["--disable_causal_mask"]], ids=str)
def test_without_padding_the_size_of_a_batch_has_no_influence(flags, run):
    one = run("--no_padding", "--batch_size", 1, "--accumulation_steps", 8, "--eval_batch_size", 1, *flags)
    many = run("--no_padding", "--batch_size", 8, "--eval_batch_size", 64, *flags)
    assert any(masked for _, _, masked in many.forwards)
    for split in ("train", "validation", "final train", "final test"):
        assert one.logged("loss", split) == pytest.approx(many.logged("loss", split), rel=1e-5)


SAME = {
    "kept states": ([], ["--reuse_frozen", "no"]),
    "kept states, no causal mask": (["--disable_causal_mask"], ["--reuse_frozen", "no"]),
    "kept states, LoRA above": (["--lora_target", "2.attn.q,2.mlp", *LORA], ["--reuse_frozen", "no"]),
    "trimmed": (["--trainable_layers", "all"], ["--trim", "no"]),
    "activations computed twice": ([*LORA, "--lora_dropout", 0.1], ["--gradient_checkpointing"]),
}


@pytest.mark.parametrize(("flags", "more"), SAME.values(), ids=SAME)
def test_what_is_saved_changes_nothing(flags, more, llama):
    settings = THIRTY_STEPS | {"learning_rate": 1e-4}  # weights far from zero make large steps of small differences
    assert_same_losses(llama(*flags, **settings), llama(*flags, *more, **settings))


def test_bf16_is_nearly_the_same(run):
    plain, half = (run(*LORA, amp=amp, learning_rate=1e-4) for amp in ("off", "bf16"))
    assert half.logged("loss") != plain.logged("loss")
    assert half.logged("loss") == pytest.approx(plain.logged("loss"), rel=0.05)


@pytest.mark.parametrize("flags", [LORA, ["--trainable_layers", "all"], ["--stages", "layer_by_layer"]], ids=str)
def test_an_interrupted_run_goes_on_bit_for_bit(flags, llama, alone, monkeypatch):
    settings = {"max_steps": 4, "save_steps": 1}
    whole = llama(*flags, "--dropout", 0.1, **settings)
    with monkeypatch.context() as patch:
        interrupt_run(patch, 3)
        half = llama(*flags, "--dropout", 0.1, **settings, output_dir=alone / "other")
    assert half.code == 130 and any(not torch.equal(half.tensors[name], whole.tensors[name]) for name in half.tensors)
    resumed = llama(*flags, "--dropout", 0.1, "--resume", **settings, output_dir=alone / "other")
    assert resumed.code == 0 and resumed.tensors.keys() == whole.tensors.keys()
    assert all(torch.equal(resumed.tensors[name], tensor) for name, tensor in whole.tensors.items())


# --- dialogues


@pytest.fixture
def dialogues(alone):
    return {"data_dir": None, "dataset": write_dialogues(alone / "dialogues.json")}


@pytest.mark.parametrize("flags", [LORA, ["--trainable_layers", "prefix"], ["--trainable_layers", "last_block"]], ids=str)
def test_dialogues_that_share_a_row_have_the_loss_of_single_ones(flags, run, dialogues):
    settings = dialogues | {"max_steps": 1, "batch_size": 64, "learning_rate": 1e-5}
    alone, together = run(*flags, **settings), run("--packing", *flags, **settings)
    assert together.sizes(True)[0] < alone.sizes(True)[0]
    assert together.logged("loss") == pytest.approx(alone.logged("loss"), rel=1e-5)
    assert together.logged("loss", "final test") == pytest.approx(alone.logged("loss", "final test"), rel=1e-5)


# --- tokenizers that aren't the model's


def other_files(folder: Path, what: str) -> Path:
    """Return a directory with the tokenizer of another family, or with one that doesn't fit."""
    if what == "another's merges":
        return make_checkpoint(folder / "gpt2", "free prize now " * 30, 10)
    (folder / "texts").mkdir()
    wordpiece = make_encoder(folder / "bert", "bert", write_sentences(folder / "texts"))
    if what == "WordPiece":
        return wordpiece
    tokens = {token: number for number, token in enumerate((wordpiece / "vocab.txt").read_text().splitlines())}
    contents = {
        "WordPiece in one file": {"type": "WordPiece", "vocab": tokens, "unk_token": "[UNK]"},
        "Unigram": {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.0]]},
        "SentencePiece BPE": {"type": "BPE", "byte_fallback": True, "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]},
    }
    (folder / "tokenizer.json").write_text(json.dumps({"added_tokens": [], "model": contents[what]}))
    return folder


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("WordPiece", "no byte-level BPE tokenizer files"),
        ("WordPiece in one file", "can't read tokenizer.json: it holds a tokenizer of type 'WordPiece', not BPE"),
        ("Unigram", "can't read tokenizer.json: it holds a tokenizer of type 'Unigram', not BPE"),
        ("SentencePiece BPE", "is a SentencePiece BPE .*, as of Llama 2, which isn't supported; it must be byte-level BPE"),
        ("another's merges", "has no tokenizer.json, and its tokenizer_class None doesn't say how a text is cut"),
    ],
)
def test_a_tokenizer_of_another_family(what, said, experiment, members, tmp_path):
    (tmp_path / "other").mkdir()
    other = other_files(tmp_path / "other", what)
    checkpoint = shutil.copytree(members["llama"], tmp_path / "mixed")
    for name in TOKENIZER_FILES:  # beside the weights, and named apart
        (checkpoint / name).unlink(missing_ok=True)
        if (other / name).exists():
            shutil.copy(other / name, checkpoint)
    for flags in ({"checkpoint": checkpoint}, {"checkpoint": members["llama"], "tokenizer": other}):
        with pytest.raises(UserError, match=said):
            experiment(**flags)


def test_a_vocabulary_larger_than_the_models_is_one_line_and_exit_code_2(members, tmp_path):
    checkpoint = shutil.copytree(members["llama"], tmp_path / "checkpoint")
    path = checkpoint / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"extra_special_tokens": ["<one>"]}))
    words = [sys.executable, ROOT / "experiments.py", "--checkpoint", checkpoint, "--dataset", "spam-pocket"]
    found = subprocess.run([*map(str, words)], cwd=tmp_path, capture_output=True, text=True)
    assert found.returncode == 2
    assert found.stderr == f"error: the tokenizer in {checkpoint} has 423 tokens, the model only 422\n"
