"""The command `python -m bench`."""

import argparse
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

ALLOCATOR_VARIABLES = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
RAISED_THRESHOLD = "8589934592"


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measure the operations against plain PyTorch, torch.compile, public peers and "
        "the machine's own ceilings. A case whose value is wrong gets no number.",
        epilog="Exit status: 0 measured, 1 a case failed its correctness gate, 2 bad arguments.",
    )
    parser.add_argument("family", nargs="*", help="families to run (default: all; see --list)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--match", metavar="TEXT", help="only cases whose name contains TEXT")
    parser.add_argument(
        "--json",
        metavar="FILE",
        type=Path,
        help="write the results to FILE; in a folder, under the machine's name",
    )
    parser.add_argument("--compare", metavar="FILE", type=read_results, help="print ratios to older results")
    parser.add_argument(
        "--plot",
        metavar="FILE",
        type=Path,
        nargs="?",
        const=Path("bench.png"),
        help="draw the ratios",
    )
    parser.add_argument(
        "--allocator",
        choices=("both", "raised", "default"),
        default="both",
        help="glibc malloc thresholds: raised (no page faults for large temporaries: the bars hold "
        "here), default, or both as two columns (the default; CPU only)",
    )
    parser.add_argument("--quick", action="store_true", help="few rounds: a look, not a result")
    parser.add_argument("--list", action="store_true", help="list the cases and leave")
    options = parser.parse_args(arguments)
    if options.json and not options.json.resolve().parent.is_dir():
        parser.error(f"--json: expected a file in an existing folder, got {options.json}")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch finds no NVIDIA GPU on this machine")
    return options


def read_results(path: str) -> dict:
    """Older results, refused unless they are a file that `--json` wrote."""
    try:
        results = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"cannot read {path}: {error}") from None
    if not isinstance(results, dict) or not {"machine", "columns"} <= set(results):
        raise argparse.ArgumentTypeError(f"expected a file written by --json, got {path}")
    return results


def wanted_environment(allocator: str) -> dict[str, str]:
    """The environment in which the measuring process must have been started."""
    environment = {k: v for k, v in os.environ.items() if k not in ALLOCATOR_VARIABLES}
    if allocator != "default":
        environment |= dict.fromkeys(ALLOCATOR_VARIABLES, RAISED_THRESHOLD)
    environment.setdefault("KINETO_LOG_LEVEL", "6")  # the profiler's own chatter
    return environment


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parse(arguments)
    environment = wanted_environment(options.allocator)
    if environment != dict(os.environ):
        os.execve(sys.executable, [sys.executable, "-m", "bench", *arguments], environment)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a time limit keeps what is measured
    return run(options)


def run(options: argparse.Namespace) -> int:
    """Everything after the arguments are understood and the allocator is set."""
    from bench import machine, selection

    try:
        cases = selection.select(options.family, options.match, options.device)
    except ValueError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    if options.list:
        print("\n".join(f"{case.family:<10} {case.name}" for case in cases))
        return 0
    line = machine.describe(options.device)
    print(machine.one_line(line), flush=True)
    results = {"machine": line, "quick": options.quick, "columns": measure_columns(cases, options)}
    finish(results, options)
    measured = [result for column in results["columns"].values() for result in column]
    return int(any(result["gate"]["complaint"] for result in measured))


def measure_columns(cases, options) -> dict[str, list[dict]]:
    """The column of this process's allocator, and the default one's where both are wanted."""
    column = "default" if options.allocator == "default" else "raised"
    columns = {column: measure(cases, options, column)}
    if options.allocator == "both" and options.device == "cpu":
        columns["default"] = measure_in_child(options)
    return columns


def measure(cases, options, column: str) -> list[dict]:
    from bench import report, runner

    def progress(result):
        print(report.describe(result), flush=True)

    print(f"\n== {report.COLUMNS[column]}", flush=True)
    if column == "default":
        cases = [dataclasses.replace(case, cpu_bars=()) for case in cases]  # reported, never judged
    effort = runner.QUICK if options.quick else runner.Effort()
    return runner.run_cases(cases, options.device, effort, progress)


def measure_in_child(options) -> list[dict]:
    """The default allocator's column: malloc reads its thresholds only when a process starts."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "default.json"
        command = [sys.executable, "-m", "bench", *options.family, "--allocator", "default"]
        command += ["--json", str(path), *["--quick"] * options.quick]
        command += ["--match", options.match] if options.match else []
        subprocess.run(command, env=wanted_environment("default"), check=False)
        return json.loads(path.read_text())["columns"]["default"] if path.exists() else []


def finish(results: dict, options) -> None:
    """Write, compare and draw what was measured."""
    from bench import machine, report

    if options.json:
        folder = options.json.is_dir()
        file = options.json / f"{machine.slug(results['machine'])}.json" if folder else options.json
        file.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
        print(f"wrote {file}")
    if options.compare:
        print(report.compare(results, options.compare))
    if options.plot:
        report.plot(results, options.plot)
        print(f"wrote {options.plot}")


if __name__ == "__main__":
    sys.exit(main())
