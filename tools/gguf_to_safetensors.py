"""Writes a GGUF file of the Llama family as a checkpoint in Hugging Face layout: weights, config and tokenizer.

    python -m tools.gguf_to_safetensors MODEL.gguf DIRECTORY [--dtype float16]

Quantized weights become plain ones: the checkpoint is the quantized model, not the one that it was made from. What a
setting or a tensor means is known here, or the file is refused. Tensors go to the disk a part at a time, and the directory
is there once all of it is. Needs the package gguf.
"""

import argparse
import json
import math
import os
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tools.gguf_file import GGUFFile
from tools.gguf_tokenizer import as_json, token_id, tokenizer_files
from utils.errors import UserError, run_program
from utils.files import user_path
from utils.settings import KnownSettings

# A tensor of the file -> its published name, and its shape in the letters of `sizes`. {} is the number of the block.
NAMES = {
    "token_embd.weight": ("model.embed_tokens.weight", "VD"),
    "blk.{}.attn_norm.weight": ("model.layers.{}.input_layernorm.weight", "D"),
    "blk.{}.attn_q.weight": ("model.layers.{}.self_attn.q_proj.weight", "QD"),
    "blk.{}.attn_k.weight": ("model.layers.{}.self_attn.k_proj.weight", "KD"),
    "blk.{}.attn_v.weight": ("model.layers.{}.self_attn.v_proj.weight", "KD"),
    "blk.{}.attn_output.weight": ("model.layers.{}.self_attn.o_proj.weight", "DQ"),
    "blk.{}.ffn_norm.weight": ("model.layers.{}.post_attention_layernorm.weight", "D"),
    "blk.{}.ffn_gate.weight": ("model.layers.{}.mlp.gate_proj.weight", "FD"),
    "blk.{}.ffn_up.weight": ("model.layers.{}.mlp.up_proj.weight", "FD"),
    "blk.{}.ffn_down.weight": ("model.layers.{}.mlp.down_proj.weight", "DF"),
    "output_norm.weight": ("model.norm.weight", "D"),
}
HEAD = {"output.weight": ("lm_head.weight", "VD")}  # not there in a model whose head is the embedding
QWEN2_BIASES = {
    "blk.{}.attn_q.bias": ("model.layers.{}.self_attn.q_proj.bias", "Q"),
    "blk.{}.attn_k.bias": ("model.layers.{}.self_attn.k_proj.bias", "K"),
    "blk.{}.attn_v.bias": ("model.layers.{}.self_attn.v_proj.bias", "K"),
}
QWEN3_NORMS = {
    "blk.{}.attn_q_norm.weight": ("model.layers.{}.self_attn.q_norm.weight", "H"),
    "blk.{}.attn_k_norm.weight": ("model.layers.{}.self_attn.k_norm.weight", "H"),
}
ROPE_FACTORS = "rope_freqs.weight"  # of Llama 3.1 and later: what each frequency is divided by


@dataclass(frozen=True)
class Family:
    """What an architecture of GGUF is called in Hugging Face layout, and what it has beyond `NAMES`."""

    hf_class: str
    names: dict[str, tuple[str, str]] = field(default_factory=dict)
    config: dict = field(default_factory=dict)
    pairs_beside: bool = False  # a head's rotated pairs are rows 0 and 1, 2 and 3 ...; published: i and i + half a head


FAMILIES = {
    "llama": Family("LlamaForCausalLM", config={"attention_bias": False, "mlp_bias": False}, pairs_beside=True),
    "qwen2": Family("Qwen2ForCausalLM", QWEN2_BIASES, {"use_sliding_window": False}),
    "qwen3": Family("Qwen3ForCausalLM", QWEN3_NORMS, {"attention_bias": False, "use_sliding_window": False}),
}
NOTES = ("general.", "quantize.", "tokenizer.chat_template.")  # where a file came from, and templates under other names
SETTINGS = KnownSettings(
    used=(
        *("block_count", "context_length", "embedding_length", "feed_forward_length", "vocab_size"),
        *(f"attention.{name}" for name in ("head_count", "head_count_kv", "key_length", "value_length")),
        *("attention.layer_norm_rms_epsilon", "rope.freq_base", "rope.dimension_count", "tokenizer.chat_template"),
        *(f"tokenizer.ggml.{name}" for name in ("model", "pre", "tokens", "token_type", "merges", "add_bos_token")),
        *(f"tokenizer.ggml.{name}_token_id" for name in ("bos", "eos", "eot", "eom", "unknown", "padding")),
    ),
    harmless={
        "tokenizer.ggml.scores": "BPE goes by its merges",
        "tokenizer.chat_templates": "the default template is the one that is kept",
        " ".join(
            f"tokenizer.ggml.fim_{part}_token_id" for part in ("pre", "suf", "mid", "pad", "rep", "sep")
        ): "for editors",
        " ".join(f"tokenizer.ggml.{part}_token_id" for part in ("prefix", "suffix", "middle")): "the same, older",
    },
    refused={
        "general.type": ("model",),
        "general.quantization_version": (2,),
        "split.count": (0, 1),
        "attention.causal": (True,),
        "expert_count": (0,),
        "expert_used_count": (0,),
        "rope.scaling.type": ("none",),
        "tokenizer.ggml.add_space_prefix": (False,),
        "tokenizer.ggml.add_eos_token": (False,),
        "tokenizer.ggml.add_sep_token": (False,),
        "tokenizer.ggml.remove_extra_whitespaces": (False,),
    },
)
DTYPES = {"float16": "F16", "float32": "F32"}  # numpy's name -> that of safetensors


