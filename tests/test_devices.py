"""What a GPU would run: no snippet calls what only a CPU has, and a played H100 is given what belongs there."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from snippets.instruments import device as devices
from snippets.models import compiled, operators, runtimes
from snippets.models.decoder import generate
from tests.odd import odd_decoder, odd_ids

ROOT = Path(__file__).resolve().parents[1]
SNIPPETS = [p for p in sorted((ROOT / "snippets").rglob("*.py")) if p.parent.name != "instruments"]

# What only a CPU has, or what waits for a device unseen; and where it is right all the same, with the reason.
RIGHT = {
    "numpy": {
        "embeddings/compressed_vectors.py": "libraries of vectors in memory; `retrieval.vectors` hands them over there",
        "embeddings/vector_search.py": "libraries of vectors in memory; `retrieval.vectors` hands them over there",
        "models/runtimes.py": "other runtimes' own tensors and a graph's constants, all in memory",
    },
    "threads": {
        "embeddings/vector_search.py": "a library's threads beside ours",
        "models/fast_decoder.py": "part of a key: code compiled for a CPU holds its threads",
        "models/runtimes.py": "a CPU runtime's threads are ours",
        "quantization/inference_speed.py": "a process of its own computes on as many",
        "quantization/which_model_fits.py": "scratch of each CPU thread is left out",
        "throughput/determinism.py": "the question: what another number of threads changes",
        "throughput/fair_benchmark.py": "the question: what threads hide",
        "throughput/hardware.py": "what this processor's threads add up to",
        "throughput/model_parallelism.py": "a thread for each process",
        "throughput/the_ladder.py": "processes that compile compute on as many",
    },
    "clock": {
        "embeddings/vector_search.py": "a library builds its index in memory, once",
        "kv_cache/offloading.py": "a file is read, no tensor",
        "throughput/fair_benchmark.py": "the question: a clock that does not wait",
        "throughput/model_parallelism.py": "processes that wait for one another",
    },
    "place": {
        "embeddings/compressed_vectors.py": "counts of the answers, which are in memory",
        "embeddings/semantic_neighbours.py": "drawn in memory, then moved to the table's device",
        "embeddings/similarity_measures.py": "random vectors that meet no tensor of a model",
        "embeddings/static_or_contextual.py": "row numbers, which index a tensor anywhere",
        "embeddings/vector_search.py": "titles that lie in memory are shuffled",
        "throughput/caching.py": "a simulated stream of requests",
        "throughput/pruning.py": "one seed for every device, moved there below",
    },
}
MENDS = {
    "numpy": "say .cpu() before .numpy(): a GPU's tensor refuses it",
    "threads": "ask snippets/instruments for the machine's threads",
    "clock": "time through snippets/instruments/clock.py, which waits for the device",
    "place": "give device=, or move it with .to(device)",
    "library": "a CPU library of PyTorch's: use public operators, or the adapter models/operators.py",
}
MAKERS = {"arange", "as_tensor", "empty", "eye", "full", "linspace", "ones", "rand", "randint", "randn", "randperm"}
MAKERS |= {"tensor", "zeros"}
CLOCKS = {f"time.{name}" for name in ("monotonic", "perf_counter", "perf_counter_ns", "process_time", "time")}


def cpu_only(source: str) -> Iterator[tuple[str, int, str]]:
    """(rule, line, code) of whatever in a module works, or tells the truth, on a CPU alone."""
    tree = ast.parse(source)
    above = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and (node.attr == "mkldnn" or node.attr.endswith("_for_cpu")):
            yield "library", node.lineno, ast.unparse(node)
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        if called.endswith(".numpy") and ".cpu()" not in called and "'cpu'" not in called:
            yield "numpy", node.lineno, called
        if called in ("torch.get_num_threads", "torch.set_num_threads"):
            yield "threads", node.lineno, called
        if called in CLOCKS:
            yield "clock", node.lineno, called
        makes = called.removeprefix("torch.") in MAKERS and called.startswith("torch.")
        if makes and not any(keyword.arg == "device" for keyword in node.keywords):
            around = _around(node, above)
            takes = {argument.arg for f in around if isinstance(f, ast.FunctionDef) for argument in _arguments(f)}
            moved = any(isinstance(a, ast.Attribute) and a.attr == "to" for a in around)
            if takes & {"device", "target"} and not moved:
                yield "place", node.lineno, ast.unparse(node)


def _around(node: ast.AST, above: dict[ast.AST, ast.AST]) -> list[ast.AST]:
    """The expressions that a call stands in, and the function."""
    found: list[ast.AST] = []
    while node in above and not (found and isinstance(found[-1], ast.FunctionDef)):
        node = above[node]
        if isinstance(node, (ast.Attribute, ast.Call, ast.BinOp, ast.Subscript, ast.FunctionDef)):
            found.append(node)
    return found


def _arguments(function: ast.FunctionDef) -> list[ast.arg]:
    return [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]


def short(path: Path) -> str:
    return path.relative_to(ROOT / "snippets").as_posix()


@pytest.mark.parametrize("path", SNIPPETS, ids=short)
def test_nothing_runs_on_a_cpu_alone(path: Path) -> None:
    found = cpu_only(path.read_text(encoding="utf-8"))
    if path.name == "operators.py":  # the adapter
        found = (each for each in found if each[0] != "library")
    wrong = [
        f"snippets/{short(path)}:{line}: {code}: {MENDS[rule]}"
        for rule, line, code in found
        if short(path) not in RIGHT.get(rule, {})
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("rule", RIGHT)
def test_every_exception_is_still_one(rule: str) -> None:
    for name in RIGHT[rule]:
        found = cpu_only((ROOT / "snippets" / name).read_text(encoding="utf-8"))
        assert rule in {each for each, _, _ in found}, f"{name} needs no exception from {rule!r} any more"


@pytest.mark.parametrize(
    ("source", "rule"),
    [
        ("x.detach().numpy()", "numpy"),
        ("torch.set_num_threads(1)", "threads"),
        ("began = time.perf_counter()", "clock"),
        ("def f(device):\n    return torch.zeros(3)", "place"),
        ("def f(*, device=None):\n    return model(torch.arange(3) + 1)", "place"),
        ("torch.backends.mkldnn.enabled", "library"),
        ("torch.ops.aten._weight_int4pack_mm_for_cpu(a, b)", "library"),
    ],
)
def test_what_only_a_cpu_has_is_noticed(source: str, rule: str) -> None:
    assert [each for each, _, _ in cpu_only(source)] == [rule]


@pytest.mark.parametrize(
    "source",
    [
        "x.cpu().numpy()",
        "x.to('cpu', torch.float32).contiguous().numpy()",
        "def f(device):\n    return torch.zeros(3, device=device), torch.randn(3, generator=g).to(device)",
        "def f(rows):\n    return torch.zeros(rows)",
    ],
)
def test_what_any_device_has_passes(source: str) -> None:
    assert list(cpu_only(source)) == []


# A played GPU: its description is PyTorch's, its tensors stay in memory.

GPUS = {
    "NVIDIA H100 80GB HBM3": SimpleNamespace(major=9, minor=0, total_memory=85_000_000_000, L2_cache_size=50 * 2**20),
    "NVIDIA A100-SXM4-80GB": SimpleNamespace(major=8, minor=0, total_memory=85_000_000_000, L2_cache_size=40 * 2**20),
    "Tesla T4": SimpleNamespace(major=7, minor=5, total_memory=15_800_000_000, L2_cache_size=4 * 2**20),
}
H100 = "NVIDIA H100 80GB HBM3"


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Call it with a GPU's name: from then on this machine has that one."""

    def as_gpu(name: str) -> torch.device:
        properties = SimpleNamespace(name=name, **vars(GPUS[name]))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
        monkeypatch.setattr(torch.version, "hip", None)
        operators.has_fp8.cache_clear()
        return devices.pick()

    yield as_gpu
    operators.has_fp8.cache_clear()


