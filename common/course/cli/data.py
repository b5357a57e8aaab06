"""``python -m common data``: the data sets: source, licence, size; and what is in a file of one's own."""

from __future__ import annotations

import argparse

from common.course.cli.output import table
from common.paths import home

HELP = "the data sets: source, licence, size; or what is in a file of your own"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what can be said after the verb."""
    parser.add_argument("name", nargs="?", help="show one, with its splits and an example")
    parser.add_argument("--fetch", action="store_true", help="download and build what is not in the cache yet")
    parser.add_argument("--check", action="store_true", help="verify the hashes of the archives in the cache")
    parser.add_argument("--file", nargs="+", metavar="FILE", help="your own file (or train, validation and test): what is in it")
    parser.add_argument("--as", dest="task", metavar="TASK", help="with --file: the data set whose columns it is to have")
    parser.add_argument("--columns", nargs="+", default=[], metavar="FIELD=COLUMN", help="with --file: which column is which")
    parser.add_argument("--no-header", action="store_true", help="with --file: the first line is a row, not the columns' names")


def run(options: argparse.Namespace) -> int:
    """Do it; the exit status."""
    from common.data import DATA, load_data
    from common.errors import unknown
    from common.packages import ARCHIVES, archive, is_cached

    if options.file:
        from common.course.cli.own_file import report

        return report(options.file, options.task, options.columns, header=not options.no_header)
    if options.name and options.name not in DATA:
        raise unknown("data set", options.name, DATA)
    names = [options.name] if options.name else list(DATA)
    archives = sorted({a for name in names for a in DATA[name].archives})
    if options.check:
        cached = [a for a in archives if is_cached(a)]
        for a in cached:
            print(f"ok     {archive(a).name}")
        print(f"{len(cached)} of {len(archives)} archives are in {home() / 'archives'}, each with the pinned sha256.")
        return 0
    if options.fetch:
        for name in names:
            splits = load_data(name)
            print(f"{name}: {', '.join(f'{split} {len(rows):,}' for split, rows in splits.items())}")
        return 0
    if not options.name:
        rows = [[n, c.about, ", ".join(f"{ARCHIVES[a].requirement}" for a in c.archives), c.full[0]] for n, c in DATA.items()]
        table(["name", "what", "tiny: archives", "full: Hub"], rows)
        print("\npython -m common data NAME shows licences, splits and an example.")
        return 0
    card = DATA[options.name]
    print(f"{options.name}: {card.about}")
    print(f"tiny     {card.tiny_source}\nlicence  {card.tiny_licence}")
    print(f"full     {card.full[0]} ({card.full_size})\nlicence  {card.full_licence}")
    splits = load_data(options.name)
    print(f"columns  {', '.join(f'{k} ({v})' for k, v in splits['train'].features.items())}")
    print(f"splits   {', '.join(f'{split} {len(rows):,}' for split, rows in splits.items())}")
    print(f"example  {str(splits['train'][0])[:300]}")
    return 0
