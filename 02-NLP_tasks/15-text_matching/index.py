"""Make and search an index: ``python index.py build MODEL TEXTS INDEX``, then ``python index.py search INDEX "a query"``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from common import RoadmapError

from matching import data, metrics, models
from matching.index import KINDS, Index


def parser() -> argparse.ArgumentParser:
    """Two verbs: build and search."""
    made = argparse.ArgumentParser(prog="index.py", description="Candidates encoded once, searched often.")
    verbs = made.add_subparsers(required=True, metavar="VERB", dest="verb")
    build = verbs.add_parser("build", help="encode candidates and save them")
    build.add_argument("model", help="folder that train.py has written (any --arch but pointwise)")
    build.add_argument("texts", help="a UTF-8 text file, one candidate a line")
    build.add_argument("index", type=Path, help="folder to write")
    build.add_argument("--kind", choices=KINDS, default="matrix")
    search = verbs.add_parser("search", help="find the best candidates")
    search.add_argument("index", type=Path)
    search.add_argument("queries", nargs="+", metavar="QUERY")
    search.add_argument("-k", type=int, default=5, help="how many candidates (default 5)")
    search.add_argument("--model", help="where the matcher is now, if it was moved")
    search.add_argument("--rerank", metavar="MODEL", help="a pointwise matcher that reads the k candidates again")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 0 is success, 1 an error that the user can put right (one sentence), 2 a wrong flag."""
    options = parser().parse_args(arguments)
    try:
        if options.verb == "build":
            index = Index.build(options.model, data.read_lines(options.texts), options.kind)
            index.save(options.index)
            print(f"{len(index.texts)} candidates, {index.vectors.shape[1]} numbers each, saved to {options.index}")
        else:
            if options.k < 1:
                raise RoadmapError(f"-k is {options.k}; at least one candidate has to be asked for.")
            index = Index.load(options.index, options.model)
            for query, found in zip(options.queries, answers(index, options.queries, options.k, options.rerank)):
                print(query)
                for value, text in found:
                    print(f"  {value:8.4f}  {text}")
    except RoadmapError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def answers(index: Index, queries: Sequence[str], k: int, rerank: str | None = None) -> list[list[tuple[float, str]]]:
    """For each query its best candidates with their scores, best first.

    Args:
        index: Where to look.
        queries: Texts.
        k: How many candidates.
        rerank: Folder of a matcher that orders these ``k`` anew, with its own scores.
    """
    scores, places = index.search(queries, k)
    found = [[(float(s), index.texts[i]) for s, i in zip(*row)] for row in zip(scores, places)]
    if rerank:
        matcher, tokenizer = models.load(rerank)
        batcher = data.Batcher(tokenizer, matcher.spec)
        for query, row in zip(queries, found):
            pairs = [{"sentence1": query, "sentence2": text} for _, text in row]
            values = metrics.pair_scores(matcher, batcher, pairs).tolist()
            row[:] = sorted(zip(values, (text for _, text in row)), reverse=True)
    return found


if __name__ == "__main__":
    sys.exit(main())
