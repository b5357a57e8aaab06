"""One run from data to measured matcher: the loop itself is ``common.fit``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from common import RoadmapError, fit, set_seed
from common.training import History

import torch

from matching import data, metrics, models
from matching.models import UNSUPERVISED, Matcher, Spec

Splits = dict[str, list[data.Row]]


@dataclass
class Trained:
    """What a run leaves: the matcher with its threshold in ``spec``, what was measured, and how the run went."""

    matcher: Matcher
    tokenizer: Any
    batcher: data.Batcher
    spec: Spec
    history: History | None
    validation: dict[str, float]

    def test(self, splits: Splits) -> dict[str, float]:
        """Everything about the test split, at the threshold of the validation split. To be looked at once."""
        assert self.spec.threshold is not None
        return metrics.evaluate(self.matcher, self.batcher, splits["test"], self.spec.threshold, tfidf(splits))

    def save(self, folder: str | Path) -> None:
        """Write what ``matching.models.load`` reads."""
        models.save(self.matcher, self.tokenizer, folder, self.spec)


def train(
    spec: Spec,
    splits: Splits,
    model: str,
    *,
    epochs: int = 2,
    lr: float = 1e-3,
    batch_size: int = 32,
    weight_decay: float = 0.01,
    warmup: float = 0.1,
    duplicate_rate: float = 0.32,
    random_start: bool = False,
    limit: int | None = None,
    sentences: Sequence[str] = (),
    precision: Literal["no", "bf16", "fp16"] = "no",
    seed: int = 0,
) -> Trained:
    """Train on the training split, choose weights and threshold on the validation split, never look at the test split.

    Args:
        spec: Architecture, loss and the rest.
        splits: From :func:`matching.data.load_pairs`.
        model: The encoder: a local folder or a Hub name.
        epochs: Passes over the training items; 0 measures the encoder as it is.
        lr: Peak learning rate.
        batch_size: Items per step: first texts with their second texts, or sentences.
        weight_decay: Of matrices.
        warmup: Part of the steps over which the rate rises.
        duplicate_rate: Only for ``esimcse``: the largest part of a sentence's tokens that is repeated.
        random_start: Random weights in place of pre-trained ones.
        limit: Use only so many training items.
        sentences: Only for ``simcse`` and ``esimcse``: unlabelled texts beside those of the training pairs.
        precision: Autocast format, for GPUs.
        seed: Of the head, the order, and all noise.

    Raises:
        RoadmapError: As :func:`matching.models.build` and ``common.fit``; fewer than two training items.
    """
    set_seed(seed)
    matcher, tokenizer = models.build(spec, model, random=random_start)
    if torch.cuda.is_available():
        matcher.cuda()
    batcher = data.Batcher(tokenizer, spec, duplicate_rate if spec.arch == "esimcse" else 0.0)
    rows = splits["train"]
    items: list[Any] = data.sentences(rows, sentences) if spec.arch in UNSUPERVISED else data.queries(rows)
    items = items[:limit]
    if len(items) < 2:
        raise RoadmapError(f"There are {len(items)} training items; at least 2 are needed to compare anything.")
    labels = [row["label"] for row in splits["validation"]]

    def validate(_: torch.nn.Module) -> dict[str, float]:
        scores = metrics.pair_scores(matcher, batcher, splits["validation"])
        return metrics.decisions(scores, labels, metrics.best_threshold(scores, labels))

    history = None
    if epochs:
        history = fit(
            matcher,
            data.loader(items, batcher, batch_size),
            epochs=epochs,
            lr=lr,
            weight_decay=weight_decay,
            warmup=warmup,
            precision=precision,
            evaluate=validate,
            best="spearman",
            seed=seed,
            label=spec.arch,
        )
    threshold = metrics.best_threshold(metrics.pair_scores(matcher, batcher, splits["validation"]), labels)
    found = metrics.evaluate(matcher, batcher, splits["validation"], threshold)
    return Trained(matcher, tokenizer, batcher, replace(spec, threshold=threshold), history, found)


def tfidf(splits: Splits) -> metrics.Tfidf:
    """The baseline, with the frequencies of the training texts."""
    return metrics.Tfidf([row[column] for row in splits["train"] for column in ("sentence1", "sentence2")])


def baselines(splits: Splits) -> dict[str, dict[str, float]]:
    """What has to be beaten, on the test split: "every pair matches", and TF-IDF with a threshold from the validation split."""
    bag, test = tfidf(splits), splits["test"]
    labels = [row["label"] for row in test]
    threshold = metrics.best_threshold(bag.scores(splits["validation"]), [row["label"] for row in splits["validation"]])
    always = {key: value for key, value in metrics.decisions(bag.scores(test) * 0, labels, 0.0).items() if key != "spearman"}
    return {
        "all positive": always,
        "TF-IDF": metrics.decisions(bag.scores(test), labels, threshold) | bag.search(test),
    }