@pytest.mark.parametrize("topic", ["kv_cache.offloading", "throughput.determinism", "throughput.prefill_and_decode"])
@pytest.mark.parametrize(("name", "dtype"), [(H100, torch.bfloat16), ("Tesla T4", torch.float32)])
def test_pages_compute_in_bf16_where_a_gpu_has_it(play, topic: str, name: str, dtype: torch.dtype) -> None:
    module = pytest.importorskip(f"snippets.{topic}")
    assert module.fast_dtype(play(name)) == dtype


@pytest.mark.parametrize(("name", "fp8"), [(H100, True), ("NVIDIA A100-SXM4-80GB", False), ("Tesla T4", False)])
def test_fp8_is_multiplied_where_a_gpu_has_it(play, name: str, fp8: bool) -> None:
    device = play(name)
    assert device.type == devices.KINDS[0]
    assert operators.has_fp8(device) == fp8 and not operators.has_fp8(torch.device("cpu"))


def test_the_rates_of_formats_take_the_fp8_operator_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from snippets.quantization import formats_and_fast_paths as formats

    cpu, seen = torch.device("cpu"), []

    def scaled(a: torch.Tensor, b: torch.Tensor, **told: Any) -> torch.Tensor:
        assert b.stride(0) == 1 and told["out_dtype"] == torch.bfloat16 and float(told["scale_a"]) == 1
        seen.append(tuple(b.shape))
        return (a.float() @ b.float()).to(told["out_dtype"])

    emulated = formats.products(16, cpu)["E4M3"]()
    monkeypatch.setattr(torch, "_scaled_mm", scaled)
    monkeypatch.setattr(operators, "has_fp8", lambda device: True)
    found = formats.products(16, cpu)["E4M3"]()
    assert seen and set(seen) == {(formats.INNER, formats.INNER)}
    assert found.dtype == torch.bfloat16 and emulated.shape == found.shape


