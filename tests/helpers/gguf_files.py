"""Draw small models of the Llama family with the reference library, and write them as GGUF files with gguf's own writer."""

from pathlib import Path

import gguf
import numpy as np
import torch
import transformers
from torch import nn

from model.tokenizers.bpe import byte_alphabet
from tests.helpers.texts import TEXTS
from tools.learn_vocabulary import learn_merges

LAYERS, DIM, HEADS, GROUPS, MLP, CONTEXT = 2, 64, 4, 2, 96, 256
HEAD_DIMS = {"llama": 32, "qwen2": 16, "qwen3": 32}  # transformers reads no other for a GGUF of a Qwen2 than DIM / HEADS
MERGES = [" ".join(pair) for pair in learn_merges(TEXTS, 60)]
TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<note>", *byte_alphabet().values()]
TOKENS += [merge.replace(" ", "") for merge in MERGES]
TOKENS += [f"[PAD{i}]" for i in range(-len(TOKENS) % 32)]
TYPES = [3, 3, 3, 4, *([5 if token.startswith("[PAD") else 1 for token in TOKENS[4:]])]
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 8192}

# The library's name of a module -> that in a GGUF file.
PARTS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
PARTS |= {f"self_attn.{part}_proj": f"attn_{part}" for part in "qkv"} | {"self_attn.o_proj": "attn_output"}
PARTS |= {f"self_attn.{part}_norm": f"attn_{part}_norm" for part in "qk"}
PARTS |= {f"mlp.{part}_proj": f"ffn_{part}" for part in ("gate", "up", "down")}
WHOLE = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
WHOLE |= {"lm_head.weight": "output.weight"}


def draw_model(architecture: str, tied: bool = True, **settings) -> nn.Module:
    """Return a model of the library, far from its initial values."""
    kind = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}[architecture]
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=len(TOKENS),
        hidden_size=DIM,
        intermediate_size=MLP,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=GROUPS,
        head_dim=HEAD_DIMS[architecture],
        max_position_embeddings=CONTEXT,
        rms_norm_eps=1e-5,
        tie_word_embeddings=tied,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        **settings,
    )
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def tensors_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the tensors that a published file of the model holds."""
    tied = model.config.tie_word_embeddings
    return {name: tensor for name, tensor in model.state_dict().items() if not (tied and name == "lm_head.weight")}


def gguf_name(hf_name: str) -> str:
    if hf_name in WHOLE:
        return WHOLE[hf_name]
    _, _, number, rest = hf_name.split(".", 3)
    module, _, kind = rest.rpartition(".")
    return f"blk.{number}.{PARTS[module]}.{kind}"


def pairs_side_by_side(weight: np.ndarray, n_heads: int) -> np.ndarray:
    """Return a query or key projection with rows i and i + half a head beside each other, row by row."""
    half = len(weight) // n_heads // 2
    rows = [head * 2 * half + part * half + i for head in range(n_heads) for i in range(half) for part in (0, 1)]
    return weight[rows]


def settings_of(model: nn.Module, architecture: str) -> dict:
    """Return the settings of a file; the types are those that llama.cpp's converter writes."""
    config = model.config
    return {
        "general.name": "drawn",
        "general.file_type": 0,
        f"{architecture}.block_count": LAYERS,
        f"{architecture}.context_length": CONTEXT,
        f"{architecture}.embedding_length": DIM,
        f"{architecture}.feed_forward_length": MLP,
        f"{architecture}.attention.head_count": HEADS,
        f"{architecture}.attention.head_count_kv": GROUPS,
        f"{architecture}.attention.key_length": config.head_dim,
        f"{architecture}.attention.value_length": config.head_dim,
        f"{architecture}.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        f"{architecture}.rope.dimension_count": config.head_dim,
        f"{architecture}.rope.freq_base": float(config.rope_parameters["rope_theta"]),
        f"{architecture}.vocab_size": len(TOKENS),
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": {"llama": "smollm"}.get(architecture, "qwen2"),
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.token_type": TYPES,
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": TEMPLATE,
    }


def write_gguf(path: Path, model: nn.Module, architecture: str, kind: str = "F32", **changes) -> Path:
    """Write a file whose matrices are stored as `kind`, and its vectors in fp32.

    changes   settings that differ, with __ for a point; None leaves one out. `tensors` is a function of {name: array} that
              changes the tensors
    """
    writer = gguf.GGUFWriter(path, architecture)
    change = changes.pop("tensors", lambda tensors: tensors)
    settings = settings_of(model, architecture) | {name.replace("__", "."): value for name, value in changes.items()}
    for name, value in settings.items():
        if isinstance(value, bool):
            writer.add_bool(name, value)
        elif isinstance(value, int):
            writer.add_uint32(name, value)
        elif isinstance(value, float):
            writer.add_float32(name, value)
        elif isinstance(value, str):
            writer.add_string(name, value)
        elif value is not None:
            writer.add_array(name, value)
    tensors = {}
    for hf_name, tensor in tensors_of(model).items():
        weight = tensor.numpy()
        n_heads = {"q_proj": HEADS, "k_proj": GROUPS}.get(hf_name.split(".")[-2]) if architecture == "llama" else None
        tensors[gguf_name(hf_name)] = pairs_side_by_side(weight, n_heads) if n_heads else weight
    for name, weight in change(tensors).items():
        quantized = gguf.GGMLQuantizationType[kind if weight.ndim > 1 else "F32"]
        writer.add_tensor(name, gguf.quantize(np.ascontiguousarray(weight), quantized), raw_dtype=quantized)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
