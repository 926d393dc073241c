"""Help, usage and exit codes."""

import subprocess
import sys

import pytest

from genssl_fast import cli


def test_help_leads_a_newcomer_on(run):
    result = run("--help")
    assert result.code == 0
    for command in ("train", "sample", "likelihood", "embed", "doctor", "bench"):
        assert command in result.out
    assert "genssl-fast train --data digits" in " ".join(result.out.split())


@pytest.mark.parametrize("command", ["train", "sample", "likelihood", "embed", "doctor", "bench"])
def test_help_of_every_command(run, command):
    result = run(command, "--help")
    assert result.code == 0
    assert "--debug" in result.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "required: COMMAND"),
        (("paint",), "invalid choice: 'paint'"),
        (("doctor", "--colour"), "unrecognized arguments: --colour"),
        (("sample", "--count", "3"), "required: --checkpoint, --out"),
        (("train", "--out", "model.txt"), r"expected a name that ends in .safetensors, got 'model.txt'"),
        (("train", "--out", "a.safetensors", "--process", "vpx"), "invalid choice: 'vpx'"),
        (("train", "--out", "a.safetensors", "--ema", "1"), "at least 0 and below 1, got '1'"),
        (("train", "--out", "a.safetensors", "--minutes", "0"), "a number above 0, got '0'"),
        (("train", "--out", "a.safetensors", "--device", "tpu"), "cuda or cuda:N, got 'tpu'"),
    ],
)
def test_wrong_usage(run, arguments, message):
    result = run(*arguments)
    assert result.code == 2
    assert message in result.err
    assert "Traceback" not in result.err


def test_unexpected_errors_take_one_line_unless_debugging(run, monkeypatch):
    def fail(_):
        raise KeyError("two\nlines")

    monkeypatch.setattr("genssl_fast.commands.doctor.run", fail)
    result = run("doctor")
    assert result.code == 1
    assert result.err == "genssl-fast doctor: KeyError: 'two\\nlines'\n"
    assert "Traceback" in run("doctor", "--debug").err


def test_interruption_has_its_own_code(run, monkeypatch):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("genssl_fast.commands.doctor.run", interrupt)
    result = run("doctor")
    assert result.code == 130
    assert result.err == "genssl-fast doctor: interrupted\n"


def test_missing_packages_are_named(run, monkeypatch):
    def fail(_):
        raise ModuleNotFoundError(name="rich")

    monkeypatch.setattr(cli.importlib, "import_module", fail)
    result = run("doctor")
    assert result.code == 1
    assert result.err == "genssl-fast needs rich; pip install 'genssl_fast[cli]'\n"


def test_the_module_is_the_command():
    command = [sys.executable, "-m", "genssl_fast.cli", "--version"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.startswith("genssl-fast ")
