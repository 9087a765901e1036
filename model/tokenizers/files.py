"""The files of tokenizers: under which names they come, and which of a folder's files make its tokenizer.

Byte-level BPE is also read under OpenAI's names. The published library knows only its own, so those are what is asked of
the hub and what is written.
"""

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from utils.errors import UserError

FileSet = tuple[str, ...]  # names of files that make a vocabulary together

LIBRARY_PAIR: FileSet = ("vocab.json", "merges.txt")  # vocabulary and merges
OPENAI_PAIR: FileSet = ("encoder.json", "vocab.bpe")  # the same under OpenAI's names
ONE_FILE: FileSet = ("tokenizer.json",)  # all of it, as newer tools write either kind
# In the order of the library, which takes tokenizer.json where it is there.
BPE_FILE_SETS = (ONE_FILE, LIBRARY_PAIR, OPENAI_PAIR)
WORDPIECE_FILE_SETS = (ONE_FILE, ("vocab.txt",))
CHATGLM_FILE_SETS: tuple[FileSet, ...] = (("ice_text.model",),)

FILE_SETS: tuple[FileSet, ...] = tuple(dict.fromkeys(BPE_FILE_SETS + WORDPIECE_FILE_SETS + CHATGLM_FILE_SETS))
LIBRARY_FILE_SETS = tuple(names for names in FILE_SETS if names != OPENAI_PAIR)
SENTENCEPIECE = "tokenizer.model"  # isn't read
CHAT_TEMPLATE = "chat_template.jinja"
SETTINGS_FILES = (
    "tokenizer_config.json",
    "added_tokens.json",
    "special_tokens_map.json",
    CHAT_TEMPLATE,
)  # any of them may be missing
TOKENIZER_FILES = [*(name for names in LIBRARY_FILE_SETS for name in names), *SETTINGS_FILES]


def first_complete(directory: Path, file_sets: Iterable[FileSet]) -> list[Path] | None:
    """Return the files of the first set that is there as a whole, or None."""
    for names in file_sets:
        files = [directory / name for name in names]
        if all(map(os.path.isfile, files)):  # Path.is_file raises for a name that is too long
            return files
    return None


def has_tokenizer_files(directory: Path) -> bool:
    """Return whether the files of any kind of tokenizer are there."""
    return first_complete(directory, FILE_SETS) is not None


def refuse_sentencepiece(directory: Path) -> None:
    """Raise UserError where the only tokenizer is SentencePiece's."""
    if (directory / SENTENCEPIECE).is_file() and not has_tokenizer_files(directory):
        raise UserError(
            f"{directory / SENTENCEPIECE} is a SentencePiece tokenizer, which isn't supported; "
            f"tokenizers are read from {choices(FILE_SETS)}"
        )


def choices(file_sets: Iterable[FileSet]) -> str:
    """Return the sets in words, as "vocab.json + merges.txt or tokenizer.json"."""
    return " or ".join(" + ".join(names) for names in file_sets)


def library_files(directory: Path) -> dict[str, Path]:
    """Return what makes the tokenizer in a directory: the library's name of each file -> the file.

    Raises UserError where there is no vocabulary.
    """
    if not has_tokenizer_files(directory):
        raise UserError(f"{directory} has no tokenizer files ({choices(FILE_SETS)})")
    files = {name: directory / name for name in TOKENIZER_FILES if (directory / name).is_file()}
    pair = first_complete(directory, (LIBRARY_PAIR, OPENAI_PAIR))  # in the order in which they are looked for
    return files | dict(zip(LIBRARY_PAIR, pair or (), strict=False))


def copy_tokenizer(directory: Path, destination: Path, names: Iterable[str] = TOKENIZER_FILES) -> None:
    """Copy the files of the tokenizer in a directory under the library's names: those of `names` that are there.

    What already is the destination's stays.
    """
    files = library_files(directory)
    for name in names:
        if name in files and not ((destination / name).exists() and files[name].samefile(destination / name)):
            shutil.copyfile(files[name], destination / name)