def test_integer_products_of_a_gpu_get_the_rows_and_sizes_that_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gpu:
        """Codes that say they are on a GPU."""

        is_cpu, is_cuda, is_meta = False, True, False

        def __init__(self, *shape: int) -> None:
            self.shape = shape

    assert operators.takes_int8(Gpu(64, 16)) and not operators.takes_int8(Gpu(64, 7))  # type: ignore[arg-type]
    asked = []

    def int_mm(a: torch.Tensor, b: Any) -> torch.Tensor:
        asked.append(tuple(a.shape))
        return torch.zeros(len(a), b.shape[1])

    monkeypatch.setattr(torch, "_int_mm", int_mm)
    for tokens in (1, 16, 32, 33):
        assert len(operators.int8_product(torch.zeros(tokens, 64, dtype=torch.int8), Gpu(64, 16))) == tokens  # type: ignore[arg-type]
    assert asked == [(32, 64), (32, 64), (32, 64), (33, 64)]


def test_two_in_four_weights_are_stored_where_a_gpu_multiplies_them(monkeypatch: pytest.MonkeyPatch) -> None:
    from snippets.throughput import pruning

    scale, key = pruning.Scale(layer=(64, 128), shares=(pruning.HALF,)), ("2:4", "BF16", pruning.HALF)
    assert key not in pruning.ways(scale, torch.device("cpu"))
    monkeypatch.setattr(pruning, "capabilities", lambda device: frozenset({"cuda-bf16"}))
    monkeypatch.setattr(pruning, "to_sparse_semi_structured", lambda weight: weight)
    weight = pruning.ways(scale, torch.device("cpu"))[key]
    assert weight.dtype == torch.bfloat16
    assert weight.unflatten(1, (-1, 4)).count_nonzero(dim=2).tolist() == [[2] * 32] * 64


def test_a_cache_in_the_hosts_memory_is_pinned_for_a_device_that_copies_from_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from snippets.kv_cache import offloading

    pinned: list[tuple[int, ...]] = []

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        pinned.append(tuple(tensor.shape))
        return tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    monkeypatch.setattr(offloading.smollm2, "encode", lambda text, device: odd_ids(1, 8).to(device))
    monkeypatch.setattr(offloading.clock, "interleave", lambda calls, **told: sorted(calls))
    scale: Any = SimpleNamespace(lengths=(4, 8), rounds=1, blocks=1)
    decoder = odd_decoder()
    assert offloading.prefill_times(decoder, scale) == ["4", "8", "copy"] and not pinned
    offloading.prefill_times(decoder.to("meta"), scale)
    assert len(pinned) == 2 and len(set(pinned)) == 1


# CUDA graphs.


def test_graphs_are_asked_for_where_the_device_has_them(play, monkeypatch: pytest.MonkeyPatch) -> None:
    assert compiled.has_graphs(play(H100)) and not compiled.has_graphs(torch.device("cpu"))
    asked: list[dict[str, Any]] = []

    def compile_nothing(function: Any, **told: Any) -> Any:
        asked.append(told)
        return function

    monkeypatch.setattr(torch, "compile", compile_nothing)
    monkeypatch.setattr(compiled, "capabilities", lambda: frozenset({"compiler"}))
    compiled.compiled(odd_decoder())
    monkeypatch.setattr(compiled, "has_graphs", lambda device: True)
    compiled.compiled(odd_decoder())
    assert asked == [{"dynamic": False, "fullgraph": True, **mode} for mode in ({}, {"mode": "reduce-overhead"})]


def test_a_step_of_graphs_is_one_iteration_over_a_cache_that_stays_where_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    began: list[int] = []
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: began.append(1))
    places: list[tuple[int, int]] = []

    def layer(block: Any, x: Any, cos: Any, sin: Any, keys: Any, values: Any, place: Any, seen: Any) -> Any:
        assert keys._dynamo_static_input_type == values._dynamo_static_input_type == "unguarded"
        places.append((id(keys), keys.data_ptr()))
        return compiled.layer_step(block, x, cos, sin, keys, values, place, seen)

    decoder, ids = odd_decoder(), odd_ids(2, 3)
    step = compiled.StaticStep(decoder, 2, 16, layer, graphs=True)
    assert torch.equal(runtimes.generate(step, ids, 5), generate(decoder, ids, 5))
    assert len(began) == 4  # the first token comes from the prompt
    assert len(places) == 4 * decoder.geometry.layers and len(set(places)) == decoder.geometry.layers


def test_a_step_without_graphs_marks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: pytest.fail("no graph is replayed"))
    step = compiled.StaticStep(odd_decoder(), 1, 8)
    runtimes.generate(step, odd_ids(1, 3), 4)
    assert step.length == 6 and not hasattr(step._cached[0][0], "_dynamo_static_input_type")
