"""What the programs of this folder are told on their command lines."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection
from pathlib import Path


def parser(
    text: str | None, every: Collection[str], *, one: str, several: str, work: str, runs: int, of: str
) -> argparse.ArgumentParser:
    """Return what reads the options that they share; a program adds its own.

    `text` says what it is for, `work` what its folder is for. It does all of `every`, or those that `--several` names,
    `one` by one, and makes so many `runs` `of` each.
    """
    made = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--work", type=Path, required=True, help=f"folder for {work}")
    made.add_argument(
        f"--{several}",
        type=_some(every, one),
        default=list(every),
        metavar="LIST",
        help=f"of {','.join(every)}; all by default",
    )
    made.add_argument("--runs", type=int, default=runs, help=f"runs of each{of}; {runs} by default")
    made.add_argument("--scale", type=float, default=1.0, help="0.1 is a tenth of the distance; 1 by default")
    made.add_argument("--json", type=Path, help="write all figures to this file")
    return made


def _some(every: Collection[str], one: str) -> Callable[[str], list[str]]:
    def read(text: str) -> list[str]:
        names = [word for word in text.split(",") if word]
        if unknown := [name for name in names if name not in every]:
            raise argparse.ArgumentTypeError(f"no such {one}: {', '.join(unknown)}")
        return names

    return read
