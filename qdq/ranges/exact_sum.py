"""Exact sums of float32 vectors, independent of the order and the batches of the addition.

Each value is cut at fixed powers of two into integers that are added separately: a fixed-point
accumulator as wide as float32's range (Kulisch, Computer Arithmetic and Validity, 2008).
"""

from __future__ import annotations

from threading import Lock
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from qdq.arrays import Array, Floats
from qdq.compiled.library import address, find_library

_Integers: TypeAlias = npt.NDArray[np.int64]

#: The bits of a float32 mantissa.
_MANTISSA = 24

#: log2 of the bits of a limb, and these bits.
_LOG_LIMB_BITS = 5
_LIMB_BITS = 1 << _LOG_LIMB_BITS

#: The least exponent of `numpy.frexp` for a float32 that is not 0, the smallest denormal included.
_LEAST_EXPONENT = -148

#: Enough limbs for the largest float32, and one for the carry of its mantissa.
_LIMBS = 10

#: The mask of one limb's bits.
_LOW = (1 << _LIMB_BITS) - 1

#: The number of values that are added at a time.
_BUFFERED_VALUES = 1 << 13
_FLUSH_LOCK = Lock()


class ExactSum:
    """The sum of vectors of one size; up to 2**30 vectors may be added."""

    def __init__(self, size: int) -> None:
        self._limbs: _Integers = np.zeros((_LIMBS, size), np.int64)
        #: Vectors that are not in `limbs` yet: a call for several takes hardly longer than for one.
        rows = max(_BUFFERED_VALUES // max(size, 1), 1)
        self._buffer: npt.NDArray[np.float32] = np.empty((rows, size), np.float32)
        self._buffered = 0

    @property
    def size(self) -> int:
        """The number of values of each vector."""
        return int(self._limbs.shape[1])

    @property
    def limbs(self) -> _Integers:
        """int64 [limbs, size]: row i counts units of 2**(32 * i - 172)."""
        if self._buffered:
            self._flush()
        return self._limbs

    def add(self, vectors: Array) -> None:
        """Add each row of a float32 matrix; all values must be finite."""
        while len(vectors):
            free = len(self._buffer) - self._buffered
            block = vectors[:free]
            end = self._buffered + len(block)
            self._buffer[self._buffered : end] = block
            self._buffered = end
            vectors = vectors[len(block) :]
            if self._buffered == len(self._buffer):
                self._flush()

    def _flush(self) -> None:
        """Add the buffered vectors; several threads may read one sum, and call this, at a time."""
        with _FLUSH_LOCK:
            self._add_block(self._buffer[: self._buffered])
            self._buffered = 0

    def _add_block(self, vectors: npt.NDArray[np.float32]) -> None:
        library = find_library()
        if library is not None:
            library.add_exactly(address(self._limbs), address(vectors), *vectors.shape)
            return
        fractions, exponents = np.frexp(vectors)
        places = np.where(fractions == 0, 0, exponents - _LEAST_EXPONENT)
        limbs = places >> _LOG_LIMB_BITS
        shifts = places & (_LIMB_BITS - 1)
        mantissas = np.ldexp(fractions, _MANTISSA).astype(np.int64)
        integers = (mantissas << shifts).ravel()
        positions = (limbs * np.int64(self.size) + np.arange(self.size)).ravel()
        totals = self._limbs.reshape(-1)
        np.add.at(totals, positions, integers & _LOW)
        np.add.at(totals, positions + self.size, integers >> _LIMB_BITS)

    def merged(self, other: ExactSum) -> ExactSum:
        """Return the sum of this sum and another one."""
        total = ExactSum(self.size)
        np.add(self.limbs, other.limbs, out=total._limbs)
        return total

    def to_bytes(self) -> bytes:
        """Return the sum in the form that `from_bytes` reads, the same on every machine."""
        return self.limbs.astype("<i8").tobytes()

    @classmethod
    def from_bytes(cls, content: bytes) -> ExactSum:
        """Return the sum that `to_bytes` wrote; raises ValueError for anything else."""
        limbs = np.frombuffer(content, "<i8").reshape(_LIMBS, -1)
        total = cls(limbs.shape[1])
        total._limbs[:] = limbs
        return total

    def divided(self, count: int) -> Floats:
        """Return the sum divided by a count, rounded once to float64."""
        library = find_library()
        if library is None or not 0 < count <= _LOW:
            return self._divide(count)
        quotients = np.empty(self.size)
        library.divide_exactly(address(self.limbs), self.size, count, address(quotients))
        return quotients

    def _divide(self, count: int) -> Floats:
        content = self._to_digits().astype("<u4").tobytes()
        width = np.dtype(np.uint32).itemsize * (_LIMBS + 1)
        divisor = count << (_MANTISSA - _LEAST_EXPONENT)
        quotients = (
            int.from_bytes(content[start : start + width], "little", signed=True) / divisor
            for start in range(0, len(content), width)
        )
        return np.fromiter(quotients, np.float64, self.size)

    def _to_digits(self) -> npt.NDArray[np.uint32]:
        """Return each value in two's complement, lowest digit first: uint32 [size, limbs + 1]."""
        digits = np.zeros((self.size, _LIMBS + 1), np.uint32)
        carry = np.zeros(self.size, np.int64)
        for i, limb in enumerate(self.limbs):
            total = limb + carry
            digits[:, i] = total & _LOW
            carry = total >> _LIMB_BITS
        digits[:, _LIMBS] = carry & _LOW
        return digits
