"""What caps the KV cache, and what are attention sinks?

Claim: a ring of the last tokens holds window times bytes a token, whatever the length, and gives the same output as
full attention under a mask of that window. A model that was trained without a window needs its first tokens kept as
well: they draw most of the attention. Kept or not, what has left the window cannot be recalled.

Run: python -m snippets.kv_cache.sliding_window
Cost: `measured list` shows the seconds of each recording.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from snippets.instruments.device import pick
from snippets.instruments.memory import storage_bytes
from snippets.models import smollm2, trained
from snippets.models.decoder import Decoder, Device, KVCache, rotate, rotation
from snippets.models.language_loss import paired_difference, unseen_windows
from snippets.models.shapes import MISTRAL_7B, Geometry


@dataclass(frozen=True)
class Kept:
    """What a token may attend to: the last `window` tokens, itself among them, and the first `sinks`.

    `places` counts a key's position in the cache, as StreamingLLM does; otherwise it is that in the text.
    """

    window: int
    sinks: int = 0
    places: bool = False

    @property
    def tokens(self) -> int:
        """Tokens that a cache of it holds at most."""
        return self.window + self.sinks


WHOLE = Kept(1 << 30)
WORDS = {
    "whole": "everything",
    "plain": "a window of the last tokens",
    "sinks": "first four, and the last",
    "one": "first one, and the last",
    "text": "first four, and the last; positions of the text",
}


def ways(tokens: int) -> dict[str, Kept]:
    """What is compared: caches of one size, and one that keeps everything."""
    return {
        "whole": WHOLE,
        "plain": Kept(tokens),
        "sinks": Kept(tokens - 4, 4, places=True),
        "one": Kept(tokens - 1, 1, places=True),
        "text": Kept(tokens - 4, 4),
    }


# --8<-- [start:ring]
class RollingCache(KVCache):
    """The last `window` tokens in a ring, behind the first `sinks`: one token at a time, and never any larger.

    Attention does not care for the order of keys, whose positions are in their rotation: a slot can be overwritten.
    """

    def __init__(self, geometry: Geometry, batch: int, kept: Kept, dtype: torch.dtype, device: Device = "cpu") -> None:
        self.kept, self.seen, self.geometry = kept, 0, geometry
        super().__init__(geometry, batch, kept.tokens, dtype, device)

    @property
    def length(self) -> int:
        """Position that the decoder gives the next token: in the text, or in the cache once that is full."""
        return min(self.seen, self.kept.tokens - 1) if self.kept.places else self.seen

    @length.setter
    def length(self, value: int) -> None:
        self.seen += value - self.length  # the decoder adds to what it read

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Overwrite the oldest token of the ring; return what is held, in the order of the slots."""
        if keys.shape[2] != 1:
            raise ValueError(f"a ring takes one token at a time, not {keys.shape[2]}")
        sinks, window = self.kept.sinks, self.kept.window
        slot = self.seen if self.seen < sinks else sinks + (self.seen - sinks) % window
        if self.kept.places:  # a key's place changes whenever an older one leaves: store it without
            cos, sin = rotation(self.geometry, self.length, 1, keys)
            keys = rotate(keys, cos, -sin)
        self.keys[layer, :, :, slot : slot + 1], self.values[layer, :, :, slot : slot + 1] = keys, values
        held = min(self.seen + 1, self.kept.tokens)
        found = self.keys[layer, :, :, :held]
        if self.kept.places:
            cos, sin = rotation(self.geometry, 0, held, keys)
            places = torch.arange(held, device=keys.device)
            if self.seen >= self.kept.tokens:
                places[sinks:] = sinks + (places[sinks:] - slot - 1) % window  # the oldest stands behind the sinks
            found = rotate(found, cos[places], sin[places])
        return found, self.values[layer, :, :, :held]


# --8<-- [end:ring]


# --8<-- [start:masked]
def seen_mask(tokens: int, kept: Kept, device: Device = "cpu") -> Tensor:
    """Which tokens (columns) each token (row) may attend to: (tokens, tokens), boolean."""
    at = torch.arange(tokens, device=device)
    back = at[:, None] - at[None, :]
    return (back >= 0) & ((back < kept.window) | (at[None, :] < kept.sinks))


