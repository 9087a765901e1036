"""Paths: ~ in every flag that takes one, and one run however its paths are spelled."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import experiments
from config import PATHS, SETTINGS, Run
from data.download import cache_dir
from pipeline.flags import DIRECTORY, OPTIONS, parse, to_flags, typed
from pipeline.job import prepare
from pipeline.resolve import run_name
from tests.helpers.small import write_dialogues
from utils.errors import UserError

OTHER_OPTIONS = ("generate", "row", "table", "rows", "seeds", "shard", "list")


@pytest.fixture
def home(alone, monkeypatch) -> Path:
    """Return an empty home directory; the current directory lies in it."""
    monkeypatch.setenv("HOME", str(alone))
    monkeypatch.setenv("USERPROFILE", str(alone))
    return alone


# --- ~


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("form", ["--{}=~/some/thing.json", "--{} ~/some/thing.json", "--{}=~/some/../some/thing.json"])
def test_home_in_every_setting_that_takes_a_path(home, name, form):
    run, _ = parse(form.format(name).split())
    assert os.path.normpath(getattr(run, name)) == str(home / "some" / "thing.json")
    assert run == Run(**{name: getattr(run, name)}) and parse(to_flags(run))[0] == run


@pytest.mark.parametrize("name", ["run_dir", "chat", "score", "export_model", "export_peft", "download", "report", "out"])
def test_home_in_every_option_that_takes_a_path(home, name):
    _, options = parse([f"--{name}=~/some"])
    assert options[name] == ([str(home / "some")] if name in ("download", "report") else str(home / "some"))


def test_no_setting_or_option_is_forgotten():
    """A new flag whose metavar or description speaks of a directory, a file or a path has to be one of those."""
    words = ("directory", "path", " file")
    spoken = {name for name, about in SETTINGS.items() if any(word in about["help"].split(";")[0] for word in words)}
    assert spoken - {"log", "lora_target", "plot_loss", "resume", "test_share", "trainable_layers"} <= {*PATHS}
    directories = {name for options in OPTIONS.values() for name, about in options.items() if about.get("metavar") == "DIR"}
    expanded = {
        name for options in OPTIONS.values() for name, about in options.items() if about.get("type") == DIRECTORY["type"]
    }
    assert directories | {"download", "out"} == expanded


@pytest.mark.parametrize("value", ["a~b", "~nobody-of-this-name/x", "x/~", "owner/name", "persona", "./~"])
def test_what_is_no_home_stays(home, value):
    assert parse([f"--dataset={value}", f"--model={value}"])[0] == Run(dataset=value, model=value)
    assert Run(dataset=value).dataset == value
    assert parse([f"--source_prefix=~{value}"])[0].source_prefix == f"~{value}"  # which is no path


def test_a_run_and_an_answer_below_the_home_directory(home, experiment, small_checkpoint, small_data, capsys):
    shutil.copytree(small_checkpoint, home / "model")
    shutil.copytree(small_data, home / "data")
    found = experiment(checkpoint="~/model", data_dir="~/data", output_dir="~/runs/a")
    assert found.directory == home / "runs" / "a" and not Path("~").exists()
    write_dialogues(home / "some.json")
    found = experiment(checkpoint="~/model", dataset="~/some.json", auxiliary_dataset="~/some.json", data_dir=None)
    assert found.result["config"]["dataset"] == str(home / "some.json")
    assert experiments.main(["--generate", "Hi", "--run_dir=~/here/../out", "--max_new_tokens", "2"]) == 0
    assert experiments.main(["--export_model=~/exported", "--run_dir=~/out"]) == 0
    assert (home / "exported" / "config.json").is_file() and not Path("~").exists()


def test_home_in_the_environment(home, monkeypatch):
    monkeypatch.setenv("PEFT_FROM_SCRATCH_CACHE", "~/cached")
    assert cache_dir() == home / "cached"


# --- two spellings


@pytest.fixture
def spellings(home, small_checkpoint, small_data) -> dict[str, list[str]]:
    """Return settings with several spellings each of one path."""
    shutil.copytree(small_checkpoint, "model")
    shutil.copytree(small_data, "data")
    write_dialogues(Path("some.json"))
    here = Path.cwd()

    def of(name: str) -> list[str]:
        return [
            name,
            f"./{name}",
            f"data/../{name}",
            f"../here/{name}",
            str(here / name),
            f"~/here/{name}",
            f"{here}//{name}",
        ]

    return {
        "checkpoint": [*of("model"), "model/", "~/here/model/"],
        "model": [*of("model")],
        "tokenizer": [*of("model"), "model/."],
        "data_dir": [*of("data"), "data/"],
        "dataset": of("some.json"),
        "auxiliary_dataset": of("some.json"),
        "general_dataset": of("some.json"),
    }


@pytest.mark.parametrize("name", [name for name in PATHS if name not in ("adapter", "output_dir")])
def test_two_spellings_of_a_path_are_one_run(spellings, name):
    run = Run(device="cpu", dataset="spam" if name == "data_dir" else "persona")
    run = run if name == "model" else replace(run, checkpoint="model")
    directories = {prepare(replace(run, **{name: path})).run.output_dir for path in spellings[name]}
    assert len(directories) == 1


def test_other_directories_are_other_runs(spellings):
    shutil.copytree("model", "model2")
    shutil.copytree("model", "data/model")
    names = {
        prepare(Run(checkpoint=path, dataset="persona", device="cpu")).run.output_dir
        for path in ("model", "model2", "data/model")
    }
    assert len(names) == 3


def test_a_directory_called_like_a_published_model_is_another_run(home):
    named, path = (
        Run(model=name, dataset="persona", trainable_layers="lora", seed=1) for name in ("gpt2-small", "./gpt2-small")
    )
    assert run_name(named, 1) != run_name(path, 1)


def test_names_on_the_hub_keep_the_names_of_their_runs():
    for name in ("owner/name", "owner/name@refs/pr/1"):
        run = Run(model=name, adapter=name, dataset="persona", trainable_layers="peft", seed=1)
        assert run_name(run, 1).startswith(f"persona-{name.replace('/', '--')}-peft-seed1-")


def test_a_run_goes_on_under_another_spelling(experiment, spellings):
    done = experiment(checkpoint="model", data_dir="data")
    again = experiment("--resume", checkpoint="~/here/model/", data_dir="./data")
    assert "the run is complete" in again.out and again.result == done.result


# --- texts that were typed


def test_a_typed_text_is_read_as_utf8():
    assert typed("hello 你好", "--generate") == "hello 你好"
    assert typed("你".encode().decode("ascii", "surrogateescape"), "--generate") == "你"  # as Python reads it in ASCII
    with pytest.raises(UserError, match=r"--generate is 'caf\\udce9', which is no text in UTF-8"):
        parse(["--generate", "caf\udce9"])
    with pytest.raises(UserError, match=r"--source_prefix is .* no text in UTF-8"):
        parse(["--source_prefix", "caf\udce9"])


# --- a run of another directory


@pytest.mark.parametrize("out", ["out", "runs/a b", "./runs/../runs/c"])
@pytest.mark.parametrize("at", ["absolute", "relative"])
def test_a_run_is_found_with_its_inputs_from_another_directory(home, experiment, small_checkpoint, out, at, monkeypatch):
    """A run that was given relative paths, used from beside the directory in which it was made."""
    shutil.copytree(small_checkpoint, "model é")
    shutil.copytree(small_checkpoint, "persona")  # a directory of the name of a data set, which stays one
    write_dialogues(Path("some.json"))
    experiment(checkpoint="model é", tokenizer="persona", dataset="some.json", data_dir=None, output_dir=out)
    (home / "elsewhere").mkdir()
    made = Path.cwd() / out
    monkeypatch.chdir(home / "elsewhere")
    found = made if at == "absolute" else os.path.relpath(made)
    assert experiments.main(["--generate", "Hi", "--run_dir", str(found), "--max_new_tokens", "2"]) == 0
    assert experiments.main(["--export_model", "exported", "--run_dir", str(found)]) == 0
    assert Path("exported/model.safetensors").is_file() and not (made.parent / "exported").exists()


def test_a_run_whose_model_is_gone_names_it_as_it_was_typed(home, experiment, small_checkpoint, monkeypatch):
    shutil.copytree(small_checkpoint, "model")
    made = Path.cwd() / experiment(checkpoint="model", output_dir="out").directory
    shutil.rmtree("model")
    monkeypatch.chdir(home)
    with pytest.raises(UserError, match="unknown model 'model'"):
        experiments.main(["--generate", "Hi", "--run_dir", str(made)])
