"""What does distillation buy?

Claim: a student that learns from a teacher's whole distribution is better after the same steps on the same text than
one that learns from the text alone; it is as big and as fast. For the same arithmetic the student alone, which needs
no teacher's forward pass, gets more steps, and wins. What speeds inference up is the student's size.

Run: python -m snippets.throughput.distillation
Cost: `measured list` shows the seconds of each recording; `measured prepare` trains the students before.
"""

from __future__ import annotations

# --8<-- [start:imports]
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from snippets.instruments import clock
from snippets.instruments.datasheets import gpu_peak
from snippets.instruments.device import pick
from snippets.instruments.memory import storage_bytes
from snippets.instruments.roofline import LAUNCH_SECONDS, predict_seconds
from snippets.models import trained
from snippets.models.decoder import Block, Decoder, KVCache, initialize, rotation
from snippets.models.language_loss import paired_difference, window_nats
from snippets.models.shapes import LLAMA_3_8B, Geometry, parameters

# --8<-- [end:imports]

TEACHER, STUDENT = "small", "tiny"
LLAMA_3_2_1B = Geometry(
    "Llama-3.2-1B", 16, 2048, 32, 8, 64, 8192, 128_256, True, "llama-3.2-1b-config", rope_theta=500_000.0
)


# --8<-- [start:loss]
def distillation_loss(student: Tensor, teacher: Tensor, targets: Tensor, alpha: float, temperature: float) -> Tensor:
    """Mean over positions, nats (Hinton, Vinyals and Dean, arXiv:1503.02531).

    Args:
        student: logits, (positions, vocabulary).
        teacher: logits of the same text, the same shape.
        targets: the tokens that followed, (positions,).
        alpha: share of the soft part; without it this is plain training.
        temperature: both distributions are flattened by it. It shrinks gradients by its square, which is put back.
    """
    log_p, log_q = ((logits / temperature).log_softmax(-1) for logits in (teacher, student))
    soft = F.kl_div(log_q, log_p, log_target=True, reduction="batchmean")  # KL(teacher || student)
    return alpha * temperature**2 * soft + (1 - alpha) * F.cross_entropy(student, targets)


# --8<-- [end:loss]


# --8<-- [start:lessons]
@dataclass(frozen=True)
class Lesson:
    """What one student is trained with. Seed, first weights and order of the text are the same for all lessons."""

    steps: int
    alpha: float = 1.0  # zero: alone
    temperature: float = 1.0
    tokens: int | None = None  # of the text, from its beginning; None: all of it
    shift: int = 0  # the teacher's answers, moved this many positions on: right in form, wrong in place


STEPS, SHORT, EXCERPT = 200, trained.FEW_STEPS, 4_096
LESSONS = {
    "alone": Lesson(STEPS, alpha=0),
    "distilled": Lesson(STEPS),
    "longer": Lesson(trained.STEPS, alpha=0),  # what the same operations buy without a teacher
    "short alone": Lesson(SHORT, alpha=0),
    "short distilled": Lesson(SHORT),
    "short shuffled": Lesson(SHORT, shift=517),
    "excerpt alone": Lesson(SHORT, alpha=0, tokens=EXCERPT),
    "excerpt distilled": Lesson(SHORT, tokens=EXCERPT),
}
# --8<-- [end:lessons]


# --8<-- [start:distil]
def distil(
    student: Decoder,
    teacher: Decoder,
    ids: Tensor,
    lesson: Lesson,
    seed: int,
    each: Callable[[], object] = lambda: None,
) -> list[float]:
    """Train the student in place as `trained.train` does, draw by draw, but for the loss; the teacher is only read.

    Returns:
        The loss of every step, in nats.
    """
    student.requires_grad_(True).train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=trained.RATE, betas=(0.9, 0.95), weight_decay=0.1)
    warm, steps = max(1, lesson.steps // 20), lesson.steps
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, 0.05 + 0.475 * (1 + math.cos(math.pi * step / steps)))
    )
    generator = torch.Generator().manual_seed(seed)
    losses = []
    for _ in range(steps):
        starts = torch.randint(len(ids) - trained.LENGTH, (trained.BATCH, 1), generator=generator)
        tokens = ids[starts + torch.arange(trained.LENGTH + 1)].to(student.norm.weight.device)
        with torch.no_grad():
            given = teacher(tokens[:, :-1]).flatten(0, 1).roll(lesson.shift, 0)
        own = student(tokens[:, :-1]).flatten(0, 1)
        loss = distillation_loss(own, given, tokens[:, 1:].flatten(), lesson.alpha, lesson.temperature)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
        each()
    student.requires_grad_(False).eval()
    return losses


