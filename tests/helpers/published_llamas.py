"""The config.json of published models of Llama's family, as they lie on the hub, and how many parameters each has."""

COMMON = {"attention_dropout": 0.0, "hidden_act": "silu", "initializer_range": 0.02, "torch_dtype": "bfloat16"}
LLAMA = {"architectures": ["LlamaForCausalLM"], "attention_bias": False, "model_type": "llama", "pretraining_tp": 1}
LLAMA = COMMON | LLAMA | {"rms_norm_eps": 1e-05, "use_cache": True}
LLAMA3 = {"bos_token_id": 128000, "max_position_embeddings": 131072, "mlp_bias": False, "num_key_value_heads": 8}
LLAMA3 = LLAMA | LLAMA3 | {"rope_theta": 500000.0, "vocab_size": 128256}
STRETCHED = {"high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192}
SMOLLM2 = {"bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 8192, "mlp_bias": False, "pad_token_id": 2}
SMOLLM2 = LLAMA | SMOLLM2 | {"rope_interleaved": False, "rope_scaling": None, "tie_word_embeddings": True}
SMOLLM2 |= {"vocab_size": 49152, "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16", "fp16": "float16"}}}
MISTRAL = COMMON | {"architectures": ["MistralForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_size": 4096}
MISTRAL |= {"intermediate_size": 14336, "max_position_embeddings": 32768, "model_type": "mistral", "use_cache": True}
MISTRAL |= {"num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-05}
MISTRAL |= {"tie_word_embeddings": False}
QWEN2 = COMMON | {"architectures": ["Qwen2ForCausalLM"], "bos_token_id": 151643, "model_type": "qwen2", "use_cache": True}
QWEN2 |= {"rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "use_sliding_window": False}
QWEN2_SMALL = QWEN2 | {"hidden_size": 896, "intermediate_size": 4864, "num_attention_heads": 14, "num_hidden_layers": 24}
QWEN2_SMALL |= {"num_key_value_heads": 2, "tie_word_embeddings": True, "vocab_size": 151936}
QWEN3 = COMMON | {"architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "bos_token_id": 151643, "use_cache": True}
QWEN3 |= {"eos_token_id": 151645, "head_dim": 128, "max_position_embeddings": 40960, "model_type": "qwen3"}
QWEN3 |= {"num_key_value_heads": 8, "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 1000000}
QWEN3 |= {"sliding_window": None, "use_sliding_window": False, "vocab_size": 151936}

CONFIGS = {
    "SmolLM2-135M-Instruct": SMOLLM2
    | {"hidden_size": 576, "initializer_range": 0.041666666666666664, "intermediate_size": 1536, "is_llama_config": True}
    | {"num_attention_heads": 9, "num_hidden_layers": 30, "num_key_value_heads": 3, "rope_theta": 100000},
    "SmolLM2-1.7B-Instruct": SMOLLM2
    | {"hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 32, "num_hidden_layers": 24}
    | {"num_key_value_heads": 32, "rope_theta": 130000},
    "SmolLM3-3B": COMMON
    | {"architectures": ["SmolLM3ForCausalLM"], "attention_bias": False, "bos_token_id": None, "eos_token_id": 128012}
    | {"hidden_size": 2048, "intermediate_size": 11008, "layer_types": ["full_attention"] * 36, "max_window_layers": 28}
    | {"max_position_embeddings": 65536, "mlp_bias": False, "model_type": "smollm3", "no_rope_layer_interval": 4}
    | {"no_rope_layers": [1, 1, 1, 0] * 9, "num_attention_heads": 16, "num_hidden_layers": 36, "num_key_value_heads": 4}
    | {"pad_token_id": 128004, "pretraining_tp": 2, "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 5000000.0}
    | {"sliding_window": None, "use_cache": False, "use_sliding_window": False, "vocab_size": 128256},
    "Llama-3.2-1B-Instruct": LLAMA3
    | {"eos_token_id": [128001, 128008, 128009], "head_dim": 64, "hidden_size": 2048, "intermediate_size": 8192}
    | {"num_attention_heads": 32, "num_hidden_layers": 16, "tie_word_embeddings": True}
    | {"rope_scaling": {"factor": 32.0, "rope_type": "llama3", **STRETCHED}, "transformers_version": "4.45.0.dev0"},
    "Llama-3.1-8B": LLAMA3
    | {"eos_token_id": 128001, "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32}
    | {"num_hidden_layers": 32, "rope_scaling": {"factor": 8.0, "rope_type": "llama3", **STRETCHED}}
    | {"tie_word_embeddings": False},
    "TinyLlama-1.1B-Chat-v1.0": LLAMA
    | {"bos_token_id": 1, "eos_token_id": 2, "hidden_size": 2048, "intermediate_size": 5632, "vocab_size": 32000}
    | {"max_position_embeddings": 2048, "num_attention_heads": 32, "num_hidden_layers": 22, "num_key_value_heads": 4}
    | {"rope_scaling": None, "rope_theta": 10000.0, "tie_word_embeddings": False},
    "Mistral-7B-v0.1": MISTRAL | {"rope_theta": 10000.0, "sliding_window": 4096, "vocab_size": 32000},
    "Mistral-7B-Instruct-v0.3": MISTRAL | {"rope_theta": 1000000.0, "sliding_window": None, "vocab_size": 32768},
    "Qwen2-0.5B": QWEN2_SMALL
    | {"eos_token_id": 151643, "max_position_embeddings": 131072, "max_window_layers": 24, "sliding_window": 131072},
    "Qwen2.5-0.5B-Instruct": QWEN2_SMALL
    | {"eos_token_id": 151645, "max_position_embeddings": 32768, "max_window_layers": 21, "sliding_window": 32768},
    "Qwen2.5-7B": QWEN2
    | {"eos_token_id": 151643, "hidden_size": 3584, "intermediate_size": 18944, "max_position_embeddings": 131072}
    | {"max_window_layers": 28, "num_attention_heads": 28, "num_hidden_layers": 28, "num_key_value_heads": 4}
    | {"sliding_window": 131072, "tie_word_embeddings": False, "use_mrope": False, "vocab_size": 152064},
    "Qwen3-0.6B": QWEN3
    | {"hidden_size": 1024, "intermediate_size": 3072, "max_window_layers": 28, "num_attention_heads": 16}
    | {"num_hidden_layers": 28, "tie_word_embeddings": True},
    "Qwen3-8B": QWEN3
    | {"hidden_size": 4096, "intermediate_size": 12288, "max_window_layers": 36, "num_attention_heads": 32}
    | {"num_hidden_layers": 36, "tie_word_embeddings": False},
}

PARAMETERS = {
    "SmolLM2-135M-Instruct": 134_515_008,
    "SmolLM2-1.7B-Instruct": 1_711_376_384,
    "Llama-3.2-1B-Instruct": 1_235_814_400,
    "Llama-3.1-8B": 8_030_261_248,
    "TinyLlama-1.1B-Chat-v1.0": 1_100_048_384,
    "Mistral-7B-v0.1": 7_241_732_096,
    "Qwen2-0.5B": 494_032_768,
    "Qwen2.5-0.5B-Instruct": 494_032_768,
    "Qwen2.5-7B": 7_615_616_512,
    "Qwen3-0.6B": 596_049_920,
}
