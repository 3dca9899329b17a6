"""The target that stands for the CPU that recorded: its rates are recorded values, where other targets' are declared.

Predictions for it are no predictions: its recordings exist. They test the roofline, and what went into the target is
marked as an input and tests nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from measured import project, recording

if TYPE_CHECKING:
    from snippets.instruments.targets import Target

READ = ("throughput/prefill_and_decode", "read_bytes_per_second")
PRODUCT = ("throughput/prefill_and_decode", "product_flops_per_second")  # in BF16
LAUNCH = ("throughput/hardware", "tiny_seconds")  # an addition of next to nothing
_FORMATS_PAGE = "quantization/formats_and_fast_paths"
RATIOS = {  # product rates over that of FP32; FP8 has no instructions there, so a roofline has no rate for it
    "bfloat16": (_FORMATS_PAGE, "bf16_speed_ratio"),
    "float16": (_FORMATS_PAGE, "fp16_speed_ratio"),
    "int8": (_FORMATS_PAGE, "int8_speed_ratio"),
}
INPUTS = (READ, PRODUCT, LAUNCH, *RATIOS.values())
"""Recorded values that the target is made of, as page and name."""


def recorded_target() -> Target | None:
    """The primary machine as a target; None where it is no CPU, or did not record what that takes."""
    from snippets.instruments.targets import Target

    if any(page not in project.page_names() for page, _ in INPUTS):
        return None
    found = {page: recording.primary(page) for page, _ in INPUTS}
    values = {(page, name): have.values.get(name) for page, name in INPUTS if (have := found[page])}
    main = found[READ[0]]
    if main is None or len(values) < len(INPUTS) or None in values.values():
        return None
    machine = main.about["machine"]
    if machine["kind"] != "cpu":
        return None
    known = {key: float(value) for key, value in values.items() if value is not None}
    fp32 = known[PRODUCT] / known[RATIOS["bfloat16"]]
    return Target(
        name=main.label,
        flops_per_second={"float32": fp32, **{form: fp32 * known[ratio] for form, ratio in RATIOS.items()}},
        bytes_per_second=known[READ],
        memory_bytes=machine["memory_bytes"],
        host_bytes_per_second=None,
        launch_seconds=known[LAUNCH],
        capabilities=frozenset(machine["capabilities"]),
        source="recorded",
    )
