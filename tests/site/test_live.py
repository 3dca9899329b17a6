"""Live pages against a real Jupyter Server: claims hold when a browser runs them, and nobody else runs anything."""

from __future__ import annotations

import http.client
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from axe_playwright_python.sync_playwright import Axe
from bs4 import BeautifulSoup
from playwright.sync_api import Browser, BrowserContext, Page, expect

from measured import live

ROOT = Path(__file__).resolve().parents[2]
# One of each topic, and quick.
PAGES = ("quantization/which_model_fits", "kv_cache/index", "embeddings/tokenization_first", "throughput/index")
QUICK = "kv_cache/index"
START_SECONDS, RUN_MS = 120, 120_000
EXPECT_MS = 5_000  # the browser library's own
LONG_CELL = "import time\nprint('began', flush=True)\ntime.sleep(600)"


@dataclass(frozen=True)
class Served:
    """A running `measured serve`: its process, and where its servers are."""

    process: subprocess.Popen[bytes]
    origin: str
    link: str
    folder: Path
    log: Path

    @property
    def port(self) -> int:
        """The Jupyter Server's."""
        return int(self.link.partition("#live=")[2].partition(".")[0])

    @property
    def token(self) -> str:
        return self.link.partition("#live=")[2].partition(".")[2]

    def processes(self) -> list[psutil.Process]:
        """`measured serve`, both servers, and the kernels."""
        mother = psutil.Process(self.process.pid)
        return [mother, *mother.children(recursive=True)]

    def ask(self, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], str]:
        """Status, headers and body of a request to the Jupyter Server; `_` stands for `-` in a header's name."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        body = "" if response.status == 101 else response.read().decode(errors="replace")
        connection.close()
        return response.status, dict(response.getheaders()), body

    @property
    def right(self) -> dict[str, str]:
        return {"Authorization": f"token {self.token}", "Origin": self.origin}

    @contextmanager
    def kernel(self) -> Iterator[str]:
        status, _, body = self.ask("/api/kernels", "POST", **self.right)
        assert status == 201, body
        name = json.loads(body)["id"]
        yield name
        self.ask(f"/api/kernels/{name}", "DELETE", **self.right)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


def _project(folder: Path, pages: tuple[str, ...]) -> Path:
    """A copy of the project that holds these pages alone, so that it is served in seconds."""
    for name in ("snippets", "measured", "docs/assets"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "cards.json"))
    machine = Source.primary()
    names = [
        "mkdocs.yml",
        "pyproject.toml",
        "README.md",
        "docs/index.md",
        "docs/sources.yml",
        "recordings/machines.toml",
    ]
    names += [name for page in pages for name in (f"docs/{page}.md", f"recordings/{machine}/{page}.ipynb")]
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    (folder / "docs" / "index.md").write_text("# Home\n", encoding="utf-8")  # the real one shows other pages' claims
    return folder


class Source:
    """What the repository says, read apart from the project's tooling."""

    @staticmethod
    def primary() -> str:
        found = re.search(r'^primary = "([\w-]+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M)
        assert found
        return found[1]

    @staticmethod
    def cells(page: str) -> list[dict]:
        path = ROOT / "recordings" / Source.primary() / f"{page}.ipynb"
        return [c for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"]

    @staticmethod
    def claims(page: str) -> dict[str, str]:
        """Class of each gated claim of a page."""
        about = [cell["metadata"].get("measured", {}) for cell in Source.cells(page)]
        return {each["name"]: each["class"] for each in about if each.get("check") == "claim"}


@contextmanager
def _served(project: Path) -> Iterator[Served]:
    port, log = _free_port(), project / "serve.log"
    environment = {**os.environ, "MEASURED_ROOT": str(project), "NO_MKDOCS_2_WARNING": "1", "PYTHONUNBUFFERED": "1"}
    with log.open("wb") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "measured", "serve", "--port", str(port)],
            cwd=project,
            env=environment,
            stdout=said,
            stderr=said,
        )
    try:
        until = time.monotonic() + START_SECONDS
        while not (named := re.search(r"the link stands in (\S+)\n", log.read_text(encoding="utf-8"))):
            assert process.poll() is None and time.monotonic() < until, log.read_text(encoding="utf-8")[-3000:]
            time.sleep(0.1)
        link = Path(named[1])
        yield Served(process, f"http://127.0.0.1:{port}", link.read_text(encoding="utf-8").strip(), link.parent, log)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with _served(_project(tmp_path_factory.mktemp("live"), PAGES)) as running:
        yield running


