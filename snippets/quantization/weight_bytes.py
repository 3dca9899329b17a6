"""How does quantization affect memory?

Claim: a weight takes its code's bits and its share of a scale; what is not quantized (embedding, head, norms) keeps
its bytes. So a model shrinks by less than the ratio of the bits, and a small model by far less.

Run: python -m snippets.quantization.weight_bytes
Cost: `measured list` shows the seconds of each recording.
"""

from __future__ import annotations

# --8<-- [start:imports]
import re
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from snippets.instruments import memory
from snippets.instruments.device import pick
from snippets.models import minilm, smollm2
from snippets.models.decoder import KVCache
from snippets.models.quantized import QuantizedWeight, quantize_groups_int4, quantize_rows_int8
from snippets.models.shapes import LLAMA_3_8B, LLAMA_3_70B, SMOLLM2_135M, Geometry

# --8<-- [end:imports]


# --8<-- [start:formula]
class Format(NamedTuple):
    """How a weight is stored: bits of a code, bytes of a scale, columns that share one (None: a whole row)."""

    bits: int
    scale_bytes: int = 0
    group: int | None = None


Plan = Mapping[str, Format | torch.dtype]  # a weight's name → how it is stored
INT8 = Format(bits=8, scale_bytes=4)  # an FP32 scale for each row


def int4(group: int) -> Format:
    """INT4 with a BF16 scale for each group of a row."""
    return Format(bits=4, scale_bytes=2, group=group)


