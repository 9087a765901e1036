"""Which checkpoint a name means, where no network is needed to tell."""

import re
import shutil
from pathlib import Path

import pytest
import torch

from model import from_pretrained, hub
from tests.helpers.small import TINY
from utils.errors import UserError


@pytest.mark.parametrize("name", ["chatglm-6b", "THUDM/chatglm-6b"])
def test_what_is_published_as_pickles_alone_says_which_two_commands_prepare_it(name):
    commands = f"python tools/bin_to_safetensors.py {name} DIR, then python experiments.py --checkpoint DIR"
    with pytest.raises(UserError, match=re.escape(commands)):
        hub.locate(name)


def test_unknown_names_list_the_choices(monkeypatch, tmp_path, checkpoint):
    monkeypatch.setattr(hub, "POCKET_DIR", tmp_path / "pocket")
    with pytest.raises(UserError, match=r"unknown model 'gpt3'.*gpt2-small.*gpt2-xl.*--checkpoint") as caught:
        from_pretrained("gpt3")
    assert "my-pocket" not in str(caught.value)
    (tmp_path / "pocket").mkdir()
    checkpoint.rename(tmp_path / "pocket/my-pocket")
    with pytest.raises(UserError, match=r"llama-3\.2-1b-instruct, my-pocket"):
        from_pretrained("gpt3")


@pytest.mark.parametrize("name", ["./absent", "../absent", "~/absent", "/absent/model", "owner/tiny/deep", "a b/c"])
def test_a_path_without_a_directory_is_no_repository(name):
    with pytest.raises(UserError, match="is no directory, and no repository on the hub is called so"):
        hub.locate(name)


def test_shipped_models_come_first_and_directories_second(monkeypatch, tmp_path, checkpoint):
    monkeypatch.setattr(hub, "POCKET_DIR", tmp_path / "pocket")
    (tmp_path / "pocket").mkdir()
    shipped = checkpoint.rename(tmp_path / "pocket/my-pocket")
    (tmp_path / "my-pocket").mkdir()  # a directory of the same name where the user stands
    monkeypatch.chdir(tmp_path)
    assert hub.locate("my-pocket") == shipped
    assert hub.pocket_names() == ["my-pocket"]
    assert from_pretrained("my-pocket").config == TINY
    assert hub.locate(str(shipped)) == shipped
    (tmp_path / "other").mkdir()
    assert hub.locate("other") == Path("other")


def test_the_published_commands_name_a_model_with_its_size(monkeypatch, checkpoint, tmp_path):
    monkeypatch.setattr(hub, "POCKET_DIR", tmp_path)
    named = checkpoint.rename(tmp_path / "gpt2-tiny")
    model = from_pretrained("gpt2-tiny (124M)")
    assert torch.equal(model.token_embedding.weight, from_pretrained(named).token_embedding.weight)


@pytest.mark.parametrize("name", [".", "..", "../checkpoint"])
def test_a_relative_directory_is_taken_from_where_the_user_stands(monkeypatch, checkpoint, name):
    (checkpoint / "inside").mkdir()
    monkeypatch.chdir(checkpoint if name != ".." else checkpoint / "inside")
    assert hub.locate(name).resolve() == checkpoint
    assert from_pretrained(name).config == TINY


# The Hugging Face cache


def cache(alone: Path, repository: str, checkpoint: Path, behind: str = "") -> Path:
    """Put a checkpoint into the cache as `repository`, with something behind the commit in refs/main."""
    folder, commit = alone / "hf/hub" / f"models--{repository.replace('/', '--')}", "0123456789" * 4
    (folder / "refs").mkdir(parents=True)
    (folder / "refs/main").write_text(commit + behind)
    shutil.copytree(checkpoint, folder / "snapshots" / commit)
    return folder / "snapshots" / commit


@pytest.mark.parametrize("behind", ["", "\n", "\r\n", " \n"])
@pytest.mark.parametrize("repository", ["gpt2", "distilgpt2", "distilroberta-base", "bert-base-cased", "owner/name"])
def test_a_repository_with_and_without_an_owner_in_the_cache(alone, checkpoint, repository, behind):
    folder = cache(alone, repository, checkpoint, behind)
    for name in (repository, f"{repository}@main"):
        assert hub.locate(name) == hub.cached(name) == folder
        assert from_pretrained(name).config == TINY


def test_the_old_and_the_new_name_of_a_repository_are_one(alone, checkpoint):
    folder = cache(alone, "openai-community/gpt2", checkpoint)
    assert hub.locate("gpt2") == hub.locate("gpt2-small") == hub.locate("openai-community/gpt2") == folder


@pytest.mark.parametrize("name", ["distilgpt2", "bert-base-cased", "bert-base-cased@main"])
def test_a_name_without_an_owner_that_cannot_be_had(alone, name):
    with pytest.raises(UserError, match=f"unknown model '{name}'.*without an owner, it isn't in .*HF_HUB_OFFLINE is set"):
        hub.locate(name)
