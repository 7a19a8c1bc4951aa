"""Evaluations: what a trained encoder has learned, as numbers and maps."""
