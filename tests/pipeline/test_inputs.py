"""What goes into a run: found once, hashed under every name that it can have, and never judged by its name."""

import hashlib
import json
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import pytest

import experiments
from config import Run
from data.registry import get_task
from data.task import DISTILBERT_POCKET, GPT2_POCKET, size_of
from model import config_of, hub
from model.gpt2 import GPT2Config
from model.tokenizers.bpe import GPT2Tokenizer
from model.tokenizers.files import copy_tokenizer, library_files
from pipeline import execute, inputs
from pipeline.job import finished, prepare
from pipeline.resolve import resolve_run, run_name
from pipeline.result import files_sha256
from tests.helpers.texts import TEXTS
from tools.learn_vocabulary import learn_merges, save_tokenizer
from utils.errors import UserError

HASH_OF_NOTHING = hashlib.sha256(b"").hexdigest()


@pytest.fixture
def openai_checkpoint(small_checkpoint, tmp_path):
    """A checkpoint whose tokenizer has OpenAI's names for its files."""
    folder = tmp_path / "openai"
    shutil.copytree(small_checkpoint, folder)
    (folder / "vocab.json").rename(folder / "encoder.json")
    (folder / "merges.txt").rename(folder / "vocab.bpe")
    return folder


def change_vocabulary(folder) -> None:
    """Let the last two tokens that merges make change places, in both files."""
    vocab = json.loads((folder / "encoder.json").read_text(encoding="utf-8"))
    *lines, one, other = (folder / "vocab.bpe").read_text(encoding="utf-8").splitlines()
    first, second = one.replace(" ", ""), other.replace(" ", "")
    vocab[first], vocab[second] = vocab[second], vocab[first]
    (folder / "encoder.json").write_text(json.dumps(vocab), encoding="utf-8")
    (folder / "vocab.bpe").write_text("\n".join([*lines, other, one]) + "\n", encoding="utf-8")
    assert GPT2Tokenizer.from_directory(folder).vocab_size == len(vocab)


# --- the tokenizer under OpenAI's names


def test_a_run_notices_another_vocabulary_under_openais_names(experiment, openai_checkpoint):
    found = experiment(checkpoint=openai_checkpoint)
    digest = found.result["tokenizer_sha256"]
    assert digest != HASH_OF_NOTHING
    contents = (openai_checkpoint / name for name in ("encoder.json", "vocab.bpe"))
    assert digest == hashlib.sha256(b"".join(file.read_bytes() for file in contents)).hexdigest()
    run = Run(**found.result["config"])
    assert finished(prepare(run))
    change_vocabulary(openai_checkpoint)
    assert not finished(prepare(run))
    with pytest.raises(UserError, match="holds a run with other values of tokenizer_sha256; train anew without --resume"):
        experiment("--resume", checkpoint=openai_checkpoint)


def test_a_vocabulary_has_the_hash_that_it_always_had(experiment, small_checkpoint):
    contents = (small_checkpoint / name for name in ("merges.txt", "vocab.json"))  # in the order of their names
    expected = hashlib.sha256(b"".join(file.read_bytes() for file in contents)).hexdigest()
    assert experiment().result["tokenizer_sha256"] == expected


def test_an_exported_model_has_its_tokenizer_under_the_librarys_names(experiment, openai_checkpoint, alone):
    found = experiment("--trainable_token_pos", "flexible", checkpoint=openai_checkpoint)
    assert experiments.main(["--export_model", "exported", "--run_dir", str(found.directory)]) == 0
    exported = alone / "here" / "exported"
    assert not {"encoder.json", "vocab.bpe"} & {file.name for file in exported.iterdir()}
    assert (exported / "vocab.json").read_bytes() == (openai_checkpoint / "encoder.json").read_bytes()
    assert (exported / "merges.txt").read_bytes() == (openai_checkpoint / "vocab.bpe").read_bytes()
    before, after = map(GPT2Tokenizer.from_directory, (openai_checkpoint, exported))
    assert after.encode("see you later") == before.encode("see you later")


