"""Tooling of Measured Answers: pages, notebooks, recordings, claims, and the command line."""
