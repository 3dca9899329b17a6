"""What does calibration buy? Errors agree with a run of layers, gains with their parts; each trap is shown wrong."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch

from snippets.models import trained
from snippets.models.calibrated import METHODS, calibrate, error_compensated, output_error
from snippets.models.language_loss import paired_difference, window_nats
from snippets.models.rounding import Scheme, quantize_decoder, round_to_grid
from snippets.quantization import calibration
from snippets.quantization.calibration import Study
from tests.small import measured_small

pytestmark = pytest.mark.models


@pytest.fixture(scope="module")
def data() -> Study:
    return calibration.study(64, 40, blocks=2)


@pytest.fixture(scope="module")
def found() -> Mapping[str, float]:
    return measured_small("quantization/calibration")


def test_error_by_moments_equals_error_of_the_outputs(data: Study) -> None:
    names = data.groups[3]
    one = Study(data.model, [names], data.known, data.judged)
    known, judged = calibration.joined(one.known), calibration.joined(one.judged)
    rows = torch.cat([seen[names[0]] for seen in one.judged])
    weight = data.model.get_parameter(f"{names[0]}.weight")
    rounded = error_compensated(weight, known[names[0]], Scheme(4, group=128))
    whole = (rows @ weight.T).double()
    by_hand = ((rows @ rounded.T).double() - whole).square().sum() / whole.square().sum()
    assert calibration.mean_error(one, "GPTQ", known, judged) == pytest.approx(float(by_hand), rel=1e-3)


def test_inputs_are_those_of_a_batch_without_its_padding(data: Study) -> None:
    from snippets.models import encoder, similarity

    sentence = similarity.pairs("train").first[2]
    tokens = len(encoder._tokenizer().encode(sentence).ids)
    assert len(data.known[2][data.groups[0][0]]) == tokens
    assert calibration.sentence_counts(data)["sentences_count"] == 64


def test_layers_with_common_inputs_may_be_quantized_as_one(data: Study) -> None:
    names, scheme = data.groups[0], Scheme(4, group=128)
    known = calibration.joined(data.known)[names[0]]
    each = [error_compensated(data.model.get_parameter(f"{name}.weight"), known, scheme) for name in names]
    torch.testing.assert_close(error_compensated(data.weight(names), known, scheme), torch.cat(each))


def test_a_curve_has_every_method_at_every_count() -> None:
    columns = calibration.curve(
        {("nearest", 0): [2.0, 4.0], **{(m, n): float(n) for m in ("AWQ", "GPTQ") for n in (3, 5)}}, "x_nats"
    )
    assert columns["method"] == ["nearest", "nearest", "AWQ", "AWQ", "GPTQ", "GPTQ"]
    assert columns["samples_count"] == [3, 5] * 3
    assert columns["x_nats"] == [3.0, 3.0, 3.0, 5.0, 3.0, 5.0]
    partly = calibration.curve({("nearest", 0): 1.0, ("AWQ", 3): 2.0, ("GPTQ", 3): 4.0, ("GPTQ", 5): 5.0}, "x_nats")
    assert partly["method"] == ["nearest", "nearest", "GPTQ", "GPTQ"]


def test_a_gain_is_the_difference_of_losses() -> None:
    model, judged = trained.decoder("small", 1), trained.held_out_windows(2, 256)
    samples, scheme = calibration.training_windows(4, seed=7), Scheme(2, group=64)
    assert samples is not None and samples.shape == (4, calibration.WINDOW)
    nearest = window_nats(quantize_decoder(model, scheme), judged)
    by_hand = paired_difference(nearest, window_nats(calibrate(model, samples, METHODS["GPTQ"], scheme), judged))[0]
    added = [
        calibration.added_nats(1, known, method, scheme, windows=2)
        for known, method in ((None, "nearest"), (samples, "GPTQ"))
    ]
    values = calibration.gain({("nearest", 0): [added[0]] * 2, ("GPTQ", 4): [added[1]] * 2}, "GPTQ", 4, "x")
    assert values["x_gain_nats"] == pytest.approx(by_hand, abs=1e-6)
    assert values["x_gain_error_nats"] == pytest.approx(0, abs=1e-12)


def test_samples_come_from_the_training_text_and_differ_by_seed() -> None:
    ids = trained.corpus()[0]
    first, second = (calibration.training_windows(3, seed) for seed in (0, 1))
    assert first is not None and second is not None and not torch.equal(first, second)
    starts = (ids[: 1 - calibration.WINDOW] == first[0, 0]).nonzero().flatten().tolist()
    assert any(torch.equal(ids[start : start + calibration.WINDOW], first[0]) for start in starts)


def test_trap_the_calibration_set_flatters(found: Mapping[str, float]) -> None:
    assert 10 * found["minilm_few_own_error_share"] < found["minilm_few_error_share"]


def test_trap_weights_that_lay_on_the_grid_before_show_no_gain_where_there_is_one(data: Study) -> None:
    names, scheme = data.groups[1], Scheme(4, group=128)
    known = calibration.joined(data.known)[names[0]]
    weight = data.weight(names)
    gridded = round_to_grid(weight, scheme)

    def errors(matrix: torch.Tensor) -> list[float]:
        ways = (METHODS[method](matrix, known, scheme) for method in ("nearest", "GPTQ"))
        return [output_error(matrix, way, known.second_moment) for way in ways]

    nearest, compensated = errors(weight)
    assert compensated < 0.5 * nearest
    assert max(errors(gridded)) < 1e-9
