"""``python -m common copy``: make a folder that runs on its own from a lesson or a chapter."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "make a folder that runs on its own from a lesson or a chapter"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what can be said after the verb."""
    parser.add_argument("target", help="a lesson or a chapter")
    parser.add_argument("destination", type=Path, help="a new or empty folder")
    parser.add_argument("--force", action="store_true", help="write into a folder that holds files")


def run(options: argparse.Namespace) -> int:
    """Do it; the exit status."""
    from common.course.lessons import copy

    copied = copy(options.target, options.destination, force=options.force)
    print(
        f"Copied {len(copied)} lesson(s) to {options.destination}; its README.md tells how to run them and which lines to edit."
    )
    return 0
