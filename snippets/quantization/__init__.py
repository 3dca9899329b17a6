"""Snippets of the quantization questions."""
