"""``python -m common list``: the lessons with their last result."""

from __future__ import annotations

import argparse

from common.course.cli.output import table
from common.scale import SCALES

HELP = "the lessons with their last result"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Nothing can be said after this verb."""


def run(options: argparse.Namespace) -> int:
    """Do it; the exit status."""
    from common.course.lessons import all_lessons
    from common.course.results import read_ledger, results_folder

    records = {
        (r.lesson, r.scale): r for folder in (None, results_folder()) for r in (read_ledger(folder) if folder else read_ledger())
    }
    rows = []
    for lesson in all_lessons():
        for size in SCALES:
            record = records.get((lesson.name, size))
            if record:
                rows.append(
                    [
                        lesson.name,
                        size,
                        f"{record.seconds:.0f} s",
                        f"{record.metric} {record.value:.3f} (baseline {record.baseline:.3f})",
                    ]
                )
            elif size == "tiny":
                rows.append([lesson.name, size, "-", "not run yet"])
    table(["lesson", "scale", "time", "last result"], rows)
    return 0
