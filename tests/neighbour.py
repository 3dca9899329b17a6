"""Every R claim beside a busy neighbour: `python -m tests.neighbour` measures each page's values again and again.

A neighbour keeps one core busy for as long as it runs, and the clock is told to time on free cores, as it is where
recordings are run again. The values of every run are written to
`tests/reports/beside_neighbour.json`; `tests/test_neighbour_report.py` reads the report and judges each run anew.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import track

from measured import claims, expression, project, recorder, recording
from measured.page import Claim
from snippets.instruments.clock import LOCK_HELD

REPORT = Path(__file__).parent / "reports" / "beside_neighbour.json"
RUNS = 20
_BUSY = (
    "import os, sys\nif hasattr(os, 'sched_setaffinity'): os.sched_setaffinity(0, {int(sys.argv[1])})\nwhile True: pass"
)
console = Console()


def ratio_claims() -> dict[str, list[Claim]]:
    """R claims by the snippet that measures their values; a topic page's stand with its question's."""
    found: dict[str, list[Claim]] = {}
    for claim in claims.all_claims():
        if claim.value_class == "R":
            found.setdefault(_snippet_of(claim), []).append(claim)
    return found


def _snippet_of(claim: Claim) -> str:
    if not claim.page.endswith("/index"):
        return claim.page
    wanted = expression.names(claim.check)
    for name in project.question_names(claim.page.split("/")[0]):
        have = recording.primary(name)
        if have and wanted <= set(have.values):
            return name
    raise ValueError(f"claim {claim.id}: no question of its topic records {', '.join(sorted(wanted))}")


@contextmanager
def busy_neighbour(core: int = 0) -> Iterator[None]:
    """A process that spins on one core."""
    process = subprocess.Popen([sys.executable, "-c", _BUSY, str(core)])
    try:
        yield
    finally:
        process.kill()
        process.wait()


# What a page's runs share and none of them times.
ONCE = {
    "embeddings/vector_search": """
scale = replace(m.Scale(), counts=(m.Scale().counts[0], m.Scale().counts[-1]), rounds=3)
made = m.built(m.retrieval.vectors(scale.questions, scale.titles, str(pick())), scale)""",
    "throughput/fusion_and_runtimes": """
scale, decoder = m.SMALL, m.first_layers(m.SMOLLM2_135M.layers, pick())
folder, ids = m.runtimes.exported(decoder), m.prompts(4, 8, pick())
fixed = m.chain_ratios(m.chain_values(scale, pick())) | m.step_values(m.thin_decoder(pick()))""",
    "throughput/pruning": """
scale = m.SMALL
made = m.ways(scale, pick())""",
    "throughput/the_ladder": """
