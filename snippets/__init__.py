"""The code that measures: one module a question, beside the instruments and models that they share."""
