"""What does distillation buy? The loss by hand, plain training bit for bit, a frozen teacher, students kept once."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, kl_divergence
from torch.utils.flop_counter import FlopCounterMode

from snippets.models import trained
from snippets.models.decoder import Decoder, initialize
from snippets.models.shapes import LLAMA_3_8B, Geometry
from snippets.throughput import distillation as snippet
from snippets.throughput.distillation import Lesson, distillation_loss
from tests.odd import ODD, odd_decoder
from tests.small import controlled, failing_small, measured_small

pytestmark = pytest.mark.models
PAGE = "throughput/distillation"


def draw(positions: int, vocabulary: int, seed: int) -> Tensor:
    return torch.randn(positions, vocabulary, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def fresh() -> Decoder:
    decoder = Decoder(ODD)
    initialize(decoder, seed=11)
    return decoder


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """Batches of two short sequences, and a text for them."""
    monkeypatch.setattr(trained, "BATCH", 2)
    monkeypatch.setattr(trained, "LENGTH", 7)
    return torch.randint(ODD.vocabulary, (300,), generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize(("positions", "vocabulary"), [(1, 2), (3, 5), (7, 53)])
@pytest.mark.parametrize("temperature", [1.0, 2.0, 3.5])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_loss_by_hand_and_by_the_library(positions: int, vocabulary: int, temperature: float, alpha: float) -> None:
    own, given = draw(positions, vocabulary, 0), draw(positions, vocabulary, 1)
    targets = torch.arange(positions) % vocabulary
    soft = kl_divergence(Categorical(logits=given / temperature), Categorical(logits=own / temperature)).mean()
    likely = own.exp() / own.exp().sum(-1, keepdim=True)
    hard = -likely[torch.arange(positions), targets].log().mean()
    found = distillation_loss(own, given, targets, alpha, temperature)
    torch.testing.assert_close(found, alpha * temperature**2 * soft + (1 - alpha) * hard)


def test_equal_distributions_cost_nothing_and_pull_nowhere() -> None:
    own = draw(3, 7, 2).requires_grad_()
    given = own.detach() + torch.tensor([[5.0], [-2.0], [0.5]])  # the same distribution, by other logits
    loss = distillation_loss(own, given, torch.tensor([0, 1, 2]), 1.0, 2.0)
    (gradient,) = torch.autograd.grad(loss, own)
    assert loss.abs() < 1e-12 and gradient.abs().max() < 1e-12


def test_which_way_the_divergence_goes() -> None:
    """Two tokens, 0.8 and 0.2 for the teacher, even for the student: 0.8 ln 1.6 + 0.2 ln 0.4."""
    given, own = torch.tensor([[0.8, 0.2]]).log(), torch.zeros(1, 2)
    assert distillation_loss(own, given, torch.tensor([0]), 1.0, 1.0).item() == pytest.approx(0.192745, abs=1e-6)


def gradient_at(temperature: float) -> Tensor:
    own = draw(3, 5, 3).requires_grad_()
    return torch.autograd.grad(distillation_loss(own, draw(3, 5, 4), torch.tensor([0, 1, 2]), 1.0, temperature), own)[0]


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_gradient_is_the_difference_of_the_flattened_distributions(temperature: float) -> None:
    own, given = ((draw(3, 5, seed) / temperature).softmax(-1) for seed in (3, 4))
    torch.testing.assert_close(gradient_at(temperature), temperature * (own - given) / 3)


def test_trap_without_the_square_a_high_temperature_teaches_next_to_nothing() -> None:
    """With it the gradient tends to the difference of centred logits over the vocabulary, whatever the temperature."""
    apart = draw(3, 5, 3) - draw(3, 5, 4)
    limit = (apart - apart.mean(-1, keepdim=True)) / 5 / 3
    hot, hotter = gradient_at(1_000.0), gradient_at(2_000.0)
    torch.testing.assert_close(hot, limit, rtol=1e-2, atol=1e-4)
    torch.testing.assert_close(hotter, limit, rtol=1e-2, atol=1e-4)
    forgotten = hot.norm() / 1_000**2, hotter.norm() / 2_000**2
    assert forgotten[0] / forgotten[1] == pytest.approx(4, rel=1e-2)


def test_without_soft_targets_it_is_plain_training_bit_for_bit(brief: Tensor) -> None:
    """The same draws, schedule, clipping and update: what is compared differs in the loss alone."""
    plain, taught = fresh(), fresh()
    expected = trained.train(plain, brief, 6, 3, batch=trained.BATCH, length=trained.LENGTH)
    found = snippet.distil(taught, odd_decoder(), brief, Lesson(6, alpha=0), 3)
    assert found == expected
    assert all(torch.equal(one, other) for one, other in zip(plain.parameters(), taught.parameters(), strict=True))
    assert not any(parameter.requires_grad for parameter in taught.parameters())


def test_the_teacher_is_only_read_and_the_student_comes_nearer_to_it(brief: Tensor) -> None:
    teacher, student = odd_decoder(), fresh()
    before = copy.deepcopy(teacher.state_dict())
    losses = snippet.distil(student, teacher, brief[:9], Lesson(60, temperature=2.0), 0)
    assert losses[-1] < 0.5 * losses[0]
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in teacher.parameters())


def test_all_lessons_of_a_seed_read_the_same_text_in_the_same_order(brief: Tensor) -> None:
    def seen(train: Callable[[Decoder], object]) -> Tensor:
        batches: list[Tensor] = []
        decoder = fresh()
        decoder.register_forward_pre_hook(lambda module, inputs: batches.append(inputs[0].clone()))
        train(decoder)
        return torch.stack(batches)

    teacher = odd_decoder()
    alone = seen(lambda d: trained.train(d, brief, 4, 1, batch=trained.BATCH, length=trained.LENGTH))

    def taught(lesson: Lesson) -> Tensor:
        return seen(lambda d: snippet.distil(d, teacher, brief, lesson, 1))

    for lesson in (Lesson(4), Lesson(4, shift=5), Lesson(4, alpha=0.5, temperature=2.0)):
        assert torch.equal(taught(lesson), alone)
    assert not torch.equal(seen(lambda d: snippet.distil(d, teacher, brief, Lesson(4), 2)), alone)
    excerpt = seen(lambda d: snippet.distil(d, teacher, brief[:9], Lesson(4), 1))
    assert {tuple(row) for row in excerpt.flatten(0, 1).tolist()} <= {tuple(brief[i : i + 7].tolist()) for i in (0, 1)}


def test_shifted_answers_are_the_teachers_and_belong_elsewhere(brief: Tensor) -> None:
    one, moved = fresh(), fresh()
    right = snippet.distil(one, odd_decoder(), brief, Lesson(1), 0)
    wrong = snippet.distil(moved, odd_decoder(), brief, Lesson(1, shift=3), 0)
    assert right != wrong
    whole = snippet.distil(fresh(), odd_decoder(), brief, Lesson(1, shift=14), 0)
    assert whole == right  # once around all positions


def test_students_are_trained_once_and_a_half_written_one_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained.corpus()  # the vocabulary is kept where it was
    monkeypatch.setenv("MEASURED_CACHE", str(tmp_path))
    for name, value in {"STEPS": 2, "BATCH": 2, "LENGTH": 8, "SEEDS": (0,)}.items():
        monkeypatch.setattr(trained, name, value)
    brief = {"alone": Lesson(2, alpha=0), "distilled": Lesson(2), "excerpt alone": Lesson(2, alpha=0, tokens=50)}
    monkeypatch.setattr(snippet, "LESSONS", brief)
    snippet.prepare()
    kept = {path: path.read_bytes() for path in (tmp_path / "trained").glob("*.safetensors")}
    assert len(kept) == 1 + len(brief)  # and the teacher
    first = {name: snippet.student(name, 0).state_dict()["layers.0.mlp.up_proj.weight"] for name in brief}
    assert not torch.equal(first["alone"], first["distilled"])
    assert not torch.equal(first["alone"], first["excerpt alone"])
    written = {path: path.stat().st_mtime_ns for path in kept}
    snippet.prepare()
    assert {path: path.stat().st_mtime_ns for path in kept} == written
    (path,) = (path for path in kept if "distilled" in path.name)
    path.write_bytes(kept[path][: len(kept[path]) // 2])
    snippet.prepare()
    assert {path: path.read_bytes() for path in (tmp_path / "trained").glob("*.safetensors")} == kept


def test_passes_by_the_librarys_counter() -> None:
    geometry, tokens = Geometry("odd", 3, 40, 6, 3, 14, 22, 53, True, "none"), 5
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        Decoder(geometry)(torch.zeros(1, tokens, dtype=torch.int64))
    attention = geometry.layers * 2 * 2 * geometry.heads * geometry.head_dim * tokens**2
    assert counter.get_total_flops() == tokens * snippet.pass_flops(geometry) + attention


def test_the_student_alone_has_the_operations_of_the_distilled_one() -> None:
    values = snippet.cost_values()
    assert values["longer_training_flops"] == pytest.approx(values["distilled_training_flops"], rel=0.01)
    weights = sum(p.numel() for p in Decoder(trained.GEOMETRIES["tiny"]).parameters() if p.ndim > 1)
    assert values["student_pass_flops"] == 2 * weights


def test_bytes_of_the_public_pair_by_hand() -> None:
    values = snippet.size_values()
    layer = 4096 * (4096 * 2 + 1024 * 2 + 3 * 14336)
    assert values["large_read_bytes"] == 2 * (32 * layer + 128_256 * 4096)
    little = 2048 * (2048 * 2 + 512 * 2 + 3 * 8192)
    assert values["little_read_bytes"] == 2 * (16 * little + 128_256 * 2048)
    assert (values["large_token_bytes"], values["little_token_bytes"]) == (131_072, 32_768)


def test_a_step_leaves_its_cache_as_it_found_it() -> None:
    step = snippet.token_step(odd_decoder(), context=5)
    first = step().clone()
    assert first.shape == (1, 1, ODD.vocabulary) and first.isfinite().all()
    assert torch.equal(step(), first)


def test_operators_grow_by_the_layer_whatever_its_width() -> None:
    wide = Geometry("wide", 3, 350, 6, 3, 140, 220, 53, True, "none")
    assert snippet.operator_calls(wide) == snippet.operator_calls(ODD) > 30
    by_layers = [snippet.operator_calls(replace(ODD, layers=layers)) for layers in (1, 2, 5)]
    assert by_layers[2] - by_layers[1] == 3 * (by_layers[1] - by_layers[0]) > 0


def test_prediction_by_hand_large_models_read_and_little_ones_launch() -> None:
    values = snippet.prediction_values()
    assert values["h100_large_seconds"] == pytest.approx(snippet.size_values()["large_read_bytes"] / 3.35e12)
    assert values["h100_narrow_ratio"] == pytest.approx(5 / 3)
    assert snippet.prediction_values(LLAMA_3_8B)["h100_pair_ratio"] == 1


def test_claims_hold_at_small_scale_too() -> None:
    assert failing_small(PAGE) == []


def test_trap_soft_targets_in_the_wrong_place_teach_nothing() -> None:
    values = measured_small(PAGE)
    assert values["short_shuffled_nats"] > values["short_alone_nats"] > values["short_distilled_nats"]


def test_where_every_student_learns_alone_nothing_is_gained() -> None:
    values = controlled(PAGE)
    for name in ("gain", "short_gain", "excerpt_gain", "longer_gain", "misplaced_cost", "scarce"):
        assert values[f"{name}_nats"] == values[f"{name}_errors_ratio"] == 0, name
    assert values["distilled_nats"] == measured_small(PAGE)["alone_nats"]
