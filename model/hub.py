"""Finds checkpoints: in a directory, among those shipped with the project, in the Hugging Face cache, or on the hub."""

import errno
import hashlib
import os
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import disable_progress_bars, logging

from model.tokenizers.files import LIBRARY_FILE_SETS, TOKENIZER_FILES, first_complete
from utils.errors import UserError
from utils.files import read_json
from utils.network import any_answers, offline

POCKET_DIR = Path(__file__).parent / "pocket"

# The published names -> repositories, the older name of the same repository second (an older cache may hold that one).
REPOSITORIES = {
    "gpt2-small": ("openai-community/gpt2", "gpt2"),
    "gpt2-medium": ("openai-community/gpt2-medium", "gpt2-medium"),
    "gpt2-large": ("openai-community/gpt2-large", "gpt2-large"),
    "gpt2-xl": ("openai-community/gpt2-xl", "gpt2-xl"),
    "distilbert-base-uncased": ("distilbert/distilbert-base-uncased", "distilbert-base-uncased"),
    "bert-base-uncased": ("google-bert/bert-base-uncased", "bert-base-uncased"),
    "roberta-base": ("FacebookAI/roberta-base", "roberta-base"),
    "smollm2-135m": ("HuggingFaceTB/SmolLM2-135M",),
    "smollm2-135m-instruct": ("HuggingFaceTB/SmolLM2-135M-Instruct",),
    "smollm2-360m-instruct": ("HuggingFaceTB/SmolLM2-360M-Instruct",),
    "smollm2-1.7b-instruct": ("HuggingFaceTB/SmolLM2-1.7B-Instruct",),
    "qwen2.5-0.5b-instruct": ("Qwen/Qwen2.5-0.5B-Instruct",),
    "qwen3-0.6b": ("Qwen/Qwen3-0.6B",),
    "chatglm-6b": ("THUDM/chatglm-6b",),
    "llama-3.2-1b-instruct": ("meta-llama/Llama-3.2-1B-Instruct",),
}
PICKLED_ALONE = {"THUDM/chatglm-6b"}
REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*")  # owner/name; "./name" and "/a/b" are paths
OLD_NAME = re.compile(r"\w[\w.-]*")  # the oldest repositories have no owner: gpt2, distilroberta-base
COMMIT = re.compile("[0-9a-f]{40}")
CONFIG_FILES = ["config.json", "generation_config.json"]  # the second may be missing
CLASSIFIER_FILE = "classifier.json"  # of an export of ours: what the published files can't say of its classifier
WEIGHT_FILES = ["model.safetensors", "model.safetensors.index.json", "model-*.safetensors"]
CHECKPOINT_FILES = [*CONFIG_FILES, CLASSIFIER_FILE, *WEIGHT_FILES]
ADAPTER_FILES = ["adapter_config.json", "adapter_model.safetensors"]  # of the library peft

PICKLED = (
    "a pickled pytorch_model.bin is never loaded by a run; convert it once: "
    "python tools/bin_to_safetensors.py NAME_OR_DIR OUT_DIR"
)

HUB_PATIENCE = 2.5  # seconds to wait for the hub's first answer before it counts as out of reach


def pocket_names() -> list[str]:
    """Return the names of the models that are shipped."""
    return sorted(path.parent.name for path in POCKET_DIR.glob("*/config.json"))


def locate(name: str, *, files: list[str] | None = None) -> Path:
    """Return the directory that holds `files` (default: weights, configuration and tokenizer) of the model `name`.

    A directory or a shipped model is taken as it is. Anything else is a repository on the hub: it is taken from the cache
    where that has it, else downloaded with huggingface_hub, which honours HF_HOME, HF_ENDPOINT and HF_HUB_OFFLINE.
    Raises UserError, which says what to do, where it can't be had.
    """
    here = local(name)
    if here is not None:
        return here
    plain, revision = _split(name)
    if not REPOSITORY.fullmatch(plain) and not OLD_NAME.fullmatch(plain):
        raise UserError(f"{name} is no directory, and no repository on the hub is called so (owner/name)")
    files = files or CHECKPOINT_FILES + TOKENIZER_FILES
    found = cached(name, files)
    if found is not None:
        return found
    if PICKLED_ALONE & {plain, *_repositories(plain)}:
        raise UserError(
            f"{name} is published as pickles alone, which no run loads; two commands prepare it, the first with a network: "
            f"python tools/bin_to_safetensors.py {name} DIR, then python experiments.py --checkpoint DIR ..."
        )
    unreachable = why_no_hub()
    if unreachable and plain not in REPOSITORIES and "/" not in plain:
        raise UserError(
            f"unknown model {name!r}: choose {', '.join([*REPOSITORIES, *pocket_names()])}, a repository on the hub "
            "(owner/name or owner/name@revision), or --checkpoint DIR; if it is a repository without an owner, it isn't in "
            f"the Hugging Face cache and {unreachable}"
        )
    if unreachable and files == ADAPTER_FILES:
        raise UserError(f"the adapter {name} isn't in the Hugging Face cache and {unreachable}: pass --adapter DIR")
    if unreachable:
        raise UserError(
            f"{name} isn't in the Hugging Face cache ({constants.HF_HUB_CACHE}) and {unreachable}: run once with a "
            f"network, pass --checkpoint DIR, or choose a shipped model ({', '.join(pocket_names())})"
        )
    return _download(_repositories(plain)[0], revision, [*files, CLASSIFIER_FILE] if files == ADAPTER_FILES else files)


