"""Metrics that need no network: plain functions, and the same functions as ``evaluate`` modules.

``evaluate.load("accuracy")`` fetches a script from the Hub. The scripts in ``assets/metrics`` stand in for it:
``load_metric("accuracy")`` loads one by its path, with the argument names and result keys of the Hub's module.
Every score is a fraction between 0 and 1, except perplexity (1 to infinity) and Spearman's rho (-1 to 1).
"""

from __future__ import annotations

import inspect
import math
import re
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from common.errors import RoadmapError, unknown
from common.paths import ASSETS

import numpy as np
from numpy.typing import ArrayLike, NDArray

METRICS = ASSETS / "metrics"

# A unit is a Chinese character, or a whole Latin word or number ("Qwen2.5", "2018"); punctuation and spaces are none.
# Signs that change a number stay: "5%" is not "5".
_UNIT = re.compile(r"[a-z0-9\u00c0-\u024f]+(?:\.[0-9]+)*|[^\W_]|[%％‰°℃¥￥$€]")
_TAG = re.compile(r"O|[BI]-.+")


def _check_pairs(predictions: Any, references: Any) -> None:
    """Refuse what cannot be compared one to one."""
    if predictions is None or references is None or len(predictions) == len(references) == 0:
        raise RoadmapError("There is nothing to score: give at least one prediction and one reference.")
    if len(predictions) != len(references):
        raise RoadmapError(
            f"{len(predictions)} predictions cannot be compared with {len(references)} references; give one reference each."
        )


# --- classification ---------------------------------------------------------------------------------------------------


def _labels(predictions: ArrayLike, references: ArrayLike) -> tuple[NDArray[Any], NDArray[Any]]:
    """Both as vectors of class labels, checked."""
    _check_pairs(predictions, references)
    vectors = np.asarray(predictions), np.asarray(references)
    for name, vector in zip(("Predictions", "References"), vectors):
        if vector.ndim != 1 or vector.dtype.kind == "f":
            raise RoadmapError(
                f"{name} must be one class label per example, not {vector.dtype} of shape {vector.shape}; "
                "turn logits into labels first, with logits.argmax(-1)."
            )
    return vectors


def accuracy(predictions: ArrayLike, references: ArrayLike) -> float:
    """The share of predictions that equal their reference.

    Args:
        predictions: Class labels, shape (examples,).
        references: Class labels, shape (examples,).

    Raises:
        RoadmapError: If the lengths differ, nothing is given, or logits are given in place of labels.
    """
    predicted, true = _labels(predictions, references)
    return float(np.mean(predicted == true))


def per_class(predictions: ArrayLike, references: ArrayLike) -> dict[Any, dict[str, float]]:
    """Precision, recall, F1 and support (the number of references) of every class; 0 / 0 counts as 0.

    Args:
        predictions: Class labels, shape (examples,).
        references: Class labels, shape (examples,).

    Returns:
        ``{label: {"precision", "recall", "f1", "support"}}`` for the labels in predictions or references, sorted.

    Raises:
        RoadmapError: As :func:`accuracy`.
    """
    predicted, true = _labels(predictions, references)
    report = {}
    for label in np.union1d(predicted, true).tolist():
        hits = float(np.sum((predicted == label) & (true == label)))
        named, support = int(np.sum(predicted == label)), int(np.sum(true == label))
        report[label] = {
            "precision": hits / max(named, 1),
            "recall": hits / max(support, 1),
            "f1": 2 * hits / max(named + support, 1),
            "support": support,
        }
    return report


def _averaged(score: str, predictions: ArrayLike, references: ArrayLike, average: str, pos_label: Any) -> float:
    if average not in ("binary", "macro"):
        raise unknown("average", average, ("binary", "macro"), "common.metrics.per_class for one score per class")
    report = per_class(predictions, references)
    if average == "macro":
        return float(np.mean([scores[score] for scores in report.values()]))
    if len(report) > 2 or (len(report) == 2 and pos_label not in report):
        raise RoadmapError(
            f'average="binary" scores the class {pos_label!r} of two, but the labels are {list(report)}; use average="macro".'
        )
    return report[pos_label][score] if pos_label in report else 0.0


