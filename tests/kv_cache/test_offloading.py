"""When to offload the KV cache? Operations against a counter, the schedule against its formula, the restored cache."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from snippets.kv_cache import offloading as snippet
from snippets.models import smollm2
from snippets.models.decoder import Decoder, KVCache
from snippets.models.shapes import LLAMA_3_8B
from tests.odd import ODD, odd_decoder
from tests.small import controlled


@pytest.fixture(scope="module")
def odd() -> Decoder:
    return odd_decoder()


# Operations.


@pytest.mark.parametrize("tokens", [2, 3, 7, 11])
def test_operations_of_the_matrices_equal_pytorchs_count(odd: Decoder, tokens: int) -> None:
    ids = torch.arange(tokens)[None] % ODD.vocabulary
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        odd(ids, KVCache(ODD, 1, tokens, torch.float32), last_only=True)
    head = 2 * ODD.vocabulary * ODD.hidden
    matrices, causal = snippet.prefill_flops(ODD, tokens)
    # The counter sees every pair of tokens, also those that causal attention leaves out.
    every_pair = causal * 2 * tokens // (tokens + 1)
    assert counter.get_total_flops() == matrices + every_pair + head > 0


def test_attention_equals_the_matrices_where_the_page_says() -> None:
    found = snippet.formula_values()
    assert found["equal_matrix_flops"] == found["equal_attention_flops"] > 0
    for tokens, sign in ((found["equal_tokens"] - 1, -1), (found["equal_tokens"] + 1, 1)):
        matrices, attention = snippet.prefill_flops(LLAMA_3_8B, tokens)
        assert (attention - matrices) * sign > 0


def test_token_bytes_are_those_of_a_cache() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        assert KVCache(ODD, 1, 7, dtype).nbytes == 7 * snippet.token_bytes(ODD, dtype.itemsize)
    assert snippet.token_bytes(LLAMA_3_8B) == 131_072


# Break-even.


@pytest.mark.parametrize("tokens", [3, 500, 70_001])
def test_a_path_at_the_break_even_bandwidth_takes_just_as_long(tokens: int) -> None:
    bandwidth = snippet.break_even(ODD, tokens, seconds=0.37, element_bytes=4)
    assert tokens * snippet.token_bytes(ODD, 4) / bandwidth == pytest.approx(0.37)


def test_the_predicted_break_even_bandwidth_falls_with_length_by_attention_alone() -> None:
    found = snippet.predicted_values()
    assert 3e9 < found["h100_short_bytes_per_second"] < 4e9
    limit = snippet.token_bytes(LLAMA_3_8B) * snippet.MFU * 989.4e12 / snippet.formula_values()["llama_matrix_flops"]
    equal = snippet.formula_values()["equal_tokens"]
    columns = snippet.length_columns((1024, 131_072))
    for tokens, bandwidth in zip(columns["prompt_tokens"][:2], columns["break_even_bytes_per_second"][:2], strict=True):
        assert bandwidth == pytest.approx(limit / (1 + (tokens + 1) / (equal + 1)))


def test_a_prompt_in_pieces_takes_as_long_as_whole() -> None:
    whole = snippet.predicted_seconds(LLAMA_3_8B, 9000)
    parts = snippet.predicted_seconds(LLAMA_3_8B, 5000) + snippet.predicted_seconds(LLAMA_3_8B, 4000, cached=5000)
    assert parts == pytest.approx(whole)


def test_a_slow_path_loses_at_one_length_and_wins_at_a_longer_one() -> None:
    """No crossover length holds while attention is small; beyond, there is one."""
    gains = [snippet.path_columns(tokens=tokens) for tokens in (8192, 131_072)]
    index = gains[0]["path"].index("Ethernet, ten gigabit")
    assert gains[0]["gain_ratio"][index] < 1 < gains[1]["gain_ratio"][index]


# The way there and back.


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("batch", "tokens"), [(1, 1), (2, 3), (3, 7)])
def test_a_restored_cache_is_the_cache(tmp_path: Path, batch: int, tokens: int, dtype: torch.dtype) -> None:
    cache, other = (KVCache(ODD, batch, tokens + extra, dtype) for extra in (5, 2))
    generator = torch.Generator().manual_seed(tokens)
    for part in (cache.keys, cache.values):
        part.copy_(torch.randn(part.shape, generator=generator))
    cache.length = tokens
    written = snippet.offload(cache, tmp_path / "cache")
    snippet.restore(tmp_path / "cache", other)
    assert written == batch * tokens * snippet.token_bytes(ODD, dtype.itemsize)
    assert other.length == tokens
    assert torch.equal(other.keys[..., :tokens, :], cache.keys[..., :tokens, :])
    assert torch.equal(other.values[..., :tokens, :], cache.values[..., :tokens, :])
    assert not other.keys[..., tokens:, :].any()


@pytest.mark.models
def test_the_continuation_is_the_same_and_not_if_layers_are_missing() -> None:
    decoder = smollm2.decoder(torch.bfloat16)
    found = snippet.restored_values(decoder, 12, 3)
    assert found["equal_tokens_count"] == found["checked_tokens"] == 3 and found["differing_count"] == 0
    cut = snippet.restored_values(decoder, 12, 3, keep_layers=2)
    assert cut["differing_count"] > 0 and cut["equal_tokens_count"] < 3


# Overlap.


def test_the_schedule_equals_its_formula_and_waits_for_no_more() -> None:
    draw = random.Random(0)
    for _ in range(200):
        layers, load, compute = draw.randint(1, 9), draw.randint(0, 30), draw.randint(1, 30)
        done = snippet.overlapped(layers, load, compute)
        assert done == layers * compute + snippet.exposed_formula(layers, load, compute)
        assert max(layers * load + compute, load + layers * compute) == done <= layers * (load + compute)


def test_values_of_the_overlap() -> None:
    found = snippet.overlap_values()
    assert found["exposed_count"] == found["exposed_formula_count"] == found["layer_load_count"]
    assert found["slow_exposed_count"] == found["slow_formula_count"] > found["exposed_count"]
    assert found["sequential_count"] == found["overlap_layers_count"] * (
        found["layer_load_count"] + found["layer_compute_count"]
    )


# The disk.


def test_pages_are_resident_after_a_read_and_not_after_they_are_dropped(tmp_path: Path) -> None:
    if not hasattr(os, "posix_fadvise"):
        pytest.skip("no posix_fadvise on this system")
    path = tmp_path / "file"
    path.write_bytes(os.urandom(2**20 + 5))
    assert snippet.resident_share(path) > 0.9
    found = snippet.disk_values(2**22, tmp_path, repeats=2)
    assert found["warm_bytes_per_second"] > 0
    assert (found["disk_bytes_per_second"] == 0) == (found["disk_cached_share"] > 0)


def test_trap_a_file_in_memory_is_not_taken_for_a_disk() -> None:
    memory = Path("/dev/shm")
    if not memory.is_dir() or not os.access(memory, os.W_OK):
        pytest.skip("no file system in memory here")
    found = snippet.disk_values(2**21, memory, repeats=1)
    assert found["disk_cached_share"] == 1 and found["disk_bytes_per_second"] == 0 < found["warm_bytes_per_second"]


@pytest.mark.models
def test_control_breaks_what_the_page_claims() -> None:
    assert 0 < controlled("kv_cache/offloading")["restore_ratio"] < 1.5
