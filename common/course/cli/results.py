"""``python -m common results``: the table of results; --store rebuilds RESULTS.md from the last runs."""

from __future__ import annotations

import argparse

HELP = "the table of results; --store rebuilds RESULTS.md from the last runs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what can be said after the verb."""
    parser.add_argument("--store", action="store_true", help="make the last runs the results of record")
    parser.add_argument("--check", action="store_true", help="compare the last runs with the results of record")


def run(options: argparse.Namespace) -> int:
    """Do it; the exit status."""
    from common.course.results import compare, markdown, read_ledger, results_folder, store

    if options.check:
        moves = compare(read_ledger(), read_ledger(results_folder()))
        for move in moves:
            print(move)
        print(f"{len(moves)} figure(s) differ from the results of record.")
        return 1 if moves else 0
    if options.store:
        print(f"Stored {len(store())} result(s); RESULTS.md is rebuilt.")
    else:
        print(markdown(read_ledger()))
    return 0