def precision(predictions: ArrayLike, references: ArrayLike, average: str = "binary", pos_label: Any = 1) -> float:
    """Of the examples given a class, the share that belongs to it. Arguments and errors as :func:`f1`."""
    return _averaged("precision", predictions, references, average, pos_label)


def recall(predictions: ArrayLike, references: ArrayLike, average: str = "binary", pos_label: Any = 1) -> float:
    """Of the examples that belong to a class, the share that was given it. Arguments and errors as :func:`f1`."""
    return _averaged("recall", predictions, references, average, pos_label)


def f1(predictions: ArrayLike, references: ArrayLike, average: str = "binary", pos_label: Any = 1) -> float:
    """The harmonic mean of precision and recall; :func:`per_class` gives it class by class.

    Args:
        predictions: Class labels, shape (examples,).
        references: Class labels, shape (examples,).
        average: ``"binary"``: the score of ``pos_label`` (the Hub's default); ``"macro"``: the plain mean over the classes
            that occur in predictions or references.
        pos_label: The class that ``"binary"`` scores.

    Raises:
        RoadmapError: As :func:`accuracy`; also for another average, and for ``"binary"`` over more than two classes.
    """
    return _averaged("f1", predictions, references, average, pos_label)


# --- entities ---------------------------------------------------------------------------------------------------------


