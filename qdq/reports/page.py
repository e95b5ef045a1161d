"""The page of a command: what an engineer reads who decides whether to ship a model."""

from __future__ import annotations

import msgspec

from qdq.reports.page_graph import PageGraph
from qdq.reports.sections import Section

#: What a verdict comes to.
GOOD, LOOK, BAD = "good", "look", "bad"


class Verdict(msgspec.Struct, frozen=True):
    """What the results of a command come to, and why."""

    #: ``good``, ``look`` where something needs a look, or ``bad`` where a requirement is missed.
    state: str
    headline: str
    #: Sentences, the most important ones first.
    reasons: tuple[str, ...] = ()


class Figure(msgspec.Struct, frozen=True):
    """One number that decides, with what it is compared to."""

    label: str
    value: str
    note: str = ""


class EngineRow(msgspec.Struct, frozen=True):
    """The engine of one file for one target."""

    target: str
    #: ``compiled``, ``predicted``, ``measured`` or ``read``.
    kind: str
    #: What was built, such as ``float``, ``INT8`` or ``FP16 alone``.
    file: str
    #: Why there is no engine, else "".
    failure: str = ""
    kernels: int = 0
    megabytes: float = 0.0
    milliseconds: float | None = None
    #: The types of its weighted nodes, such as ``24 of 26 in INT8``; "" where they are not known.
    types: str = ""
    #: Whether it is the smallest engine of its target.
    is_smallest: bool = False


class FindingGroup(msgspec.Struct, frozen=True):
    """The findings of one code and fix in one model."""

    code: str
    severity: str
    #: The model, "" where the page is about one model.
    model: str
    #: The consequence, in whole sentences.
    cost: str
    #: The remedy, as an imperative.
    fix: str
    #: The page of the documentation: an address, or a path in the project.
    page: str
    #: What each finding says, with its place.
    places: tuple[str, ...]
    #: A document of others about it, "" where there is none.
    see: str = ""


class RangeHistogram(msgspec.Struct, frozen=True):
    """The observed absolute values of one tensor, and the value that its scale ends at."""

    tensor: str
    #: The largest absolute value.
    largest: float
    #: The value that the largest quantized number stands for.
    amax: float
    #: The number of values in each of equal bins from 0 to the largest value.
    counts: tuple[int, ...]


class CurvePoint(msgspec.Struct, frozen=True):
    """A point of a curve with its name."""

    x: float
    y: float
    label: str


class Curve(msgspec.Struct, frozen=True):
    """A measured curve."""

    title: str
    #: What the axes show, with units.
    x_label: str
    y_label: str
    points: tuple[CurvePoint, ...]


class Bars(msgspec.Struct, frozen=True):
    """Ranked bars: a name, the parts of its length from 0 to 1, and the text at its end."""

    title: str
    #: The names of the parts.
    legend: tuple[str, ...]
    rows: tuple[tuple[str, tuple[float, ...], str], ...]
    note: str = ""


class Page(msgspec.Struct, frozen=True):
    """Everything that the page of a command shows; empty fields are not shown."""

    #: The command, such as ``quantize``.
    command: str
    #: What it was run on.
    title: str
    verdict: Verdict
    figures: tuple[Figure, ...] = ()
    #: Sections that are read first, such as accuracy.
    results: tuple[Section, ...] = ()
    engines: tuple[EngineRow, ...] = ()
    graph: PageGraph | None = None
    bars: tuple[Bars, ...] = ()
    curves: tuple[Curve, ...] = ()
    histograms: tuple[RangeHistogram, ...] = ()
    findings: tuple[FindingGroup, ...] = ()
    #: Sections that are folded.
    details: tuple[Section, ...] = ()