def download(name: str, files: list[str]) -> Path:
    """Return a folder with files of the repository `name`, downloaded unless they have been. Raises UserError."""
    plain, revision = _split(name)
    if unreachable := why_no_hub():
        raise UserError(f"{name} is no directory, and {unreachable}: run it once with a network, or name a directory")
    return _download(_repositories(plain)[0], revision, files)


def _split(name: str) -> tuple[str, str | None]:
    """Return the two parts of "owner/name@revision". A revision is a branch, a tag, a commit, or refs/pr/N."""
    plain, _, revision = name.partition("@")
    return plain, revision or None


def _repositories(plain: str) -> tuple[str, ...]:
    """Return the names of a model's repository: the one to download first, then others that a cache may have it under."""
    if plain in REPOSITORIES:
        return REPOSITORIES[plain]
    others = next((pair for pair in REPOSITORIES.values() if plain in pair), ())
    return (plain, *(one for one in others if one != plain))


def _commit(repository: str, revision: str | None) -> str | None:
    """Return the commit that the cache has for a revision, else the revision. Some caches have a newline behind it."""
    file = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}" / "refs" / (revision or "main")
    try:
        commit = file.read_text(encoding="utf-8").strip() if file.is_file() else ""
    except (OSError, ValueError):
        return revision
    return commit if COMMIT.fullmatch(commit) else revision


def local(name: str) -> Path | None:
    """Return the directory of a shipped model, or the one that `name` is, or None. A published name is never one."""
    if name in REPOSITORIES:
        return None
    if name in pocket_names():
        return POCKET_DIR / name
    return Path(name) if os.path.isdir(name) else None  # Path's own raises for a name that is too long


def cached(name: str, files: list[str] | None = None) -> Path | None:
    """Return the cached snapshot of a model, or None where it lacks `files` (default: weights and configuration)."""
    files = files or CHECKPOINT_FILES  # never None: the client would miss what the repository holds for other libraries
    plain, revision = _split(name)
    for repository in _repositories(plain):
        try:
            commit = _commit(repository, revision)
            folder = Path(snapshot_download(repository, revision=commit, allow_patterns=files, local_files_only=True))
        except (LocalEntryNotFoundError, OfflineModeIsEnabled, OSError, ValueError):
            continue
        if _has(folder, files):
            return folder
    return None


def _has(folder: Path, files: list[str]) -> bool:
    """Return whether a snapshot has what is asked for. TOKENIZER_FILES ask for any one vocabulary."""
    if files in (CONFIG_FILES, ADAPTER_FILES):
        needed = CONFIG_FILES[:1] if files == CONFIG_FILES else files
        return all((folder / name).is_file() for name in needed)
    if files == TOKENIZER_FILES:
        return first_complete(folder, LIBRARY_FILE_SETS) is not None
    return _whole(folder)