built = m.build()""",
}
# What times a page's ratios and nothing else; pages that are not here run all that they measure, at its briefest.
TIMED = {
    "embeddings/matrix_share": """
        return m.timed_values(pick(), rounds=6)""",
    "embeddings/vector_search": """
        return m.count_values(m.count_columns(made, scale, pick()))""",
    "kv_cache/heads_mha_gqa_mqa": """
        clock.fix_allocator()
        return m.speed_values(m.decode_times(2048, torch.float32, 9, pick(), m.WAYS))""",
    "kv_cache/offloading": """
        clock.fix_allocator()
        timed = m.prefill_times(smollm2.decoder(m.fast_dtype(pick()), pick()), m.SMALL)
        return m.ratio_values(timed, m.SMALL.lengths)""",
    "kv_cache/prefix_caching": """
        layer, scale = m.layer_decoder(torch.bfloat16, pick()), m.SMALL
        saved = m.first_token_columns(layer, scale.prefixes, scale.new, scale.rounds, m.PrefixIndex)
        return m.saved_values(saved, scale.shared, scale.new)""",
    "kv_cache/quantized_cache": """
        return m.speed_values(tokens=1024, rounds=6)""",
    "kv_cache/speedup_over_recompute": """
        lengths, decoder = (64, 768), smollm2.decoder(torch.bfloat16, pick())
        return m.ratio_values(m.time_columns(m.timed(decoder, lengths, rounds=3), lengths, decoder.geometry))""",
    "quantization/formats_and_fast_paths": """
        return m.rate_values(m.rates(m.products(64, pick()), 64, 5, pick()))[0]""",
    "quantization/inference_speed": """
        clock.fix_allocator()
        scale = m.Scale(rows=(1, 512), between=(), rounds=9, long_rounds=3, largest=2, sweep_rounds=5)
        layer = m.ways(torch.randn(scale.layer, generator=torch.Generator().manual_seed(0)) * 0.02, torch.bfloat16)
        return m._measure(scale, pick(), layer, ("FP32", "INT8"), {}, {})""",
    "quantization/training_memory_and_speed": """
        clock.fix_allocator()
        step = m.step_times(m.Recipe(autocast=True), m.SMALL.rounds, pick())
        update = m.update_times(m.Recipe(codes=True), m.SMALL.rounds, pick())
        return {"step_ratio": step.ratio("FP32", "other"), "update_ratio": update.ratio("other", "FP32")}""",
    "throughput/capacity_and_cost": """
        return m.model_values(m.run_model(smollm2.decoder(torch.bfloat16, pick()), replace(m.Scale(), rounds=3)))""",
    "throughput/continuous_batching": """
        clock.fix_allocator()
        return m.pause_values(smollm2.decoder(torch.float32, pick()), m.Scale())""",
    "throughput/distillation": """
        clock.fix_allocator()
        return m.speed_values(m.pair_times(pick(), 6), m.narrow_times(pick(), 6))""",
    "throughput/early_exit": """
        return m.check_times(m.model(), m.Scale())""",
    "throughput/pruning": """
        clock.fix_allocator()
        return m.speed_values(m.times(made, scale, pick()), made)""",
    "throughput/fusion_and_runtimes": """
        clock.fix_allocator()
        one = m.runner_times({n: f() for n, f in m.runners(decoder, 1, folder).items()}, ids[:1], 7)
        many = m.runner_times({n: f() for n, f in m.runners(decoder, 4, folder).items()}, ids, 7)
        return fixed | m.speed_values(one, many)""",
    "throughput/the_ladder": """
        clock.fix_allocator()
        taken = m.timed(built.rungs, built.eager, built.many, 7)
        weights = built.rungs["INT4 blocks, exact"].weights
        answered = m.response_values(built, 5)["response_ratio"]
        return m.time_values(taken) | {"unpack_ratio": m.unpack_ratio(weights, 7), "response_ratio": answered}""",
    "throughput/determinism": """
        return m.price_values(m.Scale(), pick())[0]""",
    "throughput/efficient_attention": """
        clock.fix_allocator()
        scale = replace(m.Scale(), lengths=(256, 2048), rounds=3, long_rounds=3)
        return m.time_values(m.time_columns(scale, pick())) | m.long_values(scale, pick())""",
    "throughput/fair_benchmark": """
        # A first call needs a process that has made none.
        own = "import json; from snippets.instruments.device import pick; "
        own += "from snippets.throughput import fair_benchmark as m; "
        own += "print(json.dumps(m.first_call_values(m.SMALL, pick())))"
        told = subprocess.run([sys.executable, "-c", own], capture_output=True, text=True, check=True).stdout
        timed = json.loads(told) | m.cache_values(m.SMALL, pick())
        return timed | m.wait_values(m.SMALL, pick()) | m.turn_values(m.SMALL)""",
    "throughput/caching": """
        return m.lookup_values(m.encoder(device=pick()), list(m.asked_questions())[:2], m.SMALL)[0]""",
    "throughput/model_parallelism": """
        return m.launch(replace(m.SMALL, real=False)).values""",
    "throughput/token_reduction": """
        return m.first_token_values(m.first_token_columns(m.SMALL, pick()))[0]""",
    "throughput/latency_numbers": """
        clock.fix_allocator()
        return m.stall_values(smollm2.decoder(torch.float32, pick()), m.Scale())""",
    "throughput/prefill_and_decode": """
        scale, decoder = replace(m.Scale(), rows=(1, 512), rounds=3), smollm2.decoder(torch.bfloat16, pick())
        layer = m.time_layer(m.random_block(scale.layer, torch.bfloat16, pick()), scale)
        model = m.time_model(m.model_calls(decoder, scale.prompt_tokens), scale.prompt_tokens, scale.rounds, pick())
        return m.layer_values(layer, scale)[0] | model""",
    "throughput/speculative_decoding": """
        scale = replace(m.Scale(), checked=(1, 5), rounds=3, few_rounds=2)
        timed = m.check_values(m.check_columns(scale, pick())) | m.costly_times(scale)
        return timed | m.lookup_times(smollm2.decoder(torch.float32, pick()), replace(scale, new_tokens=12))""",
}
_WHOLE = """
        # Fewest rounds where the snippet says which: fewer make a harder test, and many minutes less.
        return m.measure(scale=m.BRIEF) if hasattr(m, "BRIEF") else m.measure(small=True)"""


def taken(name: str, runs: int) -> Iterator[dict[str, float]]:
    """Values of a question's ratios, measured `runs` times in a process of their own."""
    code = (
        "import json, subprocess, sys, torch\n"
        "from dataclasses import replace\n"
        "from snippets.instruments import clock\n"
        "from snippets.instruments.device import pick\n"
        "from snippets.models import smollm2\n"
        f"from snippets.{name.replace('/', ' import ')} as m\n"
        f"{ONCE.get(name, '')}\n"
        f"def run():{TIMED.get(name, _WHOLE)}\n"
        f"for _ in range({runs}):\n"
        "    print(json.dumps({k: float(v) for k, v in run().items()}), flush=True)\n"
    )
    threads = recording.machine_table(project.root())[project.primary_machine()]["threads"]
    environment = recorder.kernel_environment(threads, free_cores=True)
    del environment[LOCK_HELD]  # it takes the timing lock itself
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
    for line in process.stdout or ():
        yield json.loads(line)
    if process.wait():
        raise RuntimeError(f"{name}: measuring failed; its message stands above")


