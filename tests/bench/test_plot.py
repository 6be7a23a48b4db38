"""Plots are well-formed SVG whose curves lie where their values say."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import pytest

from bench.plot import Line, Panel, round_up, svg

NAMESPACE = "{http://www.w3.org/2000/svg}"


def test_a_plot_is_well_formed_and_names_its_curves_whatever_they_are_called():
    text = svg(
        "a < b & c", [Panel("memory", [Line("<engine>", [(0, 1.0), (10, 2.0)])], marks=[(5, "kill & go")])], "s", 10
    )
    root = ElementTree.fromstring(text)
    words = [each.text for each in root.iter(f"{NAMESPACE}text")]
    assert {"a < b & c", "memory", "<engine>", "s"} <= set(words)
    assert [each.text for each in root.iter(f"{NAMESPACE}title")] == ["kill & go"]


def test_the_largest_value_is_highest_and_a_gap_breaks_the_curve():
    text = svg("t", [Panel("p", [Line("l", [(0, 0.0), (1, None), (2, 10.0)])])], "s", 2)
    (path,) = (each.attrib["d"] for each in ElementTree.fromstring(text).iter(f"{NAMESPACE}path"))
    (_, low), (_, high) = ((float(x), float(y)) for x, y in re.findall(r"M([\d.]+) ([\d.]+)", path))
    assert high < low
    assert "L" not in path


def test_a_long_run_takes_no_more_room_than_a_short_one():
    points = [(float(at), float(at % 7)) for at in range(20_000)]
    assert len(svg("t", [Panel("p", [Line("l", points)])], "s", 20_000)) < 20_000


@pytest.mark.parametrize(("value", "top"), [(0, 1), (0.3, 0.5), (1, 1), (11, 20), (499, 500), (501, 1000)])
def test_axes_end_at_a_round_number(value, top):
    assert round_up(value) == pytest.approx(top)
