"""The `genssl-fast` command."""

import argparse
import importlib
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from genssl_fast._version import __version__

__all__ = ["main"]

COMMANDS = {
    "train": "train a score model, a normalizing flow or a self-supervised backbone and write a checkpoint",
    "sample": "draw samples from a checkpoint",
    "likelihood": "evaluate the log-likelihood of data under a flow",
    "embed": "turn data into features by a self-supervised backbone, and say what they are worth",
    "doctor": "say what this machine and this installation can do",
    "bench": "measure every operation against PyTorch and the best public peers",
}
FAILURE, INTERRUPTED = 1, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code.

    0 means success, 1 a failure explained in one line, 2 wrong usage, 130 an interruption.

    Arguments:
        argv: The arguments, those of the process by default.

    Example:
        >>> main(["--version"])  # doctest: +SKIP
        genssl-fast 0.1.0
    """
    try:
        parser = _parser()
    except ModuleNotFoundError as error:
        print(f"genssl-fast needs {error.name}; pip install 'genssl_fast[cli]'", file=sys.stderr)
        return FAILURE
    argv = sys.argv[1:] if argv is None else list(argv)
    arguments, rest = parser.parse_known_args(argv)
    if rest and arguments.command != "bench":
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    arguments.argv, arguments.rest = argv, rest
    try:
        with _termination_interrupts():
            return arguments.run(arguments) or 0
    except KeyboardInterrupt as interruption:
        return _fail(arguments, str(interruption) or "interrupted", INTERRUPTED)
    except Exception as error:
        return _fail(arguments, _one_line(error), FAILURE)


def _parser() -> argparse.ArgumentParser:
    debug = argparse.ArgumentParser(add_help=False)
    debug.add_argument("--debug", action="store_true", help="show the whole traceback of an error")
    parser = argparse.ArgumentParser(
        prog="genssl-fast",
        description="Train score models and normalizing flows and draw samples from them, or train "
        "backbones without labels; fast and reproducibly.",
        epilog="Begin with 'genssl-fast doctor', then 'genssl-fast train --data digits --out "
        "digits.safetensors' and 'genssl-fast sample --checkpoint digits.safetensors --count 64 "
        "--out digits.npz'.",
    )
    parser.add_argument("--version", action="version", version=f"genssl-fast {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        module = importlib.import_module(f"genssl_fast.commands.{name}")
        subparser = commands.add_parser(name, help=summary, description=module.__doc__, parents=[debug])
        module.add_arguments(subparser)
        subparser.set_defaults(run=module.run)
    return parser


@contextmanager
def _termination_interrupts() -> Iterator[None]:
    """Lets the signal with which schedulers and `torchrun` stop a process act like Ctrl-C."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _fail(arguments: argparse.Namespace, message: str, code: int) -> int:
    if arguments.debug:
        traceback.print_exc()
    print(f"genssl-fast {arguments.command}: {message}", file=sys.stderr)
    return code


def _one_line(error: Exception) -> str:
    message = " ".join(str(error).split())
    explained = isinstance(error, ValueError | OSError | ArithmeticError | RuntimeError)
    return message if explained and message else f"{type(error).__name__}: {message}"


if __name__ == "__main__":
    sys.exit(main())
