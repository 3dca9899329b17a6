"""What the snippets measure with: clock, device, memory and units. Knows nothing of language models."""
