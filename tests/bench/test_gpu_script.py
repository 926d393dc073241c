"""bench/gpu.sh with stand-ins for Python and compute-sanitizer: every leg runs, failures are told."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "bench" / "gpu.sh"
LEGS = ("build", "tests", "compute-sanitizer memcheck", "compute-sanitizer racecheck", "benchmarks")


@pytest.fixture
def run(tmp_path):
    """Runs the script with a Python that fails where its arguments contain `failing`."""

    def run(failing="nothing", sanitizer=True):
        tools, out = tmp_path / "tools", tmp_path / "out"
        tools.mkdir()
        script = f'#!/bin/sh\necho "ran $*"\ncase "$*" in *"{failing}"*) exit 3 ;; esac\n'
        for name in ("python", *["compute-sanitizer"] * sanitizer):
            (tools / name).write_text(script)
            (tools / name).chmod(0o755)
        environment = {"PATH": f"{tools}:/usr/bin:/bin", "OUT": str(out), "PYTHON": "python"}
        done = subprocess.run([SCRIPT], env=os.environ | environment, check=False)
        return done.returncode, (out / "gpu.log").read_text()

    return run


def test_all_legs_run(run):
    status, log = run()
    assert status == 0
    for leg in LEGS:
        assert f"== {leg}: exit status 0" in log
    assert "all legs passed" in log


@pytest.mark.parametrize(
    ("failing", "leg"), [("build_ext", "build"), ("-m pytest", "tests"), ("memcheck", LEGS[2])]
)
def test_a_failing_leg_is_told_and_the_others_run(run, failing, leg):
    status, log = run(failing)
    assert status == 1
    assert f"failed: {leg} (exit status 3)" in log
    assert log.count("exit status 0 after") == len(LEGS) - 1


def test_a_missing_sanitizer_is_no_failure(run):
    status, log = run(sanitizer=False)
    assert status == 0
    assert "compute-sanitizer is not installed" in log
