"""Memory: known allocations are counted to the byte."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import pytest
import torch
from safetensors.torch import load_file, save_file

from snippets.instruments import device as devices
from snippets.instruments import memory
from snippets.instruments.memory import allocated_by, peak_allocated_by, storage_bytes, usable_bytes


@dataclass
class Packed:
    codes: torch.Tensor
    scale: torch.Tensor
    group: int


@dataclass(slots=True)
class Slotted:
    codes: torch.Tensor


class Plain:
    def __init__(self, tensor):
        self.tensor, self.me = tensor, self  # a cycle


@pytest.mark.parametrize(
    ("dtype", "size"), [(torch.float32, 4), (torch.bfloat16, 2), (torch.int8, 1), (torch.float64, 8)]
)
def test_a_tensor_weighs_its_numbers(dtype, size):
    assert storage_bytes(torch.zeros(3, 5, 7, dtype=dtype)) == 3 * 5 * 7 * size


def test_a_view_weighs_its_whole_storage():
    assert storage_bytes(torch.zeros(1000)[:2]) == 4000
    assert storage_bytes(torch.zeros(5, 1).expand(5, 900)) == 20


def test_what_is_shared_is_counted_once():
    base, other = torch.zeros(100), torch.zeros(100)
    assert storage_bytes([base, base, base[10:], base.view(10, 10)]) == 400
    assert storage_bytes([base, other]) == 800


def test_a_modules_tied_weights_are_counted_once():
    module = torch.nn.Sequential(torch.nn.Embedding(7, 5), torch.nn.Linear(5, 7, bias=False))
    assert storage_bytes(module) == 2 * 7 * 5 * 4
    module[1].weight = module[0].weight
    assert storage_bytes(module) == 7 * 5 * 4


def test_a_modules_buffers_and_plain_tensors_count():
    module = torch.nn.BatchNorm1d(3)  # weight, bias, running mean and variance; one INT64 counter
    assert storage_bytes(module) == 4 * 3 * 4 + 8
    module.packed = Packed(torch.zeros(10, dtype=torch.uint8), torch.zeros(2), 5)
    assert storage_bytes(module) == 4 * 3 * 4 + 8 + 10 + 8


def test_containers_are_walked():
    ten = torch.zeros(10)
    nested = {"a": [ten, ("text", 3, None)], "b": {"c": Packed(torch.zeros(3), torch.zeros(4), 1)}, "d": ten}
    assert storage_bytes(nested) == 40 + 12 + 16
    assert storage_bytes(Slotted(ten)) == 40
    assert storage_bytes(Plain(ten)) == 40
    assert storage_bytes(torch.zeros(n) for n in (1, 2, 3)) == 24
    assert storage_bytes([]) == 0


@pytest.mark.filterwarnings("ignore:Sparse CS. tensor support is in beta", "ignore:Sparse invariant checks")
def test_sparse_tensors_count_their_indices():
    dense = torch.eye(8)
    assert storage_bytes(dense.to_sparse()) == 2 * 8 * 8 + 8 * 4
    pointers, indices, values = torch.arange(9), torch.arange(8), torch.ones(8)
    by_rows = torch.sparse_csr_tensor(pointers, indices, values, (8, 8), check_invariants=False)
    parts = (pointers.clone(), indices.clone(), values.clone())
    by_columns = torch.sparse_csc_tensor(*parts, (8, 8), check_invariants=False)
    assert storage_bytes(by_rows) == (9 + 8) * 8 + 8 * 4
    assert storage_bytes([by_rows, by_columns]) == 2 * storage_bytes(by_rows)


@pytest.mark.parametrize("nothing", [3, 2.5, "text", None, b"bytes", len])
def test_what_holds_no_tensors_is_refused(nothing):
    with pytest.raises(TypeError, match="holds no tensors"):
        storage_bytes(nothing)


def test_a_meta_tensor_weighs_what_it_would():
    meta = torch.empty(1000, device="meta")
    assert storage_bytes([meta, meta[:5], torch.empty(10, device="meta")]) == 4040


# The allocator.


@pytest.mark.parametrize("numbers", [1, 7, 1000, 1_000_003])
def test_the_allocator_holds_a_little_more_than_asked_for(numbers):
    asked = 4 * numbers
    assert asked <= usable_bytes(torch.zeros(numbers)) <= asked + 3 * 4096


def test_small_blocks_are_rounded_up():
    held = {usable_bytes(torch.zeros(n, dtype=torch.uint8)) for n in range(1, 9)}
    assert min(held) > 8


def test_a_view_asks_for_its_storage():
    base = torch.zeros(1000)
    assert usable_bytes(base[500:]) == usable_bytes(base) >= 4000


def test_borrowed_storages_are_refused(tmp_path):
    numpy = pytest.importorskip("numpy")
    save_file({"a": torch.zeros(100)}, tmp_path / "a.safetensors")
    borrowed = [
        torch.from_numpy(numpy.zeros(5)),
        torch.frombuffer(bytearray(16), dtype=torch.uint8),
        load_file(tmp_path / "a.safetensors")["a"],
        torch.zeros(3).share_memory_(),
    ]
    for tensor in borrowed:
        with pytest.raises(ValueError, match="borrowed"):
            usable_bytes(tensor)


def test_an_accelerator_is_asked_by_allocating_once_more(monkeypatch):
    made = []
    tensor, real_empty = torch.zeros(150, device="meta"), torch.empty

    def empty(size, dtype, device):
        made.append((size, dtype, device.type))
        return real_empty(1)

    monkeypatch.setattr(torch, "empty", empty)
    monkeypatch.setattr(devices, "allocated_bytes", lambda device: 4096 + 512 * 2 * len(made))
    assert usable_bytes(tensor) == 1024
    assert made == [(600, torch.uint8, "meta")]


def test_a_known_allocation_is_seen():
    result, held = allocated_by(lambda: torch.zeros(1_000_003), device="cpu")
    assert held == 4_000_012
    assert result.shape == (1_000_003,)


def test_temporaries_show_in_the_peak_alone():
    def with_temporary():
        temporary = torch.ones(300_000)
        kept = temporary[:1000].clone()
        del temporary
        return kept + torch.ones(1000)

    result, held = allocated_by(with_temporary, device="cpu")
    assert held == 4000
    result, peak = peak_allocated_by(with_temporary, device="cpu")
    assert peak == 1_200_000 + 4000
    assert float(result.sum()) == 2000


def test_what_is_freed_again_is_not_held():
    def replace():
        kept = torch.zeros(1000)
        kept = torch.zeros(250)
        return kept

    assert allocated_by(replace, device="cpu")[1] == 1000
    assert peak_allocated_by(replace, device="cpu")[1] == 5000
    assert peak_allocated_by(lambda: None, device="cpu") == (None, 0)


def test_a_view_and_work_in_place_allocate_nothing():
    base = torch.zeros(1000)
    assert allocated_by(lambda: base.view(10, 100).add_(0.0), device="cpu")[1] == 0


def test_the_profiler_says_nothing(capfd):
    allocated_by(lambda: torch.zeros(10), device="cpu")
    assert capfd.readouterr() == ("", "")


def test_an_accelerator_keeps_its_own_account(monkeypatch):
    log = []
    monkeypatch.setattr(devices, "pick", lambda name: torch.device("meta"))
    monkeypatch.setattr(devices, "synchronize", lambda device: log.append("wait"))
    monkeypatch.setattr(devices, "reset_peak", lambda device: log.append("reset"))
    monkeypatch.setattr(devices, "allocated_bytes", lambda device: 512 * (1 + log.count("call")))
    monkeypatch.setattr(devices, "peak_allocated_bytes", lambda device: 9000)
    assert allocated_by(lambda: log.append("call")) == (None, 512)
    assert log == ["wait", "call", "wait"]
    log.clear()
    assert peak_allocated_by(lambda: log.append("call")) == (None, 9000 - 512)
    assert log == ["wait", "reset", "call", "wait"]


# Files.


def test_a_files_payload_is_its_tensors(tmp_path):
    path = tmp_path / "two.safetensors"
    tensors = {"a": torch.zeros(3, 5), "b": torch.zeros(7, dtype=torch.bfloat16)}
    save_file(tensors, path, metadata={"note": "with metadata"})
    assert memory.safetensors_payload_bytes(path) == 3 * 5 * 4 + 7 * 2 == storage_bytes(tensors)
    assert memory.file_bytes(path) == len(path.read_bytes()) > 74 + 8


def test_a_file_cut_short_is_refused(tmp_path):
    path = tmp_path / "cut.safetensors"
    save_file({"a": torch.zeros(100)}, path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="399 bytes of tensors, its header states 400"):
        memory.safetensors_payload_bytes(path)


def test_another_kind_of_file_is_refused(tmp_path):
    path = tmp_path / "other.safetensors"
    path.write_bytes(struct.pack("<Q", 10**12) + b"{}")
    with pytest.raises(ValueError, match=r"other\.safetensors is no safetensors file"):
        memory.safetensors_payload_bytes(path)
