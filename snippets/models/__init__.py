"""Models that the snippets measure: files, shapes, a plain decoder, quantized weights. Knows no topic."""
