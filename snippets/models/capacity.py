"""What fits on a card: weights, KV cache, activations and the runtime, in bytes. Needs no torch.

One function behind two pages and their calculators; `docs/assets/calculator.js` is its twin, and tests hold both
to the same answers and the same refusals. Every size is in bytes of *one* card; several cards share a model by tensor
parallelism, so that each holds the shape `shard` gives. Public cards and models are in `cards.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, NamedTuple

from snippets.models.shapes import Geometry, parameters

GIB, GB = 2**30, 10**9
LARGEST = 2**53 - 1  # JavaScript counts exactly up to here


class SettingError(ValueError):
    """A setting that nothing can be computed for; `name` is the field to mend."""

    def __init__(self, name: str, reason: str) -> None:
        self.name, self.reason = name, reason
        super().__init__(f"{name}: {reason}")


class CapacityError(MemoryError):
    """More is asked for than fits. Says by how much, and which settings would fit."""

    def __init__(self, message: str, short_bytes: int, remedies: list[Remedy]) -> None:
        self.short_bytes, self.remedies = short_bytes, remedies
        super().__init__(message)


class Scheme(NamedTuple):
    """How weights are stored. What is not quantized (norms; embedding and head unless `vocabulary`) stays BF16."""

    label: str
    bits: int
    scale_bytes: int = 0
    grouped: bool = False  # a scale for each group of a row; else one for the row
    vocabulary: bool = False  # embedding and head are quantized as well


class CacheFormat(NamedTuple):
    """How keys and values are stored: bytes of an element, bytes of the scale of a head and token."""

    label: str
    element_bytes: int
    scale_bytes: int = 0


SCHEMES = {
    "bf16": Scheme("BF16", 16),
    "int8": Scheme("INT8 rows", 8, 4),
    "int4": Scheme("INT4 groups", 4, 2, grouped=True),
    "int4_all": Scheme("INT4 groups, vocabulary too", 4, 2, grouped=True, vocabulary=True),
}
CACHES = {
    "bf16": CacheFormat("BF16", 2),
    "int8": CacheFormat("INT8 with scales", 1, 2),
    "fp8": CacheFormat("FP8", 1),
}


@dataclass(frozen=True)
class Setting:
    """What is asked for, checked when it is made.

    `step_tokens` are prompt tokens that one step computes (the prefill chunk); every user adds a decoding token to it.
    `runtime_bytes` stands for what no formula knows: driver context, graphs, libraries, fragments.

    Raises:
        SettingError: zero, negative, not a number, a fraction, heads that do not divide, a context beyond the model's.
    """

    geometry: Geometry
    card_bytes: int
    longest_tokens: int
    context_tokens: int = 8192
    users: int = 1
    cards: int = 1
    weights: str = "bf16"
    cache: str = "bf16"
    group: int = 128
    step_tokens: int = 2048
    runtime_bytes: int = GIB
    shard: Geometry = field(init=False, compare=False)  # what one card holds

    def __post_init__(self) -> None:
        _require_shape(asdict(self.geometry))
        for name in ("context_tokens", "longest_tokens", "users", "cards", "group", "step_tokens"):
            _require_whole(name, getattr(self, name), 1, 10**9)
        _require_whole("card_bytes", self.card_bytes, 1, LARGEST)
        _require_whole("runtime_bytes", self.runtime_bytes, 0, LARGEST)
        for name, known in (("weights", SCHEMES), ("cache", CACHES)):
            if getattr(self, name) not in known:
                raise SettingError(name, f"one of {', '.join(known)} is needed")
        if self.context_tokens > self.longest_tokens:
            raise SettingError("context_tokens", f"the model's longest context is {self.longest_tokens:,} tokens")
        object.__setattr__(self, "shard", shard(self.geometry, self.cards))
        if SCHEMES[self.weights].grouped:
            for _, columns in self.shard.linear_shapes.values():  # those of the vocabulary are among them
                if columns % self.group or columns % 2:
                    raise SettingError("group", f"{columns:,} columns of a matrix do not divide by {self.group:,}")


SHAPE = ("layers", "hidden", "heads", "kv_heads", "head_dim", "ffn", "vocabulary")


def _require_whole(name: str, value: object, least: int, most: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise SettingError(name, f"a whole number from {least:,} to {most:,} is needed")


def _require_shape(shape: Mapping[str, Any]) -> None:
    for name in SHAPE:
        _require_whole(name, shape.get(name), 1, 10**7)
    if shape["heads"] % shape["kv_heads"]:
        raise SettingError("kv_heads", f"{shape['heads']:,} heads do not divide by {shape['kv_heads']:,}")


def setting(record: Mapping[str, Any]) -> Setting:
    """A setting from plain numbers and names, as the calculators keep it: shape and setting in one mapping."""
    _require_shape(record)
    shape = {name: record[name] for name in SHAPE} | {name: record.get(name) is True for name in ("tied", "qk_norm")}
    geometry = Geometry(name=str(record.get("name", "")), source=str(record.get("source", "")), **shape)
    given = {f.name: record.get(f.name, f.default) for f in fields(Setting) if f.init and f.name != "geometry"}
    return Setting(geometry, **given)


# --8<-- [start:shard]
def shard(geometry: Geometry, cards: int) -> Geometry:
    """The shape that each of `cards` holds under tensor parallelism: heads, feed-forward and vocabulary divided.

    Raises:
        SettingError: the cards do not divide the heads, the key/value heads or the feed-forward width.
    """
    for name in ("heads", "kv_heads", "ffn"):
        if (count := getattr(geometry, name)) % cards:
            raise SettingError("cards", f"{count:,} {name} do not divide by {cards:,}")
    return replace(
        geometry,
        heads=geometry.heads // cards,
        kv_heads=geometry.kv_heads // cards,
        ffn=geometry.ffn // cards,
        vocabulary=-(-geometry.vocabulary // cards),
    )


# --8<-- [end:shard]


# --8<-- [start:weights]
def matrix_bytes(rows: int, columns: int, scheme: Scheme, group: int) -> int:
    """A matrix as stored: codes, and a scale for each row or for each group of a row."""
    scales = (columns // group if scheme.grouped else 1) if scheme.scale_bytes else 0
    return rows * (columns * scheme.bits // 8 + scales * scheme.scale_bytes)


def weights_bytes(geometry: Geometry, weights: str = "bf16", group: int = 128) -> int:
    """All weights of a decoder: matrices of the layers, embedding, head unless tied, norms."""
    scheme, bf16 = SCHEMES[weights], SCHEMES["bf16"]
    linear = sum(matrix_bytes(*shape, scheme, group) for shape in geometry.linear_shapes.values())
    vocabulary = matrix_bytes(geometry.vocabulary, geometry.hidden, scheme if scheme.vocabulary else bf16, group)
    norms = 2 * parameters(geometry).norms
    return geometry.layers * linear + vocabulary * (1 if geometry.tied else 2) + norms


# --8<-- [end:weights]


# --8<-- [start:rest]
def token_bytes(geometry: Geometry, cache: str = "bf16") -> int:
    """What a token of one sequence adds to the KV cache: a key and a value in every layer and key/value head."""
    stored = CACHES[cache]
    return 2 * geometry.layers * geometry.kv_heads * (geometry.head_dim * stored.element_bytes + stored.scale_bytes)


def row_bytes(geometry: Geometry, element_bytes: int = 2) -> int:
    """Activations of one token of a step, at the widest moment of a layer.

    Alive then: the layer's input, the residual and the normed input of the feed-forward part; its gate, its up
    projection and their product; the token's cosines and sines. Attention is fused, so no scores are stored.
    """
    return element_bytes * (3 * geometry.hidden + 3 * geometry.ffn + 2 * geometry.head_dim)


def logits_bytes(geometry: Geometry) -> int:
    """Logits of one user's last position, in BF16 and again in FP32 for the sampler; gathered, so never divided."""
    return (2 + 4) * geometry.vocabulary