# --8<-- [end:distil]


def student(name: str, seed: int) -> Decoder:
    """The student of that lesson and seed, frozen, FP32: trained once and kept as the decoders of `trained` are."""
    lesson, geometry = LESSONS[name], trained.GEOMETRIES[STUDENT]
    if not lesson.alpha and lesson.tokens is None:
        return trained.decoder(STUDENT, seed, lesson.steps)
    teacher = trained.decoder(TEACHER, seed)

    def make(each: Callable[[], object]) -> Decoder:
        fresh, ids = Decoder(geometry), trained.corpus()[0][: lesson.tokens]
        initialize(fresh, 1_000 * seed)
        if lesson.alpha:
            distil(fresh, teacher, ids, lesson, seed, each)
        else:
            trained.train(fresh, ids, lesson.steps, seed, batch=trained.BATCH, length=trained.LENGTH, each=each)
        return fresh

    how = "".join(inspect.getsource(part) for part in (distillation_loss, distil))
    taught = (trained.GEOMETRIES[TEACHER], trained.STEPS)
    configuration = (geometry, taught, lesson, seed, trained.RATE, trained.BATCH, trained.LENGTH, how)
    return trained._cached(f"{STUDENT}-{seed}-{name.replace(' ', '-')}", configuration, make, geometry, lesson.steps)


def prepare() -> None:
    """Every training that the page asks for; returns at once where all are done."""
    for seed in trained.SEEDS:
        for name in LESSONS:
            student(name, seed)


# --8<-- [start:compared]
def losses(windows: Tensor, pupil: Callable[[str, int], Decoder] = student) -> dict[str, Tensor]:
    """Unseen loss of the teacher and of every student, nats a token, FP64 (seeds,)."""

    def mean_nats(decoder: Decoder) -> Tensor:
        return window_nats(decoder, windows).mean()

    found = {"teacher": torch.stack([mean_nats(trained.decoder(TEACHER, seed)) for seed in trained.SEEDS])}
    for name in LESSONS:
        found[name] = torch.stack([mean_nats(pupil(name, seed)) for seed in trained.SEEDS])
    return found


def gain(found: Mapping[str, Tensor], name: str, worse: str, better: str) -> dict[str, float]:
    """How much lower the one's loss lies than the other's, seed by seed: mean, standard error, mean over error."""
    mean, error = paired_difference(found[worse], found[better])
    return {
        f"{name}_nats": mean,
        f"{name}_error_nats": error,
        f"{name}_errors_ratio": mean / max(error, 1e-9),  # in the control nothing differs, without any error
    }


# --8<-- [end:compared]


def loss_values(found: Mapping[str, Tensor]) -> dict[str, float]:
    """What the page states of losses."""
    values = {f"{name.replace(' ', '_')}_nats": float(nats.mean()) for name, nats in found.items()}
    values |= gain(found, "gain", "alone", "distilled")
    values |= gain(found, "short_gain", "short alone", "short distilled")
    values |= gain(found, "excerpt_gain", "excerpt alone", "excerpt distilled")
    values |= gain(found, "misplaced_cost", "short shuffled", "short alone")
    values |= gain(found, "longer_gain", "distilled", "longer")
    by_text = {
        "more": found["excerpt alone"] - found["excerpt distilled"],
        "less": found["short alone"] - found["short distilled"],
    }
    values |= gain(by_text, "scarce", "more", "less")
    values["closed_share"] = values["gain_nats"] / (values["alone_nats"] - values["teacher_nats"])
    return values


def loss_columns(found: Mapping[str, Tensor]) -> dict[str, list]:
    """A row for each pair of students, for the page's table."""
    pairs = [
        ("all", SHORT, "short alone", "short distilled"),
        ("all", STEPS, "alone", "distilled"),
        (f"{EXCERPT:,} tokens", SHORT, "excerpt alone", "excerpt distilled"),
    ]
    gains = [gain(found, "x", alone, taught) for *_, alone, taught in pairs]
    return {
        "text": [text for text, *_ in pairs],
        "steps_count": [steps for _, steps, *_ in pairs],
        "alone_nats": [float(found[alone].mean()) for *_, alone, _ in pairs],
        "distilled_nats": [float(found[taught].mean()) for *_, taught in pairs],
        "gain_nats": [one["x_nats"] for one in gains],
        "error_nats": [one["x_error_nats"] for one in gains],
    }


