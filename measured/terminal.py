"""What commands print: tables, progress and a page's claims beside fresh numbers."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from measured import claims, recording
from measured.expression import ExpressionError
from measured.page import read_page

console = Console()
errors = Console(stderr=True)


def print_report(page_name: str, values: Mapping[str, float]) -> None:
    """Print each claim of a page with whether it holds on these values, then the values beside the recorded ones.

    Raises:
        project.UnknownNameError: There is no such page.
    """
    page = read_page(page_name)
    have = recording.primary(page_name)
    table = Table(title=f"{page.heading[0]}", title_justify="left")
    for heading in ("claim", "class", "here", "checked"):
        table.add_column(heading)
    for claim in page.claims:
        try:
            state = "holds" if claims.holds(claim, values) else "FAILS"
        except ExpressionError as error:
            state = str(error)
        table.add_row(claim.text, claim.value_class, state, claim.check)
    console.print(table)
    numbers = Table(title="values", title_justify="left")
    numbers.add_column("name")
    numbers.add_column("here", justify="right")
    numbers.add_column(f"recorded on {have.label}" if have else "recorded", justify="right")
    for name, value in values.items():
        known = f"{have.values[name]:,.6g}" if have and name in have.values else "–"
        numbers.add_row(name, f"{value:,.6g}", known)
    console.print(numbers)