def formula_bytes(shape: Iterable[int], stored_as: Format | torch.dtype) -> int:
    """Bytes of a weight (rows, columns), or (columns): its codes, and a scale for each group of a row."""
    *rows, columns = shape
    if isinstance(stored_as, torch.dtype):
        return prod(rows) * columns * stored_as.itemsize
    scales = columns // (stored_as.group or columns)
    return prod(rows) * (columns * stored_as.bits // 8 + scales * stored_as.scale_bytes)


# --8<-- [end:formula]


# --8<-- [start:ways]
Weights = Mapping[str, Tensor | QuantizedWeight]


def stored(weight: Tensor, stored_as: Format | torch.dtype) -> Tensor | QuantizedWeight:
    """The weight as it lies in memory."""
    if isinstance(stored_as, torch.dtype):
        return weight.to(stored_as)
    return quantize_groups_int4(weight, stored_as.group) if stored_as.group else quantize_rows_int8(weight)


def tensors(weights: Weights) -> dict[str, Tensor]:
    """Every tensor behind the weights, under a name of its own: codes and scales are apart."""
    parts: dict[str, Tensor] = {}
    for name, weight in weights.items():
        if isinstance(weight, QuantizedWeight):
            parts |= {f"{name}.packed": weight.packed, f"{name}.scale": weight.scale}
        else:
            parts[name] = weight
    return parts


def file_bytes(weights: Weights) -> int:
    """Bytes of the weights in a safetensors file, less its header."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "weights.safetensors"
        save_file(tensors(weights), path)
        return memory.safetensors_payload_bytes(path)


def count(state: Mapping[str, Tensor], plan: Plan, weights: Weights) -> dict[str, int]:
    """Bytes of the weights, stored as `plan` says, counted in ways that know nothing of each other."""
    return {
        "formula": sum(formula_bytes(state[name].shape, stored_as) for name, stored_as in plan.items()),
        "storage": sum(weight.nbytes for weight in weights.values()),
    }


# --8<-- [end:ways]


def shapes_only(geometry: Geometry) -> dict[str, Tensor]:
    """A decoder's tensors on PyTorch's meta device: shapes and dtypes, no memory."""
    matrix, norm = (geometry.vocabulary, geometry.hidden), (geometry.hidden,)
    shapes: dict[str, tuple[int, ...]] = {"embed_tokens": matrix, "norm": norm}
    if not geometry.tied:
        shapes["lm_head"] = matrix
    for layer in range(geometry.layers):
        shapes |= {f"layers.{layer}.{name}": shape for name, shape in geometry.linear_shapes.items()}
        shapes |= {f"layers.{layer}.{name}": norm for name in ("input_layernorm", "post_attention_layernorm")}
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def linear_layers(state: Mapping[str, Tensor]) -> list[str]:
    """Names of the matrices inside the blocks: no embedding, no head, no pooler."""
    return [name for name, w in state.items() if w.ndim == 2 and re.search(r"\blayers?\.\d", name)]


def plans(state: Mapping[str, Tensor], stored_as: Format | torch.dtype, kept: torch.dtype) -> dict[str, Plan]:
    """What is counted: linear layers alone; them in the model, the rest `kept`; every matrix of the model."""
    layers = dict.fromkeys(linear_layers(state), stored_as)
    matrices = {name: stored_as for name, w in state.items() if w.ndim == 2}
    rest: dict[str, Format | torch.dtype] = dict.fromkeys(state, kept)
    return {"linear": layers, "kept": rest | layers, "all": rest | matrices}


# --8<-- [start:models]
GROUPS = {"minilm": 128, "smollm2": 64, "llama": 128}


def real_models(device: torch.device) -> dict[str, dict[str, Tensor]]:
    """Real weights, FP32: MiniLM's as published, SmolLM2's dequantized from Q4_1."""
    states = {"minilm": minilm.load_state(), "smollm2": smollm2.load_state()}
    return {model: {name: w.to(device) for name, w in state.items()} for model, state in states.items()}


def model_bytes(model: str, state: Mapping[str, Tensor], formats: Plan) -> dict[str, int]:
    """Bytes by format and plan, the separate counts of the INT4 model, and how far any counts lie apart."""
    values = {
        f"{model}_weights_count": sum(w.numel() for w in state.values()),
        f"{model}_linear_weights_count": sum(state[name].numel() for name in linear_layers(state)),
    }
    plain, apart = {name: w.to(torch.bfloat16) for name, w in state.items()}, 0
    for name, stored_as in formats.items():
        coded = {weight: stored(w, stored_as) for weight, w in state.items() if w.ndim == 2}
        for plan, chosen in plans(state, stored_as, kept=torch.bfloat16).items():
            weights = {w: coded.get(w, plain[w]) if how == stored_as else plain[w] for w, how in chosen.items()}
            ways = count(state, chosen, weights)
            if plan == "kept" and not any(w.is_meta for w in plain.values()):  # shapes alone make no file
                ways["file"] = file_bytes(weights)
            apart = max(apart, max(ways.values()) - min(ways.values()))
            values[f"{model}_{name}_{plan}_bytes"] = ways["storage"]
            if (name, plan) == ("int4", "kept"):
                values |= {f"{model}_int4_{way}_bytes": found for way, found in ways.items()}
    return values | {f"{model}_apart_bytes": apart}


def formats(model: str) -> dict[str, Format | torch.dtype]:
    """The formats compared, BF16 first: it is what is served."""
    return {"bf16": torch.bfloat16, "int8": INT8, "int4": int4(GROUPS[model])}


# --8<-- [end:models]


def table_columns(values: Mapping[str, float]) -> dict[str, list]:
    """Rows of the table: each model in each format, in bytes and against BF16."""
    models = {"minilm": "MiniLM", "smollm2": "SmolLM2-135M", "llama": "Llama-3-8B"}
    labels = {"bf16": "BF16", "int8": "INT8 rows", "int4": "INT4 groups"}
    rows = [(model, name) for model in models for name in labels]
    columns: dict[str, list] = {"model": [models[m] for m, _ in rows], "format": [labels[f] for _, f in rows]}
    for plan in ("linear", "kept", "all"):
        found = [values[f"{m}_{f}_{plan}_bytes"] for m, f in rows]
        columns[f"{plan}_bytes"] = found
        columns[f"{plan}_ratio"] = [b / values[f"{m}_bf16_{plan}_bytes"] for b, (m, _) in zip(found, rows, strict=True)]
    return columns


def share_values(values: Mapping[str, float], fp32: Mapping[str, Tensor]) -> dict[str, float]:
    """How much smaller, and the share saved: from BF16, which is served, and from FP32, which is quoted."""
    linear_fp32_bytes = sum(fp32[name].nbytes for name in linear_layers(fp32))
    return {
        "llama_int4_smaller_ratio": values["llama_bf16_kept_bytes"] / values["llama_int4_kept_bytes"],
        "llama_int4_saved_share": 1 - values["llama_int4_kept_bytes"] / values["llama_bf16_kept_bytes"],
        "llama_int8_saved_share": 1 - values["llama_int8_kept_bytes"] / values["llama_bf16_kept_bytes"],
        "minilm_int4_saved_share": 1 - values["minilm_int4_kept_bytes"] / values["minilm_bf16_kept_bytes"],
        "int8_saved_fp32_share": 1 - values["minilm_int8_linear_bytes"] / linear_fp32_bytes,
    }


def group_columns(weight: Tensor) -> dict[str, list]:
    """One real matrix in INT4, its scales further and further apart, at last one for a row."""
    groups = [16, 32, 64, 128, 256, weight.shape[1]]
    coded = [quantize_groups_int4(weight, group) for group in groups]
    return {
        "group_count": groups,
        "layer_bytes": [w.nbytes for w in coded],
        "weight_bits": [8 * w.nbytes / weight.numel() for w in coded],
        "zero_point_bits": [(8 * w.nbytes + 4 * w.scale.numel()) / weight.numel() for w in coded],
        "scale_share": [w.scale.nbytes / w.nbytes for w in coded],
    }


def group_values(weight: Tensor) -> dict[str, int]:
    """Bits of the whole matrix with the closest scales and with the usual ones."""
    bits = {group: 8 * stored(weight, int4(group)).nbytes for group in (16, 128)}
    return {"layer_weights_count": weight.numel(), "layer_g16_bits": bits[16], "layer_g128_bits": bits[128]}


def row_bytes(weight: Tensor, stored_as: Format) -> int:
    """Bytes of one row, its columns filled up with zeros to whole groups where they are not."""
    missing = -weight.shape[1] % (stored_as.group or 1)
    return stored(torch.nn.functional.pad(weight[:1], (0, missing)), stored_as).nbytes


def width_values(states: Mapping[str, Mapping[str, Tensor]]) -> dict[str, int]:
    """Which layers a group of the usual size does not divide, and what a row costs there."""
    widths = {model: [state[name].shape[1] for name in linear_layers(state)] for model, state in states.items()}
    chosen = [width % GROUPS[model] for model, found in widths.items() for width in found]
    narrow = states["smollm2"]["model.layers.0.self_attn.q_proj.weight"]
    wide = states["llama"]["layers.0.self_attn.q_proj"]
    return {
        "smollm2_matrices_count": len(widths["smollm2"]),
        "smollm2_g128_indivisible_count": sum(width % 128 != 0 for width in widths["smollm2"]),
        "chosen_indivisible_count": sum(rest != 0 for rest in chosen),
        "narrow_columns_count": narrow.shape[1],
        "narrow_padded_bytes": row_bytes(narrow, int4(128)),
        "narrow_g64_bytes": row_bytes(narrow, int4(64)),
        "narrow_int8_bytes": row_bytes(narrow, INT8),
        "wide_columns_count": wide.shape[1],
        "wide_int8_bytes": row_bytes(wide, INT8),
    }


def beside_values(weight: Tensor) -> dict[str, int]:
    """What does not shrink: a token's KV cache, and a layer that is made BF16 again before its product."""
    coded = quantize_groups_int4(weight)
    return {
        "llama_kv_token_bytes": KVCache(LLAMA_3_8B, 1, 1, torch.bfloat16, "meta").nbytes,
        "layer_stored_bytes": coded.nbytes,
        "layer_again_bytes": coded.dequantize(torch.bfloat16).nbytes,
        "layer_bf16_bytes": weight.to(torch.bfloat16).nbytes,
    }


def held_bytes(state: Mapping[str, Tensor], plan: Plan) -> int:
    """What the allocator holds for the weights in `plan`: a block for every tensor, each rounded up."""
    weights = {name: stored(state[name], stored_as) for name, stored_as in plan.items()}
    return sum(memory.usable_bytes(part) for part in tensors(weights).values())


# --8<-- [start:codes]
def code_values(weight: Tensor) -> dict[str, int]:
    """What a real matrix turns into: how many different codes, how many scales, how many bytes."""
    rows, groups = quantize_rows_int8(weight), quantize_groups_int4(weight)
    return {
        "matrix_weights_count": weight.numel(),
        "matrix_bf16_bytes": weight.to(torch.bfloat16).nbytes,
        "int8_codes_count": rows.codes().unique().numel(),
        "int8_scales_count": rows.scale.numel(),
        "int8_matrix_bytes": rows.nbytes,
        "int4_codes_count": groups.codes().unique().numel(),
        "int4_scales_count": groups.scale.numel(),
        "int4_matrix_bytes": groups.nbytes,
    }


# --8<-- [end:codes]


def size_columns() -> dict[str, list]:
    """Decoders from small to large: how much of each is linear layers, and what INT4 makes of the whole."""
    columns: dict[str, list] = {"model": [], "linear_share": [], "bf16_bytes": [], "int4_bytes": [], "int4_ratio": []}
    for geometry, group in ((SMOLLM2_135M, 64), (LLAMA_3_8B, 128), (LLAMA_3_70B, 128)):
        state = shapes_only(geometry)
        found = {}
        for name, stored_as in (("bf16", torch.bfloat16), ("int4", int4(group))):
            plan = plans(state, stored_as, kept=torch.bfloat16)["kept"]
            found[name] = sum(formula_bytes(state[weight].shape, plan[weight]) for weight in plan)
        linear = sum(state[name].numel() for name in linear_layers(state))
        row = (geometry.name, 2 * linear / found["bf16"], found["bf16"], found["int4"], found["int4"] / found["bf16"])
        for column, value in zip(columns.values(), row, strict=True):
            column.append(value)
    return columns


def measure(*, small: bool = False, device: str | None = None, dtype: torch.dtype | None = None) -> dict[str, float]:
    """Every value of the page; `small` leaves SmolLM2 one layer. `dtype` must be BF16, which the page counts from."""
    return _measure(small, device, dtype, quantize=True)


def control(*, small: bool = True, device: str | None = None, dtype: torch.dtype | None = None) -> dict[str, float]:
    """No quantization: every weight stays in BF16."""
    values = _measure(small, device, dtype, quantize=False)
    bf16_bits = 8 * values["layer_bf16_bytes"]
    row = {f"{which}_int8_bytes": 2 * values[f"{which}_columns_count"] for which in ("narrow", "wide")}
    return values | row | {"layer_g16_bits": bf16_bits, "layer_g128_bits": bf16_bits}


def _measure(small: bool, device: str | None, dtype: torch.dtype | None, quantize: bool) -> dict[str, float]:
    if dtype not in (None, torch.bfloat16):
        raise ValueError(f"the reference is BF16, not {dtype}")
    states = real_models(pick(device)) | {"llama": shapes_only(LLAMA_3_8B)}
    if small:
        states["smollm2"] = {n: w for n, w in states["smollm2"].items() if re.search(r"layers\.0\.|embed|s\.norm", n)}
    values: dict[str, float] = {}
    for model, state in states.items():
        chosen = formats(model) if quantize else dict.fromkeys(formats(model), torch.bfloat16)
        values |= model_bytes(model, state, chosen)
    matrix = states["minilm"]["encoder.layer.0.output.dense.weight"]
    int4_plan = plans(states["minilm"], formats("minilm")["int4"], torch.bfloat16)["kept"]
    return {
        **values,
        **share_values(values, states["minilm"]),
        **group_values(matrix),
        **width_values(states),
        **beside_values(matrix),
        "minilm_int4_held_bytes": held_bytes(states["minilm"], int4_plan),
    }


if __name__ == "__main__":
    from measured.values import report

    report("quantization/weight_bytes", measure())
