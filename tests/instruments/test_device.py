"""Device: the right one is picked and described, on this machine and on machines that are played."""

from __future__ import annotations

import getpass
import json
import os
import platform
import socket
import time
from types import SimpleNamespace

import pytest
import torch

from snippets.instruments import datasheets
from snippets.instruments import device as devices

H100 = SimpleNamespace(
    name="NVIDIA H100 80GB HBM3", total_memory=85_000_000_000, major=9, minor=0, L2_cache_size=50 * 2**20
)


@pytest.fixture
def no_gpu(monkeypatch):
    for module in (torch.cuda, torch.backends.mps, torch.xpu):
        monkeypatch.setattr(module, "is_available", lambda: False)


@pytest.fixture
def gpu(monkeypatch, no_gpu):
    """A machine with an H100; the test may change its properties."""
    properties = SimpleNamespace(**vars(H100))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.version, "hip", None)
    return properties


@pytest.fixture
def processor(monkeypatch):
    """Play a Linux machine with another processor: call it with the fields of /proc/cpuinfo."""

    def play(**fields):
        monkeypatch.setattr(devices, "_cpu_info", lambda: {k.replace("_", " "): v for k, v in fields.items()})
        monkeypatch.setattr(platform, "system", lambda: "Linux")

    return play


@pytest.mark.parametrize("best", ["cuda", "mps", "xpu", "cpu"])
def test_the_best_available_device_is_picked(monkeypatch, best):
    order = ["cuda", "mps", "xpu", "cpu"]
    for kind in order[:-1]:
        module = torch.backends.mps if kind == "mps" else getattr(torch, kind)
        monkeypatch.setattr(module, "is_available", lambda kind=kind: order.index(kind) >= order.index(best))
    assert devices.pick() == torch.device(best)
    assert devices.pick("cpu") == torch.device("cpu")


def test_an_unknown_device_is_refused_with_the_known_ones(no_gpu):
    with pytest.raises(ValueError, match=r"unknown device 'gpu'; known: cuda, mps, xpu, cpu"):
        devices.pick("gpu")


def test_a_device_that_is_not_here_is_refused_with_the_available_ones(no_gpu):
    with pytest.raises(ValueError, match=r"no cuda device.*available: cpu"):
        devices.pick("cuda:1")


def test_an_index_is_kept(gpu):
    assert devices.pick("cuda:1") == torch.device("cuda", 1)
    assert devices.pick(torch.device("cuda", 1)) == torch.device("cuda", 1)


@pytest.mark.parametrize("kind", ["cuda", "mps", "xpu"])
def test_an_accelerator_is_waited_for(monkeypatch, kind):
    waited = []
    monkeypatch.setattr(getattr(torch, kind), "synchronize", lambda *device: waited.append(kind))
    devices.synchronize(kind)
    devices.synchronize("cpu")
    assert waited == [kind]


def test_a_device_that_cannot_be_waited_for_is_refused():
    for ask in (devices.synchronize, devices.allocated_bytes, devices.empty_cache):
        with pytest.raises(ValueError, match="unknown device 'meta'"):
            ask("meta")


def test_a_gpu_is_asked_for_its_bytes(monkeypatch, gpu):
    calls = []
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 1536)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 4096)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: calls.append("reset"))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: calls.append("emptied"))
    assert (devices.allocated_bytes("cuda"), devices.peak_allocated_bytes("cuda")) == (1536, 4096)
    devices.reset_peak("cuda")
    devices.empty_cache("cuda")
    devices.empty_cache("cpu")
    assert calls == ["reset", "emptied"]


def test_a_cpu_keeps_no_account_of_bytes():
    for ask in (devices.allocated_bytes, devices.peak_allocated_bytes, devices.reset_peak):
        with pytest.raises(ValueError, match="no account"):
            ask("cpu")


def test_elapsed_seconds_of_a_known_sleep():
    calls = []
    taken = devices.elapsed_seconds(lambda: (calls.append(1), time.sleep(0.02)), "cpu", calls=3)
    assert len(calls) == 3
    assert 0.06 <= taken < 0.5


