"""How do token ids become vectors? Second ways on odd sizes, the real matrix, each trap shown wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from measured import claims
from measured.page import read_page
from snippets.embeddings import lookup as snippet
from snippets.instruments.device import capabilities
from snippets.models import smollm2
from snippets.models.decoder import Decoder
from snippets.models.shapes import Geometry
from tests.small import measured_small

ODD = [(2, 3, 5), (3, 7, 2), (5, 2, 7), (7, 5, 3), (9, 11, 3)]  # tokens, vocabulary, hidden


def odd_matrix(vocabulary: int, hidden: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal draws, (vocabulary, hidden)."""
    return torch.randn(vocabulary, hidden, generator=torch.Generator().manual_seed(7)).to(dtype)


def odd_ids(tokens: int, vocabulary: int) -> Tensor:
    """Ids with repeats, int64 (tokens,)."""
    return torch.randint(vocabulary, (tokens,), generator=torch.Generator().manual_seed(11))


@pytest.fixture(scope="module")
def model() -> Decoder:
    return smollm2.decoder(torch.float32)


@pytest.fixture(scope="module")
def ids() -> Tensor:
    return snippet.sentence_ids()


@pytest.fixture(scope="module")
def measured() -> Mapping[str, float]:
    return measured_small("embeddings/lookup")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("tokens", "vocabulary", "hidden"), ODD)
def test_lookup_equals_product_and_rows_taken_by_hand(
    tokens: int, vocabulary: int, hidden: int, dtype: torch.dtype
) -> None:
    matrix, chosen = odd_matrix(vocabulary, hidden, dtype), odd_ids(tokens, vocabulary)
    by_hand = torch.tensor([matrix[token].tolist() for token in chosen.tolist()], dtype=dtype)
    assert snippet.lookup(chosen, matrix).shape == (tokens, hidden)
    assert snippet.differing(snippet.lookup(chosen, matrix), by_hand) == 0
    assert snippet.differing(snippet.one_hot_product(chosen, matrix), by_hand) == 0


@pytest.mark.parametrize(("tokens", "vocabulary", "hidden"), ODD)
def test_one_hot_is_torchs_own(tokens: int, vocabulary: int, hidden: int) -> None:
    chosen = odd_ids(tokens, vocabulary)
    hot = snippet.one_hot(chosen, odd_matrix(vocabulary, hidden, torch.bfloat16))
    assert torch.equal(hot, F.one_hot(chosen, vocabulary).bfloat16())


@pytest.mark.parametrize(("tokens", "vocabulary", "hidden"), ODD)
def test_poison_counts_the_rows_that_are_read(tokens: int, vocabulary: int, hidden: int) -> None:
    matrix, chosen = odd_matrix(vocabulary, hidden), odd_ids(tokens, vocabulary)
    assert snippet.rows_read(snippet.lookup, chosen, matrix) == len(set(chosen.tolist()))
    assert snippet.rows_read(snippet.one_hot_product, chosen, matrix) == vocabulary
    first_only: Callable[[Tensor, Tensor], Tensor] = lambda _, table: table[:1] * 2  # noqa: E731
    assert snippet.rows_read(first_only, chosen, matrix) == 1


def test_poison_leaves_the_matrix_as_it_was() -> None:
    matrix = odd_matrix(7, 3)
    before = matrix.clone()
    snippet.rows_read(snippet.lookup, odd_ids(2, 7), matrix)
    assert torch.equal(matrix, before)


def test_a_row_stands_at_its_id_times_its_bytes(ids: Tensor) -> None:
    matrix = odd_matrix(smollm2.GEOMETRY.vocabulary, 3, torch.bfloat16)
    offsets = snippet.token_columns(ids, matrix)["offset_bytes"]
    assert offsets == [3 * 2 * token for token in ids.tolist()]
    columns_first = matrix.t().contiguous().t()  # the same numbers, stored column after column
    assert snippet.matrix_values(ids, columns_first)["misplaced_count"] == len(ids)


def test_tokens_of_the_sentence_are_its_text(ids: Tensor) -> None:
    columns = snippet.token_columns(ids, odd_matrix(smollm2.GEOMETRY.vocabulary, 2))
    text = smollm2.tokenizer().decode(ids.tolist())
    assert "".join(token[1:-1] for token in columns["token"]) == text
    assert text.startswith("Less than ")
    assert text.endswith("independence.")


