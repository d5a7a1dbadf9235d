"""A Gaussian process: what a few noisy measurements say of settings that nobody has tried.

Matern 5/2 with a length per dimension, its lengths, scale and noise fitted by their posterior mode (Rasmussen &
Williams 2006, chapter 5). The priors matter: with ten points and noise as large as the margin, the likelihood alone
takes the noise for the surface or the surface for noise in one sweep of four. scikit-learn's has no such priors,
and Optuna's is private and fits no noise that differs from point to point.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, solve_triangular
from scipy.optimize import minimize

Array = NDArray[np.float64]

LENGTH, LENGTH_SPREAD = math.log(0.7), 0.8  # of ranges that are [0, 1]
JITTER = 1e-8


class GaussianProcess:
    """Fitted to n points of d dimensions.

    Args:
        x_ND: in [0, 1].
        y_N: what was measured there.
        noise: standard deviation expected of a measurement.
        sure: whether it is known to a few per cent; else it is a guess.
        extra_N: variance that single measurements have beside it.

    Attributes:
        noise: standard deviation of a measurement, as fitted.
    """

    def __init__(
        self, x_ND: Array, y_N: Array, *, noise: float, sure: bool = False, extra_N: Array | None = None
    ) -> None:
        self._x_ND, self._mean = x_ND, float(y_N.mean())
        self._scale = max(float(y_N.std()), noise, 1e-9)
        z_N = (y_N - self._mean) / self._scale
        known_N = np.zeros(len(y_N)) if extra_N is None else extra_N / self._scale**2
        dimensions = x_ND.shape[1]
        expected = 2 * math.log(np.clip(noise / self._scale, 1e-3, 1.0))
        prior = np.array([LENGTH] * dimensions + [0.0, expected])
        spread = np.array([LENGTH_SPREAD] * dimensions + [1.0, 0.1 if sure else 1.0])
        squares_NND = (x_ND[:, None] - x_ND[None]) ** 2
        fitted = minimize(
            lambda t: _loss(t, z_N, known_N, squares_NND, prior, spread),
            prior,
            jac=True,
            method="L-BFGS-B",
            bounds=[(-3.0, 2.3)] * dimensions + [(-3.0, 3.0), (-14.0, 0.7)],
            options={"maxiter": 30},
        ).x
        self._lengths, self._variance = np.exp(fitted[:dimensions]), math.exp(fitted[dimensions])
        self.noise = math.exp(fitted[-1] / 2) * self._scale
        covariance = self._kernel(x_ND, x_ND) + np.diag(math.exp(fitted[-1]) + known_N + JITTER)
        self._cholesky = np.linalg.cholesky(covariance)
        self._weights_N = cho_solve((self._cholesky, True), z_N)

    def predict(self, x_MD: Array) -> tuple[Array, Array]:
        """Mean and standard deviation of the true value, without the noise of measuring it."""
        mean_M, explained_NM = self._conditioned(x_MD)
        variance_M = np.maximum(self._variance - (explained_NM**2).sum(axis=0), 1e-10)
        return mean_M * self._scale + self._mean, np.sqrt(variance_M) * self._scale

    def draw(self, x_MD: Array, random: np.random.Generator) -> Array:
        """One surface that agrees with what was measured, at these points."""
        mean_M, explained_NM = self._conditioned(x_MD)
        covariance = self._kernel(x_MD, x_MD) - explained_NM.T @ explained_NM
        root = np.linalg.cholesky(covariance + 1e-6 * np.eye(len(x_MD)))
        return (mean_M + root @ random.standard_normal(len(x_MD))) * self._scale + self._mean

    def _conditioned(self, x_MD: Array) -> tuple[Array, Array]:
        kernel_MN = self._kernel(x_MD, self._x_ND)
        return kernel_MN @ self._weights_N, solve_triangular(self._cholesky, kernel_MN.T, lower=True)

    def _kernel(self, a: Array, b: Array) -> Array:
        a, b = a / self._lengths, b / self._lengths
        squares = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2 * a @ b.T
        return self._variance * _matern(np.sqrt(5 * np.maximum(squares, 1e-12)))


def _matern(distance: Array) -> Array:
    """Of distances times the root of five."""
    return (1 + distance + distance**2 / 3) * np.exp(-distance)


def _loss(
    logs: Array, z_N: Array, known_N: Array, squares_NND: Array, prior: Array, spread: Array
) -> tuple[float, Array]:
    """Negative log posterior of the logarithms of lengths, variance and noise, and its gradient."""
    lengths, variance, noise = np.exp(-2 * logs[:-2]), math.exp(logs[-2]), math.exp(logs[-1])
    distance = np.sqrt(5 * np.maximum(squares_NND @ lengths, 1e-12))
    kernel = variance * _matern(distance)
    root = np.linalg.cholesky(kernel + np.diag(noise + known_N + JITTER))
    inverse = cho_solve((root, True), np.eye(len(z_N)))
    weights_N = inverse @ z_N
    slope = (inverse - np.outer(weights_N, weights_N)) / 2
    by_distance = variance * 5 / 3 * (1 + distance) * np.exp(-distance) * slope
    gradient = np.array(
        [
            *(np.einsum("ij,ijd->d", by_distance, squares_NND) * lengths),
            (slope * kernel).sum(),
            noise * np.trace(slope),
        ]
    )
    away = (logs - prior) / spread
    loss = z_N @ weights_N / 2 + np.log(np.diag(root)).sum() + away @ away / 2
    return float(loss), gradient + away / spread
