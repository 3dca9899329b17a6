"""Each rung's step, against the page's own prediction for an H100, its formulas and limits."""

from __future__ import annotations

from dataclasses import replace

import pytest

from measured import recording
from snippets.instruments.targets import TARGETS
from snippets.predictions.throughput.the_ladder import BATCH, climbed, part_works, predict, rung
from snippets.throughput import the_ladder as page

H100 = TARGETS["H100 SXM"]
READS = replace(H100, flops_per_second=dict.fromkeys(H100.flops_per_second, 1e30), launch_seconds=0)


def test_an_h100_takes_what_the_page_says() -> None:
    recorded = recording.primary("throughput/the_ladder")
    assert recorded is not None
    told, steps = recorded.values, climbed()
    fp32, int4 = page.RESPONDING
    assert steps["cache"].seconds(H100) == pytest.approx(told["h100_eager_seconds"])
    assert steps[int4].seconds(H100) == pytest.approx(told["h100_compiled_seconds"])
    for name, short in ((fp32, "fp32"), (int4, "int4")):
        assert steps[name]._replace(launches=1).seconds(H100) == pytest.approx(told[f"h100_{short}_graph_seconds"])


@pytest.mark.parametrize("name", page.RUNGS)
def test_weights_without_content_weigh_what_the_formula_says(name: str) -> None:
    held = page.storage_bytes(page.matrices(rung(name).weights))
    assert held == page.matrix_bytes(page.step_flops(1, room=0) // 2, name)


def test_rungs_are_their_bytes_where_bytes_bind() -> None:
    found = predict(READS)
    fp32, int4 = (page.step_bytes(rung(name)) for name in page.RESPONDING)
    assert found["int4_ratio"] == pytest.approx(fp32 / int4)
    assert found["cache_ratio"] == found["compiled_ratio"] == 1  # what is saved is no byte of a weight
    assert found["fp32_read_share"] == pytest.approx(1)


def test_rungs_are_their_launches_where_launches_bind() -> None:
    found = predict(replace(READS, launch_seconds=1e-3))
    assert found["batch_ratio"] == BATCH
    assert found["int4_ratio"] == 1
    fused = page.G.layers * page.COMPILED_LAUNCHES
    assert found["compiled_ratio"] == pytest.approx(climbed()["cache"].launches / fused)


def test_shares_of_a_step_that_is_not_launches_add_up() -> None:
    found = predict(replace(H100, launch_seconds=0))
    for step in ("prompt", "batch"):
        shares = [found[f"{step}_{part.split()[-1]}_share"] for part in page.part_flops(1, 1, 1)]
        assert sum(float(share) for share in shares) == pytest.approx(1)
    assert isinstance(predict(H100)["batch_rest_share"], str)  # parts alone are launched more often than the step


def test_a_batch_reads_the_head_and_a_prompt_of_which_one_row_goes_there_does_not() -> None:
    """What is read however many rows there are: INT8 weights."""
    head = page.G.hidden * page.G.vocabulary
    layers = page.step_flops(1, room=0) // 2 - head
    prompts = [part_works(1, new, new)["INT8 products"].bytes for new in (256, 512)]
    batches = [part_works(rows, 1, page.ROOM)["INT8 products"].bytes for rows in (16, 32)]
    assert 2 * prompts[0] - prompts[1] == layers
    assert 2 * batches[0] - batches[1] == layers + head


def test_a_device_without_int8_units_has_a_reason_in_place_of_each() -> None:
    rates = {name: rate for name, rate in H100.flops_per_second.items() if name != "int8"}
    found = predict(replace(H100, flops_per_second=rates))
    assert set(found) == set(predict(H100))
    assert found["batch_ratio"] == found["prompt_products_share"] == "H100 SXM has no units for int8"