def test_of_two_pairs_the_one_that_is_read_counts(openai_checkpoint, small_checkpoint, tmp_path):
    both = tmp_path / "both"
    shutil.copytree(small_checkpoint, both)
    for name in ("encoder.json", "vocab.bpe"):
        (both / name).write_text("not read")
    assert files_sha256(library_files(both).values()) == files_sha256(library_files(small_checkpoint).values())
    assert library_files(openai_checkpoint) == {
        "vocab.json": openai_checkpoint / "encoder.json",
        "merges.txt": openai_checkpoint / "vocab.bpe",
    }
    (tmp_path / "out").mkdir()
    copy_tokenizer(both, tmp_path / "out")
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"vocab.json", "merges.txt"}


def test_no_file_has_no_hash(tmp_path):
    with pytest.raises(UserError, match="there is no file to take a hash of"):
        files_sha256([tmp_path / "vocab.json"])
    files = r"tokenizer.json or vocab.json \+ merges.txt or encoder.json \+ vocab.bpe"
    with pytest.raises(UserError, match=rf"has no tokenizer files \({files}"):
        library_files(tmp_path)


@pytest.mark.parametrize("n_more", [0, 1, 47])
def test_a_vocabulary_that_is_not_the_models_own_must_have_its_size(tmp_path, alone, n_more):
    tokenizer = tmp_path / "data/tokenizers/gpt2"
    save_tokenizer(learn_merges(TEXTS, 40), tokenizer)
    (tmp_path / "model").mkdir()
    run, config = Run(checkpoint=str(tmp_path / "model"), data_dir=str(tmp_path / "data")), GPT2Config(297 + n_more)
    if n_more:
        with pytest.raises(
            UserError, match=f"has {297 + n_more} tokens and no tokenizer beside it.* 297, .* pass --tokenizer"
        ):
            inputs.find_tokenizer_folder(run, config)
    else:
        assert inputs.find_tokenizer_folder(run, config) == tokenizer
    named = replace(run, tokenizer=str(tokenizer))  # whoever names one knows
    assert inputs.find_tokenizer_folder(named, config) == tokenizer
    copy_tokenizer(tokenizer, tmp_path / "model")  # and what lies beside the model is its own, padded or not
    assert inputs.find_tokenizer_folder(run, config) == tmp_path / "model"


# --- hashing beside the run


def hashing_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("hashes")]


def test_hashing_begins_once_the_model_is_there_and_ends_with_the_run(experiment, monkeypatch):
    happened, build_model, sha256 = [], execute.build_model, inputs.files_sha256

    def build(*given):
        model = build_model(*given)
        assert not hashing_threads()
        happened.append("built")
        return model

    def hash_files(files):
        happened.append(("hashed", threading.current_thread().name.startswith("hashes")))
        return sha256(files)

    monkeypatch.setattr(execute, "build_model", build)
    monkeypatch.setattr(inputs, "files_sha256", hash_files)
    experiment()
    assert happened[0] == "built" and happened.count("built") == 1
    assert happened[1:] == [("hashed", True)] * 2  # weights and tokenizer, each once
    assert not hashing_threads()


def test_hashing_ends_with_a_run_that_fails(experiment, monkeypatch):
    seen = []

    def fail(*given):
        seen.extend(hashing_threads())
        raise UserError("it went wrong")

    monkeypatch.setattr(execute, "train_and_measure", fail)
    with pytest.raises(UserError, match="it went wrong"):
        experiment()
    assert seen and not hashing_threads()


