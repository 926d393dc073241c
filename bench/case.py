"""What a family file declares: cases, the providers that compete in them, ceilings and bars."""

from collections.abc import Callable
from dataclasses import dataclass, field

OURS = "ours"


@dataclass(frozen=True)
class Bar:
    """Ours must be `at_least` times as fast as the best of `over`; without names, reach that share
    of the ceiling."""

    at_least: float
    over: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ceiling:
    """A measured limit of the machine: `run` does `work` (bytes or floating-point operations)."""

    run: Callable[[], object]
    work: float


@dataclass
class Workload:
    """One case made concrete on a device.

    `providers` maps a name to a call; `OURS` is among them. `reference(dtype)` computes the
    specification in that precision: the gate compares ours with it in float64. The others must
    agree with it to three digits, unless `own_values` names them because they draw random numbers or
    have a parameterization of their own. `whole_loop` marks a call that launches many kernels: on a GPU
    it is timed by the wall clock, launches included.
    """

    providers: dict[str, Callable[[], object]]
    reference: Callable
    bytes: int = 0
    flops: int = 0
    ceilings: dict[str, Ceiling] = field(default_factory=dict)
    own_values: tuple[str, ...] = ()
    whole_loop: bool = False


@dataclass(frozen=True)
class Case:
    """`build(device)` returns the workload; `missing` packages only cost their own provider."""

    family: str
    operation: str
    title: str
    build: Callable[[str], Workload]
    cpu_bars: tuple[Bar, ...] = ()
    cuda_bars: tuple[Bar, ...] = ()
    devices: tuple[str, ...] = ("cpu", "cuda")

    @property
    def name(self) -> str:
        return f"{self.operation}: {self.title}"

    def bars(self, device: str) -> tuple[Bar, ...]:
        return self.cuda_bars if device == "cuda" else self.cpu_bars


class Family(list):
    """The cases of one family, collected by decorating their builders."""

    def __init__(self, name: str):
        super().__init__()
        self.name = name

    def case(self, operation: str, title: str, **options):
        def register(build):
            self.append(Case(self.name, operation, title, build, **options))
            return build

        return register
