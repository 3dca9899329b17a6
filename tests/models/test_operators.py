"""Each private operator gives what its plain form gives, and is asked only for what it takes."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch
from torch import Tensor

from snippets.models import operators

ROOT = Path(__file__).resolve().parents[2]
TOKENS = (1, 2, 3, 5, 7, 33)


def codes(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(-128, 128, shape, dtype=torch.int8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("inner", [5, 8, 1024, 1025, 2051])
@pytest.mark.parametrize("tokens", TOKENS)
def test_integer_products_are_exact_either_way(tokens: int, inner: int) -> None:
    a, b = codes(tokens, inner), codes(inner, 7, seed=1)
    exact = a.long() @ b.long()
    for found in (operators.int8_product(a, b), operators.int8_product(a, b, plain=True)):
        assert found.dtype == torch.int32 and torch.equal(found.long(), exact)


def test_the_largest_sums_are_exact_in_the_plain_product() -> None:
    """More products of the largest codes at once than FP32 sums without rounding, and an odd one."""
    a = torch.full((1, 4096), -128, dtype=torch.int8)
    b = torch.full((4096, 3), -128, dtype=torch.int8)
    a[:, -1], b[-1] = 1, 1
    assert operators.int8_product(a, b, plain=True).tolist() == [[4095 * 2**14 + 1] * 3]
    assert int((a.float() @ b.float())[0, 0]) != 4095 * 2**14 + 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_int8_weights_operator_takes_whole_vectors_alone(dtype: torch.dtype) -> None:
    for columns, taken in ((64, True), (40, False)):
        weight, scale = codes(16, columns), torch.rand(16).to(dtype)
        x = torch.randn(3, columns, generator=torch.Generator().manual_seed(2)).to(dtype)
        assert operators.takes_int8_weight(weight) == taken
        exact = (x.double() @ weight.double().T) * scale.double()
        for plain in (False, True):
            found = operators.int8_weight_product(x, weight, scale, plain=plain)
            assert found.dtype == dtype
            assert (found.double() - exact).norm() < 3 * torch.finfo(dtype).eps * exact.norm()


def test_an_int4_weights_operator_multiplies_by_what_was_packed() -> None:
    four = (codes(32, 64) >> 4).contiguous()
    scale, x = torch.rand(32, 2) + 0.5, torch.randn(3, 64, generator=torch.Generator().manual_seed(3))
    assert operators.takes_int4_weight(four, 32, 32) and not operators.takes_int4_weight(four, 33, 32)
    exact = x.double() @ (four.double().unflatten(1, (2, -1)) * scale.double()[..., None]).flatten(1).T
    found = operators.int4_weight_product(x, *_packed(four, scale))
    assert (found.double() - exact).norm() < 1e-6 * exact.norm()


def _packed(four: Tensor, scale: Tensor) -> tuple[Tensor, int, Tensor]:
    packed, stored = operators.int4_packed(four, scale)
    return packed, 32, stored


def test_fp8_products_are_those_of_their_values() -> None:
    a, b = (torch.randn(n, 48, generator=torch.Generator().manual_seed(n)).to(torch.float8_e4m3fn) for n in (3, 32))
    scale_a, scale_b = torch.tensor(0.5), torch.tensor(3.0)
    exact = (a.double() @ b.double().T) * 1.5
    found = operators.fp8_product(a, b.T, scale_a, scale_b)
    assert found.dtype == torch.bfloat16
    assert (found.double() - exact).norm() < torch.finfo(torch.bfloat16).eps * exact.norm()


def test_the_fp8_operator_still_agrees_with_its_plain_form() -> None:
    """PyTorch has it for CPUs too, slow and right: its name, order and layout are held here."""
    a, b = (torch.randn(n, 48, generator=torch.Generator().manual_seed(n)).to(torch.float8_e4m3fn) for n in (16, 32))
    one, right = torch.ones(()), operators.column_major(b.T.contiguous())
    assert right.stride(0) == 1
    found = torch._scaled_mm(a, right, scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True)
    assert torch.equal(found, operators.fp8_product(a, right, one, one))


def test_operators_that_are_gone_leave_the_plain_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operators, "exists", lambda name: False)
    a, b = codes(3, 64), codes(64, 16, seed=1)
    assert not operators.takes_int8(b) and not operators.takes_int8_weight(b.T)
    assert torch.equal(operators.int8_product(a, b).long(), a.long() @ b.long())
    x, scale = torch.randn(3, 64), torch.rand(16)
    assert torch.equal(operators.int8_weight_product(x, b.T, scale), (x @ b.T.float().T) * scale)


def test_one_file_calls_private_operators() -> None:
    """`torch._name` and `torch.ops.aten._name` stand in the adapter alone; private modules are no operators."""
    found = []
    for path in sorted((ROOT / "snippets").rglob("*.py")):
        if path == ROOT / "snippets" / "models" / "operators.py":
            continue
        found += [f"{path.relative_to(ROOT)}:{line}: {name}" for line, name in private_operators(path.read_text())]
    assert not found, "\n".join([*found, "go through snippets/models/operators.py"])


def private_operators(source: str) -> list[tuple[int, str]]:
    """(line, name) of every private function of torch or its operator libraries that a module calls or has called.

    To count an operator it may be named.
    """
    named = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        first = node.args[:1] if ast.unparse(node.func).endswith("partial") else []
        for part in (node.func, *first):
            owner, _, name = ast.unparse(part).rpartition(".")
            if name.startswith("_") and (owner == "torch" or owner.startswith("torch.ops.")):
                named.append((node.lineno, f"{owner}.{name}"))
    return named


def test_a_private_operator_is_noticed() -> None:
    source = (
        "import torch\nx = torch._int_mm(a, b)\ny = torch.ops.aten._weight_int8pack_mm(a, b, c)\n"
        "z = partial(torch._scaled_mm, a, b)\n"
    )
    assert [line for line, _ in private_operators(source)] == [2, 3, 4]
    assert private_operators("import torch\ntorch._dynamo.reset()\nif f is torch.ops.aten._to_copy: pass\n") == []
