"""Byte-level BPE of newer decoders: SmolLM2, Qwen2 to Qwen3, Llama 3.

Their files say what is fixed for a GPT-2: how a text is cut, what the special tokens are called, what stands around a text.
"""

from model.tokenizers.bpe import END_OF_TEXT, BytePairTokenizer
from model.tokenizers.description import Description
from model.tokenizers.steps import QWEN_PATTERN, ByteLevel, Step, make_normalizer, unchanged
from utils.errors import UserError

# What classes of the library do with a text where there is no tokenizer.json.
BUILT = {
    "Qwen2Tokenizer": (make_normalizer({"type": "NFC"}), ByteLevel(pattern=QWEN_PATTERN)),
    "GPT2Tokenizer": (unchanged, ByteLevel()),
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
    def how_to_cut(cls, described: Description) -> tuple[Step, ByteLevel]:
        """Return what is done to a text, and how it is cut: as tokenizer.json says, else as the library's class does it."""
        if described.whole:
            return super().how_to_cut(described)
        name = described.config.get("tokenizer_class")
        if name not in BUILT:
            raise UserError(
                f"{described.directory} has no tokenizer.json, and its tokenizer_class {name!r} doesn't say how a text is "
                f"cut into words; add tokenizer.json, or set it to {' or '.join(BUILT)} in tokenizer_config.json"
            )
        return BUILT[name]

    def set_up(self, described: Description, vocab: dict[str, int]) -> None:
        """Set the special tokens, and what stands around a text. Raises UserError."""
        self.start, self.between, self.end = described.around(vocab)
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
