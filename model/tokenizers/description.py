"""What a directory's JSON files say about its tokenizer, beside the vocabulary: each key is used, harmless or refused.

The library builds most tokenizers anew from the vocabulary and tokenizer_config.json (`CLASSES` in settings.py), and takes
only those of `WHOLE_CLASSES` from tokenizer.json as it stands. So does this; where a tokenizer.json says what the library
would not do, the files are refused.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.tokenizers.added import AddedToken
from model.tokenizers.files import CHAT_TEMPLATE
from model.tokenizers.settings import (
    ADDED_TOKEN,
    ADDS,
    AROUND,
    CLASSES,
    CONFIG,
    FURTHER,
    MODEL,
    NAMED,
    NAMES,
    SECTIONS,
    SPECIAL_TOKENS_MAP,
    WHOLE_CLASSES,
)
from model.tokenizers.steps import NORMALIZERS, PRE_TOKENIZERS, steps_of
from utils.errors import UserError
from utils.files import read_json
from utils.settings import check_value

FLAGS = ("lstrip", "rstrip", "single_word", "normalized", "special")


def read_object(file: Path) -> dict[str, Any]:
    """Return the object in a JSON file, an empty one where there is no file. Raises UserError."""
    if not file.is_file():
        return {}
    try:
        content = read_json(file)
    except (OSError, ValueError) as error:
        raise UserError(f"can't read {file}: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"can't read {file}: it holds no object")
    return content


@dataclass(frozen=True)
class Description:
    """The JSON files of a tokenizer. `whole`: its tokenizer.json is taken as it stands."""

    directory: Path
    kind: str
    config: dict[str, Any]  # tokenizer_config.json
    special: dict[str, Any]  # special_tokens_map.json, which the library reads only beside an older tokenizer_config.json
    json: dict[str, Any]  # tokenizer.json
    whole: bool

    @classmethod
    def read(cls, directory: Path, kind: str) -> "Description":
        """Return what the files say. Raises UserError for what is not supported, by its name."""
        config = read_object(directory / "tokenizer_config.json")
        model_config = read_object_or_nothing(directory / "config.json")
        content = read_object(directory / "tokenizer.json")
        wanted = config.get("tokenizer_class") or model_config.get("tokenizer_class")
        check_value(str(directory), "tokenizer_class", wanted, (*CLASSES[kind], *WHOLE_CLASSES))
        whole = wanted in WHOLE_CLASSES or (wanted is None and "model_type" not in model_config and bool(content))
        if kind == "decoder" and content:
            whole = True  # as the models were trained; the library's newest classes leave steps of SmolLM2's file out
        if whole and not content:
            raise UserError(f"{directory} has tokenizer_class = {wanted!r}, but no tokenizer.json")
        older = config.get("added_tokens_decoder") is None
        special = read_object(directory / "special_tokens_map.json") if older else {}
        found = cls(directory, kind, config, special, content, whole)
        found.check()
        return found

    def check(self) -> None:
        """Raise UserError for a key that isn't known or has another meaning."""
        place = f"{self.directory}/tokenizer_config.json"
        CONFIG[self.kind].check(place, self.config)
        SPECIAL_TOKENS_MAP.check(f"{self.directory}/special_tokens_map.json", self.special)
        for name, expected in NAMES[self.kind].items():
            for file, settings in ((place, self.config), (f"{self.directory}/special_tokens_map.json", self.special)):
                check_value(file, name, content_of(settings.get(name)), (expected,))
        if not self.json:
            return
        place = f"{self.directory}/tokenizer.json"
        SECTIONS.check(place, self.json)
        model = self.json.get("model")
        if isinstance(model, dict):  # else the vocabulary can't be read, which is said there
            if self.kind == "decoder" and model.get("byte_fallback") is True:
                raise UserError(
                    f"{place} is a SentencePiece BPE (its model sets byte_fallback), as of Llama 2, which isn't supported; "
                    "it must be byte-level BPE, as of SmolLM2, Qwen and Llama 3"
                )
            MODEL[self.kind].check(f"{place}: its model", model)
        own = self.kind in AROUND and (self.whole or self.kind == "gpt2")  # the other classes build their own
        if own and "post_processor" in self.json:
            check_around(f"{place}: its post_processor", self.json["post_processor"], *AROUND[self.kind])

    def setting(self, name: str, default: bool | None) -> bool | None:
        """Return a setting of tokenizer_config.json that is on or off. Raises UserError."""
        value = self.config.get(name)
        if value is not None and type(value) is not bool:
            raise UserError(f"can't read {self.directory}/tokenizer_config.json: {name} is {value!r}; choose true or false")
        return default if value is None else value

    def normalizers(self) -> list[dict[str, Any]]:
        """Return the steps of tokenizer.json's normalizer. Raises UserError."""
        place = f"{self.directory}/tokenizer.json: its normalizer"
        return steps_of(place, self.json.get("normalizer"), NORMALIZERS, "normalizers")

    def pre_tokenizers(self) -> list[dict[str, Any]] | None:
        """Return the steps of tokenizer.json's pre_tokenizer, or None where it has no such entry. Raises UserError."""
        if "pre_tokenizer" not in self.json:
            return None
        place = f"{self.directory}/tokenizer.json: its pre_tokenizer"
        return steps_of(place, self.json["pre_tokenizer"], PRE_TOKENIZERS, "pretokenizers")

    def around(self) -> tuple[list[int], list[int], list[int]]:
        """Return the ids that a decoder's files put in front of a text, between two, and behind. Raises UserError."""
        for name in () if self.whole else ADDS:
            check_value(f"{self.directory}/tokenizer_config.json", name, self.config.get(name), (False,))
        place = f"{self.directory}/tokenizer.json: its post_processor"
        steps = [step for step in processing(place, self.json.get("post_processor")) if step.get("type") != "ByteLevel"]
        if not steps:
            return [], [], []
        single, pair = template_of(steps[0]) or ([], [])
        if len(steps) == 1 and [token for token in pair if token in ("A", "B")] == ["A", "B"]:
            a, b = pair.index("A"), pair.index("B")
            parts = pair[:a], pair[a + 1 : b], pair[b + 1 :]
            if single == [*parts[0], "A", *parts[2]]:
                start, between, end = ([number for token in part for number in ids_of(steps[0], token)] for part in parts)
                return start, between, end
        raise UserError(f"{place} isn't supported; it must put the same tokens around two texts as around one")

    def chat_template(self) -> str | None:
        """Return the model's own template for dialogues: in a file of its own, else in tokenizer_config.json.

        Of several with names it is the default one, or "" where none is. Raises UserError.
        """
        file, template = self.directory / CHAT_TEMPLATE, self.config.get("chat_template")
        try:
            template = file.read_text(encoding="utf-8") if file.is_file() else template
        except (OSError, ValueError) as error:
            raise UserError(f"can't read {file}: {error}") from None
        if template == []:
            return None
        if isinstance(template, list):
            named = [one for one in template if isinstance(one, dict) and one.get("name") == "default"]
            template = named[0].get("template") if named else ""
        if template is not None and not isinstance(template, str):
            raise UserError(f"{self.directory}/tokenizer_config.json sets chat_template to {template!r}; it must be a text")
        return template

    def refuse(self, section: str, value: object) -> UserError:
        """Return the error for a section that the library's class doesn't use."""
        wanted = self.config.get("tokenizer_class") or CLASSES[self.kind][0]
        return UserError(
            f"{self.directory}/tokenizer.json has the {section} {value!r}, which the library's {wanted} doesn't use; if it "
            "is meant, set tokenizer_class to 'PreTrainedTokenizerFast' in tokenizer_config.json"
        )

    def added_tokens(self, vocab: Mapping[str, int], size: int) -> list[AddedToken]:
        """Return all added tokens.

        vocab   token -> id, without them
        size    the number of its ids, which is the id of the first token that isn't in it

        Raises UserError, also where a file gives a token another id than the library.
        """
        ids, found = dict(vocab), {}
        for place, entry in self.entries():
            token = entry["content"]
            expected = ids.setdefault(token, max(size, *found.values()) if found else size)
            if entry.get("id") not in (None, expected):
                raise UserError(
                    f"{place} gives the token {token!r} the id {entry['id']!r}; the library gives it {expected}"
                )
            found[token] = expected + 1
        entries = {entry["content"]: entry for _, entry in self.entries()}
        return [added_token(entry, ids[token]) for token, entry in entries.items()]

    def ids(self) -> dict[str, int]:
        """Return token -> id of the added tokens to which a file gives an id. Raises UserError."""
        return {entry["content"]: entry["id"] for _, entry in self.entries() if entry["id"] is not None}

    def named(self) -> dict[str, Any]:
        """Return the tokens with a name, such as "eos_token", by their names. `added_tokens` refuses what is no token."""
        settings = self.config | self.special
        return {name: content_of(settings[name]) for name in NAMED if settings.get(name) is not None}

    def entries(self) -> list[tuple[str, dict[str, Any]]]:
        """Return (file, entry) for all added tokens in the order in which the library adds them. Raises UserError."""
        named = list(self.without_ids())
        numbered: dict[str, tuple[str, dict[str, Any]]] = {}
        if (decoder := self.config.get("added_tokens_decoder")) is not None:
            numbered = (self.of_json() if self.whole else {}) | self.of_config(decoder)
        else:
            numbered = self.of_older_file({entry["content"] for _, entry in named}) | self.of_json()
        order = sorted(numbered.values(), key=lambda one: one[1]["id"])
        return order + [one for one in named if one[1]["content"] not in numbered]

    def of_config(self, decoder: object) -> dict[str, tuple[str, dict[str, Any]]]:
        """Return the entries of added_tokens_decoder, id -> token, by their texts."""
        place = f"{self.directory}/tokenizer_config.json"
        if not isinstance(decoder, dict):
            raise UserError(f"{place} sets added_tokens_decoder to {decoder!r}; it must be an object of ids and tokens")
        return by_text(place, [(token, number) for number, token in decoder.items()])

    def of_older_file(self, special: set[str]) -> dict[str, tuple[str, dict[str, Any]]]:
        """Return the entries of added_tokens.json, token -> id, by their texts."""
        file = self.directory / "added_tokens.json"
        tokens = read_object(file).items()
        return by_text(str(file), [({"content": token, "special": token in special}, number) for token, number in tokens])

    def of_json(self) -> dict[str, tuple[str, dict[str, Any]]]:
        """Return the entries of tokenizer.json by their texts."""
        place, tokens = f"{self.directory}/tokenizer.json", self.json.get("added_tokens") or []
        if not isinstance(tokens, list):
            raise UserError(f"{place} has added_tokens = {tokens!r}; it must be a list")
        return by_text(place, [(token, token.get("id") if isinstance(token, dict) else None) for token in tokens])

    def without_ids(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the entries of settings that name special tokens. They get the next ids unless the vocabulary has them."""
        settings = self.config | self.special
        values = [settings[name] for name in NAMED if settings.get(name) is not None]
        additional, extra = FURTHER
        further = listed(self.config.get(extra)) or listed(self.config.get(additional))
        further += listed(self.special.get(extra))
        values += further or listed(self.special.get(additional))
        for value in values:
            entry = {"content": value} if isinstance(value, str) else value
            place = f"{self.directory}/tokenizer_config.json or special_tokens_map.json"
            yield place, entry_of(place, entry, None) | {"special": True}


def listed(tokens: Any) -> list[Any]:
    """Return further special tokens as a list; an object has their names as keys."""
    if isinstance(tokens, dict):
        return list(tokens.values())
    return list(tokens) if isinstance(tokens, list) else [tokens] if tokens is not None else []


def by_text(place: str, tokens: list[tuple[Any, Any]]) -> dict[str, tuple[str, dict[str, Any]]]:
    """Return the entries of tokens with their ids by their texts. Raises UserError."""
    entries = [entry_of(place, token, number) for token, number in tokens]
    if without := [entry["content"] for entry in entries if entry["id"] is None]:
        raise UserError(f"{place} gives {without[0]!r} the id None; ids are whole numbers from 0 on")
    return {entry["content"]: (place, entry) for entry in entries}


def read_object_or_nothing(file: Path) -> dict[str, Any]:
    """Return the object in a JSON file that only says of which kind the rest is: nothing where it can't be read."""
    try:
        return read_object(file)
    except UserError:
        return {}


def content_of(token: object) -> object:
    """Return the text of a token that is a text, or an object with flags."""
    return token.get("content") if isinstance(token, dict) else token


def entry_of(place: str, token: object, number: object) -> dict[str, Any]:
    """Return a token with its id, which may be None, and its flags. Raises UserError."""
    content = content_of(token)
    if not isinstance(token, dict) or not isinstance(content, str) or not content:
        raise UserError(f"{place} has the added token {token!r}; it must be an object with a text as content")
    ADDED_TOKEN.check(f"{place}: its token {content!r}", token)
    if isinstance(number, str) and number.isascii() and number.isdecimal() and len(number) < 10:
        number = int(number)
    if number is not None and (type(number) is not int or number < 0):
        raise UserError(f"{place} gives {content!r} the id {number!r}; ids are whole numbers from 0 on")
    if wrong := [name for name in FLAGS if not isinstance(token.get(name, False), bool)]:
        raise UserError(f"{place}: {wrong[0]} of the token {content!r} is {token[wrong[0]]!r}; choose true or false")
    return {name: token[name] for name in FLAGS if name in token} | {"content": content, "id": number}


def added_token(entry: dict[str, Any], number: int) -> AddedToken:
    """Return an added token. One that is special is looked for as it is written, unless it says otherwise."""
    special = entry.get("special", False)
    flags = {name: entry.get(name, False) for name in ("lstrip", "rstrip", "single_word")}
    return AddedToken(entry["content"], number, **flags, special=special, normalized=entry.get("normalized", not special))


def check_around(place: str, processor: Any, single: list[str], pair: list[str]) -> None:
    """Raise UserError where a post_processor puts other tokens around one text or two than `Tokenizer.build`."""
    done = [shown(step, single, pair) for step in processing(place, processor) if step.get("type") != "ByteLevel"]
    if done != [(single, pair)] and (done or single != ["A"]):
        raise UserError(
            f"{place} isn't supported; it must put {' '.join(single)} around a text and {' '.join(pair)} around two"
        )


def processing(place: str, processor: Any) -> list[dict[str, Any]]:
    """Return the steps of a post_processor. Raises UserError."""
    steps = [processor] if processor is not None else []
    if (
        isinstance(processor, dict)
        and processor.get("type") == "Sequence"
        and isinstance(processor.get("processors"), list)
    ):
        steps = processor["processors"]
    if not all(isinstance(step, dict) for step in steps):
        raise UserError(f"{place} is {processor!r}, which isn't supported")
    return steps


def shown(step: dict[str, Any], single: list[str], pair: list[str]) -> Any:
    """Return what a step puts around one text and around two, in the form of AROUND."""
    if step.get("type") in ("RobertaProcessing", "BertProcessing"):
        names = [value[0] if isinstance(value, list) and value else None for value in (step.get("cls"), step.get("sep"))]
        return (single, pair) if names == [single[0], single[-1]] else names
    return template_of(step) if step.get("type") == "TemplateProcessing" else step.get("type")


def template_of(step: dict[str, Any]) -> tuple[list[str], list[str]] | None:
    """Return what a TemplateProcessing puts around one text and around two, A and B, or None for another step."""
    try:
        single, pair = [[next(iter(one.values()))["id"] for one in step[name]] for name in ("single", "pair")]
    except (KeyError, TypeError, AttributeError, StopIteration):
        return None
    return (single, pair) if all(isinstance(token, str) for token in single + pair) else None


def ids_of(template: dict[str, Any], token: str) -> list[Any]:
    """Return the ids that a TemplateProcessing has for one of its special tokens; [None] where it doesn't say."""
    try:
        return list(template["special_tokens"][token]["ids"])
    except (KeyError, TypeError):
        return [None]