def test_differing_sees_the_sign_of_zero_that_equal_does_not() -> None:
    matrix = torch.tensor([[-0.0, 1.0], [2.0, 3.0]])
    product, rows = snippet.one_hot_product(torch.tensor([0]), matrix), snippet.lookup(torch.tensor([0]), matrix)
    assert torch.equal(product, rows)
    assert snippet.differing(product, rows) == 1


def test_a_second_term_would_show() -> None:
    matrix, chosen = odd_matrix(5, 7), odd_ids(3, 5)
    rows = snippet.lookup(chosen, matrix)
    blurred = (snippet.one_hot(chosen, matrix) + 1e-6) @ matrix
    assert snippet.differing(blurred, rows) > 0


def test_matmul_precision_is_put_back_even_after_an_error() -> None:
    before = torch.get_float32_matmul_precision()
    with pytest.raises(RuntimeError, match="inside"), snippet.matmul_precision("medium"):
        assert torch.get_float32_matmul_precision() == "medium"
        raise RuntimeError("inside")
    assert torch.get_float32_matmul_precision() == before


def test_measuring_leaves_the_precision_alone(measured: Mapping[str, float]) -> None:
    assert measured
    assert torch.get_float32_matmul_precision() == "highest"


def test_relative_difference_of_known_numbers() -> None:
    a, b = torch.tensor([1.0, 3.0, 0.0]), torch.tensor([2.0, 4.0, 0.0])
    assert snippet.relative_difference(a, b) == 0.5


def test_bf16_rounds_by_less_than_its_step_and_autocast_rounds_the_same(measured: Mapping[str, float]) -> None:
    worst = torch.tensor([1 + 2**-8 + 2**-20, 1 + 2**-8 - 2**-20])  # right and left of the middle between two steps
    assert 2**-9 < snippet.relative_difference(worst.bfloat16().float(), worst) < 2**-8
    assert 0 < measured["autocast_differing_count"] == measured["rounding_differing_count"]


@pytest.mark.skipif("amx-bf16" not in capabilities("cpu"), reason="no AMX: “medium” has no faster product here")
def test_medium_rounds_with_amx(ids: Tensor, model: Decoder) -> None:
    values = snippet.precision_values(ids, model.embed_tokens.weight)
    assert 0 < values["medium_differing_count"] <= values["rounding_differing_count"]


@pytest.mark.skipif("amx-bf16" in capabilities("cpu"), reason="AMX: “medium” rounds here")
@pytest.mark.skipif("neon-bf16" in capabilities("cpu"), reason="NEON BF16: “medium” may round here")
def test_medium_changes_nothing_where_no_faster_product_exists(ids: Tensor, model: Decoder) -> None:
    assert snippet.precision_values(ids, model.embed_tokens.weight)["medium_differing_count"] == 0


def test_negative_ids_wrap_in_plain_indexing_and_are_refused_by_the_lookup() -> None:
    matrix = odd_matrix(7, 3)
    with pytest.raises(IndexError):
        snippet.lookup(torch.tensor([-1]), matrix)
    assert torch.equal(matrix[torch.tensor([-1])], matrix[6:])
    assert snippet.foreign_id_values(matrix) == {"lookup_accepted_count": 0, "indexing_accepted_count": 1}


def test_max_norm_rewrites_the_rows_looked_up_alone() -> None:
    matrix, chosen = odd_matrix(11, 5), torch.tensor([3, 3, 8])
    assert snippet.changed_rows(chosen, matrix, max_norm=0.01) == 2
    assert snippet.changed_rows(chosen, matrix, max_norm=None) == 0
    assert snippet.changed_rows(chosen, matrix, max_norm=1e6) == 0


def test_padding_withholds_the_gradient_and_not_the_vector() -> None:
    weight, chosen = odd_matrix(7, 3).requires_grad_(), torch.tensor([2, 5])
    taken = F.embedding(chosen, weight, padding_idx=2)
    taken.sum().backward()
    assert torch.equal(taken[0], weight[2])
    assert weight.grad is not None
    assert weight.grad[2].abs().sum() == 0
    assert weight.grad[5].abs().sum() == 3


