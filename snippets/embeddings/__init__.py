"""Embeddings: how token ids become vectors, and what the vectors are."""
