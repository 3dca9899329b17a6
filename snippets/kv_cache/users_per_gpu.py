"""How many users fit on one GPU?

Claim: the bytes that weights, runtime and one step leave, divided by what a user's context takes. A server that knows
this refuses a cache too large before it allocates any of it, and can say what would fit instead.

Run: python -m snippets.kv_cache.users_per_gpu
Cost: `measured list` shows the seconds of each recording.
"""

from __future__ import annotations

# --8<-- [start:imports]
from dataclasses import replace

import torch

from snippets.instruments.memory import allocated_by, peak_allocated_by, storage_bytes
from snippets.models import smollm2
from snippets.models.capacity import GB, GIB, Budget, CapacityError, Setting, admit, budget, remedies
from snippets.models.cards import MODELS, on_card
from snippets.models.decoder import KVCache

# --8<-- [end:imports]


# --8<-- [start:board]
def board_values() -> dict[str, int]:
    """The whiteboard: Llama-3-8B in BF16 on one card of the largest kind."""
    found = budget(on_card("llama-3-8b", "80"))
    return {
        "card_bytes": found.card_bytes,
        "weights_bytes": found.weights_bytes,
        "left_bytes": found.left_bytes,
        "context_tokens": 8192,
        "kv_token_bytes": found.token_bytes,
        "user_bytes": found.user_bytes,
        "users_count": found.most_users,
        "left_tokens": found.left_tokens,
        "crossing_tokens": found.crossing_tokens,
        "int4_crossing_tokens": budget(on_card("llama-3-8b", "80", weights="int4")).crossing_tokens,
    }


# --8<-- [end:board]


