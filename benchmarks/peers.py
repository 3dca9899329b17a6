"""How fast do other runtimes run SmolLM2-135M here, beside ours: same weights, prompt, context and threads, in turn?

Every runtime runs in a process of its own while nothing else is timed, several rounds in turn; a result is written as
soon as it is there. `make peers` installs them first; llama.cpp goes without AMX, which crashes on some processors.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CONTEXT, NEW, PREFILL, BATCH = 64, 64, 512, 32
EXAMPLES = """\
examples:
  make peers                                           install them, then all of them, into the page's file
  python benchmarks/peers.py --only ours llama.cpp     two of them, the others' results stay as they were
  python benchmarks/peers.py --rounds 1 --out /tmp/p.json
"""
Rates = dict[str, float]


def rate(tokens: int, work: Callable[[], object]) -> float:
    """Tokens a second of one call."""
    began = time.perf_counter()
    work()
    return tokens / (time.perf_counter() - began)


def decode_rate(rung: Any, ids: Any, new: int) -> float:
    """Tokens a second that a rung of the ladder decodes after it has read the prompts."""
    token = rung.read(ids)
    return rate(len(ids) * (new - 1), lambda: rung.written(ids, token, new))


def prompts(batch: int, tokens: int, shift: int = 0) -> Any:
    """Ids (batch, tokens) of real text; a `shift` makes another prompt of them, which no prefix cache knows."""
    from snippets.models import smollm2, texts

    ids = smollm2.encode(texts.address()[:40_000])[0]
    return ids[shift * 7 : shift * 7 + batch * tokens].view(batch, tokens).contiguous()


def ours(threads: int) -> dict[str, Rates]:
    import torch

    from snippets.instruments import clock
    from snippets.models import smollm2
    from snippets.throughput import the_ladder as ladder

    clock.fix_allocator()  # as runtimes do with arenas of their own
    torch.set_num_threads(threads)
    state, found = smollm2.load_state(), {}
    for name in ("FP32 compiled", "INT8 rows", "INT4 blocks, exact"):
        rung = ladder.rung(name, state)
        rung.generate(prompts(1, CONTEXT), 4)
        found[f"ours, {name}"] = {"decode": decode_rate(rung, prompts(1, CONTEXT), NEW)}
    looked = ladder.rung("INT8 rows", state, lookup=True)
    looked.generate(ladder.copying(CONTEXT), 4)
    found["ours, INT8 and lookup, copying"] = {"decode": decode_rate(looked, ladder.copying(CONTEXT), NEW)}
    many = ladder.rung("INT8 rows", state, batch=BATCH)
    many.generate(prompts(BATCH, CONTEXT), 4)
    read = ladder.rung("INT8 rows", state, prefill=PREFILL)
    read.generate(prompts(1, PREFILL), 1)
    another = prompts(1, PREFILL, 1)  # encoded before the clock starts, as for the peers
    found["ours, INT8 on both sides"] = {
        "batch": decode_rate(many, prompts(BATCH, CONTEXT), 16),
        "prefill": rate(PREFILL, lambda: read.generate(another, 1)),
    }
    return found


def transformers(threads: int) -> dict[str, Rates]:
    import torch
    from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

    from snippets.models import smollm2

    g = smollm2.GEOMETRY
    torch.set_num_threads(threads)
    config = LlamaConfig(
        vocab_size=g.vocabulary, hidden_size=g.hidden, intermediate_size=g.ffn, num_hidden_layers=g.layers,
        num_attention_heads=g.heads, num_key_value_heads=g.kv_heads, rms_norm_eps=g.norm_epsilon,
        rope_parameters={"rope_type": "default", "rope_theta": g.rope_theta}, tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    model.load_state_dict(smollm2.load_state(), strict=False)
    model = model.to(torch.bfloat16)

    def run(ids: Any, new: int) -> tuple[float, float]:
        cache = DynamicCache()
        with torch.inference_mode():
            began = time.perf_counter()
            token = model(ids, past_key_values=cache, logits_to_keep=1).logits[:, -1:].argmax(-1)
            read = time.perf_counter()
            for _ in range(new - 1):
                token = model(token, past_key_values=cache, logits_to_keep=1).logits[:, -1:].argmax(-1)
        return ids.numel() / (read - began), len(ids) * (new - 1) / (time.perf_counter() - read) if new > 1 else 0.0

    run(prompts(1, CONTEXT), 4)
    run(prompts(1, PREFILL), 1)
    one, many = run(prompts(1, CONTEXT), NEW)[1], run(prompts(BATCH, CONTEXT), 16)[1]
    return {"transformers, BF16": {"decode": one, "batch": many, "prefill": run(prompts(1, PREFILL, 1), 1)[0]}}


def llama_cpp(threads: int) -> dict[str, Rates]:
    import llama_cpp as lib
    import numpy as np

    lib.llama_backend_init()
    path = gguf().encode()
    model = lib.llama_model_load_from_file(path, lib.llama_model_default_params())

    def made(room: int, sequences: int) -> Any:  # what room there is, its sequences share evenly
        settings = lib.llama_context_default_params()
        settings.n_ctx, settings.n_seq_max = room, sequences
        settings.n_batch, settings.n_ubatch = BATCH * CONTEXT, PREFILL
        settings.n_threads = settings.n_threads_batch = threads
        return lib.llama_init_from_model(model, settings)

    alone, together = made(1024, 1), made(256 * BATCH, BATCH)
    vocabulary = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
    room = lib.llama_batch_init(BATCH * CONTEXT, 0, 1)

    def feed(ids: Any, start: int) -> Any:
        context, place = alone if len(ids) == 1 else together, 0
        for sequence, row in enumerate(ids.tolist()):
            for offset, token in enumerate(row):
                room.token[place], room.pos[place] = token, start + offset
                room.n_seq_id[place], room.seq_id[place][0] = 1, sequence
                room.logits[place] = offset == len(row) - 1
                place += 1
        room.n_tokens = place
        if lib.llama_decode(context, room):
            raise RuntimeError("llama_decode failed")
        ends = range(ids.shape[1] - 1, place, ids.shape[1])
        rows = [np.ctypeslib.as_array(lib.llama_get_logits_ith(context, end), (vocabulary,)).argmax() for end in ends]
        return np.array(rows)[:, None]

    def run(ids: Any, new: int) -> tuple[float, float]:
        lib.llama_memory_clear(lib.llama_get_memory(alone if len(ids) == 1 else together), True)
        began = time.perf_counter()
        token = feed(ids, 0)
        read = time.perf_counter()
        for step in range(new - 1):
            token = feed(token, ids.shape[1] + step)
        return ids.numel() / (read - began), len(ids) * (new - 1) / (time.perf_counter() - read) if new > 1 else 0.0

    run(prompts(1, CONTEXT), 4)
    run(prompts(1, PREFILL), 1)
    one, many = run(prompts(1, CONTEXT), NEW)[1], run(prompts(BATCH, CONTEXT), 16)[1]
    read = run(prompts(1, PREFILL, 1), 1)[0]
    return {"llama.cpp, Q4_1, no AMX": {"decode": one, "batch": many, "prefill": read}}


def openvino(threads: int) -> dict[str, Rates]:
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # its import reports the run otherwise
    import numpy as np
    import openvino as ov
    import openvino_genai as genai

    # Another attention backend answers a prompt that it has seen from its prefix cache.
    pipe = genai.LLMPipeline(gguf(), "CPU", INFERENCE_NUM_THREADS=threads, ATTENTION_BACKEND="SDPA")

    def run(ids: Any, new: int) -> tuple[float, float]:
        told = genai.GenerationConfig()
        told.max_new_tokens, told.min_new_tokens, told.ignore_eos, told.do_sample = new, new, True, False
        given = genai.TokenizedInputs(ov.Tensor(ids.numpy()), ov.Tensor(np.ones_like(ids.numpy())))
        began = time.perf_counter()
        metrics = pipe.generate(given, told).perf_metrics
        first, took = metrics.get_ttft().mean / 1e3, time.perf_counter() - began
        return ids.numel() / first, len(ids) * (new - 1) / (took - first)

    run(prompts(1, CONTEXT), 4)
    run(prompts(1, PREFILL), 2)
    one, many = run(prompts(1, CONTEXT), NEW)[1], run(prompts(BATCH, CONTEXT), 16)[1]
    return {"OpenVINO GenAI, Q4_1": {"decode": one, "batch": many, "prefill": run(prompts(1, PREFILL, 1), 2)[0]}}


def onnxruntime(threads: int) -> dict[str, Rates]:
    import torch

    from snippets.models import runtimes, smollm2

    torch.set_num_threads(threads)
    runner = runtimes.OnnxRuntime(smollm2.decoder())

    def run(ids: Any, new: int) -> tuple[float, float]:
        runner.reset()
        began = time.perf_counter()
        token = runner(ids).argmax(-1)
        read = time.perf_counter()
        for _ in range(new - 1):
            token = runner(token).argmax(-1)
        return ids.numel() / (read - began), len(ids) * (new - 1) / (time.perf_counter() - read) if new > 1 else 0.0

    run(prompts(1, CONTEXT), 4)
    run(prompts(1, PREFILL), 1)
    one, many = run(prompts(1, CONTEXT), NEW)[1], run(prompts(BATCH, CONTEXT), 8)[1]
    return {"ONNX Runtime, FP32": {"decode": one, "batch": many, "prefill": run(prompts(1, PREFILL, 1), 1)[0]}}


PEERS: dict[str, tuple[Callable[[int], dict[str, Rates]], str]] = {
    "ours": (ours, "torch"),
    "transformers": (transformers, "transformers"),
    "llama.cpp": (llama_cpp, "llama-cpp-python"),
    "openvino": (openvino, "openvino-genai"),
    "onnxruntime": (onnxruntime, "onnxruntime"),
}


def gguf() -> str:
    """The file that every runtime's weights come from."""
    from snippets.models import smollm2
    from snippets.models.files import packaged_file

    return str(packaged_file(smollm2._PACKAGE, smollm2._FILE, smollm2._SHA256))