def main() -> None:
    """Measure, write the report, print passes a claim."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="Example: python -m tests.neighbour --runs 20 throughput/batching"
    )
    parser.add_argument("--runs", type=int, default=RUNS, help="runs of each page")
    parser.add_argument("questions", nargs="*", help="measure these again and keep the others' runs; all by default")
    told = parser.parse_args()
    runs, all_wanted = told.runs, ratio_claims()
    if unknown := set(told.questions) - set(all_wanted):
        parser.error(f"no ratio claim in {', '.join(sorted(unknown))}; there are some in {', '.join(all_wanted)}")
    kept = json.loads(REPORT.read_text(encoding="utf-8"))["pages"] if REPORT.is_file() else []
    again = told.questions or list(all_wanted)
    pages = {page["question"]: page for page in kept if page["question"] in all_wanted}
    with busy_neighbour():
        for name in again:
            wanted = all_wanted[name]
            importlib.import_module(f"snippets.{name.replace('/', '.')}")  # a missing snippet fails here, with its name
            names = sorted({n for c in wanted for n in expression.names(c.check)})
            found = list(track(taken(name, runs), name, total=runs, console=console))
            if len(found) < runs:
                raise RuntimeError(f"{name}: {len(found)} of {runs} runs")
            # Written page by page: a later one's failure loses nothing.
            pages[name] = {"question": name, "values": [{n: run[n] for n in names} for run in found]}
            report = _write([pages[one] for one in all_wanted if one in pages], runs)
    for line in summary(report):
        console.print(line, highlight=False)


def _write(pages: list[dict], runs: int) -> dict:
    machine = next(recording.primary(page["question"]) for page in pages)
    report = {
        "machine": machine.label if machine else "",
        "neighbour": "one core kept busy throughout",
        "runs": runs,
        "pages": pages,
    }
    project.write_atomically(REPORT, json.dumps(report, indent=1) + "\n")
    return report


def summary(report: dict) -> list[str]:
    """One line a claim: passes, and the range of its value."""
    lines = []
    values = {page["question"]: page["values"] for page in report["pages"]}
    for name, wanted in ratio_claims().items():
        if name not in values:
            lines.append(f"{name}: not measured yet")
            continue
        for claim in wanted:
            passes = sum(claims.holds(claim, run) for run in values[name])
            first = sorted(expression.names(claim.check))[0]
            seen = [run[first] for run in values[name]]
            spread = f"{min(seen):.3g} … {statistics.median(seen):.3g} … {max(seen):.3g}"
            lines.append(f"{claim.id}: {passes} of {len(seen)} hold ({claim.check}; {first} {spread})")
    return lines


if __name__ == "__main__":
    main()