def test_a_gpu_times_by_its_own_events(monkeypatch, gpu):
    log = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            log.append("event")

        def elapsed_time(self, end):
            return 250.0  # milliseconds

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: log.append("wait"))
    assert devices.elapsed_seconds(lambda: log.append("call"), "cuda", calls=2) == 0.25
    assert log == ["wait", "event", "call", "call", "event", "wait"]


def test_a_flush_writes_more_than_the_largest_cache(monkeypatch):
    monkeypatch.setattr(devices, "cache_bytes", lambda device: {"L2": 1000, "L3": 70_000})
    assert devices.cache_flusher("cpu")().untyped_storage().nbytes() == 140_000


# This machine, and what may be said of it.


def test_a_description_is_complete_and_names_no_host_user_or_path():
    described = devices.describe("cpu")
    assert set(described) == {
        "kind", "name", "class", "threads", "cores", "memory_bytes", "capabilities", "caches",
        "python", "torch", "os",
    }  # fmt: skip
    assert described["kind"] == "cpu"
    assert described["threads"] == torch.get_num_threads()
    assert described["torch"] == torch.__version__
    assert described["capabilities"] == sorted(devices.capabilities("cpu"))
    text = json.dumps(described)
    assert json.loads(text) == described
    private = {socket.gethostname(), os.getcwd(), os.path.expanduser("~"), getpass.getuser()} - {"root", "/"}
    assert [word for word in private if word in text] == []
    assert "/" not in text


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system binds no process to processors")
def test_processors_are_counted_as_this_process_may_use_them():
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert devices.cpu_count() == 1
    finally:
        os.sched_setaffinity(0, allowed)
    assert devices.cpu_count() == len(allowed)


def test_memory_agrees_with_psutil():
    psutil = pytest.importorskip("psutil")
    told = devices.memory_bytes("cpu")
    assert 10**8 < told <= psutil.virtual_memory().total  # less where a container has a limit


@pytest.mark.skipif(platform.system() != "Linux", reason="read from /proc and /sys")
def test_caches_grow_outwards():
    caches = devices.cache_bytes("cpu")
    if not caches:
        pytest.skip("this machine tells no cache sizes")
    assert set(caches) <= {"L1d", "L1", "L2", "L3", "L4"}
    assert "L1" not in caches or "L1d" not in caches  # instructions are no data
    assert 8 * 2**10 <= next(iter(caches.values())) < caches["L2"]


def test_instructions_agree_with_torch(no_gpu):
    found = devices.capabilities()
    best = torch.backends.cpu.get_cpu_capability()
    assert "cpu" in found and "cuda" not in found
    assert ("avx512" in found) == best.startswith("AVX512")
    assert ("avx2" in found) == best.startswith("AVX")
    assert ("two-processes" in found) == (devices.cpu_count() > 1)


# Machines that are played.


def test_an_intel_processor_with_amx(processor, no_gpu):
    processor(model_name="Intel(R)  Xeon(R)   Platinum 8481C", flags="avx2 avx512f avx512_vnni amx_bf16 amx_int8")
    found = devices.capabilities("cpu")
    assert {"avx2", "avx512", "avx512-vnni", "vnni", "amx-bf16", "amx-int8", "fast-bf16"} <= found
    assert not found & {"avx512-bf16", "amx-fp16", "neon"}
    assert devices.cpu_name() == "Intel(R) Xeon(R) Platinum 8481C"


def test_an_old_processor_has_no_fast_bf16(processor, no_gpu):
    processor(model_name="Intel(R) Core(TM) i5-4590", flags="avx2 avx")
    assert "avx2" in devices.capabilities("cpu")
    assert not devices.capabilities("cpu") & {"fast-bf16", "vnni", "avx512"}


def test_an_arm_processor(processor, no_gpu):
    processor(Features="fp asimd bf16 i8mm")
    assert {"neon", "neon-bf16", "neon-i8mm", "fast-bf16"} <= devices.capabilities("cpu")