def one_round(name: str, threads: int) -> dict[str, Any]:
    """One runtime's rates from a process of its own, or why there are none."""
    from snippets.instruments.clock import LOCK_HELD

    command = [sys.executable, __file__, "--worker", name, "--threads", str(threads)]
    environment = {**os.environ, LOCK_HELD: "1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"ended with {done.returncode}"]
        return {"missing": lines[-1][:200]}
    return json.loads(done.stdout.splitlines()[-1])


def write(path: Path, content: dict[str, Any]) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(draft, path)


def summary(rounds: Sequence[dict[str, Rates]]) -> dict[str, Rates]:
    """Medians over the rounds, by variant and measure."""
    return {
        variant: {
            measure: round(statistics.median(one[variant][measure] for one in rounds), 2)
            for measure in rounds[0][variant]
        }
        for variant in rounds[0]
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the peers and keep what they did."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=PEERS, default=list(PEERS), help="these alone")
    parser.add_argument("--rounds", type=int, default=3, help="times each runs, in turn (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of each (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="default: snippets/throughput/recorded_peers.json")
    parser.add_argument("--worker", choices=PEERS, help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    sys.path.insert(0, str(ROOT))
    if asked.worker:
        print(json.dumps(PEERS[asked.worker][0](asked.threads)))
        return 0
    from snippets.instruments import clock, device
    from snippets.models import smollm2
    from snippets.throughput.the_ladder import RECORDED_PEERS

    path = asked.out or RECORDED_PEERS
    kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"runtimes": {}}
    kept.update(
        machine=device.machine_class("cpu"),
        threads=asked.threads,
        date=time.strftime("%Y-%m-%d"),
        context_tokens=CONTEXT,
        new_tokens=NEW,
        prefill_tokens=PREFILL,
        batch=BATCH,
        weights_sha256=smollm2._SHA256,
    )
    rounds: dict[str, list[dict[str, Rates]]] = {name: [] for name in asked.only}
    failed = False
    with clock.timing_lock():
        for turn in range(asked.rounds):
            for name in list(rounds):
                print(f"round {turn + 1} of {asked.rounds}: {name} …", end=" ", flush=True, file=sys.stderr)
                found = one_round(name, asked.threads)
                try:
                    version = importlib.metadata.version(PEERS[name][1])
                except importlib.metadata.PackageNotFoundError:
                    version = "not installed"
                entry: dict[str, Any] = {"version": version}
                if "missing" in found:
                    del rounds[name]
                    failed = True
                    entry["not_measured"] = found["missing"]
                    print(f"not measured: {found['missing']} (`make peers` installs it)", file=sys.stderr)
                else:
                    rounds[name].append(found)
                    entry["rounds"], entry["tokens_per_second"] = len(rounds[name]), summary(rounds[name])
                    print(entry["tokens_per_second"], file=sys.stderr)
                kept["runtimes"][name] = entry
                write(path, kept)
    print(path)
    return int(failed)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("stopped; what was measured is written")
