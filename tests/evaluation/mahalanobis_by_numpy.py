"""Familiarity with numpy's matrices: a covariance, its inverse and counts."""

from typing import Any

import numpy as np

SHARE = 1e-4  # of the largest eigenvalue, to which smaller ones are raised


def distances(features: Any, train: Any) -> Any:
    """Mahalanobis distances (q,) of unit rows from the unit rows of the training images."""
    x, known = (np.asarray(rows, dtype=np.float64) for rows in (features, train))
    x, known = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (x, known))
    variance, axes = np.linalg.eigh(np.cov(known.T, bias=True))
    raised = np.maximum(variance, SHARE * variance.max())
    inverse = np.linalg.inv(axes @ np.diag(raised) @ axes.T)
    return np.array([np.sqrt(row @ inverse @ row) for row in x - known.mean(0)])


def p_values(features: Any, train: Any, calibration: Any) -> Any:
    """(1 + number of calibration images at least as far) / (n + 1), by a loop."""
    reference = distances(calibration, train)
    return np.array(
        [
            (1 + sum(far >= one * (1 - 1e-5) for far in reference)) / (len(reference) + 1)
            for one in distances(features, train)
        ]
    )


def whitened(features: Any, train: Any, exponent: float = 0.25) -> Any:
    """Partially whitened unit rows (q, f), up to a rotation that all of them share."""
    x, known = (np.asarray(rows, dtype=np.float64) for rows in (features, train))
    x, known = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (x, known))
    variance, axes = np.linalg.eigh(np.cov(known.T, bias=True))
    raised = np.maximum(variance, SHARE * variance.max())
    return (x - known.mean(0)) @ axes * raised**-exponent
