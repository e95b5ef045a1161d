"""Finding what a compiler refuses, with compilers made up of what they refuse."""

from __future__ import annotations

import math
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qdq.pipeline.bisection import (
    BisectionResult,
    CompilerRefusal,
    FloatModelRefusedError,
    find_refused_groups,
)


class Compiler:
    """Refuses whatever holds one of its sets as a whole; names or describes them where it is told to."""

    def __init__(
        self,
        groups: list[str],
        refused: Iterable[Iterable[str]],
        naming: bool = False,
        kind: Iterable[str] = (),
    ) -> None:
        self.groups, self.refused = groups, [frozenset(r) for r in refused]
        self.naming, self.kind = naming, frozenset(kind)
        self.seen: list[frozenset[str]] = []

    def __call__(self, removed: frozenset[str]) -> CompilerRefusal | None:
        self.seen.append(removed)
        kept = set(self.groups) - removed
        if kept & self.kind:
            return CompilerRefusal("no such type", suspects=tuple(sorted(self.kind)))
        for together in self.refused:
            if together <= kept:
                return CompilerRefusal(
                    f"no {'+'.join(sorted(together))}",
                    nodes=tuple(sorted(together)) if self.naming else (),
                )
        return None


def names(count: int) -> list[str]:
    """Return the names of some groups."""
    return [f"g{i}" for i in range(count)]


def assert_smallest(groups: list[str], compiler: Compiler, result: BisectionResult) -> None:
    """Fail unless what is left builds, and putting back any one group does not."""
    removed = frozenset(result.groups)
    assert len(result.groups) == len(removed)
    assert compiler(removed) is None
    for group in removed:
        assert compiler(removed - {group}) is not None


SETS = st.integers(1, 24).flatmap(
    lambda n: st.tuples(
        st.just(n),
        st.lists(st.sets(st.integers(0, n - 1), min_size=1, max_size=3), max_size=5),
        st.booleans(),
    )
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(SETS)
def test_any_refusals_are_found_and_nothing_too_many_is_left_out(
    drawn: tuple[int, list[set[int]], bool],
) -> None:
    count, refused, naming = drawn
    groups = names(count)
    compiler = Compiler(groups, [{f"g{i}" for i in r} for r in refused], naming)
    result = find_refused_groups(groups, compiler)
    assert result.builds == len(compiler.seen) == len(set(compiler.seen))
    assert_smallest(groups, compiler, result)
    if all(len(r) == 1 for r in refused):
        assert set(result.groups) == {f"g{i}" for r in refused for i in r}


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.integers(1, 200).flatmap(
        lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1), min_size=1, max_size=8))
    )
)
def test_the_number_of_builds_is_logarithmic_for_each_guilty_one(
    drawn: tuple[int, set[int]],
) -> None:
    count, guilty = drawn
    result = find_refused_groups(names(count), Compiler(names(count), [{f"g{i}"} for i in guilty]))
    d = len(guilty)
    assert set(result.groups) == {f"g{i}" for i in guilty}
    assert result.builds <= 2 * d * math.ceil(math.log2(max(count / d, 1))) + 3 * d + 4


def test_one_of_a_thousand_takes_some_twenty_builds() -> None:
    result = find_refused_groups(names(1000), Compiler(names(1000), [{"g617"}]))
    assert result.groups == ("g617",)
    assert result.builds <= 24


@pytest.mark.parametrize("count", [3, 1000])
def test_a_name_in_the_words_saves_the_search(count: int) -> None:
    result = find_refused_groups(
        names(count), Compiler(names(count), [{"g1"}, {"g2"}], naming=True)
    )
    assert result.groups == ("g1", "g2")
    assert result.builds <= 7
    assert {guilt.message for guilt in result.refused} == {"no g1", "no g2"}


def test_a_named_pair_costs_one_of_the_two_only() -> None:
    result = find_refused_groups(names(100), Compiler(names(100), [{"g7", "g40"}], naming=True))
    assert len(result.groups) == 1
    assert set(result.groups) < {"g7", "g40"}


def test_words_that_name_an_innocent_one_do_not_blame_it() -> None:
    compiler = Compiler(names(50), [{"g31"}])

    def misleading(removed: frozenset[str]) -> CompilerRefusal | None:
        refusal = compiler(removed)
        return CompilerRefusal(refusal.message, nodes=("g3", "elsewhere")) if refusal else None

    assert find_refused_groups(names(50), misleading).groups == ("g31",)


def test_a_refused_kind_is_settled_in_a_few_builds_however_many_it_has() -> None:
    groups = names(200)
    result = find_refused_groups(groups, Compiler(groups, [], kind=groups))
    assert result.groups == tuple(groups)
    assert result.builds == 4
    (guilt,) = result.refused
    assert guilt.message == "no such type"


def test_what_is_refused_besides_a_kind_is_found_too() -> None:
    groups = names(60)
    compiler = Compiler(groups, [{"g50"}], kind=groups[10:20])
    result = find_refused_groups(groups, compiler)
    assert [set(guilt.groups) for guilt in result.refused] == [set(groups[10:20]), {"g50"}]
    assert_smallest(groups, Compiler(groups, [{"g50"}, *({g} for g in groups[10:20])]), result)


def test_a_kind_of_which_only_one_is_refused_is_searched() -> None:
    groups = names(40)
    compiler = Compiler(groups, [{"g12"}])

    def sweeping(removed: frozenset[str]) -> CompilerRefusal | None:
        refusal = compiler(removed)
        return CompilerRefusal(refusal.message, suspects=tuple(groups)) if refusal else None

    assert find_refused_groups(groups, sweeping).groups == ("g12",)


def test_what_builds_at_once_is_built_once() -> None:
    assert find_refused_groups(names(9), Compiler(names(9), [])) == BisectionResult((), 1)


def test_a_compiler_that_refuses_everything_is_hopeless_after_two_builds() -> None:
    built: list[frozenset[str]] = []

    def refuse(removed: frozenset[str]) -> CompilerRefusal:
        built.append(removed)
        return CompilerRefusal("not this operator")

    with pytest.raises(FloatModelRefusedError, match="not this operator"):
        find_refused_groups(names(9), refuse)
    assert built == [frozenset(), frozenset(names(9))]


def test_a_compiler_that_contradicts_itself_still_ends_with_what_builds() -> None:
    groups = names(6)

    def odd(removed: frozenset[str]) -> CompilerRefusal | None:
        return None if len(removed) in (3, 6) else CompilerRefusal("odd")

    result = find_refused_groups(groups, odd)
    assert odd(frozenset(result.groups)) is None
