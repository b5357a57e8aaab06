"""``python -m common copy``: make a folder that runs on its own from a lesson or a chapter."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "make a folder that runs on its own from a lesson or a chapter"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what can be said after the verb."""
    parser.add_argument("target", help="a lesson or a chapter")
    parser.add_argument("destination", type=Path, help="a new or empty folder")
    parser.add_argument("--data", type=Path, metavar="FILE", help="a file or folder of your own, which the lesson then reads")
    parser.add_argument("--column", action="append", default=[], metavar="FIELD=NAME", help="a column of it, such as text=body")
    parser.add_argument("--force", action="store_true", help="write into a folder that holds files")


def run(options: argparse.Namespace) -> int:
    """Do it; the exit status."""
    from common.course.lessons import copy
    from common.errors import RoadmapError

    if wrong := [said for said in options.column if "=" not in said]:
        raise RoadmapError(f"--column {wrong[0]} is not understood; write FIELD=NAME, such as --column text=body.")
    columns = dict(said.split("=", 1) for said in options.column)
    if columns and options.data is None:
        raise RoadmapError("--column names a column of a file; give the file with --data FILE.")
    copied = copy(options.target, options.destination, data=options.data, columns=columns, force=options.force)
    print(
        f"Copied {len(copied)} lesson(s) to {options.destination}; its README.md tells how to run them and which lines to edit."
    )
    return 0
