"""Small configurations of every architecture."""

from typing import Any

from model.llama import LlamaConfig
from model.registry import ARCHITECTURES

# Those with a forward or parts of their own, and a classifier. A Qwen2 stands for Llama's family: it has biases, which
# BitFit needs.
DIFFERENT = [kind for kind in ARCHITECTURES if kind not in ("llama", "mistral", "qwen3", "smollm3", "chatglm")]


def small_config(kind: str, **settings: Any) -> Any:
    """Return a configuration of 4 heads and width 32, unless `settings` say otherwise; Llamas have 2 heads of keys."""
    sizes = {"vocab_size": 50, "context_length": 16, "dim": 32, "n_heads": 4, "n_layers": 3, "dropout": 0.0} | settings
    config = ARCHITECTURES[kind].config
    if issubclass(config, LlamaConfig):
        heads = sizes["n_heads"]
        sizes = {"n_kv_heads": heads // 2, "head_dim": sizes["dim"] // heads, "mlp_dim": 48} | sizes
    return config(**sizes)