def _whole(folder: Path) -> bool:
    """Return whether all weights are there: an interrupted download leaves a part of the shards, or no index."""
    if not (folder / "config.json").is_file():
        return False
    if (folder / "model.safetensors").is_file():
        return True
    try:
        index = read_json(folder / "model.safetensors.index.json")
        return all((folder / shard).is_file() for shard in index["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


@cache
def why_no_hub() -> str | None:
    """Return why nothing can be downloaded ("HF_HUB_OFFLINE is set"), or None where the hub answers in HUB_PATIENCE."""
    if offline():
        return "HF_HUB_OFFLINE is set"
    if any_answers([f"{constants.ENDPOINT}/api/models/{REPOSITORIES['gpt2-small'][0]}"], HUB_PATIENCE):
        return None
    return f"{constants.ENDPOINT} doesn't answer"


def _download(repository: str, revision: str | None, files: list[str]) -> Path:
    """Download files of a repository. Return their folder. Raises UserError.

    Stalls and lost connections are the client's to mend: it asks again, for what is missing. What it can't mend becomes an
    error of one line, so its own lines about it are turned off.
    """
    name = f"{repository}@{revision}" if revision else repository
    if not sys.stderr.isatty():
        disable_progress_bars()
    logging.set_verbosity_error()
    try:
        folder = Path(snapshot_download(repository, revision=revision, allow_patterns=files))
        for file, sha256 in _published_hashes(repository, folder).items():
            check_hash(file, sha256)
    except UserError:
        raise
    except Exception as error:  # of the file system, of the HTTP library, or of the one behind large files
        reason = reason_of(error, repository)
        raise UserError(f"{name} can't be downloaded from {constants.ENDPOINT}: {reason}") from None
    if "model.safetensors" in files and not any(folder.glob("model*.safetensors")):
        raise UserError(
            f"{name} holds no safetensors: name a revision that does "
            f"({repository}@refs/pr/N, if the hub shows such a pull request), or pass --checkpoint DIR; {PICKLED}"
        )
    return folder


def reason_of(error: Exception, repository: str) -> str:
    """Return what went wrong and what to do, from the client's error or from one that it wraps."""
    chain: list[BaseException] = []
    inner: BaseException | None = error
    while inner is not None and inner not in chain:
        chain.append(inner)
        inner = inner.__cause__ or inner.__context__

    def among(*kinds: type) -> Any:
        return next((one for one in chain if isinstance(one, kinds)), None)

    if any(getattr(one, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) for one in chain):
        return f"no room in {constants.HF_HUB_CACHE}; make some, or set HF_HOME to a directory elsewhere"
    if among(GatedRepoError):
        where = f"{constants.ENDPOINT}/{repository}"
        return f"it is gated; ask for access on {where}, then log in with `hf auth login` or set HF_TOKEN"
    if among(RepositoryNotFoundError):
        return "there is no such repository, or it is private; check the name, or log in with `hf auth login` or HF_TOKEN"
    if among(RevisionNotFoundError):
        return "the repository has no such revision; check what stands behind the @"
    if among(OfflineModeIsEnabled):
        return "the client is told to stay offline; unset HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE"
    if answer := among(HfHubHTTPError):
        return f"the server answered {answer.response.status_code}; try again later"
    if among(TimeoutError):
        longer = "on a slow network with HF_HUB_DOWNLOAD_TIMEOUT=60"
        return f"nothing came for {constants.HF_HUB_DOWNLOAD_TIMEOUT} seconds; try again, {longer}"
    first_line = next((line.strip() for line in str(chain[0]).splitlines() if line.strip()), type(chain[0]).__name__)
    return f"{first_line.rstrip('.')}; try again"


def _published_hashes(repository: str, folder: Path) -> dict[Path, str]:
    """Return the sha256 of each large file of a snapshot: its name in the cache or, without links, what the hub says."""
    hashes, plain = {}, []
    for file in folder.glob("*"):  # of a repository with none of the files there is no folder
        if not file.is_symlink():
            plain += [file] if file.suffix == ".safetensors" else []
        elif len(name := Path(os.readlink(file)).name) == 64:
            hashes[file] = name
    if plain:
        listing = HfApi().list_repo_tree(repository, revision=folder.name)
        published = {one.path: one.lfs.sha256 for one in listing if isinstance(one, RepoFile) and one.lfs}
        hashes |= {file: published[file.name] for file in plain if file.name in published}
    return hashes


def check_hash(file: Path, sha256: str) -> None:
    """Remove the file and raise UserError where its content has another hash."""
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest == sha256:
        return
    paths = [file]
    while paths[-1].is_symlink():  # a blob may be a link itself, into the client's store under other hashes
        paths.append(paths[-1].parent / os.readlink(paths[-1]))
    for path in paths:
        path.unlink(missing_ok=True)
    raise UserError(f"{file.name} was downloaded with sha256 {digest}, published is {sha256}: removed, try again")
