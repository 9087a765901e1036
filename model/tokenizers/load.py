"""`load_tokenizer`: the tokenizer of any architecture, from the files that lie beside the weights. Downloads nothing."""

from pathlib import Path

from model.registry import ARCHITECTURES
from model.tokenizers.base import Tokenizer
from model.tokenizers.bpe import END_OF_TEXT, START, GPT2Tokenizer, RobertaTokenizer, read_byte_pairs
from model.tokenizers.chatglm import ChatGLMTokenizer
from model.tokenizers.decoder import DecoderTokenizer
from model.tokenizers.files import CHATGLM_FILE_SETS, FILE_SETS, choices, first_complete, has_tokenizer_files
from model.tokenizers.settings import CLASSES
from model.tokenizers.wordpiece import WordPieceTokenizer
from utils.errors import UserError
from utils.files import read_json

KINDS: dict[str, type[Tokenizer]] = {
    "gpt2": GPT2Tokenizer,
    "roberta": RobertaTokenizer,
    "wordpiece": WordPieceTokenizer,
    "decoder": DecoderTokenizer,
    "chatglm": ChatGLMTokenizer,
}


def load_tokenizer(directory: str | Path, kind: str | None = None) -> Tokenizer:
    """Return the tokenizer in a directory: of this kind (a name of KINDS), else of the kind that its files show.

    Raises UserError.
    """
    directory = Path(directory)
    if kind is not None and kind not in KINDS:
        raise UserError(f"unknown kind of tokenizer {kind!r}: choose {', '.join(KINDS)}")
    tokenizer = KINDS[kind] if kind else _kind_of_files(directory)
    return tokenizer.from_directory(directory)


def tokenizer_beside(directory: Path, usual: type[Tokenizer]) -> type[Tokenizer]:
    """Return the tokenizer to read beside a model: the usual one of its architecture, unless tokenizer_config.json says
    that an encoder has another's vocabulary."""
    encoders = ("wordpiece", "roberta")
    other = _named(directory, encoders) if usual in [KINDS[kind] for kind in encoders] else None
    return other or usual


def _named(directory: Path, kinds: tuple[str, ...]) -> type[Tokenizer] | None:
    """Return the tokenizer of one of these kinds that tokenizer_config.json names, or None."""
    name = _entry(directory / "tokenizer_config.json", "tokenizer_class")
    return next((KINDS[kind] for kind in kinds if name in CLASSES[kind]), None)


def _kind_of_files(directory: Path) -> type[Tokenizer]:
    """Return the tokenizer that tokenizer_config.json names where it is an encoder's or ChatGLM's, else that of the model
    in config.json, else the one that can read the files."""
    if not has_tokenizer_files(directory):
        raise UserError(f"{directory} has no tokenizer files ({choices(FILE_SETS)})")
    if named := _named(directory, ("wordpiece", "roberta", "chatglm")):
        return named
    model_type = _entry(directory / "config.json", "model_type")
    if isinstance(model_type, str) and model_type in ARCHITECTURES:
        return ARCHITECTURES[model_type].tokenizer
    if first_complete(directory, FILE_SETS) == first_complete(directory, CHATGLM_FILE_SETS):
        return ChatGLMTokenizer
    one_file = directory / "tokenizer.json"
    if one_file.is_file() and _entry(one_file, "model", "merges") is None:
        return WordPieceTokenizer
    if not one_file.is_file() and (directory / "vocab.txt").is_file():
        return WordPieceTokenizer
    _, vocab, _ = read_byte_pairs(directory, "byte-level BPE")
    apart = _entry(one_file, "added_tokens")
    names = [token.get("content") for token in apart if isinstance(token, dict)] if isinstance(apart, list) else []
    if START in (*vocab, *names):
        return RobertaTokenizer  # it has <|endoftext|> too, unused
    return GPT2Tokenizer if END_OF_TEXT in (*vocab, *names) else DecoderTokenizer


def _entry(file: Path, *keys: str) -> object:
    """Return content[key][key]... of a JSON file, or None where there is no such entry."""
    try:
        content = read_json(file)
        for key in keys:
            content = content[key]
        return content
    except (OSError, ValueError, KeyError, TypeError):
        return None
