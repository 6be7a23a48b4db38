"""The page for those who move in and the contract suite tell of the same differences between the doors."""

from __future__ import annotations

import re
from pathlib import Path

from tests.doors.differences import DIFFERENCES

HERE = Path(__file__).parent
PAGE = (HERE.parents[1] / "docs" / "moving-in" / "multi-model-server.md").read_text()

#: Rows of the page that are no answer to a request, and the test in test_mms_door.py that shows each.
ELSEWHERE = {
    "`/ping`": "test_a_dead_engine_costs_what_was_in_flight_and_a_dead_java_what_it_knew",
    "Java or the door dies": "test_a_dead_engine_costs_what_was_in_flight_and_a_dead_java_what_it_knew",
    "ports": "test_a_port_that_java_does_not_take_and_a_door_that_lists_nothing_are_refused_in_words",
}


def rows() -> list[str]:
    """The first cells of the page's table of doors."""
    table = PAGE.partition("| what | default door | mms door |\n")[2].partition("\n\n")[0]
    return [line.split("|")[1].strip() for line in table.splitlines()[1:]]


def test_every_difference_has_its_row_and_every_row_its_difference() -> None:
    told = {each.told for each in DIFFERENCES.values()}
    untold = [each for each in told if not any(row.startswith(each) for row in rows())]
    unknown = [row for row in rows() if not any(row.startswith(each) for each in (*told, *ELSEWHERE))]
    assert (untold, unknown, len(rows()) > 10) == ([], [], True)


def test_every_difference_is_asked_by_a_test() -> None:
    asked = "".join(path.read_text() for path in HERE.glob("test_*.py"))
    assert [name for name in DIFFERENCES if f'"{name}"' not in asked] == []
    door = (HERE / "test_mms_door.py").read_text()
    assert [name for name in ELSEWHERE.values() if not re.search(rf"^def {name}\(", door, re.MULTILINE)] == []
