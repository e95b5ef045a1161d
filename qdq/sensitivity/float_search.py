"""Search for the smallest part of a network whose release from INT8 recovers the accuracy.

Groups are released in order of the loss that they make alone, per work that leaves INT8. Every
step is measured, because losses do not simply add up: groups whose errors cancel are worse one
without the other. Then groups that turned out not to matter are taken back.

Released one at a time in that order until a number is reached, without looking again, this is the
partial quantization of YOLOv6 (arXiv 2209.02976, section 2.5, and its tools/partial_quantization);
`release_first` is that way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import msgspec

from qdq.planning.decisions import Placement
from qdq.sensitivity.layer_groups import LayerGroup

#: A part of a plan's pairs.
Pairs = frozenset[Placement]

#: Returns the loss with each of several parts of the pairs: noise, or the drop of a metric.
MeasureFunction = Callable[[Sequence[Pairs]], list[float]]

#: Prefixes of the order that are measured at a time.
_CHUNK = 8

#: The share of the work that every group is charged in addition: small ones are not free, since
#: each costs conversions between types.
_FIXED_WORK = 0.002

#: Groups at most that are released one by one.
_MOST_STEPS = 8

#: Exchanges that are measured at most.
_MOST_EXCHANGES = 64

#: Groups that are considered for an exchange: those of the largest loss per work.
_MOST_OTHERS = 16


class Candidate(msgspec.Struct, frozen=True):
    """A group that may be released."""

    group: LayerGroup
    #: The share of the multiply-accumulates of the model that it releases.
    work: float
    #: The loss with the pairs of the group alone.
    alone: float
    #: The number of samples that it was measured with.
    samples: int = 1

    @property
    def pairs(self) -> Pairs:
        """The pairs that go with the group."""
        return frozenset(self.group.placements)


class SearchLimits(msgspec.Struct, frozen=True):
    """Where a search ends."""

    #: The largest share of the multiply-accumulates that may be released.
    work: float = 1.0
    #: The largest number of groups.
    groups: int = 1 << 30
    #: The loss to reach; None for the least loss within the other limits.
    loss: float | None = None
    #: The ratio of losses below which a group does not matter.
    difference: float = 10**0.01


class SearchStep(msgspec.Struct, frozen=True):
    """One measured point of the trade-off."""

    #: Names of the released groups.
    released: tuple[str, ...]
    work: float
    loss: float


class SearchResult(msgspec.Struct, frozen=True):
    """The groups to release, and the points that were measured on the way."""

    released: tuple[Candidate, ...]
    #: The loss with all pairs, and with the rest of them.
    full_loss: float
    loss: float
    steps: tuple[SearchStep, ...]

    def without_release(self) -> SearchResult:
        """Return the same result with nothing released."""
        return msgspec.structs.replace(self, released=(), loss=self.full_loss)

    @property
    def work(self) -> float:
        """The share of the multiply-accumulates that is released."""
        return sum(candidate.work for candidate in self.released)


def release_first(
    candidates: Iterable[Candidate], full: Pairs, measure: MeasureFunction, count: int
) -> SearchResult:
    """Return the release of the groups with the largest losses alone, a fixed number of them.

    This is the way of YOLOv6: the rank decides, and nothing is measured again.
    """
    ordered = sorted(candidates, key=lambda candidate: -candidate.alone)
    search = _Search(full, measure, SearchLimits())
    return search.make_result(ordered[:count])


def search_float_groups(
    candidates: Iterable[Candidate],
    full: Pairs,
    measure: MeasureFunction,
    limits: SearchLimits,
) -> SearchResult:
    """Return the smallest release that was found to reach the limits' loss, or the least loss.

    `full` are all pairs of the plan. Where the loss cannot be reached, the result is the release
    with the least loss.
    """
    search = _Search(full, measure, limits)
    return search.run(list(candidates))


class _Search:
    """One search; every part of the pairs is measured once."""

    def __init__(self, full: Pairs, measure: MeasureFunction, limits: SearchLimits) -> None:
        self._full = full
        self._measure = measure
        self._limits = limits
        self._losses: dict[Pairs, float] = {}
        self._steps: list[SearchStep] = []

    def run(self, candidates: list[Candidate]) -> SearchResult:
        """Release in order, take back, and exchange for less work."""
        if self._is_enough(self.measure_release([])):
            return self.make_result([])
        ordered = sorted(candidates, key=_loss_per_work, reverse=True)
        prefixes = self._list_prefixes(ordered)
        released = self._take_back(self._choose_prefix(prefixes))
        if self._limits.loss is None or not self._is_enough(self.measure_release(released)):
            return self.make_result(released)
        starts = [released, self._take_back(self._choose_one_by_one(ordered[:_MOST_OTHERS]))]
        if len(prefixes) <= _MOST_OTHERS:
            starts.append(self._return_one_by_one(prefixes[-1]))
        enough = [start for start in starts if self._is_enough(self.measure_release(start))]
        released = min(enough, key=_sum_work)
        return self.make_result(self._exchange(released, candidates))

    def make_result(self, released: Sequence[Candidate]) -> SearchResult:
        """Return the result for some released groups, those that matter most first."""
        full_loss = self.measure_release([])
        loss = self.measure_release(released)
        steps = sorted(self._steps, key=lambda step: (step.work, step.loss))
        return SearchResult(tuple(released), full_loss, loss, tuple(steps))

    def measure_release(self, released: Sequence[Candidate]) -> float:
        """Return the loss without the pairs of some groups."""
        return self._measure_releases([released])[0]

    def _measure_releases(self, releases: Sequence[Sequence[Candidate]]) -> list[float]:
        parts = [self._full.difference(*(item.pairs for item in part)) for part in releases]
        unknown = [part for part in dict.fromkeys(parts) if part not in self._losses]
        if unknown:
            measured = zip(unknown, self._measure(unknown), strict=True)
            self._losses.update(measured)
        losses = [self._losses[part] for part in parts]
        for release, loss in zip(releases, losses, strict=True):
            names = tuple(item.group.name for item in release)
            step = SearchStep(names, _sum_work(release), loss)
            if step not in self._steps:
                self._steps.append(step)
        return losses

    def _is_enough(self, loss: float) -> bool:
        return self._limits.loss is not None and loss <= self._limits.loss

    def _list_prefixes(self, ordered: Iterable[Candidate]) -> list[list[Candidate]]:
        """Return the releases of the first groups, ever more of them, within the limits."""
        prefixes: list[list[Candidate]] = []
        released: list[Candidate] = []
        for candidate in ordered:
            if len(released) == self._limits.groups:
                break
            if _sum_work([*released, candidate]) <= self._limits.work:
                released = [*released, candidate]
                prefixes.append(released)
        return prefixes

    def _choose_prefix(self, prefixes: Sequence[list[Candidate]]) -> list[Candidate]:
        """Return the first prefix that is enough, else the shortest with about the least loss."""
        measured: list[tuple[float, list[Candidate]]] = [(self.measure_release([]), [])]
        for start in range(0, len(prefixes), _CHUNK):
            chunk = prefixes[start : start + _CHUNK]
            for loss, prefix in zip(self._measure_releases(chunk), chunk, strict=True):
                if self._is_enough(loss):
                    return prefix
                measured.append((loss, prefix))
        least = min(loss for loss, _ in measured)
        for loss, prefix in measured:
            if loss <= least * self._limits.difference:
                return prefix
        return []

    def _choose_one_by_one(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Return a release that grew by the group that lowers the loss most per work, each time.

        Every step measures all of the groups that remain.
        """
        released: list[Candidate] = []
        loss = self.measure_release(released)
        for _ in range(_MOST_STEPS):
            rest = [item for item in candidates if item not in released]
            releases = [[*released, item] for item in rest]
            releases = [item for item in releases if _sum_work(item) <= self._limits.work]
            if not releases or self._is_enough(loss) or len(released) == self._limits.groups:
                break
            losses = self._measure_releases(releases)
            scores = [self._score_step(loss, *step) for step in zip(losses, releases, strict=True)]
            best = scores.index(max(scores))
            released, loss = releases[best], losses[best]
        return released

    def _return_one_by_one(self, released: list[Candidate]) -> list[Candidate]:
        """Return a release that shrank by the group that raises the loss least per work, each time.

        Every step measures all of the groups that remain.
        """
        kept = list(released)
        while kept and self._is_enough(self.measure_release(kept)):
            loss = self.measure_release(kept)
            choices = [[item for item in kept if item is not other] for other in kept]
            losses = self._measure_releases(choices)
            costs: list[tuple[float, int]] = []
            for i, after in enumerate(losses):
                if self._is_enough(after):
                    costs.append(((after - loss) / (kept[i].work + _FIXED_WORK), i))
            if not costs:
                break
            kept = choices[min(costs)[1]]
        return kept

    def _score_step(self, before: float, after: float, release: Sequence[Candidate]) -> float:
        """Return how far a step comes towards the loss to reach, per work of its last group."""
        target = self._limits.loss or 0.0
        lowered = before - max(after, target)
        return lowered / (release[-1].work + _FIXED_WORK)

    def _take_back(self, released: list[Candidate]) -> list[Candidate]:
        """Return the released groups without those that do not matter, the largest first."""
        kept = list(released)
        for candidate in sorted(released, key=lambda item: (-item.work, item.alone)):
            rest = [item for item in kept if item is not candidate]
            without, loss = self._measure_releases([rest, kept])
            target = self._limits.loss
            is_reached = target is not None and loss <= target
            bound = target if is_reached and target is not None else loss * self._limits.difference
            if without <= bound:
                kept = rest
        return kept

    def _exchange(
        self, released: list[Candidate], candidates: Sequence[Candidate]
    ) -> list[Candidate]:
        """Return a release of less work that is enough too: some groups for one or two others."""
        exchanges = 0
        is_improving = True
        while is_improving:
            is_improving = False
            for smaller in self._list_smaller(released, candidates):
                exchanges += 1
                if exchanges > _MOST_EXCHANGES:
                    return released
                if self._is_enough(self.measure_release(smaller)):
                    released = self._take_back(smaller)
                    is_improving = True
                    break
        return released

    def _list_smaller(
        self, released: Sequence[Candidate], candidates: Sequence[Candidate]
    ) -> list[list[Candidate]]:
        """Return the exchanges of one or two groups for one or two, the most promising first.

        All are of less work. The sums of the groups' losses predict which are enough.
        """
        ordered = sorted(candidates, key=_loss_per_work, reverse=True)
        others = [item for item in ordered if item not in released]
        removals = _list_choices(released)
        additions = [[], *_list_choices(others[:_MOST_OTHERS])]
        work = _sum_work(released)
        shares = self._find_shares(candidates)
        smaller: list[list[Candidate]] = []
        for removal in removals:
            kept = [item for item in released if item not in removal]
            for addition in additions:
                release = [*kept, *addition]
                is_promising = shares.sum(addition) >= shares.sum(removal) / 2
                if is_promising and _sum_work(release) < work - 1e-9:
                    smaller.append(release)
        smaller.sort(key=lambda release: -shares.sum(release))
        return smaller

    def _find_shares(self, candidates: Iterable[Candidate]) -> _Shares:
        """Return the share of each group in the loss: what it makes alone, or beside all others.

        The larger of both counts. That beside all others is known of groups that were released
        alone.
        """
        full_loss = self._losses[self._full]
        by_name: dict[str, float] = {}
        for candidate in candidates:
            without = self._losses.get(self._full - candidate.pairs, full_loss)
            by_name[candidate.group.name] = max(candidate.alone, full_loss - without)
        return _Shares(by_name)


class _Shares(msgspec.Struct, frozen=True):
    """The shares of groups in the loss, by name."""

    by_name: dict[str, float]

    def sum(self, release: Iterable[Candidate]) -> float:
        """Return the sum over some groups."""
        return sum(self.by_name[candidate.group.name] for candidate in release)


def _list_choices(items: Iterable[Candidate]) -> list[list[Candidate]]:
    """Return every choice of one or two items."""
    ordered = list(items)
    choices = [[item] for item in ordered]
    for i, first in enumerate(ordered):
        for second in ordered[i + 1 :]:
            choices.append([first, second])
    return choices


def _loss_per_work(candidate: Candidate) -> float:
    return candidate.alone / (candidate.work + _FIXED_WORK)


def _sum_work(release: Iterable[Candidate]) -> float:
    return sum(candidate.work for candidate in release)
