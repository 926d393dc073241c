"""The README's table."""

import json

import pytest

from bench import machine, runner, table

README = f"before\n{table.BEGIN}\nstale\n{table.END}\nafter\n"


@pytest.fixture
def results(tmp_path, make_case):
    fast = runner.Effort(rounds=3, seconds=0.0)
    raised = runner.run_case(make_case(), "cpu", fast)
    raised["providers"]["ours"]["median_ms"] = 2.0
    raised["providers"]["eager"]["median_ms"] = 5.0
    default = json.loads(json.dumps(raised))
    default["providers"]["eager"]["median_ms"] = 50.0
    red = runner.run_case(make_case(ours=lambda x: x), "cpu", fast) | {"title": "wrong"}
    columns = {"raised": [raised, red], "default": [default, red]}
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"machine": machine.describe("cpu"), "columns": columns}))
    return path


@pytest.fixture
def readme(tmp_path):
    path = tmp_path / "README.md"
    path.write_text(README)
    return path


def run(results, readme, *arguments):
    return table.main([str(results), "--readme", str(readme), *arguments])


def test_table_replaces_what_stands_between_the_markers(results, readme):
    assert run(results, readme) == 0
    text = readme.read_text()
    assert text.startswith(f"before\n{table.BEGIN}\n")
    assert text.endswith(f"{table.END}\nafter\n")
    assert "stale" not in text
    row = next(line for line in text.splitlines() if "`double`" in line)
    assert "2 ms" in row
    assert "eager, 5 ms" in row
    assert "**2.50×** (25.00×)" in row
    assert "Without a number, because the value was wrong: `double` (wrong)" in text


def test_ours_at_another_size_is_no_rival(results, readme):
    content = json.loads(results.read_text())
    for column in content["columns"].values():
        providers = column[0]["providers"]
        providers["ours, short"] = providers.pop("eager")
    results.write_text(json.dumps(content))
    assert run(results, readme) == 0
    row = next(line for line in readme.read_text().splitlines() if "`double`" in line)
    assert "×" not in row
    assert "short" not in row


def test_check_tells_a_stale_table_from_a_fresh_one(results, readme, capsys):
    assert run(results, readme, "--check") == 1
    assert "out of date" in capsys.readouterr().err
    assert readme.read_text() == README
    run(results, readme)
    assert run(results, readme, "--check") == 0


@pytest.mark.parametrize("text", ["no markers", f"{table.END} {table.BEGIN}"])
def test_missing_markers_are_an_error(results, readme, capsys, text):
    readme.write_text(text)
    assert run(results, readme) == 2
    assert "expected the markers" in capsys.readouterr().err
    assert readme.read_text() == text
