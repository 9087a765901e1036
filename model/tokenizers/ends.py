"""Which tokens end and pad a text of a decoder: what the tokenizer's files name, else config.json, else <|endoftext|>."""

from typing import Any

from model.tokenizers.bpe import BytePairTokenizer
from model.tokenizers.chatglm import ChatGLMTokenizer
from utils.errors import UserError


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


def set_chatglm_ends(tokenizer: ChatGLMTokenizer, config: Any) -> None:
    """Set what ends a text that a ChatGLM writes, in place: <eop>, and what config.json or generation_config.json adds.

    Raises UserError where the model looks for other marks than its tokenizer writes.
    """
    marks = {
        "mask_token_id": (config.mask_id, tokenizer.mask_id),
        "gmask_token_id": (config.gmask_id, tokenizer.gmask_id),
        "bos_token_id": (config.start_id, tokenizer.start_id),
    }
    for name, (of_model, of_tokenizer) in marks.items():
        if of_model != of_tokenizer:
            raise UserError(f"config.json sets {name} to {of_model}, and that token of its tokenizer is {of_tokenizer}")
    if tokenizer.end_of_text not in config.end_ids:
        ends = ", ".join(map(str, config.end_ids)) or "no token"
        raise UserError(
            f"config.json or generation_config.json ends a text with {ends}, and <eop> of its tokenizer is "
            f"{tokenizer.end_of_text}"
        )
    others = (number for number in config.end_ids if number != tokenizer.end_of_text)
    tokenizer.end_ids = (tokenizer.end_of_text, *others)
