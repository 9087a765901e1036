"""ChatGLM-6B's tokenizer: a unigram model, and rules for what SentencePiece would lose, line breaks and runs of spaces.

The rules are those of tokenization_chatglm.py in the published repository, as of 2023-04-14 and later.
"""

import re
from pathlib import Path

from model.tokenizers.base import Tokenizer
from model.tokenizers.description import read_object
from model.tokenizers.files import CHATGLM_FILE_SETS, choices, first_complete
from model.tokenizers.settings import CLASSES, CONFIG, NAMES, SPECIAL_TOKENS_MAP
from model.tokenizers.unigram import Unigram
from model.tokenizers.unigram_file import CONTROL, UNKNOWN, USER_DEFINED, UnigramModel, read_unigram
from utils.errors import UserError
from utils.settings import check_value

# [gMASK] stands where an answer is to be written, [MASK] where a few words are missing. <sop> and <eop> are the start and
# the end of what is written ("piece").
MASK, GMASK, START, END, PAD, UNKNOWN_TOKEN = "[MASK]", "[gMASK]", "<sop>", "<eop>", "<pad>", "<unk>"
FOUND = (START, END, UNKNOWN_TOKEN, PAD, MASK)  # special tokens that are found in a text; [gMASK] isn't
LINE_BREAK, TAB = "<n>", "<|tab|>"
MOST_BLANKS = 80
BLANKS = {f"<|blank_{count}|>": " " * count for count in range(2, MOST_BLANKS + 1)}
WRITTEN = {LINE_BREAK: "\n", TAB: "\t", **BLANKS}  # piece -> what it is written as

FOUND_PATTERN = re.compile(f"({'|'.join(map(re.escape, FOUND))})")
BLANKS_PATTERN = re.compile(f" {{2,{MOST_BLANKS}}}")  # the longest first
WRITTEN_PATTERN = re.compile("|".join(map(re.escape, WRITTEN)))

# What the published library does by default with the spaces of an English text that a model has written.
CLEAN_UP = {" .": ".", " ?": "?", " !": "!", " ,": ",", " ' ": "'", " n't": "n't", " 'm": "'m", " 's": "'s"}
CLEAN_UP |= {" 've": "'ve", " 're": "'re"}


class ChatGLMTokenizer(Tokenizer):
    """`build` makes `A [gMASK] <sop>` of one text, for an answer to be written, and `A [gMASK] <sop> B <eop>` of two.

    Special tokens that a text holds are found, as they are in the published tokenizer. `[gMASK]` alone is text.
    """

    def __init__(self, model: UnigramModel):
        """Set up the tables. Raises ValueError where a piece that the rules need is missing."""
        self.unigram = Unigram(model)
        kinds = {piece.text: piece.kind for piece in model.pieces}
        needed = dict.fromkeys((MASK, GMASK, START, END, PAD), CONTROL) | {UNKNOWN_TOKEN: UNKNOWN}
        needed |= dict.fromkeys(WRITTEN, USER_DEFINED)
        missing = [text for text, kind in needed.items() if kinds.get(text) != kind]
        if missing:
            raise ValueError(
                f"it has no {missing[0]} (and {len(missing) - 1} more); files of before April 6, 2023 lack them, whose ids "
                "begin at 150000: take the model's revision main, or one since 4de8efe of April 14"
            )
        numbers = {piece.text: number for number, piece in enumerate(model.pieces)}
        self.vocab_size = len(model.pieces)
        self.special_tokens = {text: numbers[text] for text, kind in kinds.items() if kind in (CONTROL, UNKNOWN)}
        self.special_ids = frozenset(self.special_tokens.values())
        self.pad_id, self.mask_id, self.gmask_id = numbers[PAD], numbers[MASK], numbers[GMASK]
        self.start_id, self.end_of_text = numbers[START], numbers[END]
        self.end_ids = (self.end_of_text,)
        self.end = self.between = (self.gmask_id, self.start_id)
        self.pair_end = (self.end_of_text,)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text. White space around a special token in it is left out."""
        parts = FOUND_PATTERN.split(text)  # a text, a special token, a text, ...
        ids: list[int] = []
        for place, part in enumerate(parts):
            if place % 2:
                ids.append(self.special_tokens[part])
                continue
            part = part.lstrip() if place > 0 else part
            ids += self.encode_words(part.rstrip() if place < len(parts) - 1 else part)
        return ids

    def encode_words(self, text: str, line_breaks: bool = True, blanks: bool = True, prefix: bool = True) -> list[int]:
        """Return the ids of a text without special tokens.

        line_breaks   False: a line break is a space
        blanks        False: so are tabs and several spaces
        prefix        False: no "▁" in front of the text
        """
        if line_breaks:
            text = text.replace("\n", LINE_BREAK)
        if blanks:
            text = BLANKS_PATTERN.sub(lambda run: f"<|blank_{len(run[0])}|>", text.replace("\t", TAB))
        if prefix:
            return self.unigram.encode(text)
        return self.unigram.encode(LINE_BREAK + text)[2:]  # without "▁" and <n>, behind which there is no other "▁"

    def decode(self, ids: list[int], skip_special: bool = False, clean_up: bool = False) -> str:
        """Return the text of token ids. What normalizing changed stays so: "，" comes back as ",".

        skip_special   leave <unk> out too, which is " ⁇ " otherwise
        clean_up       take out the spaces that English has not, as the published tokenizer does since May 8, 2023
        """
        skipped = {self.special_tokens[token] for token in FOUND} if skip_special else {self.pad_id}
        text = self.unigram.decode([number for number in ids if number not in skipped])
        text = WRITTEN_PATTERN.sub(lambda found: WRITTEN[found[0]], text)
        for old, new in CLEAN_UP.items() if clean_up else ():
            text = text.replace(old, new)
        return text

    @classmethod
    def from_directory(cls, directory: str | Path) -> "ChatGLMTokenizer":
        """Return the tokenizer in ice_text.model, with tokenizer_config.json beside it or without. Raises UserError."""
        directory = Path(directory)
        files = first_complete(directory, CHATGLM_FILE_SETS)
        if files is None:
            raise UserError(f"{directory} has no ChatGLM tokenizer file ({choices(CHATGLM_FILE_SETS)})")
        check_settings(directory)
        (file,) = files
        try:
            return cls(read_unigram(file))
        except UserError:
            raise
        except ValueError as error:
            raise UserError(f"{file} is no ChatGLM tokenizer: {error}") from None


def check_settings(directory: Path) -> None:
    """Raise UserError where a file beside the model says something that isn't done here."""
    config, special = directory / "tokenizer_config.json", directory / "special_tokens_map.json"
    for file, known in ((config, CONFIG["chatglm"]), (special, SPECIAL_TOKENS_MAP)):
        content = read_object(file)
        known.check(str(file), content)
        check_value(str(file), "tokenizer_class", content.get("tokenizer_class"), CLASSES["chatglm"])
        for name, expected in NAMES["chatglm"].items():
            check_value(str(file), name, content.get(name), (expected,))  # a token with flags would strip other spaces
    if added := read_object(directory / "added_tokens.json"):
        raise UserError(f"{directory}/added_tokens.json adds {next(iter(added))!r}; ChatGLM's tokens can't be added to")
