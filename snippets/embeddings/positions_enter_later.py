"""Where does order come in?

Claim: the lookup knows nothing of order: permuted ids give permuted rows. A rotary model brings order in inside its
attention, without a parameter: queries and keys are turned by their position, so a score depends on the distance
alone, and the same text anywhere gives the same logits. Turn wrongly (not at all, in the other convention, by a
rounded position) and the same weights lose nats.

Run: python -m snippets.embeddings.positions_enter_later
Cost: `measured list` shows the seconds of each recording.
"""

from __future__ import annotations

# --8<-- [start:imports]
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from snippets.instruments.device import pick
from snippets.models import minilm, smollm2, texts
from snippets.models.decoder import Attention, Decoder, KVCache, rotate, rotation
from snippets.models.encoder import Encoder, encoder
from snippets.models.language_loss import paired_difference, unseen_windows
from snippets.models.shapes import SMOLLM2_135M, Geometry, parameters

# --8<-- [end:imports]

WORDS = {
    "moved": "all moved far on",
    "rounded": "moved far on, then rounded to BF16",
    "base": "a base ten times smaller",
    "none": "no rotation",
    "mixed": "the other convention",
}
Table = tuple[Tensor, Tensor]  # cosines and sines, (tokens, head_dim) each
CONTEXT = 8192  # positions that SmolLM2 was trained on
FAR = 4096  # an offset within them
GAPS = (64, 512, 4096, 12_288, 32_768)


# --8<-- [start:lookup]
def lookup_values(decoder: Decoder, ids: Tensor) -> dict[str, int]:
    """Rows looked up for ids (tokens,) in order, and in another order."""
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(0)).to(ids.device)
    rows, permuted = decoder.embed_tokens(ids), decoder.embed_tokens(ids[order])
    return {
        "text_count": len(ids),
        "permuted_equal_count": int((permuted == rows[order]).all(1).sum()),
        "distinct_ids_count": len(ids.unique()),
        "distinct_rows_count": len(rows.unique(dim=0)),
        "model_parameters_count": sum(p.numel() for p in [*decoder.parameters(), *decoder.buffers()]),
        "parts_parameters_count": parameters(decoder.geometry).total,
    }


# --8<-- [end:lookup]


def at(positions: Tensor, like: Tensor, geometry: Geometry = SMOLLM2_135M) -> Table:
    """The decoder's own cosines and sines, at any whole positions (tokens,)."""
    cos, sin = rotation(geometry, 0, int(positions.max()) + 1, like)
    return cos[positions], sin[positions]


def unturned(tokens: int, like: Tensor, geometry: Geometry = SMOLLM2_135M) -> Table:
    """Every token at position zero: no rotation at all."""
    return at(torch.zeros(tokens, dtype=torch.long, device=like.device), like, geometry)


# --8<-- [start:complex]
def turned(x: Tensor, positions: Tensor, theta: float = SMOLLM2_135M.rope_theta) -> Tensor:
    """The paper's form in FP64: a pair of features is a complex number, and its position turns it.

    x is (tokens, head_dim), pairs half-split; the result is complex, half as wide.
    """
    first, second = x.double().chunk(2, -1)
    pairs = torch.arange(first.shape[-1], dtype=torch.float64, device=x.device)
    angles = positions.double()[:, None] * theta ** (-pairs / len(pairs))
    return torch.complex(first, second) * torch.polar(torch.ones_like(angles), angles)


# --8<-- [end:complex]


