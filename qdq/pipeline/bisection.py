"""Find the groups of nodes that a compiler refuses, with few builds.

The search is FastDiag (Felfernig, Schubert and Zehentner 2012, "An efficient diagnosis algorithm
for inconsistent constraint sets", AI EDAM 26). It halves the suspects and needs about
2*d*log2(n/d) + 2*d builds for d refused groups of n. It assumes that removing more groups never
makes a build fail. Its result is therefore built again, once with all refused groups removed and
once with each of them alone put back.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

import msgspec


class CompilerRefusal(msgspec.Struct, frozen=True):
    """The message of a compiler that refuses a model, and the groups that it points to."""

    message: str
    #: Groups that the message names.
    nodes: tuple[str, ...] = ()
    #: Groups that the message refers to as a kind, such as all of one element type.
    suspects: tuple[str, ...] = ()


class RefusedGroups(msgspec.Struct, frozen=True):
    """Groups that must stay in float, and the compiler's message where they are quantized."""

    #: Labels of nodes, each after the path of its subgraph where it is in one.
    groups: tuple[str, ...]
    #: The compiler's message.
    message: str


class BisectionResult(msgspec.Struct, frozen=True):
    """The nodes that were left in float so that the model builds."""

    #: The refused nodes, by message; empty where the whole plan builds.
    refused: tuple[RefusedGroups, ...]
    #: The number of builds that the search took.
    builds: int

    @property
    def groups(self) -> tuple[str, ...]:
        """All groups that must stay in float."""
        groups: list[str] = []
        for refused_groups in self.refused:
            groups += refused_groups.groups
        return tuple(groups)


class FloatModelRefusedError(Exception):
    """The compiler refuses the model without any group too; the text is the compiler's message."""


#: Builds without the given groups; returns the compiler's refusal, or None where it builds.
Attempt = Callable[[frozenset[str]], CompilerRefusal | None]


def find_refused_groups(groups: Sequence[str], attempt: Attempt) -> BisectionResult:
    """Return a smallest set of groups without which the rest builds.

    No group of the set can be put back. Where groups are refused only together, the set holds one
    of them, preferably an earlier one. Raises FloatModelRefusedError where the build without any
    group is refused too.
    """
    builds = _Builds(attempt)
    refusal = builds.build_without(())
    if refusal is None:
        return BisectionResult((), builds.count)
    float_refusal = builds.build_without(groups)
    if float_refusal is not None:
        raise FloatModelRefusedError(float_refusal.message)
    removed: list[str] = []
    refused: list[RefusedGroups] = []
    while refusal is not None:
        search = _Search(groups, removed, refusal, builds)
        for refused_groups in search.run():
            refused.append(refused_groups)
            removed += refused_groups.groups
        refusal = builds.build_without(removed)
    return BisectionResult(tuple(_merge_by_message(refused)), builds.count)


class _Builds:
    """Cached builds: each set of removed groups is built once."""

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt
        self._results: dict[frozenset[str], CompilerRefusal | None] = {}

    def build_without(self, groups: Iterable[str]) -> CompilerRefusal | None:
        removed = frozenset(groups)
        if removed not in self._results:
            self._results[removed] = self._attempt(removed)
        return self._results[removed]

    @property
    def count(self) -> int:
        return len(self._results)


class _Search:
    """One search for the cause of a refusal, with the groups removed that are known already."""

    def __init__(
        self,
        groups: Sequence[str],
        removed: Collection[str],
        refusal: CompilerRefusal,
        builds: _Builds,
    ) -> None:
        self._groups = groups
        self._removed = tuple(removed)
        self._refusal = refusal
        self._builds = builds
        known = set(removed)
        self._remaining = [group for group in groups if group not in known]

    def run(self) -> list[RefusedGroups]:
        """Return groups that cause the refusal, all that remain where none can be singled out."""
        refused = self._find_kind() or self._find_smallest()
        if refused:
            return refused
        message = self._refusal.message
        return [RefusedGroups((group,), message) for group in self._remaining]

    def _find_kind(self) -> list[RefusedGroups]:
        """Return all groups of the kind that the message refers to, or nothing.

        The kind is refused if the message changes without it, and if its first and its last group
        alone are refused too.
        """
        suspects = self._refusal.suspects
        kind = [group for group in self._remaining if group in suspects]
        if not kind:
            return []
        refusal = self._builds.build_without([*self._removed, *kind])
        if refusal is not None and refusal.message == self._refusal.message:
            return []
        # The ends are built only as far as needed: a kind whose first group builds is none.
        for group in dict.fromkeys((kind[0], kind[-1])):
            others = [other for other in self._groups if other != group]
            if self._builds.build_without(others) is None:
                return []
        return [RefusedGroups(tuple(kind), self._refusal.message)]

    def _find_smallest(self) -> list[RefusedGroups]:
        """Return a smallest refused set, each group with the message of its own build."""
        suspects = self._find_suspects()
        groups = self._diagnose(suspects, self._removed, is_refused=True)
        refused = []
        for group in tuple(groups):
            others = [other for other in groups if other != group]
            refusal = self._builds.build_without([*self._removed, *others])
            if refusal is None:
                groups.remove(group)
            else:
                refused.append(RefusedGroups((group,), refusal.message))
        return refused

    def _find_suspects(self) -> list[str]:
        """Return the groups that refusals name one after the other, until the rest builds.

        Returns all remaining groups where a refusal names none.
        """
        suspects: list[str] = []
        refusal: CompilerRefusal | None = self._refusal
        while refusal is not None:
            named = set(refusal.nodes).difference(suspects)
            new_suspects = [group for group in self._remaining if group in named]
            if not new_suspects:
                return self._remaining
            suspects += new_suspects
            refusal = self._builds.build_without([*self._removed, *suspects])
        return suspects

    def _diagnose(
        self, suspects: list[str], removed: Sequence[str], *, is_refused: bool
    ) -> list[str]:
        """Return the suspects that must be removed in addition to `removed` (FastDiag).

        `is_refused` states that the build without `removed` alone is known to be refused.
        """
        if not is_refused and self._builds.build_without(removed) is None:
            return []
        if len(suspects) == 1:
            return suspects
        half = len(suspects) // 2
        first, second = suspects[:half], suspects[half:]
        from_second = self._diagnose(second, [*removed, *first], is_refused=False)
        unchanged = not from_second
        from_first = self._diagnose(first, [*removed, *from_second], is_refused=unchanged)
        return [*from_first, *from_second]


def _merge_by_message(refused: list[RefusedGroups]) -> list[RefusedGroups]:
    """Return one record per message."""
    by_message: dict[str, list[str]] = {}
    for refused_groups in refused:
        by_message.setdefault(refused_groups.message, []).extend(refused_groups.groups)
    return [RefusedGroups(tuple(groups), message) for message, groups in by_message.items()]
