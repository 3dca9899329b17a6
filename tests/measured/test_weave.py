"""Weave: a page as the site shows it, made by the extension alone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from bs4 import BeautifulSoup, Tag
from markdown import Markdown

from measured import claims, drawing, show, weave
from measured.page import read_page

NAME = "kv_cache/sample"


def html_of(mini, name: str = NAME) -> str:
    """A page rendered as MkDocs renders it: its text without front matter, the extensions of mkdocs.yml."""
    configured = yaml.safe_load((mini.root / "mkdocs.yml").read_text(encoding="utf-8"))["markdown_extensions"]
    names = [e if isinstance(e, str) else next(iter(e)) for e in configured]
    options = {next(iter(e)): next(iter(e.values())) for e in configured if isinstance(e, dict)}
    source = (mini.root / "docs" / f"{name}.md").read_text(encoding="utf-8")
    text = re.sub(r"\A---\n.*?\n---\n", "", source, flags=re.S)
    return Markdown(extensions=names, extension_configs=options).convert(text)


def shown(mini, name: str = NAME) -> BeautifulSoup:
    return BeautifulSoup(html_of(mini, name), "html.parser")


def one(soup: BeautifulSoup | Tag, selector: str) -> Tag:
    found = soup.select(selector)
    assert len(found) == 1, f"{len(found)} × {selector}"
    return found[0]


def before(element: Tag) -> Tag:
    found = element.find_previous_sibling()
    assert isinstance(found, Tag)
    return found


def test_outputs_stand_under_the_fence_that_made_them(mini) -> None:
    soup = shown(mini)
    outs = {int(str(out["data-cell"])): out for out in soup.select("div.ma-out")}
    assert list(outs) == [2, 3]
    for index, code in ((2, "step_seconds"), (3, "box_columns")):
        fence = before(outs[index])
        assert "highlight" in (fence.get("class") or []) and code in fence.get_text()
    values = outs[2].select("table.ma-values")
    assert [t["data-class"] for t in values] == ["D", "T", "R", "H"]
    rows = {r.th.get_text(): r.td.get_text() for t in values for r in t.select("tr") if r.th and r.td}
    texts = {"rows_count": "3", "box_bytes": "120", "mean_ratio": "0.5", "speed_ratio": "4", "step_seconds": "0.002"}
    assert {name: rows[name] for name in texts} == texts


def test_tables_and_charts_come_from_the_recorded_series(mini) -> None:
    block = shown(mini).select('div.ma-out[data-cell="3"]')[0]
    table = one(block, ".ma-table table")
    assert one(table, "caption").get_text() == "Boxes by rows"
    assert [[c.get_text() for c in r.select("th, td")] for r in table.select("tbody tr")] == [
        ["box 1", "40\N{NO-BREAK SPACE}bytes"],
        ["box 2", "80\N{NO-BREAK SPACE}bytes"],
        ["box 4", "160\N{NO-BREAK SPACE}bytes"],
    ]
    figure = one(block, "figure.ma-chart")
    label = str(one(figure, "svg")["aria-label"])
    assert label.startswith("Boxes grow with their rows: bytes from 40") and "160" in label
    assert [[c.get_text() for c in r.select("td")] for r in figure.select("tbody tr")] == [
        ["1", "40"],
        ["2", "80"],
        ["4", "160"],
    ]
    ids = re.findall(r'\bid="([^"]+)"', html_of(mini))
    assert len(ids) == len(set(ids))


def test_a_drawing_loses_bytes_and_no_digit_that_is_read() -> None:
    data = {"n_count": [1, 2], "part_share": [0.05, 0.25]}
    axes = {"x": "n_count", "y": "part_share", "color": None, "mark": "line", "log_x": False, "log_y": False}
    bundle = {"series": "s", **axes, "title": "T", "x_title": "n", "y_title": "part", "data": data}
    drawn = drawing.draw(bundle)
    ticks = re.findall(r"<text[^>]*>([^<]+)</text>", drawn)
    assert any(re.fullmatch(r"0\.\d\d", tick) for tick in ticks)
    shown = show._chart(bundle, drawn, "key")
    assert re.findall(r"<text[^>]*>([^<]+)</text>", shown) == ticks
    assert len(shown) < len(drawn) + 1000


def test_an_annotation_list_stays_right_under_its_fence(mini) -> None:
    page = mini.page_path
    text = page.read_text(encoding="utf-8")
    swapped = text.replace("1.  An annotation of the code above.\n\n", "").replace(
        "step_seconds=0.002)\n```\n",
        "step_seconds=0.002)\n```\n\n1.  An annotation of the code above.\n\n    More of it.\n",
    )
    page.write_text(swapped, encoding="utf-8")
    out = one(shown(mini), 'div.ma-out[data-cell="2"]')
    notes = before(out)
    assert notes.name == "ol" and "An annotation" in notes.get_text() and "More of it." in notes.get_text()
    assert "highlight" in (before(notes).get("class") or [])


def test_what_two_machines_agree_on_is_shown_once(mini) -> None:
    for out in shown(mini).select("div.ma-out"):
        assert not out.select(".tabbed-set")
        assert one(out, "p.ma-same").get_text() == "The same on every machine recorded."


def test_two_machines_are_tabs_linked_by_their_label(mini) -> None:
    path = mini.root / "recordings" / "one-thread" / f"{NAME}.ipynb"
    book = path.read_text(encoding="utf-8")
    slower = re.sub(r'("step_seconds": )0\.002', r"\g<1>0.003", book)
    assert slower != book
    path.write_text(slower, encoding="utf-8")
    outs = {out["data-cell"]: out for out in shown(mini).select("div.ma-out")}
    assert not outs["3"].select(".tabbed-set")  # what is the same stays one block
    for out in [outs["2"]]:
        tabs = one(out, ".tabbed-set")
        assert [block.select("td")[-1].get_text() for block in tabs.select(".tabbed-block")] == ["0.002", "0.003"]
        assert [la.get_text() for la in tabs.select(".tabbed-labels > label")] == [
            "This machine",
            "This machine, one thread",
        ]
        inputs = tabs.select("input")
        assert [i.has_attr("checked") for i in inputs] == [True, False]
        assert [la["for"] for la in tabs.select(".tabbed-labels > label")] == [i["id"] for i in inputs]
        assert len(tabs.select(".tabbed-content > .tabbed-block")) == 2


def test_a_power_in_an_attribute_does_not_end_the_bold_text(mini) -> None:
    power = '**4**{ .exact data-expr="2**2 + 0 * box_bytes" }'
    mini.append(f"It is {power}, and {power.replace('4', '16').replace('2 +', '4 +')} beside *it*.")
    soup = shown(mini)
    assert [e.get_text() for e in soup.select("strong.exact")][-2:] == ["4", "16"]
    assert [str(e["title"]) for e in soup.select("strong.exact")][-2:] == [
        "derived: 2**2 + 0 * box_bytes",
        "derived: 2**4 + 0 * box_bytes",
    ]


def test_one_machine_needs_no_tabs(mini) -> None:
    (mini.root / "recordings" / "one-thread" / f"{NAME}.ipynb").unlink()
    soup = shown(mini)
    assert soup.select("div.ma-out") and not soup.select("div.ma-out .tabbed-set")
    assert one(soup, "aside.ma-recorded").select("li") and len(soup.select("aside.ma-recorded li")) == 1


def test_a_page_not_recorded_says_so_with_the_command(mini) -> None:
    for machine in ("here", "one-thread"):
        (mini.root / "recordings" / machine / f"{NAME}.ipynb").unlink()
    soup = shown(mini)
    aside = one(soup, "aside.ma-recorded")
    assert "Not recorded yet" in aside.get_text() and one(aside, "code").get_text() == f"measured record {NAME}"
    assert not soup.select("table.ma-values")
    assert "not-recorded" in (soup.select("strong#box-bytes")[0].get("class") or [])


def test_the_footer_names_machine_date_and_notebook(mini) -> None:
    aside = one(shown(mini), "aside.ma-recorded")
    rows = [li.get_text() for li in aside.select("li")]
    date = mini.book().metadata["measured"]["recorded"]
    assert rows[0].startswith(f"This machine, {date}, Python 3") and "torch " in rows[0]
    links = [str(a["href"]) for a in aside.select("li")[0].select("a")]
    assert f"../notebooks/here/{NAME}.ipynb" in links
    assert "download" in aside.select("li")[0].select("a")[-1].attrs


def test_stale_outputs_say_so(mini) -> None:
    assert not shown(mini).select(".ma-stale")
    mini.replace("rows * columns", "columns * rows", mini.root / "snippets" / "models" / "tally.py")
    assert "measured with earlier code" in one(shown(mini), "aside.ma-recorded").select("li")[0].get_text()


def classes(soup: BeautifulSoup, claim_id: str) -> list[str]:
    return list(one(soup, f"strong#{claim_id}").get("class") or [])


def test_a_claim_carries_what_backs_it(mini) -> None:
    strong = one(shown(mini), "strong#box-bytes")
    assert strong.get_text() == "120 bytes" and strong["data-class"] == "D"
    title = str(strong["title"])
    assert "exact" in title and "box_bytes == 120" in title and "box_bytes = 120" in title and "holds" in title


def test_claims_that_fail_or_do_not_apply_are_marked(mini) -> None:
    soup = shown(mini)
    assert classes(soup, "box-bytes") == ["claim"] == classes(soup, "box-speed")
    assert classes(soup, "box-cuda") == ["claim", "not-applicable"]
    mini.replace('data-check="speed_ratio >= 2"', 'data-check="speed_ratio >= 5"')
    mini.replace('data-check="mean_ratio <= 0.6"', 'data-check="lost_ratio <= 0.6"')
    soup = shown(mini)
    assert classes(soup, "box-speed") == ["claim", "fails"] and classes(soup, "box-mean") == ["claim", "fails"]
    assert classes(soup, "box-bytes") == ["claim"]


def test_a_claim_is_known_by_its_id_whatever_its_words(mini) -> None:
    mini.append(
        'It is **`nbytes` & "more" <= all**{ .claim #box-words data-class=D data-check="box_bytes == 121" }; '
        'but **`nbytes`**{ .claim #box-more data-class=D data-check="box_bytes == 120" }.'
    )
    soup = shown(mini)
    assert classes(soup, "box-words") == ["claim", "fails"] and classes(soup, "box-more") == ["claim"]


def test_the_state_of_a_claim_comes_from_the_primary_alone(mini) -> None:
    path = mini.root / "recordings" / "one-thread" / f"{NAME}.ipynb"
    path.write_text(
        path.read_text(encoding="utf-8").replace('"speed_ratio": 4.0', '"speed_ratio": 1.0'), encoding="utf-8"
    )
    assert classes(shown(mini), "box-speed") == ["claim"]


def test_measured_derived_and_cited_numbers_say_so(mini) -> None:
    soup = shown(mini)
    assert str(one(soup, "strong.m")["title"]) == "measured: box_bytes"
    assert str(soup.select("strong.exact")[1]["title"]) == "derived: box_bytes / 1024"
    link = one(soup, "strong.cited > a")
    assert link["href"] == "https://example.org/box" and link.get_text() == "1,024 bytes"
    assert "table of boxes" in str(link["title"])


def test_a_verdict_turns_with_its_claims(mini) -> None:
    verdict = one(shown(mini), "div.admonition.verdict")
    assert verdict["class"] == ["admonition", "verdict", "holds"]
    assert one(verdict, "a")["href"] == "#box-bytes"
    mini.replace('data-check="box_bytes == 120" }, and', 'data-check="box_bytes == 121" }, and')
    assert "broken" in one(shown(mini), "div.admonition.verdict")["class"]


def test_a_verdict_on_a_claim_that_is_gone_is_broken(mini) -> None:
    mini.replace("- Holds: [the bytes](#box-bytes)", "- Holds: [the bytes](#box-lost)")
    assert "broken" in one(shown(mini), "div.admonition.verdict")["class"]


def test_formulas_are_mathml_and_no_code(mini) -> None:
    soup = shown(mini)
    assert one(soup, ".ma-formula math") and "data-check" not in str(soup.select(".ma-formula"))
    assert not soup.select("code.language-math") and "\\times" not in one(soup, ".ma-formula").get_text()


def test_answers_are_pulled_to_the_topic_page_with_links_and_without_ids(mini) -> None:
    soup = shown(mini, "kv_cache/index")
    section = one(soup, "section.ma-question")
    assert section["id"] == "q-sample" and one(section, "h3 a")["href"] == "sample.md"
    pulled = section.select("strong.claim")
    assert [s.get_text() for s in pulled] == ["120 bytes"] and not pulled[0].has_attr("id")
    assert pulled[0].parent is not None and pulled[0].parent["href"] == "sample.md#box-bytes"
    assert "box_bytes = 120" in str(pulled[0]["title"]) and not pulled[0].has_attr("data-from")
    assert [s.get_text() for s in section.select("strong.exact")] == ["two"]
    assert one(section, ".admonition.verdict a")["href"] == "sample.md#box-bytes"
    ids = [str(e["id"]) for e in soup.select("[id]")]
    assert len(ids) == len(set(ids)) and "topic-boxes" in ids and "box-bytes" not in ids


def test_a_pulled_claim_and_verdict_turn_with_their_page(mini) -> None:
    mini.replace('data-check="box_bytes == 120" }, and', 'data-check="box_bytes == 121" }, and')
    section = one(shown(mini, "kv_cache/index"), "section.ma-question")
    assert "fails" in (one(section, "strong.claim").get("class") or [])
    assert "broken" in one(section, ".admonition.verdict")["class"]


def test_an_id_right_after_the_brace_is_not_pulled_either(mini) -> None:
    mini.replace("**120 bytes**{ .claim #box-bytes", "**120 bytes**{#box-bytes .claim")
    section = one(shown(mini, "kv_cache/index"), "section.ma-question")
    assert not section.select("#box-bytes") and one(section, "strong.claim")


def test_questions_stand_most_asked_first(mini) -> None:
    source = mini.page_path.read_text(encoding="utf-8")
    for slug, rank in (("aaa", 2), ("zzz", 1)):
        text = source.replace("asked: 1", f"asked: {rank}").replace("kv_cache/sample", f"kv_cache/{slug}")
        (mini.root / "docs" / "kv_cache" / f"{slug}.md").write_text(
            text.replace("#box-", f"#{slug}-"), encoding="utf-8"
        )
    assert weave.question_order("kv_cache") == ["kv_cache/sample", "kv_cache/zzz", "kv_cache/aaa"]
    found = [s["id"] for s in shown(mini, "kv_cache/index").select("section.ma-question")]
    assert found == ["q-sample", "q-zzz", "q-aaa"]


def test_a_page_that_names_no_question_is_left_alone(mini) -> None:
    soup = shown(mini, "index")
    assert not soup.select(".ma-recorded, .ma-out") and one(soup, "strong.cited > a")


def test_state_of_a_claim_without_recording_or_capability(mini) -> None:
    found = {c.id: weave.claim_state(c) for c in mini.page().claims}
    assert found == {
        "box-bytes": "holds",
        "box-alike": "holds",
        "box-mean": "holds",
        "box-speed": "holds",
        "box-step": "holds",
        "box-cuda": "not-applicable",
    }
    mini.book_path.unlink()
    assert {weave.claim_state(c) for c in mini.page().claims} == {"not-recorded"}


def test_the_cost_of_a_page_does_not_grow_with_the_number_of_pages(mini, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted, not timed: files looked at while one page is rendered, with few pages and with many."""
    looks: list[Path] = []
    stat, read = Path.stat, Path.read_text

    def counted_stat(self: Path, **options: bool) -> object:
        looks.append(self)
        return stat(self, **options)

    def counted_read(self: Path, *args: object, **options: object) -> str:
        looks.append(self)
        return read(self, *args, **options)  # type: ignore[arg-type]

    def cost() -> int:
        html_of(mini)
        claims.find("box-bytes")
        looks.clear()
        html_of(mini)
        return len(looks)

    monkeypatch.setattr(Path, "stat", counted_stat)
    monkeypatch.setattr(Path, "read_text", counted_read)
    few = cost()
    source = mini.page_path.read_text(encoding="utf-8")
    for number in range(60):
        text = source.replace("kv_cache/sample", f"kv_cache/copy_{number}").replace("#box-", f"#copy{number}-")
        (mini.root / "docs" / "kv_cache" / f"copy_{number}.md").write_text(text, encoding="utf-8")
    assert len(read_page("kv_cache/copy_59").claims) == 6
    assert 0 < cost() <= few + 2, looks