def test_a_hidden_model_number_is_replaced_by_the_family(processor):
    processor(model_name="AMD EPYC", cpu_family="26", model="2")
    assert devices.cpu_name() == "AMD EPYC (family 26 model 2)"


def test_the_class_tells_processors_and_threads_apart(processor, no_gpu):
    processor(model_name="AMD EPYC", cpu_family="26", model="2")
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert devices.machine_class("cpu") == "cpu-amd-epyc-family-26-model-2-threads-2"
        torch.set_num_threads(1)
        assert devices.machine_class("cpu") == "cpu-amd-epyc-family-26-model-2-threads-1"
    finally:
        torch.set_num_threads(threads)


def test_a_gpu_is_described(gpu):
    described = devices.describe()
    assert (described["kind"], described["name"]) == ("cuda", "NVIDIA H100 80GB HBM3")
    assert described["class"] == "cuda-nvidia-h100-80gb-hbm3"
    assert described["memory_bytes"] == 85_000_000_000
    assert described["caches"] == {"L2": 50 * 2**20}
    assert {"cuda", "cuda-bf16", "cuda-fp8", "fast-bf16"} <= set(described["capabilities"])
    assert not {"cpu", "avx2"} & set(described["capabilities"])


@pytest.mark.parametrize(
    ("generation", "bf16", "fp8"),
    [((7, 5), False, False), ((8, 0), True, False), ((8, 9), True, True), ((12, 0), True, True)],
)
def test_a_gpus_formats_follow_its_generation(gpu, generation, bf16, fp8):
    gpu.major, gpu.minor = generation
    found = devices.capabilities()
    assert ("fast-bf16" in found, "cuda-fp8" in found) == (bf16, fp8)


# Declared peaks.


@pytest.mark.parametrize(
    ("driver_name", "dtype", "tera", "gigabytes"),
    [
        ("NVIDIA A100-SXM4-80GB", torch.bfloat16, 312, 2039),
        ("NVIDIA A100-SXM4-40GB", torch.bfloat16, 312, 1555),
        ("NVIDIA A100 80GB PCIe", torch.int8, 624, 1935),
        ("NVIDIA H100 80GB HBM3", torch.bfloat16, 989.4, 3350),
        ("NVIDIA H100 80GB HBM3", torch.float8_e4m3fn, 1978.9, 3350),
        ("NVIDIA H100 PCIe", torch.float16, 756.5, 2000),
        ("NVIDIA H200", torch.bfloat16, 989.4, 4800),
        ("NVIDIA B200", torch.bfloat16, 2250, 8000),
        ("NVIDIA L40S", torch.bfloat16, 362.05, 864),
        ("NVIDIA L4", torch.bfloat16, 121, 300),
        ("NVIDIA A10", torch.bfloat16, 125, 600),
        ("NVIDIA GeForce RTX 4090", torch.bfloat16, 165.2, 1008),
        ("Tesla T4", torch.float16, 65, 320),
        ("AMD Instinct MI300X", torch.bfloat16, 1307.4, 5300),
    ],
)
def test_a_gpus_peak_is_its_datasheets(gpu, driver_name, dtype, tera, gigabytes):
    gpu.name = driver_name
    peak = devices.declared_peak("cuda", dtype)
    assert peak.flops_per_second == pytest.approx(tera * 1e12, rel=1e-12)
    assert peak.bytes_per_second == gigabytes * 1e9
    assert "dense" in peak.source and driver_name.split()[0].replace("Tesla", "NVIDIA") in peak.source


@pytest.mark.parametrize(
    "driver_name",
    ["NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA GeForce RTX 4090 D", "NVIDIA A10G", "NVIDIA L40",
     "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA Z9000"],
)  # fmt: skip
def test_a_gpu_with_a_like_name_has_no_declared_peak(gpu, driver_name):
    gpu.name = driver_name
    assert devices.declared_peak("cuda", torch.bfloat16) is None


def test_a_format_without_units_has_no_declared_peak(gpu):
    gpu.name = "Tesla T4"
    assert devices.declared_peak("cuda", torch.bfloat16) is None
    assert devices.declared_peak("cuda", torch.float64) is None


