"""How much of the model is the embedding matrix, and what does tying save?

Claim: vocabulary times hidden, at one end or at both. It grows with the hidden size while layers grow with its square,
so it is most of a small model and little of a large one. A step looks up one row and multiplies by the whole matrix;
the logits of a long prompt outweigh the matrix unless only the last position's are computed.

Run: python -m snippets.embeddings.matrix_share
Cost: `measured list` shows the seconds of each recording.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from snippets.instruments import clock
from snippets.instruments.datasheets import gpu_peak
from snippets.instruments.device import pick
from snippets.instruments.memory import allocated_by, peak_allocated_by, storage_bytes
from snippets.instruments.roofline import LAUNCH_SECONDS, predict_seconds
from snippets.models import shapes, smollm2, texts
from snippets.models.decoder import Decoder
from snippets.models.quantized import quantize_groups_int4
from snippets.models.shapes import LLAMA_3_8B, Geometry

# isort: split
from measured.values import report


# --8<-- [start:shapes]
@dataclass(frozen=True)
class Shares:
    """A model's parameters: one matrix of (vocabulary, hidden), at both ends the same or not, and the body between."""

    name: str
    vocabulary: int
    hidden: int
    tied: bool
    body: int
    looked_up: int = 0  # of the body: learned positions, of which a step reads a row

    @property
    def matrix(self) -> int:
        return self.vocabulary * self.hidden

    @property
    def total(self) -> int:
        return self.body + self.matrix * (1 if self.tied else 2)

    @property
    def read_at_decode(self) -> int:
        """Weights that one step reads: all but the tables that it takes a row of."""
        return self.body - self.looked_up + self.matrix


def llama_style(geometry: Geometry, more_norms: int = 0) -> Shares:
    """From a geometry; `more_norms` of hidden size in each layer beside the usual pair."""
    parts = shapes.parameters(geometry)
    body = parts.linear + parts.norms + more_norms * geometry.layers * geometry.hidden
    return Shares(geometry.name, geometry.vocabulary, geometry.hidden, geometry.tied, body)


def gpt2_small() -> Shares:
    """Learned positions, and biases everywhere: (positions, hidden), then layers, then the last norm."""
    hidden, layers, positions = 768, 12, 1024
    layer = 12 * hidden**2 + 13 * hidden  # products: 3 + 1 + 4 + 4; biases 3 + 1 + 4 + 1; norms 2 + 2
    body = positions * hidden + layers * layer + 2 * hidden
    return Shares("GPT-2 small", 50_257, hidden, True, body, looked_up=positions * hidden)


# --8<-- [end:shapes]

GEMMA_3_270M = Geometry(
    "Gemma-3-270M", 18, 640, 4, 1, 256, 2048, 262_144, True, "gemma-3-270m-config", norm_epsilon=1e-6, qk_norm=True
)
LLAMA_3_2_1B = Geometry(
    "Llama-3.2-1B", 16, 2048, 32, 8, 64, 8192, 128_256, True, "llama-3.2-1b-config", rope_theta=500_000.0
)


def public() -> list[Shares]:
    """Public models from small to large."""
    return [
        gpt2_small(),
        llama_style(shapes.SMOLLM2_135M),
        llama_style(GEMMA_3_270M, more_norms=2),
        llama_style(shapes.QWEN3_0_6B),
        llama_style(LLAMA_3_2_1B),
        llama_style(shapes.LLAMA_2_7B),
        llama_style(LLAMA_3_8B),
        llama_style(shapes.GEMMA_7B),
        llama_style(shapes.LLAMA_3_70B),
    ]


