"""Results as text, compared with an older file, and as a picture."""

from bench.case import OURS
from bench.runner import others, speedup

COLUMNS = {"raised": "raised malloc thresholds", "default": "default allocator"}


def key(result: dict) -> tuple[str, str]:
    return result["operation"], result["title"]


def describe(result: dict) -> str:
    """One case in a few lines: a line per provider, then the ceiling and the bars."""
    heading = f"{result['family']} · {result['operation']}: {result['title']}"
    if result["gate"]["complaint"]:
        return f"{heading}\n  GATE RED, no number: {result['gate']['complaint']}"
    providers = result["providers"]
    lines = [heading, *(provider_line(name, providers) for name in providers)]
    lines += [f"  {name:<34} {reason}" for name, reason in result["failed"].items()]
    if others(providers):
        best = speedup(providers, others(providers))
        lines.append(f"  {'speed-up over the best of the others':<34} {best:.2f}x")
    if result["ceiling"]:
        ceiling = result["ceiling"]
        lines.append(f"  {ceiling['share']:.0%} of {ceiling['giga_per_s']:.1f} G/s: {ceiling['name']}")
    return "\n".join(lines + [f"  {bar_text(bar)}" for bar in result["bars"]])


def provider_line(name: str, providers: dict) -> str:
    row = providers[name]
    rate = "".join(
        f"{row[unit]:>9.1f} {label}"
        for unit, label in (("gb_per_s", "GB/s"), ("gflop_per_s", "GFLOP/s"))
        if unit in row
    )
    ratio = "" if name == OURS else f"{speedup(providers, [name]):>8.2f}x"
    spread = f"[{row['p20_ms']:.3f} {row['p80_ms']:.3f}]"
    memory = f"{row['peak_bytes'] / 2**20:>8.1f} MiB"
    return f"  {name:<34} {row['median_ms']:>9.3f} ms {spread:<18} {memory} {rate} {ratio}"


def bar_text(bar: dict) -> str:
    against = "the best of " * (len(bar["over"]) > 1) + ", ".join(bar["over"])
    wanted = f"{bar['at_least']:g}x {against}" if bar["over"] else f"{bar['at_least']:.0%} of the ceiling"
    if bar["reached"] is None:
        return f"bar {wanted}: not measured"
    reached = f"{bar['reached']:.2f}x" if bar["over"] else f"{bar['reached']:.0%}"
    return f"bar {wanted}: {reached}, {'met' if bar['met'] else 'MISSED'}"


def compare(new: dict, old: dict) -> str:
    """Old time over new time of every provider in both files: above 1 means faster than before."""
    lines = [f"compared with commit {old['machine']['commit']} ({old['machine']['date']})"]
    for column, results in new["columns"].items():
        before = {key(result): result for result in old["columns"].get(column, [])}
        for result in results:
            past = before.get(key(result), {}).get("providers", {})
            ratios = [
                f"{name} {past[name]['median_ms'] / row['median_ms']:.2f}x"
                for name, row in result.get("providers", {}).items()
                if name in past
            ]
            if ratios:
                lines.append(f"  [{column}] {': '.join(key(result))}: {', '.join(ratios)}")
    return "\n".join(lines if len(lines) > 1 else [*lines, "  no case in common"])


def plot(results: dict, path) -> None:
    """Bars of every provider's time over ours, one group per case, on a logarithmic axis."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [
        (f"{': '.join(key(result))} — {name}", speedup(result["providers"], [name]), column)
        for column, column_results in results["columns"].items()
        for result in column_results
        if "providers" in result
        for name in others(result["providers"])
    ]
    figure, axes = plt.subplots(figsize=(11, 1.5 + 0.24 * len(rows)), layout="constrained")
    for position, (_, ratio, column) in enumerate(rows):
        colour = "tab:blue" if column == "raised" else "tab:orange"
        axes.barh(position, ratio - 1, left=1, color=colour, log=True)
    axes.set_yticks(range(len(rows)), [label for label, _, _ in rows], fontsize=7)
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlabel("times as long as ours (blue: raised malloc thresholds, orange: default)")
    figure.savefig(path, dpi=120)
    plt.close(figure)