# --8<-- [start:units]
def unit_values() -> dict[str, int]:
    """Users that the same sum promises when a card's label is read as GB, or as GiB with weights subtracted in GB."""
    asked = on_card("llama-3-8b", "80")
    right = budget(asked)
    decimal = budget(replace(asked, card_bytes=80 * GB))
    mixed_bytes = 80 * GIB - round(right.weights_bytes / GB) * GIB  # GB called GiB, and nothing for the rest
    return {
        "decimal_users_count": decimal.most_users,
        "mixed_users_count": mixed_bytes // (8192 * right.token_bytes),
        "mixed_short_bytes": budget(replace(asked, users=mixed_bytes // (8192 * right.token_bytes))).short_bytes,
    }


# --8<-- [end:units]


LEVERS: dict[str, dict] = {
    "BF16 weights, BF16 cache": {},
    "INT8 weights": {"weights": "int8"},
    "INT4 weights": {"weights": "int4"},
    "INT8 cache with scales": {"cache": "int8"},
    "FP8 cache": {"cache": "fp8"},
    "INT4 weights, FP8 cache": {"weights": "int4", "cache": "fp8"},
    "both, on two such cards": {"weights": "int4", "cache": "fp8", "cards": 2},
}


def lever_columns() -> dict[str, list]:
    """Users of a full context on one card, by what is stored smaller."""
    found = [budget(on_card("llama-3-8b", "80", **change)) for change in LEVERS.values()]
    return {
        "change": list(LEVERS),
        "left_bytes": [each.left_bytes for each in found],
        "user_bytes": [each.user_bytes for each in found],
        "users_count": [each.most_users for each in found],
        "more_ratio": [each.most_users / found[0].most_users for each in found],
    }


def lever_values() -> dict[str, int]:
    """The rows of that table that the page leans on."""
    users = dict(zip(LEVERS, lever_columns()["users_count"], strict=True))
    return {"int4_users_count": users["INT4 weights"], "fp8_users_count": users["FP8 cache"]}


def context_columns() -> dict[str, list]:
    """Users over context: a model with shared key/value heads and one without, the latter only as far as it goes."""
    columns: dict[str, list] = {"model": [], "each_tokens": [], "users_count": []}
    for model in ("llama-3.1-8b", "llama-2-7b"):
        for context in (1024, 2048, 4096, 8192, 16_384, 32_768, 65_536, 131_072):
            if context <= MODELS[model].longest_tokens:
                columns["model"].append(MODELS[model].geometry.name)
                columns["each_tokens"].append(context)
                columns["users_count"].append(budget(on_card(model, "80", context_tokens=context)).most_users)
    return columns


# --8<-- [start:reserve]
def reserve(asked: Setting, device: torch.device | str = "cpu") -> KVCache:
    """A BF16 cache for all users of a setting, admitted before any of it is allocated.

    Raises:
        CapacityError: it does not fit on the card.
        ValueError: the setting is of another cache.
    """
    if asked.cache != "bf16":
        raise ValueError(f"a BF16 cache is allocated here, not {asked.cache}")
    admit(asked)
    return KVCache(asked.shard, asked.users, asked.context_tokens, torch.bfloat16, device)


def attempt(asked: Setting, device: torch.device | str = "cpu") -> tuple[KVCache | None, int]:
    """(the cache or None where it was refused, bytes that trying allocated)."""

    def tried() -> KVCache | None:
        try:
            return reserve(asked, device)
        except CapacityError:
            return None

    return allocated_by(tried, device=device)


def small_setting(users: int) -> Setting:
    """SmolLM2 on a card so small that this machine can fill it."""
    return Setting(
        smollm2.GEOMETRY, 384 * 2**20, 8192, context_tokens=256, users=users, step_tokens=256, runtime_bytes=0
    )


def admission_values(device: torch.device | str = "cpu") -> dict[str, int]:
    """The most users are admitted and served; one more is refused, with nothing allocated."""
    most = budget(small_setting(1)).most_users
    plan = admit(small_setting(most))
    cache, reserved = attempt(small_setting(most), device)
    refused, refused_bytes = attempt(small_setting(most + 1), device)
    assert cache is not None and refused is None
    model = smollm2.decoder(torch.bfloat16, device)
    cache.length = cache.tokens - 1  # every context is full but for the token that this step adds
    ids = torch.zeros(most, 1, dtype=torch.long, device=device)
    with torch.inference_mode():
        _, step = peak_allocated_by(lambda: model(ids, cache), device=device)
    held = storage_bytes([model, cache]) + step
    return {
        "small_users_count": most,
        "planned_cache_bytes": plan.cache_bytes,
        "reserved_bytes": reserved,
        "over_card_bytes": max(0, held - plan.card_bytes),
        "refused_allocated_bytes": refused_bytes,
        "refused_short_bytes": budget(small_setting(most + 1)).short_bytes,
    }


# --8<-- [end:reserve]


ASKED_USERS = 100


def refused_setting() -> Setting:
    """More users of Llama-3-8B than the card holds."""
    return on_card("llama-3-8b", "80", users=ASKED_USERS)


def remedy_columns() -> dict[str, list]:
    """What the refusal offers instead, and the room that each leaves."""
    asked = refused_setting()
    offered = remedies(asked)
    found: list[Budget] = [budget(replace(asked, **remedy.change)) for remedy in offered]
    return {
        "instead": [remedy.label for remedy in offered],
        "needed_bytes": [each.needed_bytes for each in found],
        "spare_bytes": [each.card_bytes - each.needed_bytes for each in found],
    }


def refusal_columns() -> dict[str, list]:
    """The refusal in its own words."""
    try:
        admit(refused_setting())
    except CapacityError as error:
        return {"refusal": [str(error)]}
    return {"refusal": ["admitted"]}


def refusal_values() -> dict[str, int]:
    """By how much it is refused, and how many of the offers would not fit after all."""
    columns = remedy_columns()
    return {
        "asked_users_count": ASKED_USERS,
        "asked_short_bytes": budget(refused_setting()).short_bytes,
        "broken_remedies_count": sum(spare < 0 for spare in columns["spare_bytes"]),
    }


# --8<-- [start:false]
def false_values() -> dict[str, int]:
    """Other policies and a longer step: the same card, other numbers of users."""
    asked = on_card("llama-3-8b", "80")
    engine = replace(asked, card_bytes=asked.card_bytes * 9 // 10, runtime_bytes=179 * GIB // 100, step_tokens=8192)
    long = on_card("llama-3.1-8b", "80", context_tokens=32_768)
    return {
        "quarter_users_count": budget(replace(asked, context_tokens=2048)).most_users,
        "engine_left_bytes": budget(engine).left_bytes,
        "long_users_count": budget(long).most_users,
        "long_at_once_users_count": budget(replace(long, step_tokens=32_768)).most_users,
    }


# --8<-- [end:false]


def measure(*, small: bool = False, device: str | None = None, dtype: torch.dtype | None = None) -> dict[str, float]:
    """Every value of the page; `small` changes nothing, since only sizes are counted. `dtype` must be BF16."""
    if dtype not in (None, torch.bfloat16):
        raise ValueError(f"the reference is BF16, not {dtype}")
    return {
        **board_values(),
        **unit_values(),
        **lever_values(),
        **admission_values(device or "cpu"),
        **refusal_values(),
        **false_values(),
    }


def control(*, small: bool = True, device: str | None = None, dtype: torch.dtype | None = None) -> dict[str, float]:
    """A server that does not ask: it allocates what it is asked for, and finds out then."""
    asked = small_setting(budget(small_setting(1)).most_users + 1)
    cache = (asked.shard, asked.users, asked.context_tokens, torch.bfloat16, device or "cpu")
    _, allocated = allocated_by(lambda: KVCache(*cache), device=device or "cpu")
    return {"refused_allocated_bytes": allocated, "users_count": unit_values()["mixed_users_count"]}


if __name__ == "__main__":
    from measured.values import report

    report("kv_cache/users_per_gpu", measure())
