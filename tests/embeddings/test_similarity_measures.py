"""Cosine, dot product or Euclidean distance? Measures agree with loops on odd sizes, and the traps are shown wrong."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from snippets.embeddings import similarity_measures as snippet
from snippets.models.encoder import Encoder, encoder, sentence_vectors


@pytest.fixture(scope="module")
def minilm() -> Encoder:
    return encoder()


def draw(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("width", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("count", [2, 3, 7])
def test_measures_are_what_a_loop_computes(width: int, count: int) -> None:
    queries, keys = draw(3, width), draw(count, width, seed=1)
    found = snippet.nearness(queries, keys)
    for i in range(3):
        for j in range(count):
            a, b = queries[i].tolist(), keys[j].tolist()
            dot = sum(x * y for x, y in zip(a, b, strict=True))
            lengths = math.hypot(*a) * math.hypot(*b)
            assert float(found["dot"][i, j]) == pytest.approx(dot)
            assert float(found["cosine"][i, j]) == pytest.approx(dot / lengths)
            assert float(found["l2"][i, j]) == pytest.approx(-math.dist(a, b))


@pytest.mark.parametrize("count", [2, 3, 5, 31])
def test_on_the_sphere_all_rank_alike_and_off_it_they_do_not(count: int) -> None:
    found = snippet.unit_values(draw(count, 5))
    assert found["same_as_dot_count"] == found["same_as_l2_count"] == found["vectors_count"] == count
    assert found["identity_difference"] <= 1e-6
    short, long = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.1], [5.0, 5.0]])
    raw = {name: int(scores.argmax()) for name, scores in snippet.nearness(short, long).items()}
    assert raw == {"cosine": 0, "dot": 1, "l2": 0}


def test_pooled_vectors_are_the_sentence_vectors_before_they_are_normalised(minilm: Encoder) -> None:
    sentences = ["A man plays.", "Two dogs run over a wide green field in the rain.", "No.", "A man plays.", "Why?"]
    raw = snippet.pooled(minilm, sentences, batch=2)
    assert torch.allclose(F.normalize(raw, dim=1), sentence_vectors(minilm, sentences), atol=1e-5)
    assert (raw.norm(dim=1) - 1).abs().min() > 0.1
    assert len(snippet.distinct(raw)) == 4


def test_distinct_keeps_the_first_of_equal_directions() -> None:
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0], [0.0, 3.0], [1.0, 1.0]])
    assert snippet.distinct(rows).tolist() == [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]


def test_overlap_and_nearest_leave_the_query_out() -> None:
    scores = torch.tensor([[9.0, 1.0, 2.0, 3.0]] * 4)
    assert snippet.best(scores, torch.arange(4), top=2).tolist() == [[3, 2], [0, 3], [0, 3], [0, 2]]
    assert snippet.overlap(torch.tensor([[1, 2], [3, 4]]), torch.tensor([[2, 5], [4, 3]])) == 0.75


@pytest.mark.parametrize("width", [1, 2, 3, 7])
def test_one_more_dimension_makes_inner_products_distances(width: int) -> None:
    keys, queries = draw(31, width), draw(5, width, seed=2)
    longer = snippet.lengthened(keys)
    assert longer.shape == (31, width + 1)
    assert torch.allclose(longer.norm(dim=1), keys.norm(dim=1).max().expand(31))
    distance = torch.cdist(F.pad(queries, (0, 1)), longer)
    predicted = queries.square().sum(1)[:, None] + keys.square().sum(1).max() - 2 * queries @ keys.T
    assert torch.allclose(distance**2, predicted)
    found = snippet.mips_values(keys, queries)
    assert found["mips_equal_count"] == found["mips_queries_count"] == 5


def test_trap_cosine_distance_is_no_metric() -> None:
    a, b, c = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]).double()
    far = 1 - F.cosine_similarity(a, c, dim=0)
    round_about = 2 - F.cosine_similarity(a, b, dim=0) - F.cosine_similarity(b, c, dim=0)
    assert float(far) == 1.0 and float(round_about) == pytest.approx(2 - math.sqrt(2)) and round_about < far
    found = snippet.metric_values(draw(7, 3))
    unit, broken, triples = F.normalize(draw(7, 3), dim=1), 0, 0
    for i in range(7):
        for j in range(7):
            for k in range(7):
                if len({i, j, k}) == 3:
                    ij, jk, ik = (1 - float(unit[x] @ unit[y]) for x, y in ((i, j), (j, k), (i, k)))
                    broken, triples = broken + (ij + jk < ik - 1e-9), triples + 1
    assert broken > 0
    assert found["cosine_broken_share"] == pytest.approx(broken / triples)
    assert found["l2_broken_share"] == 0


def test_trap_the_cosine_of_a_vector_with_itself_can_exceed_one() -> None:
    found = snippet.self_values(draw(64, 384))
    assert found["self_above_share"] > 0
    assert 0 < found["self_difference"] <= 1e-6 < found["bf16_self_difference"]
    assert math.isnan(float(torch.tensor(1.0 + 2**-23).acos()))  # why it matters: an angle of it is none


@pytest.mark.parametrize("width", [2, 3, 7])
def test_random_cosines_spread_as_one_over_the_root(width: int) -> None:
    columns = snippet.random_columns(4000, (width,))
    assert columns["spread_difference"][0] == pytest.approx(width**-0.5, rel=4 / math.sqrt(2 * 4000))


def test_mean_cosine_by_a_loop_and_taking_the_mean_off() -> None:
    rows = draw(5, 3) + torch.tensor([9.0, 0.0, 0.0])
    pairs = [(i, j) for i in range(5) for j in range(5) if i != j]
    by_hand = sum(float(F.cosine_similarity(rows[i], rows[j], dim=0)) for i, j in pairs) / len(pairs)
    assert snippet.mean_cosine(rows) == pytest.approx(by_hand)
    columns = snippet.layer_columns(rows[None])
    assert columns["cosine_difference"][0] > 0.9 > 0.5 > columns["cosine_difference"][1]


def test_the_threshold_makes_the_fewest_errors() -> None:
    cosines = torch.tensor([0.1, 0.9, 0.4, 0.6, 0.3, 0.7, 0.35]).double()
    alike = torch.tensor([False, True, False, True, False, True, True])
    found = snippet.best_threshold(cosines, alike)
    errors = {t: int(((cosines >= t) != alike).sum()) for t in torch.linspace(0, 1, 101).tolist()}
    assert int(((cosines >= found) != alike).sum()) == min(errors.values()) == 1


def test_hidden_states_do_not_see_the_padding() -> None:
    from snippets.models.decoder import Decoder, initialize
    from snippets.models.shapes import Geometry

    small = Decoder(Geometry("odd", 2, 30, 3, 1, 10, 7, 49_152, True, "a test's own"))
    initialize(small, 0, std=0.3)
    sentences = ["Hello there, you.", "One two three four five six seven eight nine ten.", "Why not?"]
    states, means = snippet.hidden_states(small, sentences)
    assert states.shape == (3, 3, 30)
    for i, sentence in enumerate(sentences):
        alone, mean = snippet.hidden_states(small, [sentence])
        assert torch.allclose(states[:, i], alone[:, 0], atol=1e-4)
        assert torch.allclose(means[i], mean[0], atol=1e-4)