# ---- In a browser ------------------------------------------------------------------------------------------


@dataclass
class Reader:
    """One browser that has opened the link, in as many tabs as asked for."""

    context: BrowserContext
    served: Served
    wrong: list[str]

    def open(self, page_name: str, *, live_tab: bool = True) -> Page:
        tab = self.context.new_page()
        tab.on("pageerror", lambda error: self.wrong.append(str(error)))
        if live_tab:
            tab.goto(self.served.link)
            tab.wait_for_function("!location.hash && sessionStorage.getItem('ma-live')")
        tab.goto(f"{self.served.origin}/{page_name}.html")
        if live_tab:
            expect(tab.get_by_role("button", name="Run all")).to_be_visible()
        return tab


@pytest.fixture
def reader(chromium: Browser, served: Served) -> Iterator[Reader]:
    context = chromium.new_context(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
    context.set_default_timeout(RUN_MS)
    expect.set_options(timeout=RUN_MS)  # a cell imports torch before it shows anything
    made = Reader(context, served, [])
    yield made
    expect.set_options(timeout=EXPECT_MS)
    context.close()
    assert made.wrong == []


def _run_all(tab: Page) -> dict[str, str]:
    """What stands beside each claim after Run all."""
    tab.get_by_role("button", name="Run all").click()
    expect(tab.locator(".ma-live-status")).to_contain_text(re.compile(r"^(Ran \d|Cell \d+ did not)"), timeout=RUN_MS)
    return {mark.get_attribute("data-claim") or "": mark.inner_text() for mark in tab.locator(".ma-here").all()}


def _edit(tab: Page, number: int, code: str) -> None:
    tab.get_by_role("button", name=f"Edit cell {number}", exact=True).click()
    tab.get_by_role("textbox", name=f"Code of cell {number}", exact=True).fill(code)


def _state(tab: Page, number: int) -> Any:
    return tab.get_by_role("group", name=f"cell {number}", exact=True).locator(".ma-live-state")


@pytest.mark.parametrize("quick_page", PAGES)
def test_run_all_sees_every_claim_hold(reader: Reader, quick_page: str) -> None:
    tab, claims = reader.open(quick_page), Source.claims(quick_page)
    shown = _run_all(tab)
    failed = {name for name, text in shown.items() if "fails" in text}
    if failed and {claims[name] for name in failed} == {"R"}:  # a ratio of times has a second try
        shown = _run_all(tab)
    assert claims and set(shown) == set(claims)
    told = tab.locator(".ma-live-told").inner_text()
    assert {text for text in shown.values()} <= {"✓ holds here", "– not applicable here"}, told
    assert "✓ holds here" in shown.values()
    cells = [cell for cell in Source.cells(quick_page) if "fence" in cell["metadata"].get("measured", {})]
    outputs = tab.locator(".ma-live-out:visible")
    expect(outputs).to_have_count(sum(bool(cell["outputs"]) for cell in cells))
    assert tab.locator(".ma-live-out table").count() > 0 and tab.locator(".ma-live-out .ma-error").count() == 0


def test_an_edit_breaks_a_claim_and_reset_mends_it(reader: Reader) -> None:
    tab = reader.open(QUICK)
    code = tab.locator(".md-content__inner > .language-python pre > code").nth(2)
    before = (code.text_content() or "").rstrip()
    assert "formula_values(element_bytes=2)" in before
    _edit(tab, 3, before.replace("element_bytes=2", "element_bytes=4"))
    box = tab.get_by_role("textbox", name="Code of cell 3")
    box.press("End")
    box.press("Tab")
    assert box.input_value().endswith("    ") and box.evaluate("each => each === document.activeElement")
    box.press("Control+Enter")
    broken = tab.locator(".ma-here[data-claim='kv-topic-gib-tokens']")
    expect(broken).to_have_text("✗ fails here")
    expect(tab.locator(".ma-live-status")).to_have_text(re.compile("Claims, of the edited code: 1 fails here"))
    expect(tab.locator(".ma-live-told")).to_contain_text("gib_8b_tokens == 8192, but gib_8b_tokens = 4096")
    expect(tab.locator(".ma-here")).to_have_count(1)  # the other claims have no values yet
    assert [_state(tab, n).inner_text()[:3] for n in (1, 2, 3, 4)] == ["ran", "ran", "ran", ""]
    box.press("Escape")
    expect(tab.get_by_role("button", name="Edit cell 3")).to_be_focused()
    expect(code).to_contain_text("element_bytes=4")
    tab.get_by_role("button", name="Reset").click()
    expect(code).to_have_text(before)
    for gone in (".ma-here", ".ma-live-out:visible", ".ma-live-told li"):
        expect(tab.locator(gone)).to_have_count(0)
    assert set(_run_all(tab).values()) == {"✓ holds here"}
    # A cell runs again in the same kernel: what it recorded is recorded anew.
    tab.get_by_role("button", name="Run cell 3", exact=True).click()
    expect(tab.locator(".ma-live-status")).to_have_text("Ran cell 3. Claims: 3 hold here.")


def test_interrupt_ends_a_long_cell_and_another_tab_waited_for_it(reader: Reader) -> None:
    first, second = reader.open(QUICK), reader.open(QUICK)
    _edit(first, 1, LONG_CELL)
    first.get_by_role("button", name="Run cell 1", exact=True).click()
    expect(first.locator(".ma-live-out").first).to_contain_text("began")  # what is printed is seen before the end
    second.get_by_role("button", name="Run cell 1", exact=True).click()
    expect(second.locator(".ma-live-status")).to_have_text("Waiting for the runs of other tabs.")
    expect(_state(second, 1)).to_have_text("waiting")
    first.get_by_role("button", name="Interrupt").click()
    expect(_state(first, 1)).to_have_text(re.compile(r"interrupted after .* s · edited"))
    expect(first.locator(".ma-live-out").first).to_contain_text("Interrupted.")
    expect(_state(second, 1)).to_have_text(re.compile("ran in"))


HOSTILE = """
from IPython.display import HTML, display
import sys
print("<img src=x onerror='window.stolen = 1'>")
print("10 %\\r20 %\\r30 %")
print("told", file=sys.stderr)
svg = "<svg xmlns='http://www.w3.org/2000/svg' onload='window.stolen = 2'><script>window.stolen = 3</script>"
svg += "<a href='javascript:0'><text>t</text></a><g fill='url(https://example.org/)'>"
svg += "<path d='M0 0h9' fill='#3b6ea5'/></g></svg>"
chart = {"title": "drawn", "data": {"x": [1], "y": [2]}}
display({"application/vnd.measured.chart+json": chart, "image/svg+xml": svg, "text/plain": ""}, raw=True)
display(HTML("<script>window.stolen = 4</script><b>bold</b>"))
"""


def test_output_is_text_and_shapes_never_markup(reader: Reader) -> None:
    tab = reader.open(QUICK)
    _edit(tab, 1, HOSTILE)
    tab.get_by_role("textbox", name="Code of cell 1").press("Control+Enter")
    expect(_state(tab, 1)).to_have_text(re.compile("ran in"))
    box = tab.locator(".ma-live-out").first
    expect(box).to_contain_text("<img src=x onerror=")
    assert "30 %" in box.inner_text() and "20 %" not in box.inner_text() and "told" in box.inner_text()
    assert tab.evaluate("window.stolen") is None
    assert box.locator("script, img, a, b").count() == 0
    svg = box.locator("svg")
    assert svg.get_attribute("aria-label") == "drawn" and svg.get_attribute("onload") is None
    assert svg.locator("g").get_attribute("fill") is None
    assert svg.locator("path").get_attribute("fill") == "var(--ma-series-1, #3b6ea5)"


def test_without_a_token_there_is_no_button_and_the_page_says_how_to_get_them(reader: Reader) -> None:
    tab = reader.open(QUICK, live_tab=False)
    expect(tab.locator(".ma-recorded > p")).to_have_text("Cells run here: open the link that `measured serve` shows.")
    assert tab.locator("[class^='ma-live']").count() == 0
    tab.goto(f"{reader.served.origin}/#live={reader.served.port}.{secrets.token_urlsafe(32)}")
    tab.goto(f"{reader.served.origin}/{QUICK}.html")
    expect(tab.locator(".ma-recorded > p")).to_contain_text("of this link has ended")
    assert tab.locator("[class^='ma-live']").count() == 0 and tab.evaluate("sessionStorage.getItem('ma-live')") is None


def test_the_token_leaves_the_address_at_once_and_stays_in_its_tab(reader: Reader) -> None:
    asked: list[str] = []
    reader.context.on("request", lambda request: asked.append(request.url))
    tab = reader.open(QUICK)
    tab.on("websocket", lambda socket_: asked.append(socket_.url))
    tab.get_by_role("button", name="Run cell 1", exact=True).click()
    expect(_state(tab, 1)).to_have_text(re.compile("ran in"))
    token = reader.served.token
    assert any(url.startswith("ws://127.0.0.1") for url in asked)
    # The link itself is the one request that a browser makes with the fragment, and it sends none to a server.
    assert [url for url in asked if token in url] in ([], [reader.served.link])
    assert token not in tab.url and token not in tab.content()
    assert tab.evaluate("[document.cookie, JSON.stringify(localStorage)]") == [
        "",
        tab.evaluate("JSON.stringify(localStorage)"),
    ]
    assert token not in tab.evaluate("JSON.stringify(localStorage)")
    tab.go_back()
    assert token not in tab.url
    assert reader.open(QUICK, live_tab=False).locator("[class^='ma-live']").count() == 0


@pytest.mark.parametrize("dark", [False, True])
def test_the_controls_fit_a_phone_and_axe_finds_nothing_in_them(reader: Reader, dark: bool) -> None:
    tab = reader.open(QUICK)
    tab.emulate_media(color_scheme="dark" if dark else "light")
    tab.set_viewport_size({"width": 360, "height": 800})
    _edit(tab, 3, "record('D', **formula_values(element_bytes=4))\n1 / 0")
    tab.get_by_role("button", name="Run cell 3", exact=True).click()
    expect(tab.locator(".ma-here.fails")).to_have_count(1)
    assert tab.evaluate("document.documentElement.scrollWidth") <= 360
    for part in (".ma-live-bar", ".ma-live-tools", ".ma-live-out", ".ma-live-edit", ".ma-here"):
        found = Axe().run(tab, context=part, options={"resultTypes": ["violations"]}).response["violations"]
        assert [violation["id"] for violation in found] == [], part


# ---- Who is refused ----------------------------------------------------------------------------------------


def test_the_right_token_from_the_site_is_let_in(served: Served) -> None:
    status, headers, body = served.ask("/api/status", **served.right)
    assert status == 200 and "kernels" in json.loads(body)
    assert headers["Access-Control-Allow-Origin"] == served.origin and "Set-Cookie" not in headers


REFUSED: dict[str, Callable[[Served], dict[str, str]]] = {
    "no token": lambda served: {"Origin": served.origin},
    "a wrong token": lambda served: {**served.right, "Authorization": f"token {secrets.token_urlsafe(32)}"},
    "an empty token": lambda served: {**served.right, "Authorization": "token "},
    "a foreign origin": lambda served: {**served.right, "Origin": "http://example.org"},
    "the site's name in another spelling": lambda served: {
        **served.right,
        "Origin": served.origin.replace("127.0.0.1", "localhost"),
    },
    "another port of this machine": lambda served: {**served.right, "Origin": f"http://127.0.0.1:{served.port}"},
    "an origin that begins alike": lambda served: {**served.right, "Origin": f"{served.origin}.example.org"},
    "no origin to speak of": lambda served: {**served.right, "Origin": "null"},
    "a foreign host": lambda served: {**served.right, "Host": f"example.org:{served.port}"},
    "a host that rebinds to loopback": lambda served: {**served.right, "Host": "localhost.example.org"},
}


@pytest.mark.parametrize("case", REFUSED)
def test_rest_refuses(served: Served, case: str) -> None:
    for path, method in (("/api/status", "GET"), ("/api/kernels", "POST"), ("/api/contents/README.md", "GET")):
        status, headers, body = served.ask(path, method, **REFUSED[case](served))
        assert status in (403, 404), (path, status, body)
        assert headers.get("Access-Control-Allow-Origin") in (None, served.origin)


def _knock(served: Served, kernel: str, protocols: str, query: str = "", **headers: str) -> int:
    """Status of a websocket's handshake; 101 is an open one."""
    shake = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec_WebSocket_Version": "13"}
    shake |= {"Sec_WebSocket_Key": "dGhlIHNhbXBsZSBub25jZQ==", "Sec_WebSocket_Protocol": protocols}
    address = f"/api/kernels/{kernel}/channels?session_id=test{query}"
    return served.ask(address, **{**shake, "Origin": served.origin, **headers})[0]


def test_a_websocket_refuses_the_same(served: Served) -> None:
    plain = "v1.kernel.websocket.jupyter.org"
    right = f"{plain}, v1.token.websocket.jupyter.org.{served.token}"
    with served.kernel() as kernel:
        assert _knock(served, kernel, right) == 101
        assert _knock(served, kernel, plain) == 403
        assert _knock(served, kernel, f"{plain}, v1.token.websocket.jupyter.org.{secrets.token_urlsafe(32)}") == 403
        assert _knock(served, kernel, plain, query=f"&token={served.token}") == 403
        for origin in (
            "http://example.org",
            "null",
            f"http://localhost:{served.port}",
            f"http://127.0.0.1:{served.port}",
        ):
            assert _knock(served, kernel, right, Origin=origin) == 403, origin
        assert _knock(served, kernel, right, Host="example.org") == 403


def test_a_token_counts_in_no_address_and_in_no_form(served: Served) -> None:
    assert served.ask(f"/api/status?token={served.token}", Origin=served.origin)[0] == 403
    for path in ("/login", "/logout", f"/login?token={served.token}"):
        assert "Set-Cookie" not in served.ask(path)[1] or "username" not in served.ask(path)[1]["Set-Cookie"]
    assert served.ask("/api/terminals", "POST", **served.right)[0] == 404


def test_a_foreign_page_gets_no_leave_to_send_a_header(served: Served) -> None:
    asks = {"Access_Control_Request_Method": "POST", "Access_Control_Request_Headers": "authorization"}
    _, headers, _ = served.ask("/api/kernels", "OPTIONS", Origin="http://example.org", **asks)
    assert headers.get("Access-Control-Allow-Origin") != "http://example.org"
    assert headers.get("Access-Control-Allow-Origin") != "*" and "Access-Control-Allow-Credentials" not in headers


def test_everything_listens_on_loopback_alone(served: Served) -> None:
    with served.kernel():
        listening = {
            connection.laddr.ip
            for process in served.processes()
            for connection in process.net_connections()
            if connection.status == psutil.CONN_LISTEN
        }
    assert listening == {"127.0.0.1"}


def test_the_token_stands_on_no_command_line_in_no_environment_log_or_page(served: Served) -> None:
    # Refused and let in, so that both kinds of line stand in the log.
    served.ask(f"/api/status?token={served.token}")
    assert _knock(served, "none", f"v1.token.websocket.jupyter.org.{served.token}") == 404
    with served.kernel():
        seen = {
            f"{process.pid} {what}": text
            for process in served.processes()
            for what, text in (("argv", " ".join(process.cmdline())), ("environment", str(process.environ())))
        }
        assert len(seen) >= 2 * 4  # the command, two servers, a kernel
    logs = {"site": served.log.read_text(), "jupyter": (served.folder / "jupyter.log").read_text()}
    assert "Serving on" in logs["site"] and "403 GET /api/status" in logs["jupyter"]
    for path in (f"{QUICK}.html", "live/live.js", "live/live.css", "index.html"):
        connection = http.client.HTTPConnection(served.origin.removeprefix("http://"), timeout=30)
        connection.request("GET", f"/{path}")
        seen[path] = connection.getresponse().read().decode()
        connection.close()
    assert "live/live.js" in seen[f"{QUICK}.html"]
    assert [name for name, text in (seen | logs).items() if served.token in text] == []


def test_what_holds_the_token_is_its_owners_alone(served: Served) -> None:
    assert served.folder.stat().st_mode & 0o077 == 0
    holding = [
        path for path in served.folder.rglob("*") if path.is_file() and served.token.encode() in path.read_bytes()
    ]
    assert {"link", "jupyter_server_config.json"} <= {path.name for path in holding}
    assert [path for path in holding if path.stat().st_mode & 0o077] == []


def test_the_server_itself_refuses_to_listen_beyond_loopback(tmp_path: Path) -> None:
    """Whatever else its configuration says."""
    given = live.settings(8000, secrets.token_urlsafe(32))
    given["ServerApp"]["ip"] = "0.0.0.0"
    (tmp_path / "jupyter_server_config.json").write_text(json.dumps(given), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "measured.live.server"],
        cwd=ROOT,
        env={**os.environ, "JUPYTER_CONFIG_DIR": str(tmp_path), "JUPYTER_RUNTIME_DIR": str(tmp_path / "run")},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode != 0 and "0.0.0.0 is refused" in done.stderr and "is running at" not in done.stderr


@pytest.mark.parametrize("ended_by", [signal.SIGINT, signal.SIGKILL])
def test_when_it_ends_servers_and_kernels_end(tmp_path: Path, ended_by: signal.Signals) -> None:
    """By Ctrl-C it also takes its files along; killed outright, it leaves them, and their token opens nothing."""
    with _served(_project(tmp_path / "project", (QUICK,))) as running:
        status, _, body = running.ask("/api/kernels", "POST", **running.right)
        assert status == 201, body
        every = running.processes()
        jupyter = [each for each in every if "measured.live.server" in each.cmdline()]
        assert len(every) >= 4 and len(jupyter) == 1
        kernels = jupyter[0].children(recursive=True)
        running.process.send_signal(ended_by)
        code = running.process.wait(30)
        waited = kernels + jupyter + ([] if ended_by == signal.SIGKILL else every)
        _, alive = psutil.wait_procs(waited, timeout=30)
        assert alive == [] and kernels
        if ended_by == signal.SIGKILL:
            for each in every:  # the site alone may outlive it: it runs nothing
                if each.is_running():
                    each.kill()
            shutil.rmtree(running.folder)
        else:
            assert code == 0 and not running.folder.exists()


# ---- The built site ----------------------------------------------------------------------------------------


def test_the_published_site_holds_none_of_it(site: Path) -> None:
    assert [path for path in site.rglob("*") if path.name in ("live", "live.js", "live.css")] == []
    named = re.compile(rb"live/live\.|ma-live|#live=|v1\.token\.websocket")
    texts = [path for path in site.rglob("*") if path.suffix in (".html", ".js", ".css", ".json", ".xml")]
    assert len(texts) > 50 and [path for path in texts if named.search(path.read_bytes())] == []


def test_a_page_shows_the_cells_that_its_notebook_runs(site: Path, code_page: str) -> None:
    """In order, as the client finds them; and its foot says how to run them."""
    soup = BeautifulSoup((site / f"{code_page}.html").read_text(encoding="utf-8"), "html.parser")
    shown = [each.select_one("pre > code") for each in soup.select(".md-content__inner > .language-python.highlight")]
    cells = [cell for cell in Source.cells(code_page) if "fence" in cell["metadata"].get("measured", {})]

    def lines(code: str) -> list[str]:
        return [line for line in code.splitlines() if line.strip()]  # an include ends in other blank lines there

    assert [lines(code.get_text()) for code in shown if code] == [lines("".join(c["source"])) for c in cells]
    assert "make live" in soup.select(".ma-recorded > p")[-1].get_text()