def test_dialogues_on_both_sides_are_said(small_checkpoint, alone):
    Path("one.jsonl").write_text('{"instruction": "a", "output": "b"}\n' * 20)
    Path("pairs.jsonl").write_text("".join(f'{{"prompt": "a", "chosen": "{i}", "rejected": "no"}}\n' for i in range(20)))
    Path("other.jsonl").write_text("".join(f'{{"instruction": "{i}", "output": "b"}}\n' for i in range(20)))

    def said(dataset: str, **more) -> list[str]:
        return prepare(Run(checkpoint=str(small_checkpoint), dataset=dataset, **more)).inputs.trained_too

    both = [f"2 of 2 {name} {{}} are in the training part too" for name in ("validation", "test")]
    assert said("one.jsonl") == [one.format("dialogues") for one in both]
    assert said("pairs.jsonl", objective="dpo", trainable_layers="lora") == [one.format("prompts") for one in both]
    assert said("other.jsonl", general_dataset="one.jsonl") == []


def test_inputs_are_found_once(experiment, small_checkpoint, small_data, monkeypatch):
    calls = []
    for name in ("find_tokenizer_folder", "read_tokenizer", "data_sha256"):
        function = getattr(inputs, name)
        monkeypatch.setattr(
            inputs, name, lambda *given, name=name, function=function: calls.append(name) or function(*given)
        )
    experiment()
    assert sorted(calls) == ["data_sha256", "find_tokenizer_folder", "read_tokenizer"]


def test_a_job_with_another_directory_has_the_same_inputs(small_checkpoint, small_data):
    job = prepare(Run(checkpoint=str(small_checkpoint), data_dir=str(small_data), device="cpu"))
    other = replace(job, run=replace(job.run, output_dir="elsewhere"))
    assert other.inputs is job.inputs and other.directory != job.directory


# --- a recipe depends on what the model is


@pytest.mark.parametrize("model, size", [("gpt2-pocket", GPT2_POCKET), ("distilbert-pocket", DISTILBERT_POCKET)])
@pytest.mark.parametrize("dataset", ["spam-pocket", "sentiment-pocket", "sentiment-pocket_fs"])
def test_the_same_files_train_alike_by_name_and_by_path(model, size, dataset, alone):
    copied = alone / "some name"
    shutil.copytree(hub.POCKET_DIR / model, copied)
    assert size_of(config_of(str(copied))) == size
    named = prepare(Run(model=model, dataset=dataset, device="cpu")).run
    by_path = prepare(Run(checkpoint=str(copied), dataset=dataset, device="cpu")).run
    assert replace(by_path, model=model, checkpoint=None, output_dir=named.output_dir) == named


def test_a_small_models_recipe_is_that_of_its_size_alone(alone):
    def rate(model: str) -> float:
        return prepare(Run(model=model, dataset="spam-pocket", weights="random", device="cpu")).run.learning_rate

    assert rate("gpt2-pocket") == 1e-3 and rate("gpt2-small") == rate("distilbert-pocket") == 5e-5


def test_resolving_reads_nothing(monkeypatch):
    """The configuration of a model says all that a recipe depends on."""

    def refuse(*given, **how):
        raise AssertionError("something was read")

    run, config = Run(checkpoint="nowhere", dataset="spam"), config_of("gpt2-small")
    task = get_task("spam")
    monkeypatch.setattr("builtins.open", refuse)
    monkeypatch.setattr("pathlib.Path.open", refuse)
    monkeypatch.setattr("os.stat", refuse)
    monkeypatch.setattr("socket.socket", refuse)
    resolved = resolve_run(run, task, config)
    assert resolved.learning_rate == 5e-5 and resolved.trainable_token_pos == "last"
    assert run_name(resolved, 1).startswith("spam-nowhere-last_block-seed123-")
    assert run_name(resolved, 2) != run_name(resolved, 1)


def test_a_sentencepiece_tokenizer_alone_is_refused_by_its_name(small_checkpoint, tmp_path):
    shutil.copytree(small_checkpoint, tmp_path / "other")
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / "other" / name).unlink()
    (tmp_path / "other" / "tokenizer.model").write_bytes(b"")
    with pytest.raises(UserError, match=r"tokenizer\.model is a SentencePiece tokenizer, which isn't supported"):
        inputs.find_tokenizer_folder(Run(checkpoint=str(tmp_path / "other")), config_of(tmp_path / "other"))
