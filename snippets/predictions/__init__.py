"""Registered predictions: what each page's R and H values would be on devices that are not at hand.

One module a question, under the question's own name, with `predict(target)`: a number for each R and H value that
the page records, from its own operations, bytes and launches, or the reason why they do not tell.
"""
