import json

from bench import __main__ as cli
from bench.machine import Machine
from bench.pairs import Series
from bench.report import Goal, Report, Table

MACHINE = Machine(
    cpu="Fast CPU (R) 9000",
    cores=2,
    memory_gib=16.0,
    gpu="",
    kernel="6.1",
    python="3.11",
    packages={"torch": "2.13"},
    commit="abc",
    date="2026-01-02 03:04 UTC",
    load_average=(0.1, 0.2, 0.3),
    others=0.5,
)


def test_a_report_is_kept_as_a_page_and_as_samples_named_by_date_machine_and_row(tmp_path):
    report = Report("echo", "nothing", samples={"1": [1.5]})
    report.tables.append(Table("1 connection", ("", "per s"), [("berth", "10")]))
    report.goals.append(Goal.most("p99", Series((7.0, 9.0)), 8, "ms"))

    page = report.keep(MACHINE, "python -m bench echo", tmp_path)

    assert page.name == "2026-01-02-fast-cpu-r-9000-2c-echo.md"
    text = page.read_text()
    assert "| berth | 10 |" in text
    assert "| p99 | at most 8 ms | 8.0 (7.0-9.0) ms | reached |" in text
    assert "NOT CALM" in text
    kept = json.loads(page.with_suffix(".json").read_text())
    assert kept["samples"] == {"1": [1.5]}
    assert kept["machine"]["commit"] == "abc"


def test_an_unknown_row_is_named_and_nothing_runs(capsys):
    assert cli.main(["ehco"]) == 2
    assert "no such row: ehco; there are echo, memory, cold, embed" in capsys.readouterr().err