# --8<-- [start:cost]
def pass_flops(geometry: Geometry) -> int:
    """FLOP of a forward pass for each token, in products with weights; training takes three times as many."""
    counts = parameters(geometry)
    return 2 * (counts.linear + geometry.vocabulary * geometry.hidden)


def training_flops(lesson: Lesson) -> int:
    """FLOP of a whole training: forward and backward of the student, and the teacher's forward pass if there is one."""
    passes = 3 * pass_flops(trained.GEOMETRIES[STUDENT])
    if lesson.alpha:
        passes += pass_flops(trained.GEOMETRIES[TEACHER])
    return lesson.steps * trained.BATCH * trained.LENGTH * passes


def cost_columns(found: Mapping[str, Tensor]) -> dict[str, list]:
    """Loss and operations of the students of all of the text, for the page's chart."""
    names = ("short alone", "alone", "longer", "short distilled", "distilled")
    return {
        "student": ["taught" if LESSONS[name].alpha else "alone" for name in names],
        "training_flops": [training_flops(LESSONS[name]) for name in names],
        "loss_nats": [float(found[name].mean()) for name in names],
    }


def cost_values() -> dict[str, int]:
    """Operations to train each student, and what the teacher adds."""
    own, taught = pass_flops(trained.GEOMETRIES[STUDENT]), pass_flops(trained.GEOMETRIES[TEACHER])
    return {
        "seeds_count": len(trained.SEEDS),
        "steps_count": STEPS,
        "short_steps_count": SHORT,
        "longer_steps_count": trained.STEPS,
        "excerpt_tokens": EXCERPT,
        "step_tokens": trained.BATCH * trained.LENGTH,
        "student_pass_flops": own,
        "teacher_pass_flops": taught,
        "distilled_training_flops": training_flops(LESSONS["distilled"]),
        "longer_training_flops": training_flops(LESSONS["longer"]),
    }


# --8<-- [end:cost]


def size_values(pupil: Callable[[str, int], Decoder] = student) -> dict[str, int]:
    """Bytes of the students as they lie in memory, by storage and by count; those of a real pair in BF16."""
    large, little = parameters(LLAMA_3_8B), parameters(LLAMA_3_2_1B)
    geometries = {"large": LLAMA_3_8B, "little": LLAMA_3_2_1B}
    return {
        "formula_bytes": 4 * parameters(trained.GEOMETRIES[STUDENT]).total,
        "alone_bytes": storage_bytes(pupil("alone", 0)),
        "distilled_bytes": storage_bytes(pupil("distilled", 0)),
        "teacher_bytes": storage_bytes(trained.decoder(TEACHER, 0)),
        "large_read_bytes": 2 * (large.linear + large.head),
        "little_read_bytes": 2 * (little.linear + little.embedding),  # tied: the head is the embedding
        **{f"{n}_token_bytes": 2 * 2 * g.layers * g.kv_heads * g.head_dim for n, g in geometries.items()},
    }


# --8<-- [start:speed]
def layer_step(geometry: Geometry, device: torch.device) -> Callable[[], Tensor]:
    """One new token through one BF16 layer of a real shape; its constant weights support speed, never quality."""
    with torch.device("meta"):
        block = Block(geometry)
    block = block.to(torch.bfloat16).to_empty(device=device).requires_grad_(False)
    for parameter in block.parameters():
        parameter.fill_(0.01)
    x = torch.ones(1, 1, geometry.hidden, dtype=torch.bfloat16, device=device)
    cos, sin = rotation(geometry, 0, 1, x)
    return torch.inference_mode()(lambda: block(x, cos, sin))


def token_step(decoder: Decoder, context: int = 64) -> Callable[[], Tensor]:
    """One new token through a whole decoder, behind `context` cached ones."""
    weight = decoder.embed_tokens.weight
    cache = KVCache(decoder.geometry, 1, context + 1, weight.dtype, weight.device)
    ids = torch.zeros(1, 1, dtype=torch.int64, device=weight.device)

    def step() -> Tensor:
        cache.length = context
        return decoder(ids, cache)

    return torch.inference_mode()(step)


def pair_times(device: torch.device, rounds: int, little: Geometry = LLAMA_3_2_1B) -> clock.Interleaved:
    """A layer of each model of the public pair, in turn."""
    calls = {"large": layer_step(LLAMA_3_8B, device), "little": layer_step(little, device)}
    return clock.interleave(calls, device=device, rounds=rounds)


