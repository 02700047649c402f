"""The command ``weight-evolution``. Its help and version need no PyTorch; `training.cli` does what it is told to."""

from __future__ import annotations

import argparse
import runpy
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

COMMANDS = {
    "train": "train a network from one or more seeds",
    "inspect": "the filter health of any network",
    "compact": "write the compact network of a low-rank checkpoint",
    "demo": "the methods where units die, and where they do not, in minutes",
    "info": "print versions and available backends",
}
"""Name -> what it does."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, or 2 after a one-line error message."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    parser, _ = make_parser()
    if not given:
        parser.print_help()
        return 0
    if given[0] not in COMMANDS:
        parser.parse_args(given)
    from .training import cli

    return cli.main(given)


def make_parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """The parser of the command, and those of its `COMMANDS`, which know no options yet."""
    parser = Parser(
        prog="weight-evolution",
        description="Train networks by one of the package's methods, several or none; look at what was trained.",
    )
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    return parser, {name: commands.add_parser(name, help=text) for name, text in COMMANDS.items()}


class Parser(argparse.ArgumentParser):
    """Errors in one line, without the usage; options are not guessed from their first letters."""

    source = ""
    """Of the arguments, as errors begin; for those of a file its name."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **options})

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {self.source}{message}\n")


def _version() -> str:
    """Of these sources, whatever is installed; `we_kernels`, where it is written down, would import PyTorch."""
    kernels = find_spec("we_kernels")
    assert kernels is not None
    assert kernels.origin is not None
    version: str = runpy.run_path(str(Path(kernels.origin).with_name("version.py")))["__version__"]
    return version
