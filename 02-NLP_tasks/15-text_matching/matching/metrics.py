"""What is measured: decisions at a threshold, order, retrieval, and the geometry of the vectors."""

from __future__ import annotations

from collections.abc import Sequence

from common.data.pairs import retrieval
from common.metrics import f1, precision, rank, recall, spearmanr
from common.metrics import retrieval as retrieval_scores
from common.training import evaluating

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics import roc_auc_score

from matching.data import Batcher, Row
from matching.models import BiEncoder, Matcher

Scores = NDArray[np.float64]
RERANKED = 20  # candidates a pointwise model gets to see, preselected by TF-IDF


def best_threshold(scores: Scores, labels: Sequence[int]) -> float:
    """The score from which calling a pair a match gives the highest F1; halfway to the next lower score, for a margin.

    Args:
        scores: Shape (pairs,), of a split that is used for choices, never of the test split.
        labels: 1 or 0.
    """
    order = np.argsort(-np.asarray(scores), kind="stable")
    ranked, hits = np.asarray(scores)[order], np.cumsum(np.asarray(labels)[order])
    f1 = 2 * hits / (np.arange(1, len(ranked) + 1) + hits[-1])
    f1[:-1][ranked[:-1] == ranked[1:]] = -1  # equal scores cannot be divided
    cut = int(f1.argmax())
    return float(ranked[cut] if cut + 1 == len(ranked) else (ranked[cut] + ranked[cut + 1]) / 2)


def decisions(scores: Scores, labels: Sequence[int], threshold: float) -> dict[str, float]:
    """Precision, recall and F1 of "match" at a threshold, and what needs none: AUC and Spearman's rho."""
    predicted = (np.asarray(scores) >= threshold).astype(int)
    found = {score.__name__: score(predicted, labels) for score in (precision, recall, f1)}
    return found | {"auc": float(roc_auc_score(labels, scores)), "spearman": spearmanr(scores, labels)}


def alignment(u: torch.Tensor, v: torch.Tensor) -> float:
    """Mean squared distance of the unit vectors of matches, shape (matches, width) each; 0 is best, unrelated is 2.

    Source: Wang and Isola (2020), Understanding Contrastive Representation Learning, arXiv:2005.10242 (also uniformity).
    """
    u, v = (torch.nn.functional.normalize(x, dim=-1) for x in (u, v))
    return float((u - v).square().sum(-1).mean())


def uniformity(z: torch.Tensor) -> float:
    """Log of the mean of exp(-2 squared distance) over all pairs of unit vectors; lower is more spread out, 0 is one point."""
    z = torch.nn.functional.normalize(z, dim=-1)
    return float(torch.pdist(z).square().mul(-2).exp().mean().log())


