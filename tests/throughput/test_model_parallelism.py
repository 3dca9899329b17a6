"""Tensor or pipeline parallel? Shards add up to the whole on odd sizes, processes are ended, traps are shown wrong."""

from __future__ import annotations

import _thread
import multiprocessing
import os
import queue
import re
import subprocess
import sys
import threading
from dataclasses import replace
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from snippets.models.decoder import Block, Decoder, from_state, rotation
from snippets.models.shapes import LLAMA_3_8B, LLAMA_3_70B, SMOLLM2_135M, Geometry, parameters
from snippets.throughput import model_parallelism as snippet
from snippets.throughput.model_parallelism import LINKS, Wire
from tests.odd import ODD, odd_decoder, odd_ids
from tests.small import controlled, measured_small

pytestmark = pytest.mark.models
QUESTION = "throughput/model_parallelism"
THREE = replace(ODD, ffn=21)  # its KV heads and its FFN divide by three, and by nothing else


def whole_decoder(geometry: Geometry) -> Decoder:
    torch.manual_seed(1)
    decoder = Decoder(geometry).requires_grad_(False).eval()
    for parameter in decoder.parameters():
        parameter.normal_(0.0, 0.3)
    return decoder


def in_lockstep(whole: Decoder, ids: Tensor, ranks: int, *, residual_inside: bool = False) -> Tensor:
    """What shards compute together, without processes or hooks: partial sums added by hand, layer by layer."""
    state = {name: tensor for name, tensor in whole.state_dict().items() if name != "lm_head.weight"}
    part = snippet.shard_geometry(whole.geometry, ranks)
    shards = [from_state(part, snippet.shard_state(state, r, ranks), torch.float32) for r in range(ranks)]
    x = whole.embed_tokens(ids)
    cos, sin = rotation(whole.geometry, 0, ids.shape[1], x)
    for layer in range(whole.geometry.layers):
        blocks = [cast(Block, shard.layers[layer]) for shard in shards]
        attended = [b.self_attn(b.input_layernorm(x), cos, sin, None, layer) for b in blocks]
        x = torch.stack([x + a for a in attended]).sum(0) if residual_inside else x + torch.stack(attended).sum(0)
        x = x + torch.stack([b.mlp(b.post_attention_layernorm(x)) for b in blocks]).sum(0)
    return whole.lm_head(whole.norm(x))


@pytest.mark.parametrize(("geometry", "ranks"), [(THREE, 1), (THREE, 3), (replace(ODD, heads=4, kv_heads=2), 2)])
def test_shards_add_up_to_the_whole_on_odd_sizes(geometry: Geometry, ranks: int) -> None:
    whole, ids = whole_decoder(geometry), odd_ids(2, 5)
    right, found = whole(ids), in_lockstep(whole, ids, ranks)
    assert right.norm() > 0
    assert snippet.relative_difference(found, right) < 1e-5


def test_trap_a_residual_added_before_the_sum_is_added_by_every_process() -> None:
    whole, ids = whole_decoder(THREE), odd_ids(1, 5)
    assert snippet.relative_difference(in_lockstep(whole, ids, 3, residual_inside=True), whole(ids)) > 0.1


def test_shards_hold_each_number_of_the_matrices_once() -> None:
    whole = whole_decoder(THREE)
    state = whole.state_dict()
    shards = [snippet.shard_state(state, rank, 3) for rank in range(3)]
    for name, tensor in state.items():
        module = name.removesuffix(".weight").rpartition(".")[2]
        axis = 0 if module in snippet.COLUMN else 1 if module in snippet.ROW else None
        parts = [shard[name] for shard in shards]
        assert torch.equal(parts[0] if axis is None else torch.cat(parts, axis), tensor), name
    linear = sum(t.numel() for n, t in shards[0].items() if "proj" in n)
    assert linear * 3 == parameters(THREE).linear


@pytest.mark.parametrize(("geometry", "ranks"), [(SMOLLM2_135M, 2), (ODD, 3), (LLAMA_3_8B, 16)])
def test_trap_what_does_not_divide_is_refused(geometry: Geometry, ranks: int) -> None:
    with pytest.raises(ValueError, match=f"do not divide by {ranks}"):
        snippet.shard_geometry(geometry, ranks)