def public_columns(element_bytes: int = 2) -> dict[str, list]:
    """Each model's matrix, its share at one end and of what a decode step reads, and what tying saves or would."""
    models = public()
    return {
        "model": [m.name for m in models],
        "tied": ["tied" if m.tied else "two matrices" for m in models],
        "total_count": [m.total for m in models],
        "matrix_count": [m.matrix for m in models],
        "matrix_share": [m.matrix / m.total for m in models],
        "read_share": [m.matrix / m.read_at_decode for m in models],
        "saved_bytes": [m.matrix * element_bytes for m in models],
        "saved_share": [m.matrix / (m.body + 2 * m.matrix) for m in models],
    }


def public_values() -> dict[str, int]:
    """The counts that claims name."""
    names = {"GPT-2 small": "gpt2", "Gemma-3-270M": "gemma", "Llama-3-8B": "llama"}
    found = {short: m for m in public() if (short := names.get(m.name))}
    return {
        **{f"{short}_matrix_count": m.matrix for short, m in found.items()},
        **{f"{short}_total_count": m.total for short, m in found.items()},
        "llama_row_bytes": 2 * LLAMA_3_8B.hidden,
        "llama_layer_count": sum(rows * columns for rows, columns in LLAMA_3_8B.linear_shapes.values()),
        "llama_read_count": found["llama"].read_at_decode,
    }


# --8<-- [start:parts]
def part_values(model: Decoder) -> dict[str, int]:
    """A real model's parameters by part, each tensor once; the formula's total; and a sum over the state dict."""
    named = dict(model.named_parameters())  # PyTorch lists a shared parameter once
    embedding = named.pop("embed_tokens.weight").numel()
    return {
        "embedding_count": embedding,
        "total_count": embedding + sum(p.numel() for p in named.values()),
        "formula_count": shapes.parameters(model.geometry).total,
        "state_dict_count": sum(tensor.numel() for tensor in model.state_dict().values()),
    }


def tie_values(model: Decoder) -> dict[str, int]:
    """Whether the ends are one storage, what the model weighs, and what it weighs loaded from both of their names."""
    with torch.device("meta"):
        loose = Decoder(model.geometry)  # tied, as it is built
    loose.load_state_dict({name: tensor.clone() for name, tensor in model.state_dict().items()}, assign=True)
    return {
        "tied_offset_bytes": abs(model.lm_head.weight.data_ptr() - model.embed_tokens.weight.data_ptr()),
        "matrix_bytes": model.embed_tokens.weight.nbytes,
        "model_bytes": storage_bytes(model),
        "untied_bytes": storage_bytes(loose),
    }


# --8<-- [end:parts]


# --8<-- [start:logits]
def logits_values(model: Decoder, tokens: int, last: int = -1) -> dict[str, float]:
    """Bytes of the logits that a prefill leaves, of all positions and of the last, and whether that one is the same."""
    ids = smollm2.encode(texts.address(), model.embed_tokens.weight.device)[:, :tokens]
    with torch.inference_mode():
        every, every_bytes = allocated_by(lambda: model(ids), device=ids.device)
        one, one_bytes = allocated_by(lambda: model(ids, last_only=True), device=ids.device)
    same = every[:, last]
    return {
        "prompt_tokens": ids.shape[1],
        "every_logits_bytes": every_bytes,
        "last_logits_bytes": one_bytes,
        "last_logits_difference": float((one[:, -1] - same).norm() / same.norm()),
    }


# --8<-- [end:logits]


LONG_TOKENS = 8192


def long_columns(tokens: int = LONG_TOKENS) -> dict[str, list]:
    """Logits of a long prompt beside the model's BF16 weights: in BF16, and in FP32, to which many stacks convert."""
    chosen = [m for m in public() if m.name in ("Gemma-3-270M", "Llama-3.2-1B", "Llama-3-8B", "Gemma-7B")]
    return {
        "model": [m.name for m in chosen],
        "weights_bytes": [2 * m.total for m in chosen],
        "short_logits_bytes": [2 * tokens * m.vocabulary for m in chosen],
        "full_logits_bytes": [4 * tokens * m.vocabulary for m in chosen],
        "last_bytes": [4 * m.vocabulary for m in chosen],
    }


