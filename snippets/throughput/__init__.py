"""Snippets of the throughput questions."""
