"""A value that no operation and no byte tells has a reason in place of a number."""

from __future__ import annotations

from snippets.instruments.targets import Target
from snippets.predictions.quantization.weight_bytes import predict


def test_an_allocator_is_not_predicted() -> None:
    found = predict(Target("any", {}, 1e9, 1e9, None, 0.0, frozenset(), "a test"))
    assert "allocator" in str(found["minilm_int4_held_bytes"])
