"""Which cases exist, and which of them a command asks for."""

from bench import causal, contrast, coupling, integrate, random, score
from bench.case import Case

MODULES = (random, integrate, score, coupling, causal, contrast)
FAMILIES = {module.cases.name: module.cases for module in MODULES}


def select(names: list[str], match: str | None, device: str) -> list[Case]:
    """The cases of the named families (all when none is named) whose name contains `match`.

    Raises:
        ValueError: for an unknown family, or when nothing is left to run.
    """
    for name in names:
        if name not in FAMILIES:
            raise ValueError(f"family: expected one of {', '.join(FAMILIES)}, got {name!r}")
    chosen = [
        case
        for name in names or FAMILIES
        for case in FAMILIES[name]
        if device in case.devices and (match is None or match in case.name)
    ]
    if not chosen:
        raise ValueError(f"no case for device {device!r} matches {match!r}")
    return chosen
