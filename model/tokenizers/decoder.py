"""Byte-level BPE of newer decoders: SmolLM2, Qwen2 to Qwen3, Llama 3.

Their files say what is fixed for a GPT-2: how a text is cut, what the special tokens are called, what stands around a text.
"""

from dataclasses import replace
from typing import Any

from model.tokenizers.added import AddedToken
from model.tokenizers.bpe import END_OF_TEXT, BytePairTokenizer
from model.tokenizers.description import Description
from model.tokenizers.steps import QWEN_PATTERN, ByteLevel, Step, in_sequence, make_normalizer
from utils.errors import UserError

# What classes of the library do with a text: their normalizer's steps, and how they cut.
BUILT: dict[str, tuple[list[dict[str, Any]], ByteLevel]] = {
    "Qwen2Tokenizer": ([{"type": "NFC"}], ByteLevel(pattern=QWEN_PATTERN)),
    "GPT2Tokenizer": ([], ByteLevel()),
}


class DecoderTokenizer(BytePairTokenizer):
    """Special tokens are text when a text holds them, so that none can be smuggled in; templates write them by their ids.

    Between two texts `build` puts a newline where the files put no token there.
    """

    kind = "decoder"
    name = "byte-level BPE"
    required = ()
    ids_follow_merges = False
    has_all_bytes = False
    finds_special = False

    @classmethod
    def as_named(cls, added: list[AddedToken], named: dict[str, str]) -> list[AddedToken]:
        """Return the added tokens. One with a name is special, whatever the files say of it, as in the library."""
        return [replace(token, special=token.special or token.content in named.values()) for token in added]

    @classmethod
    def how_to_cut(cls, described: Description) -> tuple[Step, ByteLevel]:
        """Return what is done to a text, and how it is cut: as tokenizer.json says, else as the library's class does it.

        Raises UserError, also where a Qwen's file and class differ. SmolLM2's do, and it was trained as its file says.
        """
        name = (described.config.get("tokenizer_class") or "").removesuffix("Fast")
        if not described.whole:
            if name not in BUILT:
                raise UserError(
                    f"{described.directory} has no tokenizer.json, and its tokenizer_class {name or None} doesn't say how "
                    f"a text is cut into words; add it, or set tokenizer_class to {' or '.join(BUILT)}"
                )
            normalizers, cut = BUILT[name]
            check_prefix(described, cut)
            return in_sequence([make_normalizer(step) for step in normalizers]), cut
        if described.json.get("pre_tokenizer") is None:
            raise UserError(f"{described.directory}/tokenizer.json has no pre_tokenizer; a decoder's must be byte-level")
        normalize, cut = super().how_to_cut(described)
        if name == "Qwen2Tokenizer" and described.normalizers() != BUILT[name][0]:
            raise described.refuse("normalizer", described.json.get("normalizer"))
        if name == "Qwen2Tokenizer" and cut != BUILT[name][1]:
            raise described.refuse("pre_tokenizer", described.json["pre_tokenizer"])
        if name in BUILT:  # the other classes leave it to tokenizer.json, whatever their setting says
            check_prefix(described, cut)
        return normalize, cut

    def set_up(self, described: Description, vocab: dict[str, int]) -> None:
        """Set the special tokens, and what stands around a text. Raises UserError."""
        place, known = f"{described.directory}/tokenizer.json: its post_processor", set(vocab.values())
        around = described.around()
        if unknown := [number for part in around for number in part if type(number) is not int or number not in known]:
            raise UserError(f"{place} puts the id {unknown[0]!r} around a text, which no token has")
        self.start, self.between, self.end = (tuple(part) for part in around)
        self.between = self.between or tuple(self.encode_words("\n"))
        ids = {name: vocab.get(self.named.get(name, "")) for name in ("bos_token", "eos_token", "pad_token")}
        end = vocab.get(END_OF_TEXT) if ids["eos_token"] is None else ids["eos_token"]
        if end is None:
            raise UserError(
                f"{described.directory} names no eos_token that the vocabulary has, so nothing ends a text; "
                "name one in tokenizer_config.json"
            )
        self.end_of_text, self.end_ids = end, (end,)
        self.pad_id = end if ids["pad_token"] is None else ids["pad_token"]
        self.special_ids |= {token_id for token_id in ids.values() if token_id is not None}


def check_prefix(described: Description, cut: ByteLevel) -> None:
    """Raise UserError where the library's class would put a space in front of a text and this wouldn't, or the reverse."""
    if (wanted := described.setting("add_prefix_space", False)) != cut.prefix:
        raise UserError(
            f"{described.directory}: add_prefix_space of tokenizer_config.json is {wanted}, and a text is cut as if it "
            f"were {cut.prefix}; set it to that if it is meant"
        )