def narrow_times(device: torch.device, rounds: int) -> clock.Interleaved:
    """A whole token of each decoder trained here, in turn, apart from large layers that empty the caches."""
    calls = {name: token_step(trained.decoder(name).to(device)) for name in (TEACHER, STUDENT)}
    return clock.interleave(calls, device=device, rounds=rounds)


def speed_values(
    pair: clock.Interleaved, narrow: clock.Interleaved, little: Geometry = LLAMA_3_2_1B
) -> dict[str, float]:
    """Seconds a token of the larger over the smaller; the public pair by its layers, without embedding and head."""
    return {
        "pair_speed_ratio": pair.ratio("large", "little") * LLAMA_3_8B.layers / little.layers,
        "narrow_speed_ratio": narrow.ratio(TEACHER, STUDENT),
        "large_layer_seconds": pair.seconds("large"),
        "little_layer_seconds": pair.seconds("little"),
    }


# --8<-- [end:speed]


class _Counter(TorchDispatchMode):
    calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        return func(*args, **(kwargs or {}))


def operator_calls(geometry: Geometry) -> int:
    """Operators that PyTorch calls for one token, shapes alone: what a step costs however small its tensors are."""
    with torch.device("meta"):
        step = token_step(Decoder(geometry))
    with _Counter() as counter:
        step()
    return counter.calls


def call_values(pair: tuple[Geometry, Geometry] | None = None) -> dict[str, float]:
    """Operators a token of the decoders trained here, or of another pair."""
    large, little = pair or (trained.GEOMETRIES[TEACHER], trained.GEOMETRIES[STUDENT])
    calls = operator_calls(large), operator_calls(little)
    return {
        "teacher_layers_count": large.layers,
        "student_layers_count": little.layers,
        "teacher_calls_count": calls[0],
        "student_calls_count": calls[1],
        "calls_ratio": calls[0] / calls[1],
    }


LAUNCHES_A_LAYER = 10  # seven products, two norms, attention; the rest taken as fused


def predicted(geometry: Geometry) -> float:
    """Least seconds of a decode step on an H100 in BF16, batch one, short context."""
    peak, counts = gpu_peak("H100 SXM", "bfloat16"), parameters(geometry)
    assert peak is not None
    weights = counts.linear + geometry.vocabulary * geometry.hidden
    launches = geometry.layers * LAUNCHES_A_LAYER
    return predict_seconds(flops=2 * weights, bytes=2 * weights, peak=peak, launches=launches)


def prediction_values(little: Geometry = LLAMA_3_2_1B) -> dict[str, float]:
    """Registered before any recording from that device."""
    return {
        "h100_large_seconds": predicted(LLAMA_3_8B),
        "h100_little_seconds": predicted(little),
        "h100_pair_ratio": predicted(LLAMA_3_8B) / predicted(little),
        "h100_narrow_ratio": predicted(trained.GEOMETRIES[TEACHER]) / predicted(trained.GEOMETRIES[STUDENT]),
        "h100_launch_seconds": LAUNCH_SECONDS,
        "layer_launches_count": LAUNCHES_A_LAYER,
    }


def measure(*, small: bool = False, device: str | None = None, dtype: torch.dtype | None = None) -> dict[str, float]:
    """Every value of the page; `small` reads fewer windows and takes fewer rounds. Losses are FP32, on the CPU."""
    clock.fix_allocator()
    rounds = 7 if small else 21
    return {
        **loss_values(losses(trained.held_out_windows(4 if small else 20))),
        **cost_values(),
        **size_values(),
        **speed_values(pair_times(pick(device), rounds), narrow_times(pick(device), rounds)),
        **call_values(),
        **prediction_values(),
    }


def control(*, small: bool = True, device: str | None = None, dtype: torch.dtype | None = None) -> dict[str, float]:
    """No teacher: all students were trained alone. No smaller model for speed; for calls, a pair that loses layers."""

    def alone(name: str, seed: int) -> Decoder:
        return student("alone", seed)

    clock.fix_allocator()
    return {
        **loss_values(losses(trained.held_out_windows(4), alone)),
        **cost_values(),
        **size_values(alone),
        **speed_values(pair_times(pick(device), 7, LLAMA_3_8B), narrow_times(pick(device), 7), LLAMA_3_8B),
        **call_values((LLAMA_3_8B, LLAMA_3_2_1B)),
        **prediction_values(LLAMA_3_8B),
    }


if __name__ == "__main__":
    from measured.values import report

    report("throughput/distillation", measure())
