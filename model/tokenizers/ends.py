"""Which tokens end and pad a text of a decoder: what the tokenizer's files name, else config.json, else <|endoftext|>."""

from typing import Any

from model.tokenizers.bpe import BytePairTokenizer


def set_ends(tokenizer: BytePairTokenizer, config: Any) -> None:
    """Set what a tokenizer takes for the end and the padding of a text, in place.

    config   the model's, with `end_ids` and `pad_id`

    The model may end a text with further tokens (`end_ids`) if it knows the tokenizer's own end. A token without an id in
    the files can't be written, so it is none. Of the ids in config.json only those of special tokens count: the library
    writes its default there (50256) whatever the vocabulary is.
    """
    ids, special = tokenizer.special_tokens, {*tokenizer.special_tokens.values()}
    of_config = next((number for number in config.end_ids if number in special), tokenizer.end_of_text)
    tokenizer.end_of_text = ids.get(tokenizer.named.get("eos_token", ""), of_config)
    tokenizer.end_ids = (tokenizer.end_of_text,)
    if tokenizer.end_of_text in config.end_ids:
        tokenizer.end_ids = tuple(number for number in config.end_ids if number in special)
    pad_id = config.pad_id if config.pad_id in special else tokenizer.end_of_text
    tokenizer.pad_id = ids.get(tokenizer.named.get("pad_token", ""), pad_id)
    tokenizer.special_ids |= {*tokenizer.end_ids, tokenizer.pad_id}
