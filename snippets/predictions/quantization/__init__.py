"""Predictions for the pages of one topic."""