def seqeval(predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Entity-level scores in strict IOB2: an entity counts if its type and both borders are right.

    ``I-`` without ``B-`` begins nothing. The seqeval package counts; the keys are those of the Hub's module:
    ``overall_precision``, ``overall_recall``, ``overall_f1`` (micro), ``overall_accuracy`` (per tag), and for every type
    a dictionary of ``precision``, ``recall``, ``f1``, ``number``.

    Args:
        predictions: One list of tags per sentence, such as ``["B-PER", "I-PER", "O"]``.
        references: The same shape.

    Raises:
        RoadmapError: If lengths differ, within a sentence too, nothing is given, or a tag is not O, B-type or I-type.
    """
    from seqeval.metrics.v1 import precision_recall_fscore_support
    from seqeval.scheme import IOB2

    _check_pairs(predictions, references)
    for number, (predicted, true) in enumerate(zip(predictions, references)):
        if len(predicted) != len(true):
            raise RoadmapError(f"Sentence {number} has {len(predicted)} predicted tags and {len(true)} reference tags.")
    flat = [[tag for sentence in side for tag in sentence] for side in (predictions, references)]
    bad = next((tag for tag in {*flat[0], *flat[1]} if not _TAG.fullmatch(tag)), None)
    if bad is not None:
        raise RoadmapError(f"{bad!r} is not a BIO tag; a tag is O, B-type or I-type, such as B-PER.")

    sides = [list(map(list, references)), list(map(list, predictions))]
    count = {"scheme": IOB2, "zero_division": 0}
    types = sorted({tag[2:] for tag in flat[0] + flat[1] if tag.startswith("B-")})
    columns = precision_recall_fscore_support(*sides, average=None, **count) if types else ([], [], [], [])
    result: dict[str, Any] = {
        name: {"precision": float(p), "recall": float(r), "f1": float(f), "number": int(n)}
        for name, p, r, f, n in zip(types, *columns)
    }
    overall = precision_recall_fscore_support(*sides, average="micro", **count)[:3] if types else (0.0, 0.0, 0.0)
    result |= {f"overall_{name}": float(value) for name, value in zip(("precision", "recall", "f1"), overall)}
    return result | {"overall_accuracy": float(np.mean([p == r for p, r in zip(*flat)])) if flat[0] else 0.0}


def listed(answer: str) -> set[tuple[str, str]]:
    """The pairs of type and name in an answer such as ``人名：张三、李四；地名：北京``; none where it has another form."""
    found = set()
    for part in answer.split("；"):
        kind, _, names = part.partition("：")
        found |= {(kind, name) for name in names.split("、") if name}
    return found


def listed_f1(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """How well names are listed: micro ``precision``, ``recall`` and ``f1`` of type and name, and ``exact_match`` of answers.

    Args:
        predictions: Answers as in ``load_data("extraction")``.
        references: The right ones.

    Raises:
        RoadmapError: If the lengths differ or nothing is given.
    """
    _check_pairs(predictions, references)
    sides = [(listed(said), listed(true)) for said, true in zip(predictions, references)]
    right, given, wanted = (sum(map(len, part)) for part in zip(*[(said & true, said, true) for said, true in sides]))
    exact = sum(said.strip() == true.strip() for said, true in zip(predictions, references)) / len(references)
    ratios = {"precision": right / max(1, given), "recall": right / max(1, wanted), "f1": 2 * right / max(1, given + wanted)}
    return ratios | {"exact_match": exact}


# --- language modelling and generation --------------------------------------------------------------------------------


def perplexity(nll_sum: ArrayLike, tokens: ArrayLike) -> float:
    """exp(total negative log-likelihood / total tokens): weighted by tokens, not the mean of batch perplexities.

    Args:
        nll_sum: Negative log-likelihood in nats, summed over tokens: a number, or one per text or batch.
        tokens: How many tokens each sum covers (shifted labels other than -100), same shape.

    Raises:
        RoadmapError: If the shapes differ or there is no token.
    """
    sums, counts = np.atleast_1d(nll_sum), np.atleast_1d(tokens)
    _check_pairs(sums, counts)
    if np.any(counts < 0) or not np.sum(counts):
        raise RoadmapError("Perplexity needs at least one token: are all labels -100, or the texts empty?")
    with np.errstate(over="ignore"):
        return float(np.exp(np.sum(sums) / np.sum(counts)))


def units(text: str) -> list[str]:
    """What ROUGE and the answer scores compare: Chinese characters, whole Latin words and numbers, in lower case.

    >>> units("Qwen2.5 发布了，共 7 种大小。")
    ['qwen2.5', '发', '布', '了', '共', '7', '种', '大', '小']
    """
    return _UNIT.findall(text.lower())


def _longest_common(a: Sequence[str], b: Sequence[str], gaps: bool) -> int:
    """Length of the longest common subsequence (``gaps``) or substring, by dynamic programming over one row."""
    best, row = 0, [0] * (len(b) + 1)
    for x in a:
        above, row = row, [0]
        for j, y in enumerate(b):
            row.append(above[j] + 1 if x == y else max(above[j + 1], row[j]) if gaps else 0)
        best = max(best, *row)
    return best


def _f_measure(common: int, predicted: int, true: int) -> float:
    return 2 * common / (predicted + true) if common else 0.0


def rouge(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """ROUGE-1, ROUGE-2 and ROUGE-L F-measure over :func:`units`, averaged over the examples.

    ROUGE-N counts common n-grams, each as often as both sides have it; ROUGE-L takes the longest common subsequence of
    the whole texts. An empty text scores 0. Source: Lin (2004), ROUGE: A Package for Automatic Evaluation of Summaries.

    Args:
        predictions: Texts.
        references: One text each.

    Returns:
        ``rouge1``, ``rouge2``, ``rougeL``.

    Raises:
        RoadmapError: If the lengths differ or nothing is given.
    """
    _check_pairs(predictions, references)
    rows = []
    for a, b in ((units(p), units(r)) for p, r in zip(predictions, references)):
        row = []
        for n in (1, 2):
            grams = [Counter(zip(*(side[i:] for i in range(n)))) for side in (a, b)]
            row.append(_f_measure((grams[0] & grams[1]).total(), grams[0].total(), grams[1].total()))
        rows.append([*row, _f_measure(_longest_common(a, b, gaps=True), len(a), len(b))])
    return dict(zip(("rouge1", "rouge2", "rougeL"), np.mean(rows, axis=0).tolist()))


def cmrc(predictions: Sequence[str], references: Sequence[str | Sequence[str]]) -> dict[str, float]:
    """Exact match and F1 of extracted answers, over :func:`units`; the best of several gold answers counts.

    The overlap in F1 is the longest common *substring*, as ``find_lcs`` in the official scorer of CMRC 2018 (Cui et al.
    2019, A Span-Extraction Dataset for Chinese Machine Reading Comprehension; cmrc2018_evaluate.py, version 5), not
    SQuAD's bag of words. Three differences: all Unicode punctuation is dropped, not a fixed list; Latin words are found
    by a pattern, not by NLTK; an empty answer to a question with an empty gold answer is right, as in SQuAD 2.0.
    Scores are fractions; the official scorer prints percent.

    Args:
        predictions: One answer per question; may be empty.
        references: One gold answer, or several, per question.

    Returns:
        ``exact_match`` and ``f1``.

    Raises:
        RoadmapError: If the lengths differ, nothing is given, or a question has no gold answer.
    """
    _check_pairs(predictions, references)
    exact, overlap = [], []
    for number, (prediction, golds) in enumerate(zip(predictions, references)):
        if not isinstance(golds, str) and not len(golds):
            raise RoadmapError(f'Question {number} has no gold answer; write "" if it cannot be answered.')
        a, candidates = units(prediction), [units(gold) for gold in ([golds] if isinstance(golds, str) else golds)]
        exact.append(a in candidates)
        overlap.append(max(1.0 if a == b else _f_measure(_longest_common(a, b, gaps=False), len(a), len(b)) for b in candidates))
    return {"exact_match": float(np.mean(exact)), "f1": float(np.mean(overlap))}


# --- retrieval and similarity -----------------------------------------------------------------------------------------


def rank(scores: ArrayLike) -> NDArray[np.int64]:
    """Candidates from best to worst; of equal scores the lower index comes first.

    Args:
        scores: Similarity of each query to each candidate, higher is better, shape (queries, candidates).

    Returns:
        Candidate indices, shape (queries, candidates).

    Raises:
        RoadmapError: If the scores are no matrix or hold a NaN, which would land at an arbitrary rank.
    """
    matrix = np.asarray(scores)
    if matrix.ndim != 2 or np.isnan(matrix).any():
        raise RoadmapError(f"Scores must be a matrix (queries, candidates) without NaN; the shape is {matrix.shape}.")
    return np.argsort(-matrix.astype(np.float64), axis=1, kind="stable")


def _ranks(rankings: Any, gold: Any) -> NDArray[np.float64]:
    """Rank of the gold candidate of every query, from 1; infinity where the ranking does not list it."""
    _check_pairs(rankings, gold)
    positions = (np.flatnonzero(np.asarray(ranking) == right) for ranking, right in zip(rankings, gold))
    return np.array([found[0] + 1 if len(found) else np.inf for found in positions])


def recall_at_k(rankings: Sequence[Sequence[Hashable]] | NDArray[Any], gold: Sequence[Hashable] | NDArray[Any], k: int) -> float:
    """The share of queries whose gold candidate is among the first ``k``.

    Args:
        rankings: Candidates of every query, best first, such as ``rank(scores)``; may be cut off.
        gold: The one right candidate of every query.
        k: At least 1.

    Raises:
        RoadmapError: If the lengths differ, nothing is given or k < 1.
    """
    if k < 1:
        raise RoadmapError(f"recall@k needs k of at least 1, not {k}.")
    return float(np.mean(_ranks(rankings, gold) <= k))


def mrr(rankings: Sequence[Sequence[Hashable]] | NDArray[Any], gold: Sequence[Hashable] | NDArray[Any]) -> float:
    """Mean reciprocal rank of the gold candidate; 0 where it is not listed. Arguments as :func:`recall_at_k`."""
    return float(np.mean(1 / _ranks(rankings, gold)))


def retrieval(predictions: Any, references: Any, k: int | Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """``mrr`` and ``recall@k`` for every ``k``: rankings are the predictions, gold candidates the references."""
    cuts = {f"recall@{n}": recall_at_k(predictions, references, n) for n in np.atleast_1d(k).tolist()}
    return {"mrr": mrr(predictions, references)} | cuts


def spearmanr(predictions: ArrayLike, references: ArrayLike) -> float:
    """Spearman's rho: Pearson's correlation of the ranks, equal values sharing their mean rank.

    Args:
        predictions: Numbers, shape (examples,).
        references: Numbers, shape (examples,).

    Returns:
        Between -1 and 1; NaN if one side is constant or holds a NaN, because then there is no order to compare.

    Raises:
        RoadmapError: If the lengths differ or there are fewer than two pairs.
    """
    _check_pairs(predictions, references)
    columns = np.asarray(predictions, dtype=np.float64), np.asarray(references, dtype=np.float64)
    if len(columns[0]) < 2:
        raise RoadmapError("A rank correlation needs at least two pairs.")
    ranks = []
    for column in columns:
        values, index, counts = np.unique(column, return_inverse=True, return_counts=True)
        if len(values) == 1 or np.isnan(values).any():
            return math.nan
        ranks.append((np.cumsum(counts) - (counts - 1) / 2)[index])
    return float(np.asarray(np.corrcoef(ranks))[0, 1])


# --- uncertainty ------------------------------------------------------------------------------------------------------


def bootstrap_interval(
    metric: Callable[..., Any],
    predictions: Any,
    references: Any,
    n: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    key: str | None = None,
) -> tuple[float, float]:
    """Percentile bootstrap: how far the score would move on another test set of the same size.

    Draws the examples ``n`` times with replacement, in pairs, and scores every draw. For a slow metric that is a mean
    over examples, score them once and pass ``lambda scores, _: np.mean(scores)``.
    Source: Efron and Tibshirani (1993), An Introduction to the Bootstrap, chapter 13.

    Args:
        metric: A function of (predictions, references), such as :func:`f1`.
        predictions: As the metric takes them.
        references: As the metric takes them.
        n: The number of draws.
        seed: Of the draws; the same seed gives the same interval.
        level: The share of draws inside the interval.
        key: Which value to take when the metric returns a dictionary, such as ``"rougeL"``.

    Returns:
        The lower and the upper end. Draws where the metric is undefined (NaN) are left out.

    Raises:
        RoadmapError: If the lengths differ, nothing is given, n < 1 or level is not between 0 and 1. Also if ``key`` is
            missing or not in the result, or no draw has a defined score.
    """
    _check_pairs(predictions, references)
    if n < 1 or not 0 < level < 1:
        raise RoadmapError(f"A bootstrap needs n of at least 1 and a level between 0 and 1, not n={n} and level={level}.")
    full = metric(predictions, references)
    if isinstance(full, dict) and (key is None or key not in full):
        raise unknown("key of this metric", str(key), full)

    def draw(side: Any, index: NDArray[np.int64]) -> Any:
        return side[index] if isinstance(side, np.ndarray) else [side[i] for i in index.tolist()]

    generator, size, scores = np.random.default_rng(seed), len(predictions), []
    for _ in range(n):
        index = generator.integers(size, size=size)
        value = metric(draw(predictions, index), draw(references, index))
        scores.append(float(value[key] if isinstance(value, dict) else value))
    defined = [score for score in scores if not math.isnan(score)]
    if not defined:
        raise RoadmapError("The metric is undefined (NaN) in every draw; are all predictions the same?")
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


# --- the same, as evaluate modules ------------------------------------------------------------------------------------

# name: (function, Arrow type of one prediction, Arrow types one reference may have); [x] is a list of x
_MODULES: dict[str, tuple[Callable[..., Any], Any, list[Any]]] = {
    "accuracy": (accuracy, "int64", ["int64"]),
    "precision": (precision, "int64", ["int64"]),
    "recall": (recall, "int64", ["int64"]),
    "f1": (f1, "int64", ["int64"]),
    "per_class": (per_class, "int64", ["int64"]),
    "seqeval": (seqeval, ["string"], [["string"]]),
    "perplexity": (perplexity, "float64", ["int64"]),
    "rouge": (rouge, "string", ["string"]),
    "cmrc": (cmrc, "string", ["string", ["string"]]),
    "retrieval": (retrieval, ["int64"], ["int64"]),
    "spearmanr": (spearmanr, "float64", ["float64"]),
}


def module_class(name: str) -> type:
    """The ``evaluate.Metric`` subclass around one function above; a script in ``assets/metrics`` is one call of this.

    Predictions are kept in memory, not in evaluate's cache file: there every process on the machine competes for one
    lock on ``default_experiment-1-0.arrow``. Only a distributed evaluation (num_process > 1) needs the shared file.

    Raises:
        RoadmapError: If there is no such metric.
    """
    import datasets
    import evaluate

    if name not in _MODULES:
        raise unknown("metric", name, _MODULES)
    function, prediction, references = _MODULES[name]

    def column(kind: Any) -> Any:
        return datasets.List(datasets.Value(kind[0])) if isinstance(kind, list) else datasets.Value(kind)

    options = [datasets.Features(predictions=column(prediction), references=column(kind)) for kind in references]

    class Module(evaluate.Metric):
        def __init__(self, *args: Any, num_process: int = 1, keep_in_memory: bool = False, **kwargs: Any) -> None:
            super().__init__(*args, num_process=num_process, keep_in_memory=keep_in_memory or num_process == 1, **kwargs)

        def _info(self) -> evaluate.EvaluationModuleInfo:
            features = options if len(options) > 1 else options[0]
            return evaluate.EvaluationModuleInfo(description=inspect.getdoc(function), citation="", features=features)

        def add_batch(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> None:
            """Store a batch of predictions and references until compute."""
            _check_pairs(predictions, references)
            if prediction == "int64":
                _labels(predictions, references)  # before evaluate casts 0.9 to 0
            super().add_batch(predictions=predictions, references=references, **kwargs)

        def compute(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> Any:
            """Score what is given here, or what add and add_batch have stored."""
            if self.writer is None or predictions is not None or references is not None:
                _check_pairs(predictions, references)
            return super().compute(predictions=predictions, references=references, **kwargs)

        def _compute(self, predictions: Any, references: Any, **kwargs: Any) -> dict[Any, Any]:
            result = function(predictions, references, **kwargs)
            return result if isinstance(result, dict) else {name: result}

    Module.__name__ = Module.__qualname__ = name  # evaluate shows the class name, and prefixes results with it in combine()
    return Module


def load_metric(name: str) -> Any:
    """``evaluate.load`` of a script in ``assets/metrics``: offline, from any folder, safe in several processes.

    evaluate copies the script into the user's Hugging Face cache under a file lock; predictions stay in memory.

    Args:
        name: One of accuracy, precision, recall, f1, per_class, seqeval, perplexity (predictions: summed nats, references:
            token counts), rouge, cmrc, retrieval, spearmanr.

    Returns:
        An ``evaluate.EvaluationModule`` with add, add_batch, compute; evaluate.combine takes it too.

    Raises:
        RoadmapError: If there is no such metric, or the Hugging Face cache cannot be written.
    """
    if name not in _MODULES:
        raise unknown("metric", name, _MODULES)
    import evaluate

    try:
        return evaluate.load(str(METRICS / name))
    except OSError as error:
        raise RoadmapError(
            f"evaluate could not load {name} by way of its cache ({error}); set HF_HOME to a folder you can write."
        ) from error
