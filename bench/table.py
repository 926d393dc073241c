"""The README's table, generated from `bench/results/`: `python -m bench.table [--check]`."""

import argparse
import json
import sys
from pathlib import Path

from bench import machine
from bench.case import OURS
from bench.runner import others, speedup

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
ROOT = Path(__file__).resolve().parent.parent
CAPTION = " Medians under raised malloc thresholds; in parentheses under the default allocator."
HEADER = (
    "| operation | case | ours | fastest other | speed-up | over each other | share of ceiling |",
    "|---|---|---|---|---|---|---|",
)


def milliseconds(value: float) -> str:
    return f"{value:.3g} ms" if value < 1000 else f"{value:.0f} ms"


def row(result: dict, default: dict | None) -> str:
    """One case; `default` is the same case under the default allocator, for the second figure."""
    providers = result["providers"]
    rivals = others(providers)
    fastest = ratio = ""
    if rivals:
        name = min(rivals, key=lambda name: providers[name]["median_ms"])
        fastest = f"{name}, {milliseconds(providers[name]['median_ms'])}"
        ratio = f"**{speedup(providers, rivals):.2f}×**"
    if rivals and default and "providers" in default:
        ratio += f" ({speedup(default['providers'], others(default['providers'])):.2f}×)"
    each = ", ".join(f"{name} {speedup(providers, [name]):.2f}×" for name in rivals)
    ceiling = result["ceiling"]
    cells = (
        f"`{result['operation']}`",
        result["title"],
        milliseconds(providers[OURS]["median_ms"]),
        fastest,
        ratio,
        each,
        f"{ceiling['share']:.0%} of {ceiling['name']}" if ceiling else "",
    )
    return f"| {' | '.join(cells)} |"


def section(results: dict) -> str:
    """The table of one machine."""
    main, *second = results["columns"].values()
    default = {(r["operation"], r["title"]): r for r in (second[0] if second else [])}
    lines = [f"{machine.one_line(results['machine'])}.{CAPTION * bool(second)}", "", *HEADER]
    lines += [row(r, default.get((r["operation"], r["title"]))) for r in main if "providers" in r]
    red = [f"`{r['operation']}` ({r['title']})" for r in main if "providers" not in r]
    if red:
        lines += ["", f"Without a number, because the value was wrong: {', '.join(red)}."]
    return "\n".join(lines)


def render(files: list[Path]) -> str:
    return "\n\n".join(section(json.loads(path.read_text())) for path in files)


def replaced(text: str, table: str) -> str:
    """The document with what stands between the markers replaced.

    Raises:
        ValueError: when the markers are missing or in the wrong order.
    """
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"expected the markers {BEGIN} and {END}, in this order")
    return f"{head}{BEGIN}\n{table}\n{END}{tail}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.table", description=__doc__)
    parser.add_argument("results", nargs="*", type=Path, help="default: bench/results/*.json")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if out of date")
    options = parser.parse_args(arguments)
    try:
        old = options.readme.read_text()
        files = options.results or sorted((ROOT / "bench/results").glob("*.json"))
        new = replaced(old, render(files))
    except (OSError, ValueError) as error:
        print(f"bench.table: {options.readme}: {error}", file=sys.stderr)
        return 2
    if options.check and new != old:
        print(f"{options.readme} is out of date: run python -m bench.table", file=sys.stderr)
        return 1
    if not options.check:
        options.readme.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
