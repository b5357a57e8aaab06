"""Score pairs with a saved matcher: ``python infer.py MODEL "first text" "second text"``, or ``--file pairs.csv``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from common import RoadmapError

from matching import data, metrics, models


def parser() -> argparse.ArgumentParser:
    """Either two texts, or a file of pairs."""
    made = argparse.ArgumentParser(prog="infer.py", description="Say whether two texts mean the same.")
    made.add_argument("model", help="folder that train.py has written")
    made.add_argument("texts", nargs="*", metavar="TEXT", help="two texts")
    made.add_argument("--file", type=Path, help="instead: a .csv, .tsv, .json, .jsonl or .parquet of pairs")
    made.add_argument("--text1", default="sentence1", help="its column of first texts (default sentence1)")
    made.add_argument("--text2", default="sentence2", help="its column of second texts (default sentence2)")
    made.add_argument("--out", type=Path, help="write a .jsonl with score and verdict there (default: print it)")
    made.add_argument("--threshold", type=float, help="score from which a pair matches (default: the one chosen in training)")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 0 is success, 1 an error that the user can put right (one sentence), 2 a wrong flag."""
    made = parser()
    options = made.parse_args(arguments)
    if (len(options.texts) == 2) == bool(options.file) or (options.file and options.texts):
        made.error("give two texts, or --file with a file of pairs")
    try:
        if options.file:
            rows = data.read_pairs(options.file, options.text1, options.text2, None)
        else:
            rows = [dict(zip(("sentence1", "sentence2"), options.texts))]
        lines = score(options.model, rows, options.threshold)
        if options.out:
            options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
            print(f"{len(lines)} pairs written to {options.out}")
        else:
            print("\n".join(lines))
    except RoadmapError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def score(model: str | Path, rows: Sequence[data.Row], threshold: float | None = None) -> list[str]:
    """One JSON line a pair: the two texts, ``score``, and ``same``: whether it reaches the threshold.

    Args:
        model: Folder of a saved matcher.
        rows: Pairs without labels.
        threshold: In place of the matcher's own.

    Raises:
        RoadmapError: No matcher there, or one without a threshold when none is given.
    """
    matcher, tokenizer = models.load(model)
    limit = matcher.spec.threshold if threshold is None else threshold
    if limit is None:
        raise RoadmapError(f"The matcher in {model} has no threshold; give one with --threshold.")
    scores = metrics.pair_scores(matcher, data.Batcher(tokenizer, matcher.spec), rows)
    found = [row | {"score": round(float(value), 4), "same": bool(value >= limit)} for row, value in zip(rows, scores)]
    return [json.dumps(row, ensure_ascii=False) for row in found]


if __name__ == "__main__":
    sys.exit(main())