@pytest.mark.parametrize("stages", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("microbatches", [1, 2, 3, 5, 7])
def test_the_schedule_and_the_formula_agree(stages: int, microbatches: int) -> None:
    slots = snippet.schedule(stages, microbatches)
    assert len(slots) == stages * microbatches
    for (stage, microbatch), slot in slots.items():
        assert stage == 0 or slots[stage - 1, microbatch] < slot
        assert microbatch == 0 or slots[stage, microbatch - 1] < slot
    found = snippet.schedule_values(stages, microbatches)
    assert found["slots_count"] == microbatches + stages - 1
    assert found["idle_count"] * found["slots_count"] == found["pipeline_slots_count"] * (stages - 1)
    assert found["request_slots_count"] == stages


class Neighbours(Wire):
    """A wire between threads."""

    def __init__(self, rank: int, ranks: int, boxes: list[queue.Queue]) -> None:
        super().__init__(rank, ranks)
        self.boxes = boxes

    def exchange(self, out: Tensor, to: int, like: Tensor, source: int) -> Tensor:
        assert to == (self.rank + 1) % self.ranks and source == (self.rank - 1) % self.ranks
        self.sent_bytes += out.nbytes
        self.boxes[to].put(out.clone())
        return self.boxes[self.rank].get(timeout=10)


@pytest.mark.parametrize(("ranks", "size"), [(1, 4), (2, 7), (3, 9), (5, 23), (7, 7)])
def test_the_ring_sums_and_sends_its_share(ranks: int, size: int) -> None:
    boxes: list[queue.Queue] = [queue.Queue() for _ in range(ranks)]
    wires = [Neighbours(rank, ranks, boxes) for rank in range(ranks)]
    tensors = [torch.arange(size, dtype=torch.float32) * (rank + 1) for rank in range(ranks)]
    right = torch.stack(tensors).sum(0)
    threads = [threading.Thread(target=snippet.ring_all_reduce, args=pair) for pair in zip(tensors, wires, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    assert all(torch.equal(tensor, right) for tensor in tensors)
    assert sum(wire.sent_bytes for wire in wires) == 2 * (ranks - 1) * size * 4


def test_a_stage_is_its_layers_and_only_the_ends_hold_the_vocabulary() -> None:
    whole = odd_decoder()
    stages = [snippet.Stage(whole, Wire(rank, 2)) for rank in range(2)]
    assert [len(stage.layers) for stage in stages] == [1, 2]
    assert [layer for stage in stages for layer in stage.layers] == list(whole.layers)
    assert stages[0].embed is whole.embed_tokens and stages[1].embed is None
    assert stages[0].head is None and isinstance(stages[1].head, nn.Sequential)
    (only,) = [snippet.Stage(whole, Wire(0, 1))]
    ids, runner = odd_ids(1, 5), snippet.Runner(only, only.geometry, torch.device("cpu"))
    assert torch.equal(cast(Tensor, only(ids, runner.cache(5))), whole(ids))


def test_predictions_by_hand() -> None:
    nvlink = LINKS["NVLink"]
    assert snippet.all_reduce_seconds(8, 8192, nvlink) == pytest.approx(6.6e-6 + 14 * (0.6e-6 + 1024 / 450e9))
    assert snippet.all_reduce_seconds(1, 8192, nvlink) == 0
    read = 2 * (parameters(LLAMA_3_8B).total - 128_256 * 4096 - parameters(LLAMA_3_8B).norms)
    assert snippet.tensor_seconds(LLAMA_3_8B, 1, nvlink) == pytest.approx(read / 3.35e12)
    assert snippet.tensor_seconds(LLAMA_3_8B, 8, LINKS["free"]) == pytest.approx(read / 8 / 3.35e12)
    prompt = snippet.tensor_seconds(LLAMA_3_8B, 1, nvlink, 4096)
    assert prompt == pytest.approx(2 * (parameters(LLAMA_3_8B).linear * 4096 + 128_256 * 4096) / 989.4e12)


def test_a_larger_model_gains_more_and_a_slower_link_less() -> None:
    found = snippet.gain_columns()
    ratio = {pair[:2]: pair[2] for pair in zip(found["model"], found["link"], found["decode_ratio"], strict=True)}
    for link in ("NVLink", "PCIe", "network"):
        assert ratio["Llama-3-70B", link] > ratio["Llama-3-8B", link]
    for model in ("Llama-3-8B", "Llama-3-70B"):
        assert 8 > ratio[model, "NVLink"] > ratio[model, "PCIe"] > ratio[model, "network"]


def test_kv_heads_are_divided_until_there_is_one_on_each_card() -> None:
    tokens = [snippet.card_bytes(LLAMA_3_70B, cards)[1] for cards in (1, 2, 4, 8, 16)]
    assert tokens == [327_680, 163_840, 81_920, 40_960, 40_960]
    fits = snippet.fit_columns()
    assert fits["cached_tokens"][0] == 0 < fits["cached_tokens"][1]


def test_values_over_real_processes() -> None:
    found, control = measured_small(QUESTION), controlled(QUESTION)
    assert found["tensor_equal_tokens"] == found["stages_equal_tokens"] == found["written_tokens"] == 4
    assert found["shard_bytes"] == found["matrices_bytes"] // 3 + found["embedding_bytes"] + found["norms_bytes"]
    assert found["tensor_largest_difference"] < found["smallest_gap_difference"]
    assert found["dispatched_reduces_count"] == 60
    assert 0 < found["tensor_logit_difference"] <= 2e-5 < control["tensor_logit_difference"]


def nobody_is_left() -> bool:
    return not [child for child in multiprocessing.active_children() if child.is_alive()]


def test_processes_that_fail_say_why_and_none_is_left() -> None:
    with pytest.raises(Exception, match="3 KV heads and an FFN of 1536 do not divide by 2 processes"):
        snippet.launch(snippet.SMALL, ranks=2, device="cpu")
    assert nobody_is_left()


def test_processes_that_hang_are_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snippet, "LIMIT_SECONDS", 1.0)
    with pytest.raises(TimeoutError, match="2 processes were not done"):
        snippet.launch(replace(snippet.CONTROL, stage_seconds=60.0), ranks=2, device="cpu")
    assert nobody_is_left()


def test_an_interrupt_ends_the_processes() -> None:
    timer = threading.Timer(1.0, _thread.interrupt_main)
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        snippet.launch(replace(snippet.CONTROL, stage_seconds=60.0), ranks=2, device="cpu")
    timer.join()
    assert nobody_is_left()


LEAVES_THREADS = """
import sys, tempfile, torch
from pathlib import Path
import torch.distributed as dist
from snippets.throughput.model_parallelism import dispatched_reduces, member

with tempfile.TemporaryDirectory() as folder:
    with member(torch.device("cpu"), store=dist.FileStore(f"{folder}/store", 1), rank=0, world_size=1):
        x = torch.ones(1)
        counted = dispatched_reduces(lambda: (dist.all_reduce(x), dist.all_reduce(x)))
names = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
print(counted, sum("gloo" in name for name in names))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="threads are named in /proc on Linux alone")
def test_counting_leaves_no_thread_of_the_group_behind() -> None:
    """A thread that outlives its group aborts the process now and then as the interpreter ends."""
    done = subprocess.run(
        [sys.executable, "-c", LEAVES_THREADS],
        env={**os.environ, "GLOO_SOCKET_IFNAME": "lo"}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["2", "0"]


def test_torchrun_runs_the_same_module() -> None:
    """The command of the page, at small scale and over the loopback interface."""
    command = ["torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", "3", "-m"]
    module = "snippets.throughput.model_parallelism"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if sys.platform == "linux":
        environment["GLOO_SOCKET_IFNAME"] = "lo"
    done = subprocess.run(
        [sys.executable, "-m", *command, module, "--small"],
        env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(re.findall(r"dispatched_reduces_count\s*│\s*60 ", done.stdout)) == 1, done.stdout  # one rank reports
