"""The static step is the decoder's own; what is compiled is compiled once; counts are what they say."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from snippets.instruments.device import capabilities
from snippets.models import compiled as static
from snippets.models import runtimes
from snippets.models.compiled import StaticStep, counted, counted_compiled, layer_step
from snippets.models.decoder import KVCache, generate
from tests.odd import odd_decoder, odd_ids

needs_compiler = pytest.mark.skipif("compiler" not in capabilities(), reason="torch.compile needs a C++ compiler")


class Graphs:
    """A backend that compiles nothing and counts what it was asked to compile."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, graph: Any, inputs: list[Any]) -> Any:
        self.count += 1
        return graph.forward


def test_the_static_step_writes_what_the_decoder_writes() -> None:
    decoder, ids = odd_decoder(), odd_ids(3, 5)
    wanted = generate(decoder, ids, 9)
    assert torch.equal(runtimes.generate(StaticStep(decoder, 3, 16), ids, 9), wanted)
    assert torch.equal(runtimes.generate(StaticStep(decoder, 3, 13), ids, 9), wanted)  # a cache just long enough


def test_a_full_cache_is_refused() -> None:
    step = StaticStep(odd_decoder(), 1, 4)
    step(odd_ids(1, 4))
    with pytest.raises(ValueError, match="no room"):
        step(odd_ids(1, 1))


def test_what_is_not_kept_changes_nothing() -> None:
    step, ids = StaticStep(odd_decoder(), 2, 8), odd_ids(2, 3)
    step(ids)
    first = step(ids[:, :1], keep=False)
    assert torch.equal(first, step(ids[:, :1])) and step.length == 4


def test_trap_integers_are_compiled_again_and_tensors_are_not() -> None:
    decoder, ids, graphs = odd_decoder(), odd_ids(1, 3), Graphs()
    torch._dynamo.reset()
    layer = torch.compile(layer_step, backend=graphs, dynamic=False, fullgraph=True)
    runtimes.generate(StaticStep(decoder, 1, 16, layer), ids, 5)
    assert graphs.count == 1  # every layer, every length

    def by_number(cache: KVCache, layer: int, new: Tensor) -> Tensor:
        cache.keys[layer, :, :, cache.length : cache.length + 1] = new
        return cache.keys[layer].sum()

    torch._dynamo.reset()
    numbered = torch.compile(by_number, backend=(again := Graphs()), dynamic=False)
    cache = KVCache(decoder.geometry, 1, 8, torch.float32)
    for number in range(decoder.geometry.layers):
        numbered(cache, number, torch.ones(1, decoder.geometry.kv_heads, 1, decoder.geometry.head_dim))
    assert again.count == decoder.geometry.layers
    torch._dynamo.reset()


def test_views_are_no_kernels_and_writes_in_place_are() -> None:
    x = torch.ones(3, 5)
    assert counted(lambda: x.T.unsqueeze(0).expand(2, 5, 3)).calls.total() == 0
    assert counted(lambda: torch.empty(7)).calls.total() == 0
    work = counted(lambda: x[1].copy_(torch.zeros(5)))
    assert dict(work.calls) == {"aten::zeros": 1, "aten::copy_": 1} or work.calls["aten::copy_"] == 1
    assert counted(F.linear, x, torch.ones(7, 5)).bytes.total() == 4 * (3 * 5 + 7 * 5 + 3 * 7)


def test_a_lookup_reads_rows_and_not_its_table() -> None:
    table = torch.ones(1000, 4)
    assert counted(F.embedding, torch.tensor([1, 2, 3]), table).bytes.total() == 2 * 3 * 4 * 4


@needs_compiler
def test_a_compiled_chain_is_counted_as_it_runs() -> None:
    x = torch.randn(3, 7)

    def chain(x: Tensor) -> Tensor:
        return (x * 2 + 1).relu()

    eager, fused = counted(chain, x), counted_compiled(chain, x)
    assert eager.calls.total() == 3 and eager.bytes.total() == 3 * 2 * x.nbytes
    assert fused.calls.total() == 1 and fused.bytes.total() == 2 * x.nbytes


def test_without_a_compiler_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(static, "capabilities", lambda: frozenset({"cpu"}))
    with pytest.raises(static.NoCompilerError, match="g\\+\\+"):
        static.compile(lambda x: x)