@torch.inference_mode()
def encode(matcher: BiEncoder, batcher: Batcher, texts: Sequence[str], batch_size: int = 128) -> torch.Tensor:
    """Vectors of many texts on the CPU, shape (texts, width), in their order; batches are made of texts of like length."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    home = next(matcher.parameters()).device
    done: list[torch.Tensor] = []
    with evaluating(matcher):
        for start in range(0, len(order), batch_size):
            batch = batcher.texts([texts[i] for i in order[start : start + batch_size]])
            done.append(matcher.vectors(**{key: value.to(home) for key, value in batch.items()}).float().cpu())
    vectors = torch.empty(len(texts), done[0].shape[1])
    vectors[torch.tensor(order)] = torch.cat(done)
    return vectors


class Vectors:
    """The vectors of all texts of some pairs, each computed once.

    Args:
        matcher: Who reads them.
        batcher: How.
        rows: Pairs.
    """

    def __init__(self, matcher: BiEncoder, batcher: Batcher, rows: Sequence[Row]) -> None:
        texts = dict.fromkeys(row[column] for column in ("sentence1", "sentence2") for row in rows)
        self.place = {text: i for i, text in enumerate(texts)}
        self.z = encode(matcher, batcher, list(texts))

    def of(self, texts: Sequence[str]) -> torch.Tensor:
        """Shape (texts, width)."""
        return self.z[torch.tensor([self.place[text] for text in texts])]


@torch.inference_mode()
def pair_scores(
    matcher: Matcher, batcher: Batcher, rows: Sequence[Row], batch_size: int = 128, vectors: Vectors | None = None
) -> Scores:
    """One score a pair, higher is more alike, shape (pairs,); ``vectors`` saves a bi-encoder from reading them again."""
    if isinstance(matcher, BiEncoder):
        vectors = vectors or Vectors(matcher, batcher, rows)
        u, v = (vectors.of([row[column] for row in rows]) for column in ("sentence1", "sentence2"))
        return np.array([compare(matcher, one[None], other[None]).item() for one, other in zip(u, v)], dtype=np.float64)
    home = next(matcher.parameters()).device
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]["sentence1"]) + len(rows[i]["sentence2"]))
    scores = np.empty(len(rows))
    with evaluating(matcher):
        for start in range(0, len(order), batch_size):
            index = order[start : start + batch_size]
            batch = batcher.joined([{k: v for k, v in rows[i].items() if k != "label"} for i in index])
            logits = matcher(**{key: value.to(home) for key, value in batch.items()}).logits.float().cpu()
            scores[index] = (logits[:, 1] - logits[:, 0]).numpy()
    return scores


@torch.inference_mode()
def compare(matcher: BiEncoder, queries: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
    """Scores of vectors on the CPU, shape (queries, candidates)."""
    home = next(matcher.parameters()).device
    return matcher.compare(queries.to(home), candidates.to(home)).float().cpu()


class Tfidf:
    """The baseline: cosine of TF-IDF vectors over characters and pairs of characters. Nothing is learned but frequencies."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.vectorizer = TfidfVectorizer(analyzer="char", ngram_range=(1, 2), sublinear_tf=True).fit(texts)

    def scores(self, rows: Sequence[Row]) -> Scores:
        """One cosine a pair, shape (pairs,)."""
        a, b = (self.vectorizer.transform([row[c] for row in rows]) for c in ("sentence1", "sentence2"))
        return np.asarray(a.multiply(b).sum(1), dtype=np.float64).ravel()

    def matrix(self, queries: Sequence[str], candidates: Sequence[str]) -> Scores:
        """Shape (queries, candidates)."""
        return (self.vectorizer.transform(queries) @ self.vectorizer.transform(candidates).T).toarray()

    def search(self, rows: Sequence[Row]) -> dict[str, float]:
        """MRR and recall@1, 5, 10 among all second texts of the rows."""
        task = retrieval(rows)
        return retrieval_scores(rank(self.matrix(task.queries, task.candidates)), task.gold, k=(1, 5, 10))


def search(
    matcher: Matcher, batcher: Batcher, rows: Sequence[Row], tfidf: Tfidf, vectors: Vectors | None = None
) -> dict[str, float]:
    """MRR and recall@1, 5, 10 among all second texts of the rows.

    A pointwise model would have to read every query with every candidate; it orders the first :data:`RERANKED` of TF-IDF
    and leaves the rest as TF-IDF has it.
    """
    task = retrieval(rows)
    if isinstance(matcher, BiEncoder):
        vectors = vectors or Vectors(matcher, batcher, rows)
        ranking = rank(compare(matcher, vectors.of(task.queries), vectors.of(task.candidates)).numpy())
    else:
        ranking = rank(tfidf.matrix(task.queries, task.candidates))
        pairs = [
            {"sentence1": query, "sentence2": task.candidates[i]}
            for query, order in zip(task.queries, ranking)
            for i in order[:RERANKED]
        ]
        scores = pair_scores(matcher, batcher, pairs).reshape(len(task.queries), -1)
        width = scores.shape[1]
        ranking[:, :width] = np.take_along_axis(ranking[:, :width], rank(scores), axis=1)
    return retrieval_scores(ranking, task.gold, k=(1, 5, 10))


def evaluate(
    matcher: Matcher, batcher: Batcher, rows: Sequence[Row], threshold: float, tfidf: Tfidf | None = None
) -> dict[str, float]:
    """Everything about one split at a threshold that was chosen elsewhere; retrieval too if a TF-IDF baseline is given."""
    labels = [row["label"] for row in rows]
    vectors = Vectors(matcher, batcher, rows) if isinstance(matcher, BiEncoder) else None
    found = decisions(pair_scores(matcher, batcher, rows, vectors=vectors), labels, threshold)
    if vectors:
        matches = [row for row in rows if row["label"] == 1]
        u, v = (vectors.of([row[column] for row in matches]) for column in ("sentence1", "sentence2"))
        found |= {"alignment": alignment(u, v), "uniformity": uniformity(torch.cat([u, v]))}
    return found | (search(matcher, batcher, rows, tfidf, vectors) if tfidf else {})
