"""Sums of float32 vectors that are exact, and so the same whatever the order, the batches or the shards they were added in.

Each value is cut at fixed powers of two into integers that are added on their own: a fixed-point
accumulator as wide as float32's range (Kulisch, Computer Arithmetic and Validity, 2008).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from qdq.index import Array

Floats = npt.NDArray[np.float64]

_MANTISSA, _LIMB_BITS = 24, 32
#: The least exponent of `numpy.frexp` for a float32 that is not 0, the smallest denormal included.
_LEAST_EXPONENT = -148
#: Enough for the largest float32, and one for what its mantissa carries over.
_LIMBS = 10
_LOW = (1 << _LIMB_BITS) - 1


class ExactSum:
    """The sum of vectors of one size; up to 2**31 may be added."""

    def __init__(self, size: int) -> None:
        #: int64 [limbs, size]: row i counts units of 2**(32 * i - 172).
        self.limbs: npt.NDArray[np.int64] = np.zeros((_LIMBS, size), np.int64)

    @property
    def size(self) -> int:
        """How many values each vector has."""
        return int(self.limbs.shape[1])

    def add(self, vectors: Array) -> None:
        """Add each row of a float32 matrix; all values must be finite."""
        fractions, exponents = np.frexp(vectors)
        places = np.where(fractions == 0, 0, exponents - _LEAST_EXPONENT)
        limbs, shifts = places // _LIMB_BITS, (places % _LIMB_BITS).astype(np.int64)
        whole = np.ldexp(fractions, _MANTISSA).astype(np.int64) << shifts
        for limb in np.flatnonzero(np.bincount(limbs.ravel(), minlength=_LIMBS)):
            units = np.where(limbs == limb, whole, 0)
            self.limbs[limb] += (units & _LOW).sum(axis=0)
            self.limbs[limb + 1] += (units >> _LIMB_BITS).sum(axis=0)

    def merged(self, other: ExactSum) -> ExactSum:
        """Return the sum of both."""
        total = ExactSum(self.size)
        np.add(self.limbs, other.limbs, out=total.limbs)
        return total

    def to_bytes(self) -> bytes:
        """Return what `from_bytes` reads, the same on every machine."""
        return self.limbs.astype("<i8").tobytes()

    @classmethod
    def from_bytes(cls, content: bytes) -> ExactSum:
        """Return the sum that `to_bytes` wrote; raises ValueError for anything else."""
        limbs = np.frombuffer(content, "<i8").reshape(_LIMBS, -1)
        made = cls(limbs.shape[1])
        made.limbs[:] = limbs
        return made

    def divided(self, count: int) -> Floats:
        """Return the sum divided by a count, rounded once to float64."""
        units = [sum(int(limb) << (_LIMB_BITS * i) for i, limb in enumerate(column)) for column in self.limbs.T]
        divisor = count << (_MANTISSA - _LEAST_EXPONENT)
        return np.array([unit / divisor for unit in units], np.float64)
