"""Does quantization reduce memory during training? Bytes against formulas and the allocator."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from snippets.instruments.memory import allocated_by
from snippets.models.shapes import Geometry, parameters
from snippets.models.training import BF16, FP32, RECIPES, LoraLinear, Recipe, Trainer
from snippets.quantization import training_memory_and_speed as snippet

# No two sizes are equal; widths divide by a group of LoRA's base.
ODD = Geometry("odd", 3, 64, 6, 3, 32, 128, 53, True, "none")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tokens(batch: int, length: int) -> torch.Tensor:
    return torch.randint(53, (batch, length + 1), generator=generator(batch))


# What is kept.


@pytest.mark.parametrize("name", RECIPES)
def test_kept_bytes_are_those_of_the_formula_on_an_odd_shape(name: str) -> None:
    recipe = RECIPES[name]
    held = snippet.stepped(ODD, recipe).held()
    sizes = [p.numel() for p in snippet.fresh(ODD).parameters()]
    if recipe.rank:
        linear, rank = parameters(ODD).linear, recipe.rank
        sizes = [rank * side for shape in ODD.linear_shapes.values() for side in shape] * ODD.layers
        base = linear // 2 + 2 * linear // 64 + 2 * (parameters(ODD).total - linear)
        assert held["weights_bytes"] == base + 4 * sum(sizes)
    else:
        assert held["weights_bytes"] == recipe.weights.itemsize * sum(sizes)
    assert held["master_bytes"] == (4 * sum(sizes) if recipe.master else 0)
    assert held["gradients_bytes"] == sum(dtype.itemsize for dtype in recipe.gradients) * sum(sizes)
    moment = 4 if recipe.master or recipe.weights == FP32 else 2
    plain = sum(2 * moment * size + 4 for size in sizes)
    assert held["states_bytes"] == (sum(2 * (s + 4 * -(-s // 256)) for s in sizes) if recipe.codes else plain)


@pytest.mark.parametrize("name", [name for name, recipe in RECIPES.items() if not recipe.autocast])
def test_a_shape_counted_from_two_layers_is_the_model_run_whole(name: str) -> None:
    trainer = snippet.stepped(ODD, RECIPES[name])
    trained = sum(weight.numel() for weight in trainer.weights)
    assert snippet.whole(ODD, RECIPES[name]) == (sum(trainer.held().values()), trained)


@pytest.mark.parametrize("recipe", [RECIPES["FP32"], RECIPES["BF16 autocast"], RECIPES["BF16 alone"]], ids=str)
def test_saved_bytes_are_what_the_allocator_still_holds_after_the_forward_pass(recipe: Recipe) -> None:
    trainer, ids = Trainer(snippet.fresh(ODD), recipe), tokens(5, 29)
    trainer.losses(ids)
    saved = snippet.saved_bytes(trainer, ids)
    loss, held = allocated_by(lambda: trainer.losses(ids).mean(), device="cpu")
    assert loss.requires_grad and saved > 0
    assert held == pytest.approx(saved, rel=0.01)


def test_saved_bytes_lie_on_a_line_and_layers_that_run_again_save_least() -> None:
    trainer = Trainer(snippet.fresh(ODD), Recipe())
    fixed, each = snippet.saved_line(trainer, 7)
    again = Trainer(snippet.fresh(ODD), Recipe(recompute=True))
    for batch in (3, 5):
        assert snippet.saved_bytes(trainer, tokens(batch, 7)) == fixed + each * batch * 7
        assert snippet.saved_bytes(again, tokens(batch, 7)) < fixed + each * batch * 7
    for one in (trainer, again):
        one.step(tokens(3, 7))
    for left, right in zip(trainer.weights, again.weights, strict=True):
        torch.testing.assert_close(left, right)


def test_trap_a_base_dequantized_in_the_open_is_saved_as_floats() -> None:
    trainer = Trainer(snippet.fresh(ODD), Recipe(rank=2))
    careful = snippet.saved_line(trainer, 7)[0]
    for module in trainer.decoder.modules():
        if isinstance(module, LoraLinear):
            module.again = False
    first = sum(rows * columns for name, (rows, columns) in ODD.linear_shapes.items() if name[-6] in "qkv")
    assert snippet.saved_line(trainer, 7)[0] - careful == 2 * (parameters(ODD).linear - first)


# What masters and sums are for.


@pytest.mark.parametrize("gradients", [(BF16,), (FP32,), (BF16, FP32)], ids=["narrow", "wide", "both"])
def test_weights_are_their_masters_rounded_after_every_step(gradients: tuple[torch.dtype, ...]) -> None:
    trainer = Trainer(snippet.fresh(ODD), Recipe(BF16, True, gradients), rate=1e-5)
    before = [master.detach().clone() for master in trainer.masters]
    trainer.step(tokens(2, 9))
    for weight, master, old in zip(trainer.weights, trainer.masters, before, strict=True):
        assert weight.dtype == BF16 and master.dtype == FP32
        assert torch.equal(weight, master.to(BF16)) and not torch.equal(master, old)


def test_gradients_of_several_batches_are_summed_in_fp32() -> None:
    trainer = Trainer(snippet.fresh(ODD), RECIPES["BF16, FP32 master, FP32 gradients"])
    single = []
    for batch in (2, 3):
        other = Trainer(snippet.fresh(ODD), RECIPES["BF16, FP32 master, FP32 gradients"])
        for one in (trainer, other):
            one.losses(tokens(batch, 9)).mean().backward()
        single.append([master.grad for master in other.masters])
    for master, first, second in zip(trainer.masters, *single, strict=True):
        assert master.grad is not None and master.grad.dtype == FP32
        assert torch.equal(master.grad, first + second)


def test_trap_updates_smaller_than_a_step_of_the_format_are_lost() -> None:
    assert snippet.unmoved_values()["alone_unmoved_share"] > 0.9
    assert snippet.unmoved_values(RECIPES["BF16, FP32 master, BF16 gradients"])["alone_unmoved_share"] > 0.9
    masters = Trainer(snippet.fresh(ODD), RECIPES["BF16, FP32 master, BF16 gradients"], rate=1e-5)
    before = [master.detach().clone() for master in masters.masters]
    masters.step(tokens(2, 9))
    moved = sum(int((m != old).sum()) for m, old in zip(masters.masters, before, strict=True))
    assert moved > 0.9 * sum(old.numel() for old in before)  # nothing is lost there: the next steps add up


def test_aware_training_saves_the_rounded_copy() -> None:
    found = snippet.aware_values()
    assert found["aware_added_bytes"] == 4 * found["aware_rounded_count"] > 0


def test_control_breaks_what_the_page_claims() -> None:
    tiny = replace(snippet.SMALL, steps=12)
    plain, rounded = (snippet.TRAININGS[name](0, tiny)[-1] for name in ("FP32", "INT4 weights, no copy"))
    assert rounded - plain > 0.05  # beyond what the page grants autocast and INT8 states
    assert snippet.unmoved_values(Recipe())["alone_unmoved_share"] < 0.9


def test_gaps_are_paired_by_seed() -> None:
    found = snippet.gap_values(
        {"FP32": [[9, 1], [9, 3]], "a": [[0, 2], [0, 4]], "b": [[0, 1], [0, 3]], "c": [[0, 5], [0, 1]]}
    )
    assert found["fp32_loss_nats"] == 2 and found["autocast_gap_nats"] == 1 and found["autocast_error_nats"] == 0
    assert (
        found["states8_gap_nats"] == 0 and found["int4_gap_nats"] == 1 and found["int4_error_nats"] == pytest.approx(3)
    )
