"""How many users fit on one GPU? Counts agree with caches that are really made, and each trap is shown wrong."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from snippets.instruments.memory import allocated_by, storage_bytes
from snippets.kv_cache import users_per_gpu as snippet
from snippets.models import capacity, cards, shapes
from snippets.models.capacity import CapacityError, Setting, admit, budget
from snippets.models.decoder import KVCache
from tests.small import controlled, measured_small

ODD = dataclasses.replace(
    shapes.SMOLLM2_135M, name="odd", layers=3, hidden=40, heads=10, kv_heads=5, head_dim=14, ffn=12, vocabulary=11
)


def odd(card_bytes: int, users: int = 1) -> Setting:
    return Setting(ODD, card_bytes, 64, context_tokens=7, users=users, step_tokens=3, runtime_bytes=0)


@pytest.mark.parametrize("card_bytes", [123_457, 150_001, 171_717])
def test_users_found_by_making_caches_until_the_card_is_full(card_bytes: int) -> None:
    """The second way: add real caches one by one, with the rest of the budget counted beside them."""
    found = budget(odd(card_bytes))
    users, fixed = 0, found.weights_bytes + 3 * capacity.row_bytes(ODD)
    beside = capacity.row_bytes(ODD) + capacity.logits_bytes(ODD)
    caches: list[KVCache] = []
    while True:
        caches.append(KVCache(ODD, 1, 7, torch.bfloat16))
        if fixed + storage_bytes(caches) + len(caches) * beside > card_bytes:
            break
        users += 1
    assert found.most_users == users > 0


@pytest.mark.parametrize("users", [1, 2, 3, 5])
def test_what_is_admitted_is_allocated_as_planned(users: int) -> None:
    asked = odd(200_000, users=users)
    cache, allocated = snippet.attempt(asked)
    assert cache is not None
    assert admit(asked).cache_bytes == cache.nbytes == allocated > 0


def test_what_is_refused_allocates_nothing_and_says_what_would_fit() -> None:
    asked = odd(150_001)
    most = budget(asked).most_users
    too_many = dataclasses.replace(asked, users=most + 1)
    assert snippet.attempt(too_many) == (None, 0)
    with pytest.raises(CapacityError, match="too much") as refused:
        snippet.reserve(too_many)
    assert f"{most} users" in str(refused.value)
    assert refused.value.short_bytes == budget(too_many).needed_bytes - 150_001
    changes = [remedy.change for remedy in refused.value.remedies]
    assert {"users"} < {name for change in changes for name in change}
    for change in (change for change in changes if "cache" not in change):
        assert snippet.reserve(dataclasses.replace(too_many, **change)).nbytes > 0


def test_a_cache_of_another_format_is_not_made_by_mistake() -> None:
    with pytest.raises(ValueError, match="BF16 cache is allocated here, not fp8"):
        snippet.reserve(dataclasses.replace(odd(150_001), cache="fp8"))


def test_without_asking_all_of_it_is_allocated() -> None:
    control = controlled("kv_cache/users_per_gpu")["refused_allocated_bytes"]
    most = budget(snippet.small_setting(1)).most_users
    _, allocated = allocated_by(
        lambda: KVCache(snippet.small_setting(1).geometry, most + 1, 256, torch.bfloat16), device="cpu"
    )
    assert control == allocated > snippet.small_setting(1).card_bytes / 4


def test_trap_a_label_read_as_gb_or_as_gib() -> None:
    values = snippet.unit_values()
    right = budget(cards.on_card("llama-3-8b", "80"))
    assert values["decimal_users_count"] < right.most_users < values["mixed_users_count"]
    assert budget(cards.on_card("llama-3-8b", "80", users=values["decimal_users_count"])).fits
    promised = cards.on_card("llama-3-8b", "80", users=values["mixed_users_count"])
    with pytest.raises(CapacityError, match="62 users"):
        admit(promised)


def test_whiteboard_by_hand() -> None:
    values = snippet.board_values()
    assert values["card_bytes"] == 7922 * 2**30 // 100
    left = values["card_bytes"] - 2 * 8_030_261_248 - 2**30 - 2048 * 2 * (3 * 4096 + 3 * 14_336 + 256)
    assert values["left_bytes"] == left
    assert values["users_count"] == left // (8192 * 131_072 + 2 * (3 * 4096 + 3 * 14_336 + 256) + 6 * 128_256) == 62
    assert values["crossing_tokens"] * 131_072 > 2 * 8_030_261_248 >= (values["crossing_tokens"] - 1) * 131_072


def test_the_chart_halves_with_context_and_shared_heads_serve_more() -> None:
    columns = snippet.context_columns()
    rows = list(zip(columns["model"], columns["each_tokens"], columns["users_count"], strict=True))
    users = {(model, context): count for model, context, count in rows}
    for model, context, count in rows:
        if (model, 2 * context) in users:
            assert users[model, 2 * context] in {count // 2, count // 2 + 1}
    assert all(users["Llama-3.1-8B", c] > 3 * users["Llama-2-7B", c] for c in (1024, 2048, 4096))
    assert max(context for model, context, _ in rows if model == "Llama-2-7B") == 4096


@pytest.mark.models
def test_control_breaks_what_the_page_claims() -> None:
    found, control = measured_small("kv_cache/users_per_gpu"), controlled("kv_cache/users_per_gpu")
    assert found["refused_allocated_bytes"] == found["over_card_bytes"] == found["broken_remedies_count"] == 0
    assert found["reserved_bytes"] == found["planned_cache_bytes"]
    assert control["refused_allocated_bytes"] > found["reserved_bytes"]
    assert control["users_count"] > found["users_count"]
