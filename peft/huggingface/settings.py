"""The keys of adapter_config.json in three lists, by the kind of adapter: used, harmless, and refused."""

from typing import Any

from utils.errors import UserError
from utils.settings import KnownSettings

# What the names of the tensors begin with, by the kind of adapter.
NAME_PREFIX = dict.fromkeys(("LORA", "VERA", "HIRA", "IA3"), "base_model.model.")
NAME_PREFIX |= {"PREFIX_TUNING": "base_model.", "PROMPT_TUNING": "base_model."}
CHANGES_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")  # initialisations (`init_lora_weights`)

HARMLESS = {
    "auto_mapping peft_version base_model_name_or_path revision inference_mode runtime_config megatron_core": (
        "notes on where the adapter comes from and how the library runs it"
    ),
    "feedforward_modules": "the shapes of the tensors in the file say it",
    "fan_in_fan_out": "how the library's layer stores its weight",
}
# Ways to draw what the file holds.
DRAWN = {
    "loftq_config eva_config corda_config lora_ga_config init_ia3_weights": "how it was drawn; the file has the values"
}
LORA_REFUSED: dict[str, tuple] = {"bias": ("none",)} | dict.fromkeys(
    (
        *("layer_replication", "lora_bias", "trainable_token_indices", "target_parameters", "alora_invocation_tokens"),
        *("use_qalora", "use_bdlora", "arrow_config", "kasa_config", "velora_config", "monteclora_config"),
        *("megatron_config", "enable_lora", "merge_weights"),
    ),
    (False,),
)

# Which modules the file has tensors for.
SELECTION = (
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("modules_to_save", "task_type", "ensure_weight_tying"),
)
NEWER_SELECTION = ("exclude_modules", "ensure_weight_tying")  # which a VeRA doesn't have

# Of what stands in front of a text.
IN_FRONT = (
    *("peft_type", "num_virtual_tokens", "token_dim", "num_attention_heads", "num_layers"),
    *("modules_to_save", "task_type", "ensure_weight_tying"),
)

ADAPTER: dict[str, KnownSettings] = {
    "LORA": KnownSettings(
        (
            *("peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "lora_dropout"),
            *("init_lora_weights", *SELECTION),
        ),
        HARMLESS | DRAWN | {"qalora_group_size": "of use_qalora, which is refused"},
        LORA_REFUSED,
    ),
    "VERA": KnownSettings(
        (
            *("peft_type", "r", "vera_dropout", "save_projection", "projection_prng_key"),
            *(name for name in SELECTION if name not in NEWER_SELECTION),
        ),
        HARMLESS | {"d_initial init_weights": "how it was drawn; the file has the values"},
        {"bias": ("none",)},
    ),
    "HIRA": KnownSettings(
        (
            *("peft_type", "r", "rank_pattern", "hira_dropout"),
            *(name for name in SELECTION if name != "ensure_weight_tying"),
        ),
        HARMLESS | {"init_weights": "how it was drawn; the file has the values"},
        {},
    ),
    "IA3": KnownSettings(("peft_type", *SELECTION), HARMLESS | DRAWN, {}),
    "PREFIX_TUNING": KnownSettings(
        IN_FRONT,
        HARMLESS | {"encoder_hidden_size init_weights prefix_projection": "how it was trained; the file has the result"},
        {"num_transformer_submodules": (1,)},
    ),
    "PROMPT_TUNING": KnownSettings(
        IN_FRONT,
        HARMLESS
        | {
            "prompt_tuning_init prompt_tuning_init_text tokenizer_name_or_path tokenizer_kwargs": (
                "how it was drawn; the file has the values"
            )
        },
        {"num_transformer_submodules": (1,)},
    ),
}


def names_modules(kind: str) -> bool:
    """Return whether the settings of this kind of adapter name the modules that it adapts."""
    return "target_modules" in ADAPTER[kind].used


def check_settings(place: str, config: dict[str, Any]) -> None:
    """Raise UserError for a setting that would change what is computed and has no counterpart here, or isn't known."""
    ADAPTER[config["peft_type"]].check(place, config)
    if names_modules(config["peft_type"]) and not config.get("target_modules"):
        raise UserError(f"{place} has no target_modules, and the library then takes its own choice; name the modules there")
    if empty := [name for name in ("rank_pattern", "alpha_pattern") if name in config and config[name] is None]:
        raise UserError(f"{place} has {empty[0]} = None; it must be an object of patterns and numbers")
    if str(config.get("init_lora_weights")).startswith(CHANGES_THE_BASE):
        raise UserError(
            f"{place} has init_lora_weights = {config['init_lora_weights']!r}, which changes the base model; save it with "
            "path_initial_model_for_weight_conversion"
        )
