"""`claims.json`: complete, valid by its schema, in plain words."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from measured import claims, claims_document
from measured.page import Page

ROOT = Path(__file__).resolve().parents[2]
NAME = "kv_cache/sample"


def test_a_claim_is_told_with_everything_that_is_checked(mini) -> None:
    found = claims_document.document()
    assert found["version"] == claims_document.VERSION and found["primary"] == "here"
    assert set(found["machines"]) == {"here", "one-thread"}
    entries = {c["id"]: c for c in found["claims"]}
    assert set(entries) == {"topic-boxes", "box-bytes", "box-alike", "box-mean", "box-speed", "box-step", "box-cuda"}
    speed = entries["box-speed"]
    assert speed["claim"] == "at least 2×" and speed["claim"] in speed["sentence"] and "{" not in speed["sentence"]
    assert (speed["class"], speed["bound"], speed["null"], speed["needs"]) == ("R", "speed_ratio >= 2", 1.0, [])
    assert speed["state"] == "holds" and speed["url"] == f"{NAME}.html#box-speed"
    assert speed["values"] == {"here": {"speed_ratio": 4.0}, "one-thread": {"speed_ratio": 4.0}}
    line = (mini.root / speed["source"]["page"]).read_text(encoding="utf-8").splitlines()[speed["source"]["line"] - 1]
    assert "#box-speed" in line
    assert entries["box-cuda"]["needs"] == ["cuda"] and entries["box-cuda"]["state"] == "not-applicable"
    assert entries["topic-boxes"]["values"] == {"here": {"topic_count": 6}}
    rests = [(v["statement"], v["as"]) for c in found["claims"] for v in c["verdicts"]]
    assert rests, "the sample page has a verdict"


def test_values_of_earlier_code_leave_it(mini) -> None:
    path = mini.root / "recordings" / "one-thread" / f"{NAME}.ipynb"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('tally.py": "', 'tally.py": "0'), encoding="utf-8")
    found = {c["id"]: c["values"] for c in claims_document.document()["claims"]}
    assert found["box-bytes"] == {"here": {"box_bytes": 120}}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("# Q\n\nFirst. It takes **2 bytes**{ .claim #x data-class=D } of\nthem. Last.", "It takes 2 bytes of them."),
        ("# Q\n\n- A list: **2**{ .claim #x data-class=D } of `them`\n- another", "A list: 2 of them"),
        ('!!! answer "A"\n\n    [**2**{ .claim #x data-class=D }](#y), e.g. **3**{ .m data-m="a" }.', "2, e.g. 3."),
        ("Two\nlines.\n\nAt **2.5 GB**{ .claim #x data-class=D } it\n**ends**.\n\nMore", "At 2.5 GB it ends."),
    ],
)  # fmt: skip
def test_a_sentence_is_cut_out_of_its_paragraph(text: str, wanted: str) -> None:
    page = Page("kv_cache/any", Path("any.md"), text)
    (claim,) = page.claims
    assert claims_document.sentence(page, claim) == wanted


def test_the_projects_own_claims_fit_the_schema_and_read_as_sentences() -> None:
    schema = json.loads((ROOT / "docs" / "claims.schema.json").read_text(encoding="utf-8"))
    found = claims_document.document()
    jsonschema.Draft202012Validator(schema).validate(found)
    assert len(found["claims"]) == len(claims.all_claims()) > 0
    for entry in found["claims"]:
        assert entry["claim"] in entry["sentence"] and not set(entry["sentence"]) & set("{}|"), entry["id"]
        code = entry["source"]["code"]
        assert code and all((ROOT / name).is_file() for name in code), entry["id"]


def test_the_schema_bites() -> None:
    schema = json.loads((ROOT / "docs" / "claims.schema.json").read_text(encoding="utf-8"))
    found = claims_document.document()
    del found["claims"][0]["bound"]
    with pytest.raises(jsonschema.ValidationError, match="bound"):
        jsonschema.Draft202012Validator(schema).validate(found)


def test_the_page_about_it_names_every_field() -> None:
    told = (ROOT / "docs" / "claims_json.md").read_text(encoding="utf-8")
    schema = json.loads((ROOT / "docs" / "claims.schema.json").read_text(encoding="utf-8"))
    fields = [*schema["properties"], *schema["properties"]["claims"]["items"]["properties"]]
    assert [name for name in fields if f"`{name}`" not in told and name != "claims"] == []