# --8<-- [end:rest]


# --8<-- [start:budget]
@dataclass(frozen=True)
class Budget:
    """Where the bytes of one card go. `left_bytes` are for users: all of the card but weights, runtime and one step."""

    card_bytes: int
    weights_bytes: int
    runtime_bytes: int
    activations_bytes: int
    cache_bytes: int
    token_bytes: int
    needed_bytes: int
    short_bytes: int  # how much is missing; zero where it fits
    left_bytes: int  # below zero where not even the weights fit
    user_bytes: int  # what one user of this context takes
    most_users: int
    left_tokens: int  # tokens that the users together can hold
    crossing_tokens: int  # from here on the cache is larger than the weights

    @property
    def fits(self) -> bool:
        """All that is asked for has room."""
        return self.short_bytes == 0


def budget(asked: Setting) -> Budget:
    """Count what a setting takes of a card.

    Raises:
        SettingError: the sum is beyond exact counting.
    """
    held, users = asked.shard, asked.users
    weights = weights_bytes(held, asked.weights, asked.group)
    token, row = token_bytes(held, asked.cache), row_bytes(held)
    per_user = row + logits_bytes(asked.geometry)
    fixed = weights + asked.runtime_bytes + asked.step_tokens * row
    cache = users * asked.context_tokens * token
    needed = fixed + users * per_user + cache
    if needed > LARGEST:
        raise SettingError("users", "the sum is beyond what can be counted exactly")
    left = asked.card_bytes - fixed
    user = asked.context_tokens * token + per_user
    return Budget(
        card_bytes=asked.card_bytes,
        weights_bytes=weights,
        runtime_bytes=asked.runtime_bytes,
        activations_bytes=asked.step_tokens * row + users * per_user,
        cache_bytes=cache,
        token_bytes=token,
        needed_bytes=needed,
        short_bytes=max(0, needed - asked.card_bytes),
        left_bytes=left,
        user_bytes=user,
        most_users=max(0, left // user),
        left_tokens=max(0, (left - users * per_user) // token),
        crossing_tokens=weights // token + 1,
    )


# --8<-- [end:budget]


class Remedy(NamedTuple):
    """A change that would make the setting fit."""

    label: str
    change: dict[str, Any]


def remedies(asked: Setting) -> list[Remedy]:
    """Single changes that would fit, each checked: fewer users, less context, a smaller cache, weights, more cards."""
    now = budget(asked)
    each = now.left_bytes // asked.users - (now.user_bytes - asked.context_tokens * now.token_bytes)
    shorter = min(asked.context_tokens, each // now.token_bytes)
    wanted = [
        [Remedy(f"{now.most_users:,} {_plural('user', now.most_users)}", {"users": now.most_users})],
        [Remedy(f"a context of {shorter:,} {_plural('token', shorter)}", {"context_tokens": shorter})],
        [Remedy(f"a cache in {CACHES[name].label}", {"cache": name}) for name in ("int8", "fp8")],
        [Remedy(f"weights in {SCHEMES[name].label}", {"weights": name}) for name in ("int8", "int4", "int4_all")],
        [Remedy(f"{asked.cards * n:,} cards", {"cards": asked.cards * n}) for n in (2, 4, 8)],
    ]
    return [found for kind in wanted if (found := next(filter(lambda r: _fits(asked, r), kind), None))]


def _fits(asked: Setting, remedy: Remedy) -> bool:
    try:
        return budget(replace(asked, **remedy.change)).fits
    except SettingError:  # a group that does not divide, heads that cannot be shared out
        return False


# --8<-- [start:admit]
def admit(asked: Setting) -> Budget:
    """The budget of a setting that fits; called before anything is allocated.

    Raises:
        CapacityError: it does not fit; says by how much, and what would.
    """
    found = budget(asked)
    if found.fits:
        return found
    would = remedies(asked)
    wanted = f"{asked.users:,} {_plural('user', asked.users)} of {asked.context_tokens:,} tokens"
    helps = f"It would fit with {' or '.join(r.label for r in would)}." if would else "No single change would fit."
    raise CapacityError(
        f"{wanted} need {size(found.needed_bytes)} a card, and a card has {size(found.card_bytes)}: "
        f"{size(found.short_bytes)} too much. {helps}",
        found.short_bytes,
        would,
    )


# --8<-- [end:admit]


def _plural(noun: str, count: int) -> str:
    return noun if count == 1 else f"{noun}s"


def size(count: int) -> str:
    """Bytes in both units, apart: GiB as tools report them, GB as models are quoted; few bytes as they are."""
    if count < 10**7:
        return f"{count:,} bytes"
    return f"{_hundredths(count, GIB)} GiB ({_hundredths(count, GB)} GB)"


def _hundredths(count: int, unit: int) -> str:
    whole, part = divmod((count * 100 + unit // 2) // unit, 100)
    return f"{whole:,}.{part:02d}"
