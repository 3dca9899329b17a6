"""A KV cache of INT8 or INT4 codes with their scales, in the shape that `Decoder` asks of a cache.

Values get one scale a head and token. Keys get that too, or one a channel and block of tokens, with the unfinished
block kept as it came (KIVI, arXiv:2402.02750). `append` returns everything so far, dequantized: in plain PyTorch
that is a copy of the whole cache in every step. A fused kernel reads the codes instead: `attend_fused`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from snippets.models.decoder import Decoder, Device, KVCache, attend, rotate, rotation
from snippets.models.quantized import pack_int4, unpack_int4
from snippets.models.shapes import Geometry

SCALE_DTYPE = torch.float16  # finer than BF16, and no key comes near the end of its range


@dataclass(frozen=True)
class CacheScheme:
    """How a cache rounds: `bits` a code (8 or 4), and what shares a scale.

    `keys_per` is "token" or "channel": then `block` tokens of a channel share it. `zero_point` stores the middle of
    each range beside its scale; without, ranges lie around zero. `before_rotation` stores keys without their position.
    """

    bits: int = 8
    keys_per: str = "token"
    zero_point: bool = False
    before_rotation: bool = False
    block: int = 64

    def __post_init__(self) -> None:
        if self.bits not in (4, 8) or self.keys_per not in ("token", "channel") or self.block < 1:
            raise ValueError(f"codes have 8 or 4 bits, and keys share a scale per token or channel: {self}")


def token_bytes(geometry: Geometry, scheme: CacheScheme) -> float:
    """Bytes a token of codes and scales in all layers, without the unfinished block of keys."""
    codes = geometry.head_dim * scheme.bits / 8
    shared = SCALE_DTYPE.itemsize * (2 if scheme.zero_point else 1)  # a scale, and the middle
    of_keys = shared if scheme.keys_per == "token" else shared * geometry.head_dim / scheme.block
    return geometry.layers * geometry.kv_heads * (2 * codes + shared + of_keys)


# --8<-- [start:rounding]
def encode(x: Tensor, bits: int, dim: int, zero_point: bool) -> tuple[Tensor, Tensor, Tensor]:
    """(codes int8 like x, scale, middle) with one scale and middle along `dim`, which they keep with size one."""
    low, high = x.amin(dim, keepdim=True), x.amax(dim, keepdim=True)
    largest = 2 ** (bits - 1) - 1
    middle = (low + high) / 2 if zero_point else torch.zeros_like(low)
    reach = (high - low) / 2 if zero_point else torch.maximum(high, -low)
    scale, middle = (reach / largest).to(SCALE_DTYPE), middle.to(SCALE_DTYPE)
    # A code must answer for the rounding of its scale as well, so divide by the stored one.
    step = scale.float()
    codes = torch.where(step > 0, (x.float() - middle.float()) / step, 0.0).round().clamp(-largest, largest)
    return codes.to(torch.int8), scale, middle


def decode(codes: Tensor, scale: Tensor, middle: Tensor | None, dtype: torch.dtype) -> Tensor:
    """What the codes stand for."""
    values = codes.to(dtype) * scale.to(dtype)
    return values if middle is None else values + middle.to(dtype)


# --8<-- [end:rounding]


class _Part:
    """Codes, scales, middles of all layers' keys, or values: (layers, batch, kv_heads, tokens, ...)."""

    def __init__(self, shape: tuple[int, ...], scheme: CacheScheme, block: int | None, device: Device) -> None:
        self.bits, self.block, self.zero_point = scheme.bits, block, scheme.zero_point
        *outer, tokens, head_dim = shape
        width, dtype = (head_dim, torch.int8) if scheme.bits == 8 else (head_dim // 2, torch.uint8)
        shared = (tokens, 1) if block is None else (tokens // block, head_dim)
        self.codes = torch.zeros(*outer, tokens, width, dtype=dtype, device=device)
        self.scale = torch.zeros(*outer, *shared, dtype=SCALE_DTYPE, device=device)
        self.middle = torch.zeros_like(self.scale) if scheme.zero_point else None

    def tensors(self) -> list[Tensor]:
        return [tensor for tensor in (self.codes, self.scale, self.middle) if tensor is not None]

    def write(self, layer: int, start: int, x: Tensor) -> None:
        """Round x (batch, kv_heads, new, head_dim) into the tokens from `start`: whole blocks of them, if any."""
        end, block = start + x.shape[2], self.block
        if block is None:
            codes, scale, middle = encode(x, self.bits, -1, self.zero_point)
            rows = slice(start, end)
        else:
            codes, scale, middle = encode(x.unflatten(2, (-1, block)), self.bits, 3, self.zero_point)
            codes, scale, middle = codes.flatten(2, 3), scale.squeeze(3), middle.squeeze(3)
            rows = slice(start // block, end // block)
        self.codes[layer, :, :, start:end] = codes if self.bits == 8 else _packed(codes)
        self.scale[layer, :, :, rows] = scale
        if self.middle is not None:
            self.middle[layer, :, :, rows] = middle

    def read(self, layer: int, end: int, dtype: torch.dtype) -> Tensor:
        """The first `end` tokens, dequantized: (batch, kv_heads, end, head_dim)."""
        codes = self.codes[layer, :, :, :end]
        codes = codes if self.bits == 8 else _unpacked(codes)
        rows = end if self.block is None else end // self.block
        scale = self.scale[layer, :, :, :rows]
        middle = None if self.middle is None else self.middle[layer, :, :, :rows]
        if self.block is None:
            return decode(codes, scale, middle, dtype)
        middle = None if middle is None else middle.unsqueeze(3)
        return decode(codes.unflatten(2, (-1, self.block)), scale.unsqueeze(3), middle, dtype).flatten(2, 3)


def _packed(codes: Tensor) -> Tensor:
    return pack_int4(codes.flatten(0, -2)).view(*codes.shape[:-1], codes.shape[-1] // 2)


def _unpacked(packed: Tensor) -> Tensor:
    return unpack_int4(packed.flatten(0, -2)).view(*packed.shape[:-1], packed.shape[-1] * 2)


class QuantizedCache(KVCache):
    """A `KVCache` that holds codes; `dtype` is that of the keys and values that go in and come out.

    Raises:
        ValueError: INT4 of an odd head_dim, whose codes cannot be paired.
    """

    def __init__(
        self,
        geometry: Geometry,
        batch: int,
        tokens: int,
        dtype: torch.dtype,
        device: Device = "cpu",
        scheme: CacheScheme | None = None,
    ) -> None:
        scheme = scheme or CacheScheme()
        if scheme.bits == 4 and geometry.head_dim % 2:
            raise ValueError(f"head_dim {geometry.head_dim} is odd: codes are packed two to a byte")
        self.geometry, self.scheme, self.dtype, self.length = geometry, scheme, dtype, 0
        block = scheme.block if scheme.keys_per == "channel" else None
        room = -(-tokens // (block or 1)) * (block or 1)
        outer = (geometry.layers, batch, geometry.kv_heads)
        self.key_part = _Part((*outer, room, geometry.head_dim), scheme, block, device)
        self.value_part = _Part((*outer, room, geometry.head_dim), scheme, None, device)
        # Keys of the unfinished block: their channels' ranges are not known yet.
        self.recent = torch.zeros(*outer, block or 0, geometry.head_dim, dtype=dtype, device=device)

    @property
    def tokens(self) -> int:
        """Tokens that it has room for, a sequence: whole blocks."""
        return self.value_part.codes.shape[3]

    @property
    def nbytes(self) -> int:
        """Bytes allocated, filled or not: codes, scales, and the unfinished block."""
        parts = [*self.key_part.tensors(), *self.value_part.tensors(), self.recent]
        return sum(tensor.nbytes for tensor in parts)

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Round (batch, kv_heads, new, head_dim) into codes; return all so far, dequantized, the newest included.

        Raises:
            ValueError: no room for the new tokens.
        """
        start, end = self.length, self.length + keys.shape[2]
        if end > self.tokens:
            raise ValueError(f"{end} tokens do not fit into a cache of {self.tokens}")
        if self.scheme.before_rotation:
            keys = self._rotated(keys, start, -1.0)  # the decoder hands them over rotated
        self.value_part.write(layer, start, values)
        found = self._store_keys(layer, start, end, keys)
        if self.scheme.before_rotation:
            found = self._rotated(found, 0, 1.0)
        return found, self.value_part.read(layer, end, self.dtype)

    def _store_keys(self, layer: int, start: int, end: int, keys: Tensor) -> Tensor:
        block = self.key_part.block
        if block is None:
            self.key_part.write(layer, start, keys)
            return self.key_part.read(layer, end, self.dtype)
        begun, whole = start // block * block, end // block * block
        waiting = torch.cat((self.recent[layer, :, :, : start - begun], keys), dim=2)
        if whole > begun:
            self.key_part.write(layer, begun, waiting[:, :, : whole - begun])
            waiting = waiting[:, :, whole - begun :]
        self.recent[layer, :, :, : end - whole] = waiting
        return torch.cat((self.key_part.read(layer, whole, self.dtype), waiting), dim=2)

    def _rotated(self, keys: Tensor, start: int, direction: float) -> Tensor:
        cos, sin = rotation(self.geometry, start, keys.shape[2], keys)
        return rotate(keys, cos, sin * direction)


@torch.inference_mode()
def generate_into(decoder: Decoder, ids: Tensor, new_tokens: int, cache: KVCache) -> Tensor:
    """Greedy continuation (batch, new_tokens) of ids (batch, tokens), through an empty cache of any kind."""
    fresh, written = ids, []
    for _ in range(new_tokens):
        fresh = decoder(fresh, cache, last_only=True)[:, -1].argmax(-1, keepdim=True)
        written.append(fresh)
    return torch.cat(written, dim=1)


def attend_dequantized(queries: Tensor, cache: QuantizedCache, layer: int = 0) -> Tensor:
    """Decode attention in plain PyTorch: dequantize everything, then attend. Queries (batch, heads, 1, head_dim)."""
    keys = cache.key_part.read(layer, cache.length, queries.dtype)
    return attend(queries, keys, cache.value_part.read(layer, cache.length, queries.dtype))


def attend_fused(queries: Tensor, cache: QuantizedCache, layer: int = 0) -> Tensor:
    """The same by a Triton kernel that reads INT8 codes and never writes what they stand for.

    Raises:
        ValueError: the cache is not INT8 with one scale a head and token, stored as it is attended to.
    """
    if cache.scheme != CacheScheme(8, block=cache.scheme.block):
        raise ValueError(f"the kernel reads plain INT8 with a scale a head and token, not {cache.scheme}")
    from snippets.models.kernels import attend_int8  # imports triton, which not every machine has

    keys, values, end = cache.key_part, cache.value_part, cache.length
    return attend_int8(
        queries,
        (keys.codes[layer, :, :, :end], keys.scale[layer, :, :, :end, 0]),
        (values.codes[layer, :, :, :end], values.scale[layer, :, :, :end, 0]),
    )
