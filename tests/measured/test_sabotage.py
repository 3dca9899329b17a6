"""Sabotage: with one line of a snippet's code wrong, the run of a real page's recording fails.

Cells hold the topic snippet's own sections, so what is sabotaged is what they import: a copy of the `snippets`
package with the line changed stands first on the kernel's import path.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from measured import recorder, recording
from measured.page import read_page
from measured.rerun import Rerun, run_again

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Sabotage:
    """One changed line, the page that imports it, and a claim or value that must notice."""

    page: str
    module: str
    old: str
    new: str
    noticed: str


SABOTAGES = {
    "scale dropped from the byte count": Sabotage(
        "quantization/weight_bytes",
        "models/quantized.py",
        "return self.packed.nbytes + self.scale.nbytes",
        "return self.packed.nbytes",
        "claim ",
    ),
    "cache not grown: nothing is written": Sabotage(
        "kv_cache/bytes_per_token",
        "models/decoder.py",
        "        self.keys[layer, :, :, self.length : end] = keys\n"
        "        self.values[layer, :, :, self.length : end] = values\n"
        "        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]",
        "        return keys, values",
        "claim kv-all-written",
    ),
    "cache not grown: one token is kept": Sabotage(
        "kv_cache/bytes_per_token",
        "models/decoder.py",
        "shape = (geometry.layers, batch, geometry.kv_heads, tokens, geometry.head_dim)",
        "shape = (geometry.layers, batch, geometry.kv_heads, 1, geometry.head_dim)",
        "",
    ),
}
# The layer's own shape alone, and four rows at a time: enough to lose the claim, not enough to run for minutes.
BATCHING = Sabotage(
    "throughput/batching",
    "models/decoder.py",
    "        return x + self.mlp(self.post_attention_layernorm(x))",
    "        rows = x.split(4 if x.shape[-1] == 4096 else len(x))\n"
    "        return x + torch.cat([self.mlp(self.post_attention_layernorm(some)) for some in rows])",
    "claim b-layer-speed",
)


@pytest.fixture
def sabotaged(tmp_path: Path) -> Callable[[Sabotage], Rerun]:
    """Run the recording of a page against a copy of the snippets in which one line is wrong."""

    def play(wrong: Sabotage) -> Rerun:
        shutil.copytree(ROOT / "snippets", tmp_path / "snippets", ignore=shutil.ignore_patterns("__pycache__"))
        path = tmp_path / "snippets" / wrong.module
        text = path.read_text(encoding="utf-8")
        assert text.count(wrong.old) == 1, f"{wrong.module} no longer reads: {wrong.old}"
        path.write_text(text.replace(wrong.old, wrong.new), encoding="utf-8")
        have = recording.primary(wrong.page)
        assert have is not None, f"{wrong.page} is not recorded"
        return run_again(wrong.page, have.path, extra_path=tmp_path)

    return play


@pytest.mark.models
@pytest.mark.parametrize("kind", SABOTAGES)
def test_a_sabotaged_model_fails_the_page(sabotaged: Callable[[Sabotage], Rerun], kind: str) -> None:
    wrong = SABOTAGES[kind]
    run = sabotaged(wrong)
    assert run.cells and not run.passed, run.output
    assert any(what.startswith(wrong.noticed) for what, _, _ in run.failures), run.failures


@pytest.mark.timing
@pytest.mark.models
def test_a_batch_that_is_not_batched_fails_the_page(sabotaged: Callable[[Sabotage], Rerun]) -> None:
    """The feed-forward part takes a few rows at a time: the same numbers out, none of the speed."""
    with recorder.timing():
        run = sabotaged(BATCHING)
    failed = {what for what, _, _ in run.failures}
    assert "claim b-calls" in failed, run.failures  # counted
    have = recording.primary(BATCHING.page)
    assert have is not None
    claim = next(c for c in read_page(BATCHING.page).claims if c.id == BATCHING.noticed.split()[1])
    applies = claim.id not in run.not_applicable
    assert (BATCHING.noticed in failed) is applies, run.failures  # timed