def exact(positions: Tensor, like: Tensor, geometry: Geometry = SMOLLM2_135M) -> Table:
    """Cosines and sines of angles computed in FP64, rounded once."""
    one = torch.cat((torch.ones(geometry.head_dim // 2), torch.zeros(geometry.head_dim // 2))).to(like.device)
    turn = turned(one.expand(len(positions), -1), positions, geometry.rope_theta)
    return turn.real.repeat(1, 2).to(like.dtype), turn.imag.repeat(1, 2).to(like.dtype)


def coarse(positions: Tensor, like: Tensor, geometry: Geometry = SMOLLM2_135M) -> Table:
    """Right angles, but cosines and sines rounded to BF16."""
    cos, sin = at(positions, like, geometry)
    return cos.bfloat16().to(like.dtype), sin.bfloat16().to(like.dtype)


def score_values(pairs: int = 4096, device: torch.device | str = "cpu") -> dict[str, float]:
    """Random unit queries and keys, anywhere in the trained context, and both moved on by the same distance."""
    generator = torch.Generator().manual_seed(0)
    query, key = (F.normalize(torch.randn(pairs, 64, generator=generator), dim=1).to(device) for _ in range(2))
    m, n, shift = (torch.randint(CONTEXT // 2, (pairs,), generator=generator).to(device) for _ in range(3))

    def score(i: Tensor, j: Tensor) -> Tensor:
        return (rotate(query, *at(i, query)) * rotate(key, *at(j, key))).sum(-1)

    def complex_score(i: Tensor, j: Tensor) -> Tensor:
        return (turned(query, i) * turned(key, j).conj()).real.sum(-1)

    return {
        "norm_difference": float((rotate(query, *at(m, query)).norm(dim=1) / query.norm(dim=1) - 1).abs().max()),
        "shift_difference": float((score(m, n) - score(m + shift, n + shift)).abs().max()),
        "fp64_shift_difference": float((complex_score(m, n) - complex_score(m + shift, n + shift)).abs().max()),
        "complex_difference": float((score(m, n) - complex_score(m, n)).abs().max()),
    }


# --8<-- [start:schemes]
def sinusoid(positions: Tensor, width: int, base: float = 10_000.0) -> Tensor:
    """Vaswani et al.: sines and cosines of falling frequency, (tokens, width); no parameter, no last position."""
    pairs = torch.arange(0, width, 2, device=positions.device)
    angles = positions[:, None] * base ** (-pairs / width)
    return torch.stack((angles.sin(), angles.cos()), -1).flatten(-2)


def placed(scheme: str, words: Tensor, positions: Tensor, learned: Tensor) -> tuple[Tensor, Tensor]:
    """Word vectors (tokens, width) before and after their positions were brought in."""
    if scheme == "learned":
        return words, words + learned[positions]
    if scheme == "sinusoidal":
        words = words * words.shape[1] ** 0.5  # as the paper scales them
        return words, words + sinusoid(positions, words.shape[1])
    return words, rotate(words, *at(positions, words, replace(SMOLLM2_135M, head_dim=words.shape[1])))


# --8<-- [end:schemes]


def scheme_columns(model: Encoder, ids: Tensor, shift: int = 256) -> dict[str, list]:
    """The same word vectors under each scheme: what it does to norms, and to scores when all move by `shift`."""
    words, learned = model.embeddings.word_embeddings(ids), model.embeddings.position_embeddings.weight
    here = torch.arange(len(ids), device=ids.device)
    columns: dict[str, list] = {"scheme": [], "parameters_count": [], "norm_share": [], "moved_share": []}
    for scheme in ("learned", "sinusoidal", "rotary"):
        before, after = placed(scheme, words, here, learned)
        _, later = placed(scheme, words, here + shift, learned)
        scores, moved = after @ after.T, later @ later.T
        columns["scheme"].append(scheme)
        columns["parameters_count"].append(learned.numel() if scheme == "learned" else 0)
        columns["norm_share"].append(float((after.norm(dim=1) / before.norm(dim=1) - 1).abs().mean()))
        columns["moved_share"].append(float((moved - scores).norm() / scores.norm()))
    return columns


def scheme_values(columns: dict[str, list]) -> dict[str, float]:
    """The table's last column, by scheme."""
    return {f"{name}_moved_share": share for name, share in zip(columns["scheme"], columns["moved_share"], strict=True)}


def limit_values(model: Encoder, ids: Tensor) -> dict[str, int]:
    """A learned table's size, the longest text that fits, and vectors that one token enters with at two places."""
    table, longest = model.embeddings.position_embeddings.weight, 0
    for tokens in (1, len(table) - 1, len(table), len(table) + 1, 2 * len(table)):
        try:
            model.embeddings(ids[:1].expand(1, tokens))
        except RuntimeError:  # the table has no such row
            continue
        longest = tokens
    entering = model.embeddings(ids[:1].expand(1, 2))[0]
    return {
        "learned_rows_count": len(table),
        "learned_width_count": table.shape[1],
        "learned_parameters_count": table.numel(),
        "longest_tokens": longest,
        "added_distinct_count": len(entering.unique(dim=0)),
    }


# --8<-- [start:mask]
def attention(layer: Attention, x: Tensor, cos: Tensor, sin: Tensor, causal: bool) -> Tensor:
    """A layer's attention, (tokens, hidden) → the same, with its mask or without."""
    queries, keys, values = (
        project(x).unflatten(-1, (-1, layer.head_dim)).transpose(0, 1)[None]
        for project in (layer.q_proj, layer.k_proj, layer.v_proj)
    )  # (batch, heads or kv_heads, tokens, head_dim)
    queries, keys = rotate(queries, cos, sin), rotate(keys, cos, sin)
    mixed = F.scaled_dot_product_attention(queries, keys, values, is_causal=causal, enable_gqa=True)
    return layer.o_proj(mixed[0].transpose(0, 1).flatten(1))


def relative(one: Tensor, other: Tensor) -> float:
    """Norm of the difference over the norm of the other."""
    return float((one - other).double().norm() / other.double().norm())


@torch.inference_mode()
def mask_values(decoder: Decoder, ids: Tensor) -> dict[str, float]:
    """Does permuting the input only permute the output? First layer of the model, tokens of ids (tokens,).

    And with the mask alone: does the last token notice that those before it changed places, after one layer and two?
    """
    x = decoder.embed_tokens(ids)
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(1)).to(ids.device)
    tables = {"none": unturned(len(ids), x), "rotary": at(torch.arange(len(ids), device=ids.device), x)}
    layers: Any = decoder.layers
    found = {}
    for name, table in tables.items():
        for mask in ("open", "causal"):
            out, moved = (
                attention(layers[0].self_attn, layers[0].input_layernorm(y), *table, mask == "causal")
                for y in (x, x[order])
            )
            found[f"{name}_{mask}_difference"] = relative(moved, out[order])
    same_end = torch.cat((ids[:-1].flip(0), ids[-1:]))
    one, other = decoder.embed_tokens(torch.stack((ids, same_end)))[:, None]
    for layer, name in zip(layers[:2], ("one", "two"), strict=True):
        one, other = layer(one, *tables["none"]), layer(other, *tables["none"])
        found[f"{name}_layer_last_difference"] = relative(other[0, -1], one[0, -1])
    return found


# --8<-- [end:mask]


# --8<-- [start:logits]
@torch.inference_mode()
def logits_at(decoder: Decoder, ids: Tensor, cos: Tensor, sin: Tensor, cache: KVCache | None = None) -> Tensor:
    """The decoder's logits of ids (batch, tokens), turned by any table instead of its own."""
    x = decoder.embed_tokens(ids)
    for layer, block in enumerate(decoder.layers):
        x = block(x, cos, sin, cache, layer)
    return decoder.lm_head(decoder.norm(x))


# --8<-- [end:logits]


OFFSET_TABLES = {"fp64": exact, "fp32": at, "bf16": coarse}


def offset_columns(decoder: Decoder, ids: Tensor, offsets: tuple[int, ...]) -> dict[str, list]:
    """The same text, ids (batch, tokens), further on: how far its logits move, by what was rounded."""
    weight, here = decoder.embed_tokens.weight, torch.arange(ids.shape[1], device=ids.device)
    columns: dict[str, list] = {"offset_tokens": list(offsets)}
    for name, table in OFFSET_TABLES.items():
        plain = logits_at(decoder, ids, *table(here, weight, decoder.geometry))
        columns[f"{name}_difference"] = [
            relative(logits_at(decoder, ids, *table(here + offset, weight, decoder.geometry)), plain)
            for offset in offsets
        ]
    return columns


def offset_values(columns: dict[str, list]) -> dict[str, float]:
    """By what was rounded, the farthest that any offset within the trained context moved the logits."""
    inside = [i for i, offset in enumerate(columns["offset_tokens"]) if offset <= FAR]
    return {
        f"{name}_offset_difference": max(columns[f"{name}_difference"][i] for i in inside) for name in OFFSET_TABLES
    }


@torch.inference_mode()
def reuse_values(decoder: Decoder, ids: Tensor, moved: int = FAR) -> dict[str, float]:
    """The first half of ids (batch, tokens) is cached; the second is read `moved` positions later than it was.

    Against the logits in one piece: with the cached keys left as they are, and with them turned on by `moved`.
    """
    half, weight = ids.shape[1] // 2, decoder.embed_tokens.weight
    here = torch.arange(ids.shape[1], device=ids.device)
    whole = logits_at(decoder, ids, *at(here, weight, decoder.geometry))[:, half:]
    found = {}
    for name in ("left", "turned"):
        cache = KVCache(decoder.geometry, len(ids), ids.shape[1], weight.dtype, weight.device)
        decoder(ids[:, :half], cache)
        if name == "turned":
            cache.keys[..., :half, :] = rotate(cache.keys[..., :half, :], *rotation(decoder.geometry, moved, 1, weight))
        late = logits_at(decoder, ids[:, half:], *at(here[half:] + moved, weight, decoder.geometry), cache)
        found[f"{name}_reuse_difference"] = relative(late, whole)
    return found


# --8<-- [start:conventions]
def rotate_neighbours(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x (..., tokens, head_dim) in the other convention: a pair is two neighbouring features (interleaved)."""
    even, odd = x[..., 0::2], x[..., 1::2]
    cos, sin = (table[..., : even.shape[-1]] for table in (cos, sin))
    return torch.stack((even * cos - odd * sin, odd * cos + even * sin), -1).flatten(-2)


def neighbours(rows: Tensor, head_dim: int) -> Tensor:
    """Reorder rows (heads * head_dim, ...) of a query or key matrix so that pairs become neighbours."""
    return rows.unflatten(0, (-1, 2, head_dim // 2)).transpose(1, 2).flatten(0, 2)


# --8<-- [end:conventions]


@contextmanager
def interleaved(decoder: Decoder) -> Iterator[None]:
    """The decoder with query and key rows in interleaved order, as GGUF keeps them; put back afterwards."""
    linears = [getattr(b.self_attn, f"{name}_proj") for b in decoder.layers for name in ("q", "k")]
    kept = [linear.weight.data for linear in linears]
    try:
        for linear in linears:
            linear.weight.data = neighbours(linear.weight.data, decoder.geometry.head_dim)
        yield
    finally:
        for linear, weight in zip(linears, kept, strict=True):
            linear.weight.data = weight


def convention_values(tokens: int = 257) -> dict[str, int]:
    """Elements that differ when either convention turns vectors in its own order."""
    x = torch.randn(tokens, 64, generator=torch.Generator().manual_seed(2))
    table = at(torch.arange(tokens), x)
    theirs = rotate_neighbours(neighbours(x.T, 64).T, *table)
    return {
        "rotated_count": x.numel(),
        "conventions_equal_count": int((theirs == neighbours(rotate(x, *table).T, 64).T).sum()),
    }


def rounding_values(tokens: int = CONTEXT) -> dict[str, int]:
    """Whole positions below `tokens` that BF16 can tell apart, and the first that short floats get wrong."""
    positions = torch.arange(tokens)
    wrong = {dtype: positions[positions.to(dtype).long() != positions] for dtype in (torch.bfloat16, torch.float16)}
    return {
        "bf16_distinct_count": len(positions.to(torch.bfloat16).unique()),
        "bf16_first_wrong_count": int(wrong[torch.bfloat16][0]),
        "fp16_first_wrong_count": int(wrong[torch.float16][0]),
    }


def turn_values(geometry: Geometry = SMOLLM2_135M) -> dict[str, int]:
    """Pairs of a head, and those that turn around whole within the trained context."""
    pairs = torch.arange(geometry.head_dim // 2, dtype=torch.float64)
    wavelengths = 2 * torch.pi * geometry.rope_theta ** (pairs / len(pairs))  # tokens
    return {
        "context_tokens": CONTEXT,
        "far_tokens": FAR,
        "pairs_count": len(pairs),
        "whole_turn_pairs_count": int((wavelengths <= CONTEXT).sum()),
    }


def token_nats(decoder: Decoder, windows: Tensor, table: Table) -> Tensor:
    """Next-token loss (windows, tokens), FP64, of windows (windows, tokens) under a table of positions."""
    logits, targets = logits_at(decoder, windows[:, :-1], *table), windows[:, 1:]
    losses = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none")
    return losses.view(targets.shape).double().cpu()


# --8<-- [start:ways]
def tables(tokens: int, like: Tensor, gaps: tuple[int, ...] = ()) -> dict[str, Table]:
    """Positions as trained and as they go wrong; `gap_…` has the second half so many positions too far on."""
    here = torch.arange(tokens, device=like.device)
    return {
        "trained": at(here, like),
        "moved": at(here + FAR, like),
        "rounded": at((here + FAR).bfloat16().long(), like),
        "base": at(here, like, replace(SMOLLM2_135M, rope_theta=SMOLLM2_135M.rope_theta / 10)),
        "none": unturned(tokens, like),
        "mixed": at(here, like),
        **{f"gap_{gap}": at(here + gap * (here >= tokens // 2), like) for gap in gaps},
    }


# --8<-- [end:ways]


def losses(decoder: Decoder, windows: Tensor, gaps: tuple[int, ...]) -> dict[str, Tensor]:
    """Loss of every token under every table, and of the second half read alone: (windows, tokens) each."""
    weight, found = decoder.embed_tokens.weight, {}
    for name, table in tables(windows.shape[1] - 1, weight, gaps).items():
        with interleaved(decoder) if name == "mixed" else nullcontext():
            found[name] = token_nats(decoder, windows, table)
    late = windows[:, windows.shape[1] // 2 :]
    found["alone"] = token_nats(decoder, late, at(torch.arange(late.shape[1] - 1, device=weight.device), weight))
    return found


def added(losses: dict[str, Tensor], name: str) -> tuple[float, float]:
    """What a table adds to the loss, paired over windows, and its standard error; of a gap, behind it."""
    last = losses["alone"].shape[1] if name == "alone" or name.startswith("gap_") else losses[name].shape[1]
    return paired_difference(*(losses[n][:, -last:].mean(1) for n in (name, "trained")))


def loss_values(losses: dict[str, Tensor]) -> dict[str, float]:
    """Loss as trained, and what every other way adds."""
    found = {"trained_nats": float(losses["trained"].mean())}
    for name in losses.keys() - {"trained"}:
        found[f"{name}_added_nats"], found[f"{name}_error_nats"] = added(losses, name)
    return found


def way_columns(losses: dict[str, Tensor]) -> dict[str, list]:
    """The table of what goes wrong."""
    rows = [(words, *added(losses, name)) for name, words in WORDS.items()]
    return dict(zip(("positions", "added_nats", "error_nats"), map(list, zip(*rows, strict=True)), strict=True))


def gap_columns(losses: dict[str, Tensor]) -> dict[str, list]:
    """Added loss behind each gap, beside what it costs to have no first half at all."""
    columns: dict[str, list] = {"gap_tokens": [], "added_nats": [], "second_half": []}
    for name in losses:
        for shown, words in ((name, "behind a gap"), ("alone", "read alone")) if name.startswith("gap_") else ():
            columns["gap_tokens"].append(int(name.removeprefix("gap_")))
            columns["added_nats"].append(added(losses, shown)[0])
            columns["second_half"].append(words)
    return columns


def scale(small: bool) -> tuple[Tensor, tuple[int, ...], tuple[int, ...]]:
    """Windows to read, offsets to move them by, gaps to open in them."""
    if small:
        return unseen_windows(2, 49), (FAR,), GAPS
    return unseen_windows(4, 161), (256, FAR, 65_536), GAPS


def minilm_ids(tokens: int = 256) -> Tensor:
    """The same text in MiniLM's tokens."""
    tokenizer = minilm.tokenizer()
    tokenizer.no_truncation()
    return torch.tensor(tokenizer.encode(texts.address()).ids[:tokens])


def measure(*, small: bool = False, device: str | None = None, dtype: torch.dtype | None = None) -> dict[str, float]:
    """Every value of the page; `small` has shorter texts, fewer offsets and gaps."""
    target = pick(device)
    decoder, model = smollm2.decoder(torch.float32, target), encoder(device=target)
    windows, offsets, gaps = scale(small)
    windows, words = windows.to(target), minilm_ids().to(target)
    return {
        **lookup_values(decoder, windows[0]),
        **score_values(device=target),
        **turn_values(),
        **scheme_values(scheme_columns(model, words)),
        **limit_values(model, words),
        **mask_values(decoder, windows[0]),
        **offset_values(offset_columns(decoder, windows[:1], offsets)),
        **reuse_values(decoder, windows[:1]),
        **convention_values(),
        **rounding_values(),
        **loss_values(losses(decoder, windows, gaps)),
    }


def control(*, small: bool = True, device: str | None = None, dtype: torch.dtype | None = None) -> dict[str, float]:
    """Positions added instead of turned, keys left where they were, mask and rotation swapped, or nothing changed."""
    target = pick(device)
    decoder, model = smollm2.decoder(torch.float32, target), encoder(device=target)
    windows = scale(True)[0].to(target)
    text, same = windows[:1], losses(decoder, windows, ())["trained"]
    schemes, masks = scheme_columns(model, minilm_ids().to(target)), mask_values(decoder, text[0])
    reuse, added = reuse_values(decoder, text), schemes["scheme"].index("sinusoidal")
    moved = schemes["moved_share"][added]
    return {
        "norm_difference": schemes["norm_share"][added],
        "shift_difference": moved,
        "complex_difference": moved,
        "rotary_moved_share": moved,
        "none_open_difference": masks["rotary_open_difference"],
        "none_causal_difference": masks["none_open_difference"],
        "rotary_open_difference": masks["none_open_difference"],
        "one_layer_last_difference": masks["two_layer_last_difference"],
        "two_layer_last_difference": masks["one_layer_last_difference"],
        **{f"{name}_offset_difference": reuse["left_reuse_difference"] for name in OFFSET_TABLES},
        "turned_reuse_difference": reuse["left_reuse_difference"],
        "left_reuse_difference": reuse["turned_reuse_difference"],
        **loss_values(
            dict.fromkeys(("trained", *WORDS, *(f"gap_{gap}" for gap in GAPS)), same)
            | {"alone": same[:, same.shape[1] // 2 :]}
        ),
    }


if __name__ == "__main__":
    from measured.values import report

    report("embeddings/positions_enter_later", measure())
