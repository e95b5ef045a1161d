"""Which of many things a compiler refuses, found with few builds.

The search is FastDiag (Felfernig, Schubert and Zehentner 2012, "An efficient diagnosis algorithm for
inconsistent constraint sets", AI EDAM 26): it halves the suspects and needs about 2*d*log2(n/d) + 2*d
builds for d guilty ones of n. It takes for granted that leaving out more never makes a build fail; what
comes back is built once more whole, and with each guilty one alone put back.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

import msgspec


class CompilerRefusal(msgspec.Struct, frozen=True):
    """What a compiler said when it refused, and what its words point to."""

    message: str
    #: Groups that the words name.
    nodes: tuple[str, ...] = ()
    #: Groups that the words speak of as a kind, such as all of one element type.
    suspects: tuple[str, ...] = ()


class RefusedGroups(msgspec.Struct, frozen=True):
    """Groups that must be left out, and the compiler's words where they are not."""

    groups: tuple[str, ...]
    message: str


class BisectionResult(msgspec.Struct, frozen=True):
    """What a search found, and how many builds it took."""

    refused: tuple[RefusedGroups, ...]
    builds: int

    @property
    def groups(self) -> tuple[str, ...]:
        """All groups that must be left out."""
        return tuple(group for guilt in self.refused for group in guilt.groups)


class FloatModelRefusedError(Exception):
    """The compiler refuses even what is left without any group; its text is the compiler's."""


#: Builds without some groups, and returns the compiler's refusal, or None where it builds.
Attempt = Callable[[frozenset[str]], CompilerRefusal | None]


def find_refused_groups(groups: Sequence[str], attempt: Attempt) -> BisectionResult:
    """Return a smallest set of groups without which everything else builds: none of them can be put back.

    Where groups are refused only together, one of them is in the set, rather an earlier one. Raises HopelessError where
    leaving out all groups is refused too.
    """
    builds = _Builds(attempt)
    if (refusal := builds.without(())) is None:
        return BisectionResult((), builds.count)
    if (base := builds.without(groups)) is not None:
        raise FloatModelRefusedError(base.message)
    guilty: list[RefusedGroups] = []
    while refusal is not None:
        settled = {group for guilt in guilty for group in guilt.groups}
        rest = [g for g in groups if g not in settled]
        found = _kind(refusal, rest, settled, groups, builds) or _smallest(
            refusal, rest, settled, builds
        )
        guilty += found or [RefusedGroups((group,), refusal.message) for group in rest]
        refusal = builds.without([group for guilt in guilty for group in guilt.groups])
    return BisectionResult(tuple(_merged(guilty)), builds.count)


class _Builds:
    """Attempts, each made once."""

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt
        self._made: dict[frozenset[str], CompilerRefusal | None] = {}

    def without(self, groups: Iterable[str]) -> CompilerRefusal | None:
        left = frozenset(groups)
        if left not in self._made:
            self._made[left] = self._attempt(left)
        return self._made[left]

    @property
    def count(self) -> int:
        return len(self._made)


def _kind(
    refusal: CompilerRefusal,
    rest: list[str],
    settled: Collection[str],
    groups: Sequence[str],
    builds: _Builds,
) -> list[RefusedGroups]:
    """Return a whole kind as guilty where the words speak of one: without it they change, and its first and its last alone are refused."""
    kind = [g for g in rest if g in refusal.suspects]
    if not kind:
        return []
    after = builds.without([*settled, *kind])
    if after is not None and after.message == refusal.message:
        return []
    alone = (
        builds.without([g for g in groups if g != one])
        for one in dict.fromkeys((kind[0], kind[-1]))
    )
    return (
        [RefusedGroups(tuple(kind), refusal.message)]
        if all(said is not None for said in alone)
        else []
    )


def _smallest(
    refusal: CompilerRefusal, rest: list[str], settled: Collection[str], builds: _Builds
) -> list[RefusedGroups]:
    """Return a smallest guilty set, each with the words of the build that it alone was put back in."""
    suspects = _suspects(refusal, rest, settled, builds)
    found = _diagnosis(False, suspects, [*settled], builds)
    guilty = []
    for group in list(found):
        alone = builds.without([*settled, *(g for g in found if g != group)])
        if alone is None:
            found.remove(group)
        else:
            guilty.append(RefusedGroups((group,), alone.message))
    return guilty


def _suspects(
    refusal: CompilerRefusal, rest: list[str], settled: Collection[str], builds: _Builds
) -> list[str]:
    """Return the groups that refusals name, one after the other, until it builds without them; all where none is named."""
    suspects: list[str] = []
    said: CompilerRefusal | None = refusal
    while said is not None:
        new = [g for g in rest if g in said.nodes and g not in suspects]
        if not new:
            return rest
        suspects += new
        said = builds.without([*settled, *suspects])
    return suspects


def _diagnosis(changed: bool, suspects: list[str], left: list[str], builds: _Builds) -> list[str]:
    """FastDiag: return which of the suspects must be left out besides `left`; `changed` where `left` was not built yet."""
    if changed and builds.without(left) is None:
        return []
    if len(suspects) == 1:
        return suspects
    half = len(suspects) // 2
    first, second = suspects[:half], suspects[half:]
    from_second = _diagnosis(True, second, [*left, *first], builds)
    from_first = _diagnosis(bool(from_second), first, [*left, *from_second], builds)
    return [*from_first, *from_second]


def _merged(guilty: list[RefusedGroups]) -> list[RefusedGroups]:
    """Return the guilty by their words, each words once."""
    by_words: dict[str, list[str]] = {}
    for guilt in guilty:
        by_words.setdefault(guilt.message, []).extend(guilt.groups)
    return [RefusedGroups(tuple(groups), words) for words, groups in by_words.items()]
