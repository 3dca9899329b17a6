"""A value that no operation and no byte tells has a reason in place of a number."""

from __future__ import annotations

from snippets.instruments.targets import Target
from snippets.predictions.embeddings.similarity_measures import ORDER, predict


def test_the_last_bit_of_a_sum_is_not_predicted() -> None:
    found = predict(Target("any", {}, 1e9, 1e9, None, 0.0, frozenset(), "a test"))
    assert found and set(found.values()) == {ORDER}
