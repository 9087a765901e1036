"""What config.json says of a ChatGLM beside its sizes: which version of the published files it belongs to."""

from collections.abc import Mapping
from typing import Any

from utils.errors import UserError

# What the published code takes for a setting that config.json lacks: the values of March 2023.
CHATGLM_LIBRARY_DEFAULTS: dict[str, Any] = {
    **{"vocab_size": 150528, "hidden_size": 4096, "num_layers": 28, "num_attention_heads": 32, "inner_hidden_size": 16384},
    **{"layernorm_epsilon": 1e-5, "max_sequence_length": 2048, "position_encoding_2d": True, "pad_token_id": 0},
    **{"bos_token_id": 150004, "eos_token_id": 150005, "mask_token_id": 150000, "gmask_token_id": 150001},
}
CHATGLM_SETTINGS_READ = ("mask_token_id", "gmask_token_id", "auto_map")  # the last names code that is never run
OF_LATER_MODELS = ("padded_vocab_size", "ffn_hidden_size", "multi_query_attention", "kv_channels")
REVISION = "revision main of THUDM/chatglm-6b, or one since 4de8efe of April 14, 2023"  # whose positions are these
AUTO_MAP = {
    "AutoConfig": "configuration_chatglm.ChatGLMConfig",
    "AutoModel": "modeling_chatglm.ChatGLMForConditionalGeneration",
    "AutoModelForSeq2SeqLM": "modeling_chatglm.ChatGLMForConditionalGeneration",
}


def read_chatglm(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of the tokens with a meaning. Raises UserError for files of another version or a later model."""
    if found := [name for name in OF_LATER_MODELS if name in settings]:
        raise UserError(f"sets {found[0]}, so it is a ChatGLM2 or later, another model; what is read is ChatGLM-6B")
    gmask, vocab_size = settings["gmask_token_id"], settings["vocab_size"]
    if gmask == 150001 or vocab_size == 150528:
        raise UserError(
            f"sets gmask_token_id to {gmask} and vocab_size to {vocab_size}: files of March 2023, with other positions. "
            f"Take the {REVISION}"
        )
    values = {}
    for field, name in (("mask_id", "mask_token_id"), ("gmask_id", "gmask_token_id"), ("start_id", "bos_token_id")):
        value = settings[name]
        if type(value) is not int or type(vocab_size) is not int or not 0 <= value < vocab_size:
            raise UserError(f"sets {name} to {value!r}; it must be the id of a token, below vocab_size, {vocab_size!r}")
        values[field] = value
    return values


def write_chatglm(config: Any) -> dict[str, Any]:
    """Return the settings that `read_chatglm` reads."""
    return {"mask_token_id": config.mask_id, "gmask_token_id": config.gmask_id, "auto_map": AUTO_MAP}
