"""The command line: ``python -m common VERB``. One file a verb, one line of help a verb, one sentence an error."""

from __future__ import annotations

import argparse
import os
import sys

from common.course.cli import copy, data, doctor, lessons, models, pretrain, results, run, serve
from common.errors import RoadmapError

VERBS = {
    "doctor": doctor,
    "list": lessons,
    "run": run,
    "copy": copy,
    "results": results,
    "data": data,
    "models": models,
    "serve": serve,
    "pretrain": pretrain,
}


def main(arguments: list[str] | None = None) -> int:
    """Run one command.

    Returns:
        0 if it did what was asked, 1 if a lesson or a check failed, 2 if the request could not be carried out.
    """
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except RoadmapError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m common", description="LLM RoadMap: lessons, data, models, results.")
    verbs = parser.add_subparsers(title="verbs", required=True, metavar="VERB")
    for name, verb in VERBS.items():
        own = verbs.add_parser(name, help=verb.HELP, description=verb.HELP)
        verb.add_arguments(own)
        own.set_defaults(run=verb.run)
    return parser
