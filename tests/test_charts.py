"""Charts as SVG: where lines, ticks and names are, worked out by hand."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET

import pytest

from aligndet.charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    MOST_POINTS,
    RIGHT,
    STYLE,
    TOP,
    WIDTH,
    Line,
    line_chart,
    number,
    sparkline,
    ticks,
)


def drawn(svg):
    """Of each line of a chart, its strokes: lists of points."""
    paths = [p.get("d") for p in ET.fromstring(svg).iter("path") if "line" in p.get("class")]
    return [
        [
            [tuple(map(float, xy)) for xy in re.findall(r"([-\d.]+) ([-\d.]+)", stroke)]
            for stroke in path.split("M")[1:]
        ]
        for path in paths
    ]


def test_points_are_placed_linearly_and_up_is_more():
    (line,) = drawn(line_chart([Line("loss", [(0, 2.0), (50, 4.0), (200, 3.0)])], "loss"))
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    assert line == [[(LEFT, bottom), (LEFT + (right - LEFT) / 4, TOP), (right, (TOP + bottom) / 2)]]


def test_lines_share_their_axes():
    first, second = drawn(line_chart([Line("a", [(0, 0), (1, 1)]), Line("b", [(0, 3)])], "AP"))
    top = TOP + 8  # below a row of names
    assert first[0][1][1] == pytest.approx(HEIGHT - BOTTOM - (HEIGHT - top - BOTTOM) / 3, abs=0.06)
    assert second == [[(LEFT, top)]]


@pytest.mark.parametrize("gap", [None, math.nan, math.inf])
def test_a_value_that_is_missing_interrupts_the_line(gap):
    (line,) = drawn(line_chart([Line("a", [(0, 1), (1, 2), (2, gap), (3, 1), (4, 2)])], "AP"))
    assert [len(stroke) for stroke in line] == [2, 2]


def test_without_values_there_is_no_chart():
    assert line_chart([], "AP") == line_chart([Line("a", [(0, None)])], "AP") == ""


def test_a_constant_has_a_place():
    for value in (-3.0, 1e-9, 1e9):
        (line,) = drawn(line_chart([Line("a", [(0, value), (10, value)])], "AP"))
        assert {y for _, y in line[0]} == {(TOP + HEIGHT - BOTTOM) / 2}
    (line,) = drawn(line_chart([Line("a", [(0, 0.0), (10, 0.0)])], "AP"))
    assert {y for _, y in line[0]} == {HEIGHT - BOTTOM}  # nothing, at the bottom


def test_long_lines_are_thinned_and_keep_their_end():
    points = [(x, x % 7) for x in range(10 * MOST_POINTS + 3)]
    (line,) = drawn(line_chart([Line("a", points)], "loss"))
    assert len(line[0]) <= MOST_POINTS + 1
    assert line[0][-1][0] == WIDTH - RIGHT


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 10, [0, 2, 4, 6, 8, 10]),
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (3, 47, [10, 20, 30, 40]),
        (-1, 1.5, [-1, -0.5, 0, 0.5, 1, 1.5]),
        (0.0001, 0.0005, [0.0001, 0.0002, 0.0003, 0.0004, 0.0005]),
        (0, 90_000, [0, 20_000, 40_000, 60_000, 80_000]),
    ],
)
def test_ticks_are_round(low, high, expected):
    assert ticks(low, high) == pytest.approx(expected)


def test_every_range_has_some_ticks():
    for power in range(-8, 9):
        for factor in (1.0, 1.3, 2.0, 2.7, 5.0, 9.9):
            found = ticks(0.0, factor * 10.0**power)
            assert 3 <= len(found) <= 7


def test_numbers_are_short():
    assert [number(x) for x in (0, 0.05, 12.5, 1500, 20_000, 1e-5)] == [
        *("0", "0.05", "12.5", "1500", "20k", "1e-05"),
    ]


def test_names_go_on_in_the_next_row_and_the_axes_below():
    lines = [Line(name * 20, [(0, 0), (1, 1)]) for name in "abcd"]
    root = ET.fromstring(line_chart(lines, "AP"))
    names = [text for text in root.iter("text") if text.get("class")]
    assert [(name.get("x"), name.get("y")) for name in names] == [
        (x, y) for y in ("28", "43") for x in ("54", "228")
    ]
    assert {min(y for _, y in line[0]) for line in drawn(line_chart(lines, "AP"))} == {TOP + 23}


def test_lines_of_a_colour_have_one_name_and_a_single_value_is_a_dot():
    lines = [Line("a", [(0, 1), (9, 2)], 3), Line("", [(0, 1.5)], 3), Line("b", [(0, 1)], 4)]
    svg = line_chart(lines, "AP")
    root = ET.fromstring(svg)
    assert [text.text for text in root.iter("text") if text.get("class")] == ["a", "b"]
    kinds = [path.get("class") for path in root.iter("path") if "line" in path.get("class")]
    assert kinds == ["line c3", "line dot c3", "line dot c4"]
    assert svg.count("h0") == 2


def test_names_are_text_whatever_they_contain():
    root = ET.fromstring(line_chart([Line("<a> & b", [(0, 1)]), Line("c", [(1, 2)])], "AP < 5"))
    texts = [text.text for text in root.iter("text")]
    assert {"<a> & b", "c", "AP < 5", "step"} <= set(texts)


def test_all_colours_have_a_style_in_light_and_dark():
    for index in range(6):
        assert STYLE.count(f"--c{index}:") == 2
        assert f"svg .c{index} {{" in STYLE


def test_a_sparkline_spans_0_to_1():
    ((stroke,),) = drawn(sparkline([(0, 1), (0.5, 0.5), (1, 0)]))
    assert stroke == [(1, 1), (30, 10), (59, 19)]
