"""How the verbs print, and the kinds of argument that they share."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from common.paths import ROOT


def positive(text: str) -> int:
    """A whole number above 0."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def near(path: Path) -> str:
    """A path as short as can be from here."""
    return os.path.relpath(path) if ROOT in path.parents else str(path)


def table(head: list[str], rows: list[list[str]]) -> None:
    """Print rows of text in columns."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    for row in [head, ["-" * w for w in widths], *rows]:
        print("  ".join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip())