def convert(path: Path, directory: Path, dtype: str = "float16") -> str:
    """Write the checkpoint, and return a line about it. Raises UserError, and then there is no directory."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UserError(f"{directory} is there already: name an empty or a new directory")
    file = GGUFFile(path)
    _check_settings(file)
    config = read_config(file, dtype)
    names = match_names(file, config)
    texts = tokenizer_files(file) | {"config.json": as_json(config), "generation_config.json": as_json(_generation(file))}
    directory.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    try:
        moved = write_tensors(file, config, names, partial / "model.safetensors", dtype)
        for name, text in texts.items():
            (partial / name).write_text(text, encoding="utf-8")
        partial.chmod(0o755)  # a temporary directory is its owner's alone
        os.replace(partial, directory)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    n_weights = sum(math.prod(file.tensors[name].shape) for name in names)
    return f"{len(names)} tensors, {n_weights:,} weights; {dtype} moves none by more than {moved:.3g}"


def _check_settings(file: GGUFFile) -> None:
    if file.architecture not in FAMILIES:
        raise UserError(f"{file.path} is of the architecture {file.architecture!r}; what is read: {', '.join(FAMILIES)}")
    known = {*SETTINGS.used, *SETTINGS.refused}
    said = {name: value for name, value in file.settings.items() if name in known or not name.startswith(NOTES)}
    SETTINGS.check(str(file.path), said)


def read_config(file: GGUFFile, dtype: str) -> dict:
    """Return the content of config.json. Raises UserError."""
    family = FAMILIES[file.architecture]
    width, n_heads = file.size("embedding_length"), file.size("attention.head_count")
    head_dim = file.size("attention.key_length", file.size("rope.dimension_count", width // n_heads))
    for name in ("attention.value_length", "rope.dimension_count"):
        if file.size(name, head_dim) != head_dim or head_dim % 2:
            raise UserError(
                f"{file.path} sets {name} to {file.size(name, head_dim)}; it must be a head's size, {head_dim}, and even"
            )
    n_tokens = len(file.settings.get("tokenizer.ggml.tokens") or ())
    if file.size("vocab_size", n_tokens) != n_tokens:
        raise UserError(f"{file.path} sets vocab_size to {file.size('vocab_size')} and has {n_tokens} tokens")
    theta = file.real("rope.freq_base", 10000.0)
    config = {
        "architectures": [family.hf_class],
        "model_type": file.architecture,
        "vocab_size": n_tokens,
        "hidden_size": width,
        "intermediate_size": file.size("feed_forward_length"),
        "num_hidden_layers": file.size("block_count"),
        "num_attention_heads": n_heads,
        "num_key_value_heads": file.size("attention.head_count_kv", n_heads),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": file.size("context_length"),
        "rms_norm_eps": file.real("attention.layer_norm_rms_epsilon"),
        "rope_theta": theta,
        "rope_scaling": _rope_scaling(file, theta, head_dim) if ROPE_FACTORS in file.tensors else None,
        "attention_dropout": 0.0,
        "tie_word_embeddings": not HEAD.keys() & file.tensors.keys(),
        "torch_dtype": dtype,
    }
    return config | family.config | _ids(file)


def _ids(file: GGUFFile) -> dict[str, int]:
    found = {
        f"{hf_name}_token_id": token_id(file, name)
        for hf_name, name in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
    }
    return {hf_name: i for hf_name, i in found.items() if i is not None}


def _generation(file: GGUFFile) -> dict:
    """Return the content of generation_config.json, in which several tokens may end an answer."""
    ends = dict.fromkeys(i for name in ("eos", "eot", "eom") if (i := token_id(file, name)) is not None)
    return _ids(file) | ({"eos_token_id": [*ends]} if len(ends) > 1 else {})


def _rope_scaling(file: GGUFFile, theta: float, head_dim: int) -> dict:
    """Return the settings that make the file's factors of the frequencies. Raises UserError for others than Llama 3's."""
    (factors,) = file.rows(ROPE_FACTORS)
    low, high, context = 1.0, 4.0, 8192  # every published model has these
    turns = context / (2 * math.pi * theta ** (np.arange(0, head_dim, 2) / head_dim))  # of each frequency in the context
    kept = np.clip((turns - low) / (high - low), 0, 1)  # how much of a frequency isn't divided
    factor = float(factors.max())
    expected = 1 / ((1 - kept) / factor + kept)
    if factors.shape != expected.shape or not np.allclose(factors, expected, rtol=1e-4, atol=0):
        raise UserError(f"{file.path}: {ROPE_FACTORS} isn't what rotary positions of the type 'llama3' have")
    scaling = {"rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high}
    return scaling | {"original_max_position_embeddings": context}


def match_names(file: GGUFFile, config: dict) -> dict[str, str]:
    """Return {tensor of the file: its published name}. Raises UserError where one is missing, left over or misshaped."""
    heads, groups, head_dim = (config[name] for name in ("num_attention_heads", "num_key_value_heads", "head_dim"))
    sizes = {"V": config["vocab_size"], "D": config["hidden_size"], "F": config["intermediate_size"], "H": head_dim}
    sizes |= {"Q": heads * head_dim, "K": groups * head_dim}
    table = NAMES | FAMILIES[file.architecture].names | ({} if config["tie_word_embeddings"] else HEAD)
    expected = {}
    for name, (hf_name, shape) in table.items():
        for i in range(config["num_hidden_layers"]) if "{}" in name else [0]:
            expected[name.format(i)] = (hf_name.format(i), tuple(sizes[letter] for letter in shape))
            if len(expected) > len(file.tensors):  # however many blocks there are to be, one is missing
                break
    scaled = {ROPE_FACTORS} if config["rope_scaling"] else set()
    problems = [f"it has no {name}" for name in expected if name not in file.tensors]
    problems += [f"{name} has no place" for name in file.tensors if name not in expected.keys() | scaled]
    for name, (_, shape) in expected.items():
        if name in file.tensors and file.tensors[name].shape != shape:
            problems.append(f"{name} has shape {list(file.tensors[name].shape)}, expected {list(shape)}")
    if problems:
        more = f"; and {len(problems) - 3} more" if problems[3:] else ""
        raise UserError(f"{file.path} is no {file.architecture} as it is known here: {'; '.join(problems[:3])}{more}")
    return {name: hf_name for name, (hf_name, _) in expected.items()}


def published_order(n_heads: int, head_dim: int) -> np.ndarray:
    """Return, for each row of a published query or key projection, its row in a file whose pairs lie side by side."""
    return np.arange(n_heads * head_dim).reshape(n_heads, head_dim // 2, 2).swapaxes(1, 2).flatten()


def write_tensors(file: GGUFFile, config: dict, names: dict[str, str], path: Path, dtype: str) -> float:
    """Write model.safetensors, and return by how much rounding to `dtype` moved a weight at most. Raises UserError."""
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    moved = 0.0

    def parts(name: str) -> Iterator[bytes]:
        nonlocal moved
        n_heads = heads.get(name.split(".")[-2]) if FAMILIES[file.architecture].pairs_beside else None
        order = published_order(n_heads, config["head_dim"]) if n_heads else None
        for weights in file.rows(name, order):
            with np.errstate(over="ignore"):
                rounded = weights.astype(dtype)
            if not np.isfinite(rounded).all():
                raise UserError(
                    f"{file.path}: {name} has a weight of {np.abs(weights).max():g}, too large for --dtype {dtype}"
                )
            moved = max(moved, float(np.abs(rounded - weights).max()))
            yield rounded.tobytes()

    by_hf_name = {hf_name: name for name, hf_name in sorted(names.items(), key=lambda pair: pair[1])}
    shapes = {hf_name: file.tensors[name].shape for hf_name, name in by_hf_name.items()}
    _write_safetensors(path, shapes, dtype, lambda hf_name: parts(by_hf_name[hf_name]))
    return moved


def _write_safetensors(
    path: Path, shapes: dict[str, tuple[int, ...]], dtype: str, parts: Callable[[str], Iterable[bytes]]
) -> None:
    """Write a safetensors file from parts: the library's own writer wants all tensors in memory at once.

    The format: the length of the header in 8 bytes, the header as JSON, the tensors (huggingface.co/docs/safetensors).
    """
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in shapes.items():
        begin, end = end, end + math.prod(shape) * np.dtype(dtype).itemsize
        header[name] = {"dtype": DTYPES[dtype], "shape": [*shape], "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for name in shapes:
            out.writelines(parts(name))
        out.flush()
        os.fsync(out.fileno())


def main() -> int:
    """Write the checkpoint that the command line asks for. Return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("gguf", type=user_path, help="the file to read")
    parser.add_argument("directory", type=user_path, help="the directory to write")
    parser.add_argument("--dtype", choices=DTYPES, default="float16", help="of the weights in model.safetensors")
    args = parser.parse_args()
    print(f"{args.directory}: {convert(args.gguf, args.directory, args.dtype)}")
    return 0


if __name__ == "__main__":
    run_program(main)
