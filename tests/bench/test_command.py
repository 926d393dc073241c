"""The command line: environment of the measuring process, files, refusals."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench import __main__ as command
from bench import machine, report, runner, selection
from bench.case import Bar

ROOT = Path(command.__file__).parent.parent
FAST = runner.Effort(rounds=3, seconds=0.0)


@pytest.fixture
def in_place(monkeypatch, make_case):
    """`main` in this process, on the fake case, without re-executing."""
    monkeypatch.setattr(command, "wanted_environment", lambda allocator: dict(os.environ))
    monkeypatch.setattr(selection, "FAMILIES", {"fake": [make_case()]})
    monkeypatch.setattr(runner, "QUICK", FAST)
    return lambda *arguments: command.main(["--quick", "--allocator", "raised", *arguments])


def bench(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "bench", *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_list_names_every_operation_of_the_issue():
    done = bench("--list")
    assert done.returncode == 0, done.stderr
    for operation in (
        "random_normal", "random_uniform", "random_rademacher", "sampler_step", "langevin_step",
        "time_embedding", "film_mlp", "film_mlp_sample",
    ):  # fmt: skip
        assert f" {operation}: " in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "causal, contrast, got 'nonsense'"),
        (["--match", "no such case"], "no case for device 'cpu' matches 'no such case'"),
        (["--device", "abacus"], "invalid choice: 'abacus'"),
        (["--compare", "absent.json"], "cannot read absent.json"),
        (["--compare", "setup.py"], "cannot read setup.py"),
        (["--json", "absent/results.json"], "--json: expected a file in an existing folder"),
    ],
)
def test_bad_arguments_say_what_was_expected(in_place, monkeypatch, capsys, arguments, message):
    monkeypatch.undo()
    monkeypatch.setattr(command, "wanted_environment", lambda allocator: dict(os.environ))
    monkeypatch.chdir(ROOT)
    try:
        status = command.main(arguments)
    except SystemExit as leave:
        status = leave.code
    assert status == 2
    assert message in capsys.readouterr().err


def test_thresholds_are_raised_unless_the_default_is_asked_for(monkeypatch):
    for name in command.ALLOCATOR_VARIABLES:
        monkeypatch.setenv(name, "1")
    for allocator in ("raised", "both"):
        environment = command.wanted_environment(allocator)
        assert {environment[name] for name in command.ALLOCATOR_VARIABLES} == {"8589934592"}
    assert not set(command.ALLOCATOR_VARIABLES) & set(command.wanted_environment("default"))


def test_the_process_is_started_again_with_that_environment(monkeypatch):
    started = {}

    def execve(program, arguments, environment):
        started.update(arguments=arguments, environment=environment)
        raise SystemExit

    monkeypatch.setattr(os, "execve", execve)
    monkeypatch.delenv(command.ALLOCATOR_VARIABLES[0], raising=False)
    with pytest.raises(SystemExit):
        command.main(["random", "--quick"])
    assert started["arguments"] == [sys.executable, "-m", "bench", "random", "--quick"]
    assert started["environment"][command.ALLOCATOR_VARIABLES[0]] == "8589934592"


def test_results_are_written_compared_and_drawn(in_place, tmp_path, capsys):
    old, new, picture = tmp_path / "old.json", tmp_path / "new.json", tmp_path / "ratios.png"
    assert in_place("--json", str(old)) == 0
    results = json.loads(old.read_text())
    assert {"cpu", "cores", "isa", "threads", "versions", "commit", "tree"} <= set(results["machine"])
    assert results["quick"] is True
    for row in results["columns"]["raised"][0]["providers"].values():
        row["median_ms"] *= 1000
    old.write_text(json.dumps(results))
    assert in_place("--json", str(new), "--compare", str(old), "--plot", str(picture)) == 0
    ratios = capsys.readouterr().out.split("double: 64 numbers: ours ")[1]
    assert float(ratios.split("x")[0]) > 10
    assert picture.stat().st_size > 1000


def test_a_folder_gets_a_file_named_after_the_machine(in_place, tmp_path):
    in_place("--json", str(tmp_path))
    (file,) = tmp_path.iterdir()
    assert file.name == f"{machine.slug(machine.describe('cpu'))}.json"


def test_a_red_gate_shows_in_the_exit_status(in_place, monkeypatch, make_case, capsys):
    monkeypatch.setattr(selection, "FAMILIES", {"fake": [make_case(ours=lambda x: x)]})
    assert in_place() == 1
    assert "GATE RED, no number" in capsys.readouterr().out


def test_bars_hold_under_raised_thresholds_only(in_place, monkeypatch, make_case, capsys):
    case = make_case(bars=(Bar(1e9, ("eager",)),))
    monkeypatch.setattr(selection, "FAMILIES", {"fake": [case]})
    in_place()
    assert "MISSED" in capsys.readouterr().out
    in_place("--allocator", "default")
    assert "bar" not in capsys.readouterr().out


def test_slug_is_a_file_name():
    cpu = {"device": "cpu", "cpu": "AMD EPYC (R) 7", "cores": 2}
    assert machine.slug(cpu) == "cpu-amd-epyc-r-7-2core"
    assert machine.slug({"device": "cuda", "gpu": "NVIDIA H200"}) == "cuda-nvidia-h200"


def test_comparison_without_a_common_case_says_so(make_case):
    empty = {"machine": {"commit": "abc", "date": "today"}, "columns": {}}
    assert "no case in common" in report.compare(empty, empty)
