"""A built page loses its indentation, and nothing that is read."""

from __future__ import annotations

import re

from bs4 import BeautifulSoup

from measured.blanks_hook import on_post_page

PAGE = """<body>
    <nav>
        <a>one</a>

        <a>two</a>
    </nav>
    <pre><code>def f():
    return 1

</code></pre>
    <textarea>
  kept</textarea>
    <script>
      let a = `
        b`;
    </script>
    <p>three   words <em>here</em>
       and there</p>
</body>"""


def test_code_stays_as_it_is_and_the_rest_reads_the_same() -> None:
    light = on_post_page(PAGE)
    before, after = (BeautifulSoup(page, "html.parser") for page in (PAGE, light))
    for name in ("pre", "textarea", "script"):
        assert str(after.find(name)) == str(before.find(name))
    assert after.get_text(" ").split() == before.get_text(" ").split()
    assert not re.search(r"\n\n|\n +<[a-z]", re.sub(r"<pre>.*?</pre>\n", "", light, flags=re.S))
    assert "here</em>\nand there" in light  # words do not grow together
    assert "<nav><a>one</a><a>two</a></nav>" in light  # in lists of links no line is seen
