// Written by `python -m snippets.models.cards`; a test holds it equal to the Python.
globalThis.measuredCapacity = {
  "models": {
    "llama-3-8b": {"name": "Llama-3-8B", "layers": 32, "hidden": 4096, "heads": 32, "kv_heads": 8, "head_dim": 128, "ffn": 14336, "vocabulary": 128256, "tied": false, "qk_norm": false, "longest_tokens": 8192},
    "llama-3.1-8b": {"name": "Llama-3.1-8B", "layers": 32, "hidden": 4096, "heads": 32, "kv_heads": 8, "head_dim": 128, "ffn": 14336, "vocabulary": 128256, "tied": false, "qk_norm": false, "longest_tokens": 131072},
    "llama-3-70b": {"name": "Llama-3-70B", "layers": 80, "hidden": 8192, "heads": 64, "kv_heads": 8, "head_dim": 128, "ffn": 28672, "vocabulary": 128256, "tied": false, "qk_norm": false, "longest_tokens": 8192},
    "llama-3.1-405b": {"name": "Llama-3.1-405B", "layers": 126, "hidden": 16384, "heads": 128, "kv_heads": 8, "head_dim": 128, "ffn": 53248, "vocabulary": 128256, "tied": false, "qk_norm": false, "longest_tokens": 131072},
    "llama-2-7b": {"name": "Llama-2-7B", "layers": 32, "hidden": 4096, "heads": 32, "kv_heads": 32, "head_dim": 128, "ffn": 11008, "vocabulary": 32000, "tied": false, "qk_norm": false, "longest_tokens": 4096},
    "mistral-7b": {"name": "Mistral-7B", "layers": 32, "hidden": 4096, "heads": 32, "kv_heads": 8, "head_dim": 128, "ffn": 14336, "vocabulary": 32000, "tied": false, "qk_norm": false, "longest_tokens": 32768},
    "gemma-7b": {"name": "Gemma-7B", "layers": 28, "hidden": 3072, "heads": 16, "kv_heads": 16, "head_dim": 256, "ffn": 24576, "vocabulary": 256000, "tied": true, "qk_norm": false, "longest_tokens": 8192},
    "qwen3-0.6b": {"name": "Qwen3-0.6B", "layers": 28, "hidden": 1024, "heads": 16, "kv_heads": 8, "head_dim": 128, "ffn": 3072, "vocabulary": 151936, "tied": true, "qk_norm": true, "longest_tokens": 40960},
    "smollm2-135m": {"name": "SmolLM2-135M", "layers": 30, "hidden": 576, "heads": 9, "kv_heads": 3, "head_dim": 64, "ffn": 1536, "vocabulary": 49152, "tied": true, "qk_norm": false, "longest_tokens": 8192}
  },
  "cards": {
    "8": {"label": "8 GB (RTX 3070)", "card_bytes": 8353711390},
    "16": {"label": "16 GB (T4)", "card_bytes": 15837691904},
    "24": {"label": "24 GB (RTX 4090)", "card_bytes": 25383256719},
    "32": {"label": "32 GB (RTX 5090)", "card_bytes": 33683281018},
    "40": {"label": "40 GB (A100)", "card_bytes": 42412802048},
    "48": {"label": "48 GB (L40S)", "card_bytes": 47695611822},
    "80": {"label": "80 GB (H100)", "card_bytes": 85061827297}
  },
  "schemes": {
    "bf16": {"label": "BF16", "bits": 16, "scale_bytes": 0, "grouped": false, "vocabulary": false},
    "int8": {"label": "INT8 rows", "bits": 8, "scale_bytes": 4, "grouped": false, "vocabulary": false},
    "int4": {"label": "INT4 groups", "bits": 4, "scale_bytes": 2, "grouped": true, "vocabulary": false},
    "int4_all": {"label": "INT4 groups, vocabulary too", "bits": 4, "scale_bytes": 2, "grouped": true, "vocabulary": true}
  },
  "caches": {
    "bf16": {"label": "BF16", "element_bytes": 2, "scale_bytes": 0},
    "int8": {"label": "INT8 with scales", "element_bytes": 1, "scale_bytes": 2},
    "fp8": {"label": "FP8", "element_bytes": 1, "scale_bytes": 0}
  },
  "defaults": {
    "context_tokens": 8192,
    "users": 1,
    "cards": 1,
    "weights": "bf16",
    "cache": "bf16",
    "group": 128,
    "step_tokens": 2048,
    "runtime_bytes": 1073741824
  }
}
