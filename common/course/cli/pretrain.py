"""``python -m common pretrain``: make a shipped tiny checkpoint anew from random weights."""

from __future__ import annotations

import argparse
from pathlib import Path

from common.course.cli.output import near, positive

HELP = "make a shipped tiny checkpoint anew from random weights"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what can be said after the verb."""
    parser.add_argument("name", help="such as tiny-bert-zh")
    parser.add_argument("--steps", type=positive, metavar="N", help="fewer steps than the recipe, for a trial")
    parser.add_argument("--out", type=Path, help="where to write it (default: its place in assets/models)")
    parser.add_argument("--force", action="store_true", help="replace a checkpoint that is there")
    parser.add_argument("--resume", action="store_true", help="continue an interrupted run")
    parser.add_argument("--measure", action="store_true", help="instead, measure what pre-training gives and add it to the card")


def run(options: argparse.Namespace) -> int:
    """Do it; the exit status."""
    from common.recipes.trials import make, measure

    if options.measure:
        print(f"Measured; see {near(measure(options.name) / 'README.md')}")
    else:
        folder = make(options.name, steps=options.steps, out=options.out, force=options.force, resume=options.resume)
        print(f"Written to {near(folder)}; its README.md is the card.")
    return 0
