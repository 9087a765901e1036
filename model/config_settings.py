"""The keys of config.json in three lists: what is used, what changes nothing here, and what is refused.

An architecture's own entry in `model/registry.py` says what it reads and which values it has in common with every model of
its kind; here stands what is said of all of them.
"""

from typing import Any

from model.architecture import Architecture
from model.chatglm_settings import CHATGLM_LIBRARY_DEFAULTS
from model.llama_settings import LLAMA_LIBRARY_DEFAULTS
from utils.settings import KnownSettings

# Read beside the entry's own `settings`: which architecture it is, its classes, its head, its special tokens.
USED = (
    *("model_type", "id2label", "label2id", "num_labels", "tokenizer_class", "tie_word_embeddings"),
    *("bos_token_id", "eos_token_id", "pad_token_id"),
)

# The library's second names of its settings (`attribute_map`).
ALIASES = {
    "gpt2": {
        "hidden_size": "n_embd",
        "max_position_embeddings": "n_positions",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    },
    "distilbert": {"hidden_size": "dim", "num_attention_heads": "n_heads", "num_hidden_layers": "n_layers"},
}

# What the library takes for a setting that config.json lacks, where the published model of the kind has something else.
LIBRARY_DEFAULTS = LLAMA_LIBRARY_DEFAULTS | {
    "chatglm": CHATGLM_LIBRARY_DEFAULTS,
    "roberta": {"max_position_embeddings": 512, "type_vocab_size": 2, "layer_norm_eps": 1e-12},
}

HARMLESS = {
    "_name_or_path _commit_hash _num_labels name_or_path is_llama_config transformers.js_config "
    "architectures transformers_version finetuning_task "
    "task_specific_params language name vocab_file": "notes on where the model comes from",
    "embd_pdrop resid_pdrop attn_pdrop attention_probs_dropout_prob attention_dropout qa_dropout hidden_dropout": (
        "the dropout of a run is that of `--dropout`"
    ),
    "torch_dtype dtype use_bfloat16 _attn_implementation attn_implementation reorder_and_upcast_attn "
    "gradient_checkpointing torchscript chunk_size_feed_forward use_cache use_return_dict return_dict "
    "return_dict_in_generate output_past output_attentions output_hidden_states output_scores output_router_logits "
    "tie_weights_ _flash_attn_2_enabled experts_implementation _attn_implementation_autoset xla_device "
    "pretraining_tp": ("how the library computes or returns it, not what"),
    "initializer_range initializer_factor init_std sinusoidal_pos_embds": (
        "how the library draws weights; here they come from the file or, with `--weights random`, from PyTorch's default"
    ),
    "n_ctx": "the library reads n_positions alone",
    "summary_type summary_use_proj summary_activation summary_proj_to_labels summary_first_dropout summary_hidden_size "
    "pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers pooler_size_per_head pooler_type directionality": (
        "of heads that aren't built here, or read by nothing"
    ),
    "eos_token_ids predict_special_tokens tf_legacy_loss": "of older versions of the library, and read by nothing",
    "sep_token_id decoder_start_token_id forced_bos_token_id forced_eos_token_id prefix": "the ids come from the tokenizer",
    "max_length min_length max_new_tokens do_sample early_stopping num_beams num_beam_groups temperature top_k top_p "
    "typical_p repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids "
    "num_return_sequences diversity_penalty remove_invalid_values exponential_decay_length_penalty suppress_tokens "
    "begin_suppress_tokens": "generation follows the flags of `--generate` and `--chat`",
    "label_smoothing keys_to_ignore_at_inference": "of the library's own trainer",
}

# Of every architecture: key -> the values that say what is done here anyway.
REFUSED: dict[str, tuple] = {
    "problem_type": ("single_label_classification",),
    "is_encoder_decoder": (False,),
    "is_decoder": (False,),
    "add_cross_attention": (False,),
    "cross_attention_hidden_size": (),
    "tie_encoder_decoder": (False,),
    "pruned_heads": ({},),
    "quantization_config": (),
    "auto_map": (),
    "trust_remote_code": (False,),
    "rope_scaling": (),
    "rope_theta": (),
}

EVERYWHERE = KnownSettings(USED, HARMLESS, REFUSED)


def known_settings(architecture: Architecture, config: Any) -> KnownSettings:
    """Return the three lists for the config.json of an architecture; `config` is what has been read of it."""
    own = own_settings(architecture, config)
    refused = {name: allowed for name, allowed in {**REFUSED, **own.refused}.items() if name not in own.used}
    return KnownSettings((*EVERYWHERE.used, *own.used), HARMLESS, refused)


def own_settings(architecture: Architecture, config: Any) -> KnownSettings:
    """Return what an architecture has beside `EVERYWHERE`."""
    own = (*architecture.settings.values(), *architecture.settings_read, *ALIASES.get(architecture.model_type, {}))
    used = dict.fromkeys(own)
    return KnownSettings(tuple(name for name in used if name not in USED), {}, architecture.fixed_settings(config))


def by_their_own_names(settings: dict, architecture: Architecture) -> tuple[dict, str | None]:
    """Return the settings without aliases and with the library's defaults, and what is wrong with them, or None."""
    settings = dict(settings)
    for alias, name in ALIASES.get(architecture.model_type, {}).items():
        if alias not in settings:
            continue
        value = settings.pop(alias)
        if settings.setdefault(name, value) != value:
            return (
                settings,
                f"sets {alias} to {value!r} and {name} to {settings[name]!r}, which are two names of one setting",
            )
    return LIBRARY_DEFAULTS.get(architecture.model_type, {}) | settings, None