@pytest.mark.parametrize(("tokens", "vocabulary", "hidden"), ODD)
def test_gradient_is_the_product_with_the_transposed_one_hot(tokens: int, vocabulary: int, hidden: int) -> None:
    matrix, chosen = odd_matrix(vocabulary, hidden), odd_ids(tokens, vocabulary)
    expected = snippet.one_hot(chosen, matrix).t() @ torch.ones(tokens, hidden)
    assert torch.equal(snippet.gradient(chosen, matrix, sparse=False), expected)
    assert torch.equal(snippet.gradient(chosen, matrix, sparse=True).to_dense(), expected)
    values = snippet.gradient_values(chosen, matrix)
    assert values["dense_gradient_bytes"] == vocabulary * hidden * 4
    assert values["sparse_gradient_bytes"] == tokens * (hidden * 4 + 8)
    assert values["scatter_differing_count"] == 0


@pytest.mark.parametrize(("tokens", "vocabulary", "hidden"), ODD)
def test_int8_rows_cost_a_byte_a_number_and_a_scale(tokens: int, vocabulary: int, hidden: int) -> None:
    values = snippet.option_values(odd_ids(tokens, vocabulary), odd_matrix(vocabulary, hidden))
    assert values["int8_row_bytes"] == hidden + 4
    assert values["int8_differing_count"] == 0


def test_share_counts_a_tied_matrix_once_and_an_untied_one_twice() -> None:
    shape = {"layers": 1, "hidden": 6, "heads": 3, "kv_heads": 1, "head_dim": 2, "ffn": 5, "vocabulary": 7}
    tied = snippet.share_values(Decoder(Geometry("tied", **shape, tied=True, source="test")))  # type: ignore[arg-type]
    untied = snippet.share_values(Decoder(Geometry("untied", **shape, tied=False, source="test")))  # type: ignore[arg-type]
    assert tied["head_offset_bytes"] == 0 < untied["head_offset_bytes"]
    assert untied["total_parameters_count"] - tied["total_parameters_count"] == 7 * 6
    assert tied["model_bytes"] == 4 * tied["total_parameters_count"]


def test_equal_rows_are_found() -> None:
    shape = {"layers": 1, "hidden": 6, "heads": 3, "kv_heads": 1, "head_dim": 2, "ffn": 5, "vocabulary": 7}
    small = Decoder(Geometry("small", **shape, tied=True, source="test")).requires_grad_(False)  # type: ignore[arg-type]
    assert snippet.share_values(small)["distinct_rows_count"] == 7
    small.embed_tokens.weight[4] = small.embed_tokens.weight[2]
    assert snippet.share_values(small)["distinct_rows_count"] == 6


def test_the_first_layer_is_given_the_lookup_and_tells_equal_tokens_apart(model: Decoder) -> None:
    values = snippet.path_values(model, torch.tensor([5, 9, 5, 5, 2]))
    assert values["input_differing_count"] == 0
    assert values["pairs_count"] == 2 == values["pairs_equal_before_count"]
    assert values["pairs_equal_after_count"] == 0
    repeated = snippet.path_values(model, torch.tensor([5, 5]))  # nothing but itself to attend to: still its value
    assert repeated["pairs_count"] == 1


def test_table_of_shapes_multiplies() -> None:
    columns = snippet.shape_columns(element_bytes=2)
    for rows, hidden, row, whole in zip(
        columns["vocabulary_count"], columns["hidden_count"], columns["row_bytes"], columns["matrix_bytes"], strict=True
    ):
        assert row == 2 * hidden
        assert whole == rows * row
    assert snippet.llama_values()["llama_matrix_bytes"] in columns["matrix_bytes"]


def test_measured_values_by_hand(measured: dict[str, float], ids: Tensor) -> None:
    assert measured["sentence_tokens"] == len(ids)
    assert measured["lookup_bytes"] == len(ids) * 576 * 2
    assert measured["product_bytes"] == 49_152 * 576 * 2 + len(ids) * 49_152 * 2
    assert measured["product_rows_count"] == 49_152
    assert measured["lookup_rows_count"] == len(set(ids.tolist())) < len(ids)


@pytest.mark.timing
def test_every_claim_of_the_pages_holds_on_a_small_run(measured: Mapping[str, float]) -> None:
    here = capabilities()
    stated = [c for name in ("embeddings/lookup", "embeddings/index") for c in read_page(name).claims]
    assert len(stated) > 20
    for claim in stated:
        if set(claim.needs.split()) <= here:
            assert claims.holds(claim, measured), claim.id
