"""``python -m common serve``: answer requests on this machine with a model: names, classes, pairs of sentences, chat."""

from __future__ import annotations

import argparse

from common.course.cli.output import positive

HELP = "answer requests on this machine with a model: names, classes, pairs of sentences, chat"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what can be said after the verb."""
    parser.add_argument("task", help="ner, classify, pairs or chat")
    parser.add_argument("--model", help="a folder or a Hub name (default: a checkpoint of the course)")
    parser.add_argument("--port", type=positive, default=8000, metavar="N", help="on 127.0.0.1 (default 8000)")


def run(options: argparse.Namespace) -> int:
    """Do it; the exit status."""
    from common.serve import serve

    serve(options.task, options.model, port=options.port)
    return 0
