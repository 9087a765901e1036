"""Which tokens end and pad a text of a GPT-2: what the tokenizer's files name, else config.json, else <|endoftext|>."""

from pathlib import Path
from typing import Any

from model.tokenizers.bpe import END_OF_TEXT, WHOLE_TOKEN, GPT2Tokenizer, read_byte_pairs
from utils.errors import UserError
from utils.files import read_json


def set_ends(tokenizer: GPT2Tokenizer, directory: Path, config: Any) -> None:
    """Set what a tokenizer takes for the end and the padding of a text, in place.

    directory   of the tokenizer's files; config: the model's, with `end_ids` and `pad_id`

    The model may end a text with further tokens (`end_ids`) if it knows the tokenizer's own end. A token that vocabulary or
    model lack can't be written, so it is none. Of the ids in config.json only those of special tokens count: the library
    writes its default there (50256) whatever the vocabulary is.
    """
    names = {name: token_named(directory, name) for name in ("eos_token", "pad_token")}
    if names in ({"eos_token": None, "pad_token": None}, {"eos_token": END_OF_TEXT, "pad_token": None}) and (
        {*config.end_ids, config.pad_id} <= {tokenizer.end_of_text, None}
    ):
        return
    ids: dict[str | None, int] = {
        token: number for token, number in special_tokens(directory).items() if number < config.vocab_size
    }
    special = set(ids.values())
    of_config = next((number for number in config.end_ids if number in special), tokenizer.end_of_text)
    tokenizer.end_of_text = ids.get(names["eos_token"], of_config)
    tokenizer.end_ids = (tokenizer.end_of_text,)
    if tokenizer.end_of_text in config.end_ids:
        tokenizer.end_ids = tuple(number for number in config.end_ids if number in special)
    pad_id = config.pad_id if config.pad_id in special else tokenizer.end_of_text
    tokenizer.pad_id = ids.get(names["pad_token"], pad_id)
    tokenizer.special_ids |= {*tokenizer.end_ids, tokenizer.pad_id}


def token_named(directory: Path, name: str) -> str | None:
    """Return the token that tokenizer_config.json or special_tokens_map.json calls `name`, or None. Raises UserError."""
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        value = _object(directory / file).get(name)
        token = value.get("content") if isinstance(value, dict) else value
        if token is not None and not isinstance(token, str):
            raise UserError(f"{directory / file} sets {name} to {value!r}; it must be a token")
        if token is not None:
            return token
    return None


def special_tokens(directory: Path) -> dict[str, int]:
    """Return {token: id} of what no merge makes: entries of the vocabulary such as <|endoftext|>, and added tokens."""
    _, vocab, _ = read_byte_pairs(directory, GPT2Tokenizer.name)
    found = {token: number for token, number in vocab.items() if WHOLE_TOKEN.fullmatch(token)}
    try:
        for token in _object(directory / "tokenizer.json").get("added_tokens") or []:
            found[token["content"]] = token["id"]
        found |= _object(directory / "added_tokens.json")
        for number, token in (_object(directory / "tokenizer_config.json").get("added_tokens_decoder") or {}).items():
            found[token["content"]] = int(number)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{directory} describes its added tokens in a way that can't be read: {error}") from None
    return found


def _object(file: Path) -> dict[str, Any]:
    """Return the object in a JSON file, an empty one where there is no file. Raises UserError."""
    try:
        content = read_json(file) if file.is_file() else {}
    except (OSError, ValueError) as error:
        raise UserError(f"can't read {file}: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"can't read {file}: it holds no object")
    return content