# --8<-- [start:loss]
def chunked_loss(hidden: Tensor, matrix: Tensor, targets: Tensor, chunk: int) -> tuple[float, Tensor]:
    """Mean cross-entropy and its gradient for `hidden` (tokens, hidden), a chunk of positions at a time."""
    total, gradients = 0.0, torch.empty_like(hidden)
    for start in range(0, len(hidden), chunk):
        part = hidden[start : start + chunk].detach().requires_grad_()
        loss = F.cross_entropy(part @ matrix.T, targets[start : start + chunk], reduction="sum") / len(hidden)
        gradients[start : start + chunk] = torch.autograd.grad(loss, part)[0]
        total += float(loss.detach())
    return total, gradients


# --8<-- [end:loss]


def loss_values(matrix: Tensor, tokens: int, chunk: int, scored: int | None = None) -> dict[str, float]:
    """Peak bytes and result of the loss over all positions at once and in chunks; hidden states are rows of text."""
    ids = smollm2.encode(texts.address(), matrix.device)[0, : tokens + 1]
    hidden, targets = matrix[ids[:-1]] * 3, ids[1:]
    whole, whole_peak = peak_allocated_by(lambda: chunked_loss(hidden, matrix, targets, tokens), device=matrix.device)
    kept = slice(0, scored)
    part, part_peak = peak_allocated_by(
        lambda: chunked_loss(hidden[kept], matrix, targets[kept], chunk), device=matrix.device
    )
    return {
        "loss_tokens": tokens,
        "whole_peak_ratio": whole_peak / (tokens * matrix.shape[0] * matrix.element_size()),
        "peak_saved_ratio": whole_peak / part_peak,
        "chunked_loss_difference": abs(whole[0] - part[0]) / whole[0],
    }


# --8<-- [start:time]
def timed_values(
    device: torch.device, rounds: int, rows: int = 32, geometry: Geometry = LLAMA_3_8B
) -> dict[str, float]:
    """The head against one layer's products at one row, and against itself at many. Constant weights: speed only."""
    clock.fix_allocator()
    matrix = torch.full((geometry.vocabulary, geometry.hidden), 0.01, dtype=torch.bfloat16, device=device)
    layer = [torch.full(s, 0.01, dtype=torch.bfloat16, device=device) for s in geometry.linear_shapes.values()]
    inputs = {w.shape[1]: torch.ones(1, w.shape[1], dtype=w.dtype, device=device) for w in layer}
    one, many = (torch.ones(n, geometry.hidden, dtype=matrix.dtype, device=device) for n in (1, rows))
    calls: dict[str, Callable[[], object]] = {
        "head": lambda: F.linear(one, matrix),
        "layer": lambda: [F.linear(inputs[w.shape[1]], w) for w in layer],
        "many": lambda: F.linear(many, matrix),
    }
    with torch.inference_mode():
        timed = clock.interleave(calls, device=device, rounds=rounds)
    clock.refuse_beyond_peak(timed.seconds("head"), bytes=matrix.nbytes, device=device, dtype=matrix.dtype)
    return {
        "head_over_layer_ratio": timed.ratio("head", "layer"),
        "amortised_ratio": rows * timed.ratio("head", "many"),
        "head_seconds": timed.seconds("head"),
        "many_rows_count": rows,
    }


# --8<-- [end:time]


def predicted_values() -> dict[str, float]:
    """An H100's least time for Llama-3-8B's head and for a whole step at one row, from declared peaks."""
    peak = gpu_peak("H100 SXM", "bfloat16")
    assert peak is not None
    llama = llama_style(LLAMA_3_8B)

    def seconds(weights: int, launches: int) -> float:
        return predict_seconds(flops=2 * weights, bytes=2 * weights, peak=peak, launches=launches)

    return {
        "h100_head_seconds": seconds(llama.matrix, 1),
        "h100_step_seconds": seconds(llama.read_at_decode, 7 * LLAMA_3_8B.layers + 1),
        "h100_launch_seconds": LAUNCH_SECONDS,
    }


