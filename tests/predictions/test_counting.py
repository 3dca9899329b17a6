"""What is counted of a call on tensors without content, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from snippets.instruments.targets import Target
from snippets.predictions.counting import Work, counted

ROWS, INNER, OUTPUTS = 3, 5, 7


def empty(*shape: int, dtype: torch.dtype = torch.float32, requires_grad: bool = False) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta", requires_grad=requires_grad)


def test_a_product_reads_its_factors_and_writes_its_result() -> None:
    """The transposed factor is a view: neither a launch nor a copy."""
    found = counted(lambda x, weight: x @ weight.T, empty(ROWS, INNER), empty(OUTPUTS, INNER))
    assert found == Work(2 * ROWS * INNER * OUTPUTS, 4 * (ROWS * INNER + INNER * OUTPUTS + ROWS * OUTPUTS), 0, 1)


def test_an_integer_product_counts_as_a_product() -> None:
    a, b = empty(ROWS, INNER, dtype=torch.int8), empty(INNER, OUTPUTS, dtype=torch.int8)
    moved = ROWS * INNER + INNER * OUTPUTS + 4 * ROWS * OUTPUTS
    assert counted(torch._int_mm, a, b) == Work(2 * ROWS * INNER * OUTPUTS, moved, 0, 1)


def test_a_lookup_reads_the_rows_that_it_returns() -> None:
    ids = empty(ROWS, dtype=torch.long)
    assert counted(F.embedding, ids, empty(OUTPUTS, INNER)) == Work(0, 0, 2 * 4 * ROWS * INNER, 1)


def test_in_place_counts_and_an_expanded_tensor_is_read_once() -> None:
    """A mutated tensor is read: what it is given is what it goes through."""
    found = counted(lambda x, one: x.add_(one.expand(ROWS, INNER)), empty(ROWS, INNER), empty(1, INNER))
    assert found == Work(0, 0, 4 * (ROWS * INNER + INNER), 1)


def test_a_backward_pass_has_two_products_more() -> None:
    x, weight = (empty(*shape, requires_grad=True) for shape in ((ROWS, INNER), (OUTPUTS, INNER)))
    assert counted(lambda: (x @ weight.T).sum().backward()).flops == 3 * 2 * ROWS * INNER * OUTPUTS


def test_operations_run_in_turn_and_are_launched_meanwhile() -> None:
    work = Work(flops=4e9, product_bytes=1e9, other_bytes=3e9, launches=2)
    target = Target("round", {"float32": 1e9}, 1e9, 1e9, None, 0.0, frozenset(), "a test")
    assert work.seconds(target, "float32") == pytest.approx(4 + 3)
    assert (work + work).seconds(replace(target, launch_seconds=10.0), "float32") == pytest.approx(2 * 2 * 10)
