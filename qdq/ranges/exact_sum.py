"""Sums of float32 vectors that are exact, and so the same whatever the order, the batches or the shards they were added in.

Each value is cut at fixed powers of two into integers that are added on their own: a fixed-point
accumulator as wide as float32's range (Kulisch, Computer Arithmetic and Validity, 2008).
"""

from __future__ import annotations

from threading import Lock

import numpy as np
import numpy.typing as npt

from qdq.arrays import Array

Floats = npt.NDArray[np.float64]
_MANTISSA, _LOG_LIMB_BITS = 24, 5
_LIMB_BITS = 1 << _LOG_LIMB_BITS

#: The least exponent of `numpy.frexp` for a float32 that is not 0, the smallest denormal included.
_LEAST_EXPONENT = -148

#: Enough for the largest float32, and one for what its mantissa carries over.
_LIMBS = 10
_LOW = (1 << _LIMB_BITS) - 1

#: Values that are added at a time.
_TOGETHER = 1 << 13
_SETTLING = Lock()


class ExactSum:
    """The sum of vectors of one size; up to 2**30 may be added."""

    def __init__(self, size: int) -> None:
        self._limbs: npt.NDArray[np.int64] = np.zeros((_LIMBS, size), np.int64)
        #: Vectors that are not in `limbs` yet: one call for several takes little longer than for one.
        self._waiting: npt.NDArray[np.float32] = np.empty(
            (max(_TOGETHER // max(size, 1), 1), size), np.float32
        )
        self._count = 0

    @property
    def size(self) -> int:
        """How many values each vector has."""
        return int(self._limbs.shape[1])

    @property
    def limbs(self) -> npt.NDArray[np.int64]:
        """int64 [limbs, size]: row i counts units of 2**(32 * i - 172)."""
        if self._count:
            self._settle()
        return self._limbs

    def add(self, vectors: Array) -> None:
        """Add each row of a float32 matrix; all values must be finite."""
        while len(vectors):
            some = vectors[: len(self._waiting) - self._count]
            self._waiting[self._count : self._count + len(some)] = some
            self._count += len(some)
            vectors = vectors[len(some) :]
            if self._count == len(self._waiting):
                self._settle()

    def _settle(self) -> None:
        """Add what is waiting; threads that read one sum may all ask for it."""
        with _SETTLING:
            self._add(self._waiting[: self._count])
            self._count = 0

    def _add(self, vectors: npt.NDArray[np.float32]) -> None:
        fractions, exponents = np.frexp(vectors)
        places = np.where(fractions == 0, 0, exponents - _LEAST_EXPONENT)
        limbs, shifts = places >> _LOG_LIMB_BITS, places & (_LIMB_BITS - 1)
        whole = (np.ldexp(fractions, _MANTISSA).astype(np.int64) << shifts).ravel()
        at = (limbs * np.int64(self.size) + np.arange(self.size)).ravel()
        np.add.at(self._limbs.reshape(-1), at, whole & _LOW)
        np.add.at(self._limbs.reshape(-1), at + self.size, whole >> _LIMB_BITS)

    def merged(self, other: ExactSum) -> ExactSum:
        """Return the sum of both."""
        total = ExactSum(self.size)
        np.add(self.limbs, other.limbs, out=total._limbs)
        return total

    def to_bytes(self) -> bytes:
        """Return what `from_bytes` reads, the same on every machine."""
        return self.limbs.astype("<i8").tobytes()

    @classmethod
    def from_bytes(cls, content: bytes) -> ExactSum:
        """Return the sum that `to_bytes` wrote; raises ValueError for anything else."""
        limbs = np.frombuffer(content, "<i8").reshape(_LIMBS, -1)
        made = cls(limbs.shape[1])
        made._limbs[:] = limbs
        return made

    def divided(self, count: int) -> Floats:
        """Return the sum divided by a count, rounded once to float64."""
        digits, carry = np.zeros((self.size, _LIMBS + 1), np.uint32), np.zeros(self.size, np.int64)
        for i, limb in enumerate(self.limbs):
            digits[:, i] = (limb + carry) & _LOW
            carry = (limb + carry) >> _LIMB_BITS
        digits[:, _LIMBS] = carry & _LOW
        content, width = digits.astype("<u4").tobytes(), digits.itemsize * (_LIMBS + 1)
        divisor = count << (_MANTISSA - _LEAST_EXPONENT)
        units = (
            int.from_bytes(content[first : first + width], "little", signed=True)
            for first in range(0, len(content), width)
        )
        return np.fromiter((unit / divisor for unit in units), np.float64, self.size)
