"""Public cards and models to choose from, and the same as a script for the calculators in the pages. Needs no torch.

Run: python -m snippets.models.cards > docs/assets/capacity_data.js
"""

from __future__ import annotations

import json
import sys
from dataclasses import fields, replace
from typing import Any, NamedTuple

from snippets.models import shapes
from snippets.models.capacity import CACHES, GIB, SCHEMES, SHAPE, Setting
from snippets.models.shapes import Geometry


class Card(NamedTuple):
    """A card by what is printed on it.

    `usable_gib` is what a CUDA program reported of it, to a hundredth; `source` is a key of `docs/sources.yml`.
    """

    label: str
    usable_gib: float
    source: str

    @property
    def usable_bytes(self) -> int:
        """The reported GiB in bytes."""
        return round(self.usable_gib * 100) * GIB // 100


class Model(NamedTuple):
    """A public shape and the longest context that its configuration states."""

    geometry: Geometry
    longest_tokens: int


CARDS = {
    "8": Card("8 GB (RTX 3070)", 7.78, "card-8-gb"),
    "16": Card("16 GB (T4)", 14.75, "card-16-gb"),
    "24": Card("24 GB (RTX 4090)", 23.64, "card-24-gb"),
    "32": Card("32 GB (RTX 5090)", 31.37, "card-32-gb"),
    "40": Card("40 GB (A100)", 39.50, "card-40-gb"),
    "48": Card("48 GB (L40S)", 44.42, "card-48-gb"),
    "80": Card("80 GB (H100)", 79.22, "card-80-gb"),
}
_LLAMA_3_1_8B = replace(shapes.LLAMA_3_8B, name="Llama-3.1-8B", source="llama-3.1-8b-config")
_LLAMA_3_1_405B = Geometry(
    "Llama-3.1-405B", 126, 16384, 128, 8, 128, 53248, 128_256, False, "llama-3.1-405b-config", rope_theta=500_000.0
)
MODELS = {
    "llama-3-8b": Model(shapes.LLAMA_3_8B, 8192),
    "llama-3.1-8b": Model(_LLAMA_3_1_8B, 131_072),
    "llama-3-70b": Model(shapes.LLAMA_3_70B, 8192),
    "llama-3.1-405b": Model(_LLAMA_3_1_405B, 131_072),
    "llama-2-7b": Model(shapes.LLAMA_2_7B, 4096),
    "mistral-7b": Model(shapes.MISTRAL_7B, 32_768),
    "gemma-7b": Model(shapes.GEMMA_7B, 8192),
    "qwen3-0.6b": Model(shapes.QWEN3_0_6B, 40_960),
    "smollm2-135m": Model(shapes.SMOLLM2_135M, 8192),
}


def on_card(model: str, card: str, **asked: Any) -> Setting:
    """A setting of a public model on a public card, by their keys; `asked` is whatever else `Setting` takes."""
    chosen = MODELS[model]
    return Setting(chosen.geometry, CARDS[card].usable_bytes, chosen.longest_tokens, **asked)


def calculator_data() -> dict[str, Any]:
    """Everything that the calculators choose from, and what they begin with."""
    return {
        "models": {
            key: {name: getattr(m.geometry, name) for name in ("name", *SHAPE, "tied", "qk_norm")}
            | {"longest_tokens": m.longest_tokens}
            for key, m in MODELS.items()
        },
        "cards": {key: {"label": c.label, "card_bytes": c.usable_bytes} for key, c in CARDS.items()},
        "schemes": {key: s._asdict() for key, s in SCHEMES.items()},
        "caches": {key: c._asdict() for key, c in CACHES.items()},
        "defaults": {f.name: f.default for f in fields(Setting) if isinstance(f.default, int | str)},
    }


def calculator_script() -> str:
    """`docs/assets/capacity_data.js`: a script and not JSON, so that a page asks nothing of a server for it."""
    told = "// Written by `python -m snippets.models.cards`; a test holds it equal to the Python."
    groups = (
        f'  "{name}": {{\n'
        + ",\n".join(f'    "{key}": {json.dumps(entry)}' for key, entry in entries.items())
        + "\n  }"
        for name, entries in calculator_data().items()
    )
    return f"{told}\nglobalThis.measuredCapacity = {{\n" + ",\n".join(groups) + "\n}\n"


if __name__ == "__main__":
    sys.stdout.write(calculator_script())
