"""What fusing saves, against the page's own prediction for an H100 and against limits."""

from __future__ import annotations

from dataclasses import replace

import pytest

from snippets.instruments.targets import TARGETS
from snippets.models.shapes import LLAMA_3_8B
from snippets.predictions.throughput.fusion_and_runtimes import calls, predict, step_counts, step_seconds
from snippets.throughput import fusion_and_runtimes as page

H100 = TARGETS["H100 SXM"]


def test_an_h100_takes_what_the_page_says() -> None:
    layer = {f"layer_{way}_count": calls()[f"layer_{way}_count"] for way in ("eager", "compiled")}
    columns = page.prediction_columns(layer)
    found = {
        "eager": step_seconds(H100, LLAMA_3_8B, LLAMA_3_8B.layers * layer["layer_eager_count"], size=2),
        "compiled": step_seconds(H100, LLAMA_3_8B, LLAMA_3_8B.layers * layer["layer_compiled_count"], size=2),
        "graph": step_seconds(H100, LLAMA_3_8B, 1, size=2),
    }
    assert found == pytest.approx({way: columns[f"{way}_seconds"][0] for way in found})
    assert found["eager"] / found["graph"] == pytest.approx(page.prediction_values(columns)["h100_large_graph_ratio"])


def test_every_layer_adds_the_same_calls() -> None:
    one, two, three = (step_counts(layers) for layers in (1, 2, 3))
    for name in ("plain_step_count", "compiled_step_count"):
        assert three[name] - two[name] == two[name] - one[name] > 0


def test_a_chain_gains_its_launches_or_its_bytes() -> None:
    found = predict(replace(H100, launch_seconds=1))
    assert found["chain_speed_ratio"] == found["chain_kernels_ratio"] == 11
    found = predict(replace(H100, launch_seconds=0))
    assert found["chain_speed_ratio"] == pytest.approx(found["chain_bytes_ratio"])
    assert found["product_speed_ratio"] == 1


def test_a_step_gains_by_fusing_only_where_launches_bind() -> None:
    assert predict(replace(H100, launch_seconds=1e-9))["compiled_single_ratio"] == 1
    found = predict(replace(H100, launch_seconds=1e-3))
    saved = calls()["plain_step_count"] / calls()["compiled_step_count"]
    assert found["compiled_single_ratio"] == found["thin_compiled_ratio"] == pytest.approx(saved)
    assert found["overhead_share"] == 1


def test_runtimes_of_processors_have_predictions_on_processors_alone() -> None:
    assert isinstance(predict(H100)["onnx_single_ratio"], str)
    processor = replace(H100, launch_seconds=0, capabilities=frozenset({"cpu", "fast-bf16"}))
    assert predict(processor)["default_ratio"] == pytest.approx(2)  # half the bytes
    assert predict(replace(processor, capabilities=frozenset({"cpu"})))["default_ratio"] == 1