def masked_attention(geometry: Geometry, queries: Tensor, keys: Tensor, values: Tensor, kept: Kept) -> Tensor:
    """Attention of a whole text (batch, heads, tokens, head_dim) under the window's mask, from unrotated inputs."""
    tokens, head_dim = queries.shape[2:]
    cos, sin = rotation(geometry, 0, tokens, queries)
    keys, asking = rotate(keys, cos, sin), rotate(queries, cos, sin)
    # Towards a sink, a query stands at its place in the cache: a second copy of its features, for those keys alone.
    at = torch.arange(tokens, device=queries.device).clamp(max=kept.tokens - 1 if kept.places else tokens)
    towards = rotate(queries, cos[at], sin[at])
    sink = (torch.arange(tokens, device=queries.device) < kept.sinks)[:, None]
    doubled = torch.cat((keys.masked_fill(sink, 0), keys.masked_fill(~sink, 0)), -1)
    mixed = F.scaled_dot_product_attention(
        torch.cat((asking, towards), -1),
        doubled,
        F.pad(values, (0, head_dim)),
        attn_mask=seen_mask(tokens, kept, queries.device),
        scale=head_dim**-0.5,
        enable_gqa=True,
    )
    return mixed[..., :head_dim]


# --8<-- [end:masked]


@torch.inference_mode()
def masked_logits(decoder: Decoder, ids: Tensor, kept: Kept, shares: list[Tensor] | None = None) -> Tensor:
    """Logits (batch, tokens, vocabulary) of a whole text, every layer under the same window.

    `shares` collects, layer by layer, how much of the attention of the text's second half each token draws, (tokens,).
    """
    geometry, x = decoder.geometry, decoder.embed_tokens(ids)
    heads = (-1, geometry.head_dim)
    for block in decoder.layers:
        read = block.get_submodule("input_layernorm")(x)
        queries, keys, values = (
            block.get_submodule(f"self_attn.{part}_proj")(read).unflatten(-1, heads).transpose(1, 2) for part in "qkv"
        )
        if shares is not None:
            shares.append(attention_drawn(geometry, queries, keys))
        mixed = masked_attention(geometry, queries, keys, values, kept).transpose(1, 2).flatten(2)
        x = x + block.get_submodule("self_attn.o_proj")(mixed)
        x = x + block.get_submodule("mlp")(block.get_submodule("post_attention_layernorm")(x))
    return decoder.lm_head(decoder.norm(x))


