"""What one query costs as the number of candidates grows, in CPU seconds: other work on the machine does not count."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch

from matching import metrics
from matching.data import Batcher
from matching.models import BiEncoder, Matcher


def cpu_seconds(fn: Callable[[], Any], repeats: int = 3) -> float:
    """Median CPU time of a call, all threads of this process together; one call before is not counted."""
    fn()
    found = []
    for _ in range(repeats):
        began = time.process_time()
        fn()
        found.append(time.process_time() - began)
    return statistics.median(found)


def per_query(
    pointwise: tuple[Matcher, Batcher],
    bi_encoder: tuple[BiEncoder, Batcher],
    query: str,
    texts: Sequence[str],
    sizes: Sequence[int],
    rerank: int = 20,
) -> list[dict[str, float]]:
    """One row for each number of candidates: seconds of four ways to find the best one for a query.

    Args:
        pointwise: A matcher that reads pairs, and its batcher.
        bi_encoder: A matcher that reads texts, and its batcher.
        query: What to look for.
        texts: Candidates, repeated where a size asks for more than there are.
        sizes: Numbers of candidates.
        rerank: How many the pointwise matcher reads after the bi-encoder has searched.

    Returns:
        ``candidates``, and the seconds of ``pointwise`` (every pair), ``bi-encoder`` (every text, nothing prepared),
        ``bi-encoder, index`` (the query only; candidates were encoded before) and ``index, then pointwise`` on the best few.
    """
    known = metrics.encode(*bi_encoder, texts)

    def pairs(n: int) -> None:
        metrics.pair_scores(*pointwise, [{"sentence1": query, "sentence2": texts[i % len(texts)]} for i in range(n)])

    def search(vectors: torch.Tensor) -> None:
        metrics.compare(bi_encoder[0], metrics.encode(*bi_encoder, [query]), vectors).topk(min(rerank, len(vectors)))

    rows = []
    for n in sizes:
        index = known.repeat(-(-n // len(known)), 1)[:n]
        row = {"candidates": float(n), "pointwise": cpu_seconds(lambda n=n: pairs(n))}  # type: ignore[misc]
        row["bi-encoder"] = cpu_seconds(
            lambda n=n: metrics.encode(*bi_encoder, [query, *(texts[i % len(texts)] for i in range(n))])  # type: ignore[misc]
        )
        row["bi-encoder, index"] = cpu_seconds(lambda index=index: search(index), repeats=9)  # type: ignore[misc]
        # up to `rerank` candidates the same pairs are read: measured once, or noise would decide which way is cheaper
        reread = row["pointwise"] if n <= rerank else cpu_seconds(lambda: pairs(rerank))
        row["index, then pointwise"] = row["bi-encoder, index"] + reread
        rows.append(row)
    return rows


def crossover(rows: Sequence[dict[str, float]], slow: str, fast: str) -> float | None:
    """The number of candidates from which ``fast`` costs less than ``slow``, or None; on a straight line between two
    measured sizes, in logarithms."""
    gaps = [(row["candidates"], row[slow] / row[fast]) for row in rows]
    if gaps[0][1] > 1:
        return gaps[0][0]
    for (n0, r0), (n1, r1) in pairwise(gaps):
        if r0 <= 1 < r1:
            part = -torch.tensor(r0).log() / (torch.tensor(r1).log() - torch.tensor(r0).log())
            return float(n0 * (n1 / n0) ** float(part))
    return None
