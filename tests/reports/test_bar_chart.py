"""Charts are well-formed XML whatever names are in them."""

from __future__ import annotations

from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from qdq.reports.bar_chart import Bar, BarChart, bar_chart_svg
from tests.support.graphs import draw_graphs

SVG = "{http://www.w3.org/2000/svg}"
NAMES = st.text(st.characters(), max_size=60)
LENGTHS = st.floats(0, 1e9, allow_subnormal=False)
BARS = st.lists(st.builds(Bar, NAMES, st.tuples(LENGTHS, LENGTHS), NAMES), max_size=4)


@draw_graphs(60)
@given(NAMES, NAMES, BARS)
def test_any_names_give_well_formed_xml(title: str, subtitle: str, bars: list[Bar]) -> None:
    chart = bar_chart_svg(BarChart(title, subtitle, ("first", "second"), tuple(bars)))

    root = ElementTree.fromstring(chart.encode())

    assert root.tag == f"{SVG}svg"
    assert len(list(root.iter(f"{SVG}title"))) == 3 * len(bars)


def test_lengths_are_in_proportion() -> None:
    bars = (Bar("a", (3.0, 1.0), "4"), Bar("b", (1.0, 0.0), "1"))

    root = ElementTree.fromstring(bar_chart_svg(BarChart("t", "s", (), bars)).encode())

    rects = [float(item.attrib["width"]) for item in root.iter(f"{SVG}rect")][1:]
    assert [round(width / rects[2], 1) for width in rects] == [3.0, 1.0, 1.0, 0.0]
