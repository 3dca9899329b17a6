"""A token in one process, in shards and in stages, against the page's own prediction and against limits."""

from __future__ import annotations

from dataclasses import replace

import pytest

from snippets.instruments.targets import TARGETS
from snippets.models.shapes import LLAMA_3_8B, SMOLLM2_135M, parameters
from snippets.predictions.throughput.model_parallelism import predict, split_seconds, token_seconds
from snippets.throughput import model_parallelism as page

H100 = TARGETS["H100 SXM"]
READS = replace(H100, bytes_per_second=1e9, launch_seconds=0)


def test_an_h100_takes_what_the_page_says() -> None:
    told = page.predicted_values()
    assert token_seconds(H100, LLAMA_3_8B, 0, "bfloat16") == pytest.approx(told["h100_card_seconds"])
    reduce = page.all_reduce_seconds(page.LOCAL_RANKS, 4 * SMOLLM2_135M.hidden, page.LINKS["PCIe"])
    assert predict(H100)["reduce_seconds"] == pytest.approx(reduce)  # its link to the host is the page's PCIe


def test_a_shard_reads_its_part_of_the_layers_and_all_of_the_head() -> None:
    counted, context = parameters(SMOLLM2_135M), page.Scale().prompt_tokens + 1
    cache = 2 * SMOLLM2_135M.layers * SMOLLM2_135M.kv_heads * SMOLLM2_135M.head_dim * context
    numbers = (counted.linear + cache) / page.LOCAL_RANKS + counted.embedding  # tied: it is the head
    assert split_seconds(READS, page.Scale(), page.LINKS["free"]) == pytest.approx(4 * numbers / 1e9)


def test_stages_cut_no_token_short_and_shards_do_where_messages_are_cheap() -> None:
    found = predict(READS)
    assert float(found["staged_seconds"]) > float(found["alone_seconds"]) > float(found["split_seconds"])
    launching = predict(replace(H100, launch_seconds=1e-3))
    assert float(launching["split_seconds"]) > float(launching["alone_seconds"])  # as many launches, and messages


def test_a_filled_pipeline_gains_its_stages_but_for_the_bubble() -> None:
    stages, microbatches = page.LOCAL_RANKS, page.Scale().timed_microbatches
    assert predict(H100)["filled_ratio"] == pytest.approx(stages * microbatches / (stages + microbatches - 1))


def test_a_device_without_a_link_has_no_prediction_for_messages() -> None:
    found = predict(replace(H100, host_bytes_per_second=None))
    assert isinstance(found["reduce_seconds"], str) and isinstance(found["split_seconds"], str)
    assert found["staged_seconds"] == found["alone_seconds"]
