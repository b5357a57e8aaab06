"""Talk to a saved bot in the terminal: ``python chat.py``. An empty line, ``quit`` or the end of the input ends it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from common import RoadmapError, outputs

HERE = "02-NLP_tasks/08-retrieval_bot"


def parser() -> argparse.ArgumentParser:
    """All flags have a default: the bot that the notebook has saved."""
    made = argparse.ArgumentParser(prog="chat.py", description="Ask a law FAQ; answers come with their law, or not at all.")
    made.add_argument("folder", nargs="?", type=Path, help="a saved bot (default: the one the notebook has made)")
    made.add_argument("-k", type=int, default=1, help="answers to show (default 1)")
    made.add_argument("--threshold", type=float, help="score from which to answer (default: the one chosen on validation)")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the chat; 0 is a normal end, 1 an error that the user can put right (one sentence), 2 a wrong flag."""
    made = parser()
    options = made.parse_args(arguments)
    if options.k < 1:
        made.error("-k must be at least 1")
    for stream in (sys.stdin, sys.stdout):
        stream.reconfigure(encoding="utf-8", errors="replace")  # Chinese, whatever the terminal's own encoding is
    try:
        from bot import Bot, lines  # after the flags: --help must not wait for torch

        bot = Bot.load(options.folder or outputs(HERE) / "bot")
    except RoadmapError as error:
        print(error, file=sys.stderr)
        return 1
    if options.threshold is not None:
        bot.threshold = options.threshold
    print(f"{len(bot.entries)} answers. Ask a question in Chinese; an empty line ends.", flush=True)
    while (question := ask()) is not None:
        try:
            print("\n".join(lines(bot, question, options.k)), flush=True)
        except RoadmapError as error:
            print(error, flush=True)
    return 0


def ask() -> str | None:
    """The next question, or None at the end."""
    try:
        question = input("> ").strip()
    except (EOFError, KeyboardInterrupt):
        print()
        return None
    return None if question in ("", "quit", "exit") else question


if __name__ == "__main__":
    sys.exit(main())
