"""How the verbs of Training are asked and how they end; each is `python -m Training.VERB`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from HARM3Logic.errors import BadOption, HARM3Error


def parser(verb: str, doc: str | None, about: int = 0, more: int | None = None) -> argparse.ArgumentParser:
    """A parser that tells what the verb's module tells.

    Args:
        about, more: which paragraphs of the module's docstring stand before and after the options.
    """
    paragraphs = doc.split("\n\n") if doc else [""] * 3  # `python -OO` has no docstrings
    return argparse.ArgumentParser(
        f"python -m Training.{verb}", description=paragraphs[about], epilog=None if more is None else paragraphs[more]
    )


def run(parser: argparse.ArgumentParser, work: Callable[[argparse.Namespace], int | None], arguments: Sequence[str] | None) -> int:
    """Do the work; its exit code, 0 where it gives none, 2 for what the user can mend, told in a line, 130 where it was stopped."""
    asked = parser.parse_args(arguments)
    try:
        return work(asked) or 0
    except HARM3Error as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Stopped; what was finished is kept.", file=sys.stderr)
        return 130


def add_device(parser: argparse.ArgumentParser) -> None:
    """Where the work is done."""
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:<i> or mps")


def add_external(parser: argparse.ArgumentParser) -> None:
    """The centres that are locked."""
    parser.add_argument("--external", action="append", default=[], metavar="CENTRE", help="a centre that only Training.evaluate may open")


def add_training(parser: argparse.ArgumentParser, out: str, fold: str, cached: str) -> None:
    """What all verbs ask that train one experiment.

    Args:
        out, fold, cached: what they say of the folder of the run, of a fold, and of what --cache holds.
    """
    parser.add_argument("experiment", metavar="NAME[:VARIANT]", help="a file of Training/experiments and one of its variants")
    parser.add_argument("--cohort", type=Path, required=True, help="table of cases with labels")
    parser.add_argument("--out", type=Path, required=True, help=out)
    add_external(parser)
    parser.add_argument("--by-centre", action="store_true", help=f"one {fold} for each centre")
    parser.add_argument("--pretrained", type=Path, metavar="FILE", help="trunk to start from (Training.pretrain)")
    parser.add_argument("--schema", type=Path, metavar="FILE", help="clinical variables (JSON or TOML) in place of the experiment's")
    parser.add_argument("--cache", type=Path, metavar="DIR", help=f"{cached}, to share between runs (default: in --out)")
    add_device(parser)


def add_table(parser: argparse.ArgumentParser, rows: str, epochs: str) -> None:
    """What all verbs ask that train the rows of a table.

    Args:
        rows, epochs: what they say of a row, and of what --epochs stands in place of.
    """
    parser.add_argument("--epochs", type=int, help=epochs)
    add_folds(parser)
    parser.add_argument("--jobs", type=int, default=1, help=f"{rows} trained side by side (default: 1)")
    add_device(parser)


def add_folds(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--folds", type=int, help="instead of a recipe's own five; two judge every case at the least cost")


def at_least(asked: argparse.Namespace, **least: int) -> None:
    """Refuse a number that is too small.

    Raises:
        BadOption: one is.
    """
    for name, smallest in least.items():
        value = getattr(asked, name)
        if value is not None and value < smallest:
            raise BadOption(f"--{name} is {value}; {smallest} or more are wanted.", "Correct it.")