def quantized_values(model: Decoder, group: int = 64) -> dict[str, int]:
    """What the linears weigh in INT4 beside a BF16 embedding: really packed for one layer, by formula for all."""
    weights = [p for p in model.layers[0].parameters() if p.ndim == 2]
    packed = sum(quantize_groups_int4(weight, group).nbytes for weight in weights)
    linear = sum(p.numel() for p in model.layers.parameters() if p.ndim == 2)
    return {
        "packed_linear_bytes": packed * len(model.layers),
        "packed_formula_bytes": linear // 2 + 2 * linear // group,
    }


# --8<-- [start:parallel]
def parallel_values(matrix: Tensor, ids: Tensor, ranks: int) -> dict[str, int]:
    """The vocabulary's rows divided: a rank looks up its own ids, zeros else, and scores its own rows."""
    slices = matrix.chunk(ranks)
    found, winners, first = torch.zeros(len(ids), matrix.shape[1]), [], 0
    for part in slices:
        mine = (ids >= first) & (ids < first + len(part))
        found += torch.where(mine.unsqueeze(1), part[(ids - first).clamp(0, len(part) - 1)], 0.0)  # the all-reduce
        best = (matrix[ids] @ part.T).max(1)
        winners.append((best.values, best.indices + first))  # two numbers a token travel, not the logits
        first += len(part)
    scores, places = (torch.stack(column) for column in zip(*winners, strict=True))
    greedy = places.gather(0, scores.argmax(0, keepdim=True))[0]
    return {
        "rank_rows_count": len(slices[0]),
        "rank_lookup_differing_count": int((found != matrix[ids]).sum()),
        "rank_greedy_differing_count": int((greedy != (matrix[ids] @ matrix.T).argmax(1)).sum()),
    }


# --8<-- [end:parallel]


def measure(*, small: bool = False, device: str | None = None, dtype: torch.dtype | None = None) -> dict[str, float]:
    """Every value of the page; `small` takes a shorter prompt and fewer rounds."""
    target = pick(device)
    model = smollm2.decoder(torch.float32, target)
    matrix = model.embed_tokens.weight
    ids = smollm2.encode(texts.address(), target)[0, :64]
    return {
        **public_values(),
        "long_tokens": LONG_TOKENS,
        **part_values(model),
        **tie_values(smollm2.decoder(dtype or torch.bfloat16, target)),
        **logits_values(model, 64 if small else 256),
        **loss_values(matrix, 128 if small else 512, 16 if small else 64),
        **timed_values(target, rounds=6 if small else 21),
        **predicted_values(),
        **quantized_values(model),
        **parallel_values(matrix, ids, 8),
    }


def control(*, small: bool = True, device: str | None = None, dtype: torch.dtype | None = None) -> dict[str, float]:
    """Another position's logits, one chunk of half the text, and a head as large as a layer, one row at a time."""
    target = pick(device)
    model = smollm2.decoder(torch.float32, target)
    peak = loss_values(model.embed_tokens.weight, 128, 128, scored=64)
    hidden = LLAMA_3_8B.hidden
    layer = sum(rows * columns for rows, columns in LLAMA_3_8B.linear_shapes.values())
    as_layer = Geometry(**{**LLAMA_3_8B.__dict__, "vocabulary": layer // hidden})
    return {
        "last_logits_difference": logits_values(model, 64, last=0)["last_logits_difference"],
        "peak_saved_ratio": peak["peak_saved_ratio"],
        "chunked_loss_difference": peak["chunked_loss_difference"],
        **timed_values(target, rounds=6, rows=1, geometry=as_layer),
    }


if __name__ == "__main__":
    report("embeddings/matrix_share", measure())
