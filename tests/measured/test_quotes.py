"""Quotes: a page's text on another page, its numbers backed and its links right."""

from __future__ import annotations

import pytest

from measured import quotes
from measured.page import read_page

CLAIM = '**120 bytes**{ .claim #box-bytes data-class=D data-check="box_bytes == 120" }'
NAME = "kv_cache/sample"


def test_a_quoted_claim_loses_its_id_names_its_page_and_leads_there() -> None:
    quoted = quotes.quote(f"It takes {CLAIM}.", NAME, f"../{NAME}.md")
    assert quoted == (
        'It takes [**120 bytes**{ .claim  data-class=D data-check="box_bytes == 120" data-from="kv_cache/sample" }]'
        "(../kv_cache/sample.md#box-bytes)."
    )


def test_bold_words_are_no_marks() -> None:
    assert quotes.quote("**Only** **words**{ .big }", NAME, "sample.md") == "**Only** **words**{ .big }"


@pytest.mark.parametrize(
    ("address", "own", "other"),
    [
        ("sample.md", "sample.md#box", "../throughput/batching.md#knee"),
        (f"{NAME}.md", f"{NAME}.md#box", "throughput/batching.md#knee"),
        (f"../{NAME}.md", f"../{NAME}.md#box", "../throughput/batching.md#knee"),
    ],
)
def test_links_lead_where_they_led(address: str, own: str, other: str) -> None:
    text = "[a](#box), [b](../throughput/batching.md#knee), [c](https://example.org/x.md#y), [d]()"
    wanted = f"[a]({own}), [b]({other}), [c](https://example.org/x.md#y), [d]()"
    assert quotes.quote(text, NAME, address) == wanted


def test_sentences_end_where_they_end() -> None:
    mark = '**5.70 GB**{ .m data-m="a_bytes:.2f GB" }'
    text = f"It takes {mark}. “So it does.” Is `a. B` one?\nYes, e.g. this: [x. Y](z.md#q). 3 remain"
    assert quotes.sentences(text) == [
        f"It takes {mark}.",
        "“So it does.”",
        "Is `a. B` one?",
        "Yes, e.g. this: [x. Y](z.md#q).",
        "3 remain",
    ]


def test_the_sentence_and_the_mark_of_a_claim() -> None:
    page = read_page("quantization/inference_speed")
    sentence = quotes.sentence_of(page, "is-same-flops")
    mark, name = quotes.claim_mark("is-same-flops")
    assert name == page.name and mark in sentence and sentence.count("data-check") == 1
    assert sentence.startswith("BF16") and sentence.endswith("counter.")


def test_a_claim_that_nobody_states_is_an_error() -> None:
    with pytest.raises(KeyError, match="no-such-claim"):
        quotes.claim_mark("no-such-claim")
    with pytest.raises(KeyError, match="states no claim"):
        quotes.sentence_of(read_page("quantization/inference_speed"), "kv-linear")
