"""Shapes of published decoders, and exact parameter counts from them. Needs no torch.

Each geometry is copied from the model's public `config.json`; `source` is its key in `docs/sources.yml`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Geometry:
    """One decoder's shape.

    `hidden // heads` need not be `head_dim`: `GEMMA_7B` and `QWEN3_0_6B` are counterexamples.
    """

    name: str
    layers: int
    hidden: int
    heads: int  # query heads
    kv_heads: int
    head_dim: int
    ffn: int  # width between the gate/up and the down projection
    vocabulary: int
    tied: bool  # the head reuses the embedding matrix
    source: str
    rope_theta: float = 10_000.0
    norm_epsilon: float = 1e-5
    qk_norm: bool = False  # one RMSNorm weight of head_dim each for queries and keys, per layer

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.name}: {self.heads} heads are no multiple of {self.kv_heads} kv_heads")

    @property
    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        """(out, in) of one layer's matrices, under the names that transformers uses."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "self_attn.q_proj": (queries, self.hidden),
            "self_attn.k_proj": (keys, self.hidden),
            "self_attn.v_proj": (keys, self.hidden),
            "self_attn.o_proj": (self.hidden, queries),
            "mlp.gate_proj": (self.ffn, self.hidden),
            "mlp.up_proj": (self.ffn, self.hidden),
            "mlp.down_proj": (self.hidden, self.ffn),
        }


@dataclass(frozen=True)
class Parameters:
    """Counts of parameters by part. A tied head counts none of its own."""

    embedding: int
    head: int
    linear: int  # all layers' matrices
    norms: int

    @property
    def total(self) -> int:
        """What model cards and `sum(p.numel())` report."""
        return self.embedding + self.head + self.linear + self.norms


def parameters(geometry: Geometry) -> Parameters:
    """Count the parameters of a bias-free Llama-style decoder exactly."""
    matrix = geometry.vocabulary * geometry.hidden
    layer_norms = 2 * geometry.hidden + (2 * geometry.head_dim if geometry.qk_norm else 0)
    return Parameters(
        embedding=matrix,
        head=0 if geometry.tied else matrix,
        linear=geometry.layers * sum(rows * columns for rows, columns in geometry.linear_shapes.values()),
        norms=geometry.layers * layer_norms + geometry.hidden,
    )


LLAMA_3_8B = Geometry(
    "Llama-3-8B", 32, 4096, 32, 8, 128, 14336, 128_256, False, "llama-3-8b-config", rope_theta=500_000.0
)
LLAMA_3_70B = Geometry(
    "Llama-3-70B", 80, 8192, 64, 8, 128, 28672, 128_256, False, "llama-3-70b-config", rope_theta=500_000.0
)
LLAMA_2_7B = Geometry("Llama-2-7B", 32, 4096, 32, 32, 128, 11008, 32_000, False, "llama-2-7b-config")
MISTRAL_7B = Geometry("Mistral-7B", 32, 4096, 32, 8, 128, 14336, 32_000, False, "mistral-7b-config")
GEMMA_7B = Geometry("Gemma-7B", 28, 3072, 16, 16, 256, 24576, 256_000, True, "gemma-7b-config", norm_epsilon=1e-6)
QWEN3_0_6B = Geometry(
    "Qwen3-0.6B", 28, 1024, 16, 8, 128, 3072, 151_936, True, "qwen3-0.6b-config",
    rope_theta=1_000_000.0, norm_epsilon=1e-6, qk_norm=True,
)  # fmt: skip
SMOLLM2_135M = Geometry(
    "SmolLM2-135M", 30, 576, 9, 3, 64, 1536, 49_152, True, "smollm2-135m-config", rope_theta=100_000.0
)
