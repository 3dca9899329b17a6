"""`python -m measured`: the same as the `measured` command."""

from measured.cli import app

app()
