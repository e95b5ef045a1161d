"""Rounding of weights by GPTQ: each column's error is made up for by the columns after it.

Frantar et al. 2022, arXiv:2210.17323, algorithm 1. With H the second moments of a layer's input,
and U the upper Cholesky factor of its inverse, the columns of a weight are rounded one by one. The
error of column i, over U[i, i], times row i of U is taken from the columns that are not rounded
yet. Columns come in the order of falling moments ("act-order" of the authors' code). Scales stay.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from qdq.arrays import Array, Floats

#: The share of the mean moment that is added to the diagonal (section 4.2, step 3).
DAMPING = 0.01

#: The columns whose effect on the later ones is added together (step 2).
_BATCH = 128


class InputMoments:
    """The second moments of a layer's input, with the order in which columns are rounded."""

    def __init__(self, sums: Floats) -> None:
        #: Sums over samples of the products of two inputs, [groups, inputs, inputs].
        self.sums = sums
        diagonal = np.einsum("gii->gi", sums)
        #: The columns of each group in the order of falling moments.
        self.order: npt.NDArray[np.intp] = np.argsort(-diagonal, axis=1, kind="stable")
        ordered = np.take_along_axis(sums, self.order[:, :, None], 1)
        ordered = np.take_along_axis(ordered, self.order[:, None, :], 2)
        #: The upper Cholesky factors of the inverse of the damped moments, in that order.
        self.factor = _factor_inverse(ordered)

    def measure_error(self, errors: Array) -> Floats:
        """Return the squared error of each output over the samples, [groups, outputs].

        `errors` is that of the weights, [groups, outputs, inputs].
        """
        products = errors.astype(np.float64) @ self.sums
        error: Floats = np.einsum("goi,goi->go", products, errors)
        return np.maximum(error, 0.0)


def _factor_inverse(moments: Floats) -> Floats:
    diagonal = np.einsum("gii->gi", moments)
    mean = diagonal.mean(axis=1)
    damping = np.where(mean > 0.0, DAMPING * mean, 1.0)
    damped = moments + damping[:, None, None] * np.eye(moments.shape[1])
    inverse = np.linalg.inv(damped)
    inverse = (inverse + np.swapaxes(inverse, 1, 2)) / 2
    factor: Floats = np.swapaxes(np.linalg.cholesky(inverse), 1, 2)
    return np.ascontiguousarray(factor)


def round_by_moments(
    rows: Array, steps: Array, moments: InputMoments, levels: tuple[int, int]
) -> tuple[Array, float]:
    """Return the integers of weights that change a product least, and the share of error left.

    `rows` is [groups, outputs, inputs], and `steps` the scale of each of these. An output keeps the
    nearest integers where those make less error on the samples. The share is of the error of the
    nearest ones: below 1 where the integers are better.
    """
    nearest = np.clip(np.rint(rows / steps), *levels)
    compensated = _round_in_order(rows, steps, moments, levels)
    nearest_error = moments.measure_error(nearest * steps - rows)
    compensated_error = moments.measure_error(compensated * steps - rows)
    is_better = compensated_error < nearest_error
    integers = np.where(is_better[..., None], compensated, nearest)
    total = float(nearest_error.sum())
    left = float(np.minimum(nearest_error, compensated_error).sum())
    return integers.astype(np.int8), left / total if total > 0.0 else 1.0


def _round_in_order(
    rows: Array, steps: Array, moments: InputMoments, levels: tuple[int, int]
) -> Array:
    """Return the compensated integers."""
    order = moments.order[:, None, :]
    weights = np.take_along_axis(rows.astype(np.float64), order, 2)
    ordered_steps = np.take_along_axis(steps.astype(np.float64), order, 2)
    integers = np.empty_like(weights)
    count = weights.shape[2]
    for start in range(0, count, _BATCH):
        end = min(start + _BATCH, count)
        part = slice(start, end)
        factor = moments.factor[:, part]
        rounded, errors = _round_batch(
            weights[..., part], ordered_steps[..., part], factor[..., part], levels
        )
        integers[..., part] = rounded
        weights[..., end:] -= errors @ factor[..., end:]
    back = np.argsort(moments.order, axis=1)
    return np.take_along_axis(integers, back[:, None, :], 2)


def _round_batch(
    weights: Array, steps: Array, factor: Floats, levels: tuple[int, int]
) -> tuple[Array, Floats]:
    """Return the integers of some columns, and their errors over the diagonal of the factor.

    The weights are changed in place.
    """
    integers = np.empty_like(weights)
    errors = np.zeros_like(weights)
    for i in range(weights.shape[2]):
        step = steps[..., i]
        rounded = np.clip(np.rint(weights[..., i] / step), *levels)
        error = (weights[..., i] - rounded * step) / factor[:, i, i, None]
        weights[..., i + 1 :] -= error[..., None] * factor[:, None, i, i + 1 :]
        integers[..., i] = rounded
        errors[..., i] = error
    return integers, errors