def test_fp32_products_may_run_as_tf32(gpu, monkeypatch):
    exact = devices.declared_peak("cuda", torch.float32)
    monkeypatch.setattr(devices, "_runs_tf32", lambda: True)
    assert exact.flops_per_second == pytest.approx(66.9e12)
    assert devices.declared_peak("cuda", torch.float32).flops_per_second == pytest.approx(494.7e12)


def test_no_sheet_is_beaten_by_its_own_fp32():
    for sheet in datasheets.DATASHEETS.values():
        assert sheet.tera["float32"] <= min(sheet.tera.values())
        assert sheet.tera.get("float8", sheet.tera["float16"]) >= sheet.tera["float16"]


def test_a_text_may_name_a_gpu_that_is_not_here():
    assert datasheets.gpu_peak("H100 SXM", "bfloat16") == datasheets.gpu_peak("NVIDIA H100 80GB HBM3", "bfloat16")
    assert datasheets.gpu_peak("H100", "bfloat16") is None  # which one?


def test_the_roofline_is_the_slower_of_work_and_traffic():
    peak = datasheets.Peak(flops_per_second=100.0, bytes_per_second=10.0, source="made up")
    assert peak.seconds(flops=1000, moved_bytes=10) == 10
    assert peak.seconds(flops=10, moved_bytes=1000) == 100


@pytest.mark.parametrize(
    ("flags", "dtype", "flops_per_cycle"),
    [
        ("avx2", torch.float32, 32),
        ("avx2 avx512f", torch.float32, 64),
        ("avx2 avx512f", torch.bfloat16, 64),  # widened to FP32
        ("avx2 avx512f avx512_bf16", torch.bfloat16, 128),
        ("avx2 avx512f avx512_bf16 amx_bf16", torch.bfloat16, 1024),
        ("avx2 avx512f avx512_bf16 amx_bf16", torch.float32, 64),
        ("avx2 avx512f avx512_vnni", torch.int8, 256),
        ("avx2 avx512f avx512_vnni amx_int8", torch.int8, 2048),
        ("avx2 avx512f avx512_vnni amx_int8", torch.uint8, 2048),
    ],
)
def test_a_cpus_peak_bounds_its_instructions(processor, monkeypatch, flags, dtype, flops_per_cycle):
    processor(flags=flags)
    monkeypatch.setattr(devices, "cpu_count", lambda: 3)
    peak = devices.declared_peak("cpu", dtype)
    assert peak.flops_per_second == flops_per_cycle * 3 * datasheets.CPU_CLOCK_CEILING
    assert peak.bytes_per_second == 192 * 3 * datasheets.CPU_CLOCK_CEILING
    assert "upper bound" in peak.source


def test_this_cpu_stays_below_its_declared_peak():
    a, b = torch.ones(512, 512), torch.ones(512, 512)
    out = torch.empty(512, 512)
    seconds = min(devices.elapsed_seconds(lambda: torch.mm(a, b, out=out), "cpu") for _ in range(20))
    peak = devices.declared_peak("cpu", torch.float32)
    assert 0.005 * peak.flops_per_second < 2 * 512**3 / seconds < peak.flops_per_second


def test_an_apple_processor_is_described(monkeypatch, no_gpu):
    told = {
        "machdep.cpu.brand_string": "Apple M3",
        "hw.optional.arm.FEAT_BF16": "1",
        "hw.perflevel0.l1dcachesize": "131072",
        "hw.perflevel0.l2cachesize": "16777216",
    }
    monkeypatch.setattr(devices, "_cpu_info", dict)
    monkeypatch.setattr(devices, "_sysctl", lambda name: told.get(name, ""))
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    described = devices.describe("cpu")
    assert described["name"] == "Apple M3"
    assert {"neon", "neon-bf16", "fast-bf16"} <= set(described["capabilities"])
    assert "neon-i8mm" not in described["capabilities"]
    assert described["caches"] == {"L1d": 131072, "L2": 16777216}
    assert devices.declared_peak("cpu", torch.float32).flops_per_second >= 512 * datasheets.CPU_CLOCK_CEILING
