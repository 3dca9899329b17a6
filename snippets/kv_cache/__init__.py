"""Snippets of the KV-cache questions."""