def attention_drawn(geometry: Geometry, queries: Tensor, keys: Tensor) -> Tensor:
    """Share of the attention of the second half's queries that each token draws, mean over heads: (tokens,)."""
    tokens, head_dim = queries.shape[2:]
    cos, sin = rotation(geometry, 0, tokens, queries)
    keys = rotate(keys, cos, sin).repeat_interleave(geometry.heads // geometry.kv_heads, 1)
    scores = rotate(queries, cos, sin)[:, :, tokens // 2 :] @ keys.mT * head_dim**-0.5
    seen = seen_mask(tokens, WHOLE, queries.device)[tokens // 2 :]
    return scores.masked_fill(~seen, -torch.inf).softmax(-1).mean((0, 1, 2)).cpu()


def token_nats(decoder: Decoder, texts: Tensor, kept: Kept) -> Tensor:
    """FP64 loss of every predicted token of texts (count, tokens), each text's first token left out."""
    losses = [
        F.cross_entropy(masked_logits(decoder, text[None, :-1], kept)[0].float(), text[1:], reduction="none")
        for text in texts
    ]
    return torch.stack(losses).double().cpu()


def loss_values(losses: dict[str, Tensor], beyond: int) -> dict[str, float]:
    """What each way of keeping adds where the first token has left the window: mean over texts, paired error."""
    late = {name: loss[:, beyond:].mean(1) for name, loss in losses.items()}
    found = {"whole_late_nats": float(late["whole"].mean())}
    for name in losses:
        if name != "whole":
            found[f"{name}_added_nats"], found[f"{name}_error_nats"] = paired_difference(late[name], late["whole"])
    return found


def loss_columns(losses: dict[str, Tensor], bin_tokens: int = 64) -> dict[str, list]:
    """Mean loss by position, in bins."""
    columns: dict[str, list] = {"position_tokens": [], "loss_nats": [], "cache": []}
    for name, loss in losses.items():
        for start in range(0, loss.shape[1] - bin_tokens // 2, bin_tokens):
            columns["position_tokens"].append(start + bin_tokens // 2)
            columns["loss_nats"].append(float(loss[:, start : start + bin_tokens].mean()))
            columns["cache"].append(WORDS[name])
    return columns


def byte_values(geometry: Geometry = MISTRAL_7B, held: int = 64, window: int = 4096) -> dict[str, int]:
    """Bytes of a window in BF16 by formula, and the storage of a real ring."""
    token = 2 * geometry.layers * geometry.kv_heads * geometry.head_dim * torch.bfloat16.itemsize
    return {
        "token_bytes": token,
        "window_tokens": window,
        "window_bytes": window * token,
        "ring_tokens": held,
        "ring_storage_bytes": storage_bytes(RollingCache(geometry, 1, Kept(held), torch.bfloat16)),
    }


def ring_values(decoder: Decoder, ids: Tensor, kept: Kept) -> dict[str, float]:
    """A ring fed ids (batch, tokens) one by one: its bytes before and after, and its logits against the mask's.

    As long as nothing has left it, its logits are compared bit by bit with a plain cache's.
    """
    room = (decoder.embed_tokens.weight.dtype, decoder.embed_tokens.weight.device)
    found: dict[str, float] = {"read_tokens": ids.shape[1], "kept_tokens": kept.tokens}
    plain = one_by_one(decoder, ids[:, : kept.tokens], KVCache(decoder.geometry, 1, kept.tokens, *room))
    for name, way in (("text", replace(kept, places=False)), ("places", replace(kept, places=True))):
        ring = RollingCache(decoder.geometry, 1, way, *room)
        before = storage_bytes([ring.keys, ring.values])
        logits, masked = one_by_one(decoder, ids, ring), masked_logits(decoder, ids, way)
        found[f"{name}_ring_difference"] = float((logits - masked).norm() / masked.norm())
        found |= {"before_bytes": before, "after_bytes": storage_bytes([ring.keys, ring.values])}
        if not way.places:
            found["early_unequal_count"] = int((logits[:, : kept.tokens] != plain).sum())
    return found


@torch.inference_mode()
def one_by_one(decoder: Decoder, ids: Tensor, cache: KVCache) -> Tensor:
    """Logits (batch, tokens, vocabulary) of ids (batch, tokens), each token in a step of its own."""
    return torch.cat([decoder(ids[:, i : i + 1], cache) for i in range(ids.shape[1])], 1)


# --8<-- [start:recall]
def recall_values(decoder: Decoder, texts: Tensor, passage: int, kept: Kept, cue: int = 8) -> dict[str, float]:
    """Each text opens with a passage and ends with it again: how well is the copy foretold?

    Loss and share of exact first choices over the copy without its first tokens: a few are needed to tell which
    passage it is. `near` puts the copy where the window still reaches the passage.
    """
    told = torch.cat((texts, texts[:, :passage]), 1)
    near = torch.cat((texts[:, :passage], texts[:, : passage // 2], texts[:, :passage]), 1)
    found: dict[str, float] = {"passage_tokens": passage, "between_tokens": texts.shape[1] - passage}
    losses = {}
    for name, ids, way in (("whole", told, WHOLE), ("gone", told, kept), ("near", near, kept)):
        rows, right = [], 0.0
        for text in ids:
            logits, sought = masked_logits(decoder, text[None, :-1], way)[0, cue - passage :], text[cue - passage :]
            rows.append(F.cross_entropy(logits.float(), sought).double().cpu())
            right += float((logits.argmax(-1) == sought).double().mean())
        losses[name] = torch.stack(rows)
        found |= {f"{name}_recall_nats": float(losses[name].mean()), f"{name}_recall_share": right / len(ids)}
    found["forgotten_nats"], found["forgotten_error_nats"] = paired_difference(losses["gone"], losses["whole"])
    return found


# --8<-- [end:recall]


def share_columns(decoder: Decoder, ids: Tensor) -> dict[str, list]:
    """By layer: how much of the second half's attention the first token, and the three after it, draw."""
    shares: list[Tensor] = []
    masked_logits(decoder, ids, WHOLE, shares)
    return {
        "layer_count": list(range(len(shares))),
        "first_share": [float(share[0]) for share in shares],
        "next_share": [float(share[1:4].sum()) for share in shares],
    }


def share_values(columns: dict[str, list], tokens: int) -> dict[str, float]:
    """Mean over the layers, and what an even spread over the tokens seen would give the first one."""
    layers = len(columns["first_share"])
    even = sum(1 / (i + 1) for i in range(tokens // 2, tokens)) / (tokens - tokens // 2)
    return {
        "first_share": sum(columns["first_share"]) / layers,
        "next_share": sum(columns["next_share"]) / layers,
        "even_share": even,
        "most_share": max(columns["first_share"]),
    }


def young_values(seeds: Sequence[int] = trained.SEEDS, windows: int = 16) -> dict[str, float]:
    """Small decoders trained here, briefly, on texts of one length: does the first token matter to them as well?"""
    texts = trained.held_out_windows(windows, trained.LENGTH)
    added, shares = [], []
    for seed in seeds:
        decoder = trained.decoder("small", seed)
        losses = {
            name: token_nats(decoder, texts, kept)
            for name, kept in ways(36).items()
            if name in ("whole", "plain", "sinks")
        }
        found = loss_values(losses, beyond=36)
        added.append((found["plain_added_nats"], found["sinks_added_nats"]))
        shares.append(share_values(share_columns(decoder, texts[:4]), trained.LENGTH))
    plain, sinks = (sum(row) / len(added) for row in zip(*added, strict=True))
    return {
        "young_plain_added_nats": plain,
        "young_sinks_added_nats": sinks,
        "young_first_share": sum(share["first_share"] for share in shares) / len(shares),
        "young_even_share": shares[0]["even_share"],
    }


def scale(small: bool) -> tuple[Tensor, Tensor, int, int]:
    """Texts to read, texts to recall from, tokens a cache keeps, and tokens of a passage."""
    if small:
        return unseen_windows(2, 128), unseen_windows(2, 96), 48, 24
    return unseen_windows(4, 768), unseen_windows(3, 336), 260, 48


def measure(*, small: bool = False, device: str | None = None, dtype: torch.dtype | None = None) -> dict[str, float]:
    """Every value of the page; `small` has shorter texts and smaller windows."""
    target = pick(device)
    decoder = smollm2.decoder(torch.float32, target)
    texts, stories, kept, passage = scale(small)
    texts, stories = texts.to(target), stories.to(target)
    losses = {name: token_nats(decoder, texts, way) for name, way in ways(kept).items()}
    first = texts[:1, : 128 if small else 512]
    return {
        **byte_values(),
        **ring_values(decoder, texts[:1, : 16 if small else 40], Kept(4 if small else 12, 4)),
        **loss_values(losses, kept),
        **share_values(share_columns(decoder, first), first.shape[1]),
        **recall_values(decoder, stories, passage, ways(kept)["sinks"]),
        **young_values(trained.SEEDS[:1] if small else trained.SEEDS, 4 if small else 16),
    }


def control(*, small: bool = True, device: str | None = None, dtype: torch.dtype | None = None) -> dict[str, float]:
    """Nothing ever leaves the cache, whatever it is called; the ring is compared with a mask that hides nothing."""
    target = pick(device)
    decoder = smollm2.decoder(torch.float32, target)
    texts, stories, kept, passage = scale(True)
    texts, stories = texts.to(target), stories.to(target)
    losses = dict.fromkeys(ways(kept), token_nats(decoder, texts, WHOLE))
    ring = RollingCache(decoder.geometry, 1, Kept(4, 4), torch.float32, target)
    whole = masked_logits(decoder, texts[:1, :16], WHOLE)
    apart = float((one_by_one(decoder, texts[:1, :16], ring) - whole).norm() / whole.norm())
    even = share_values(share_columns(decoder, texts[:1, :128]), 128)["even_share"]
    return {
        **loss_values(losses, kept),
        **recall_values(decoder, stories, passage, WHOLE),
        "text_ring_difference": apart,
        "places_ring_difference": apart,
        "first_share": even,
        "young_plain_added_nats": 0.0,
    }


if __name__ == "__main__":
    from measured.values import report

    report("kv_cache/sliding_window", measure())
