"""Pairs of sentences that mean the same or not: two translations of one message, and of two messages that look alike.

Firefox and Thunderbird are translated into Chinese twice, by two communities that do not copy from each other: zh-CN and
zh-TW (turned to simplified characters). So a message gives a real paraphrase. The negatives are as hard as TF-IDF can make
them: the Taiwan wording of a message beside the mainland wording of the *other* message that looks most like it.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from common.data.cards import Card
from common.data.splits import SPLITS, Row, Splits, shuffled
from common.errors import RoadmapError
from common.packages import sha256
from common.paths import ASSETS

if TYPE_CHECKING:
    from datasets import Features

FROZEN = ASSETS / "data" / "firefox_pairs.tsv"
SHA256 = "ef3f1de2869b593020ecabc0d4448cc52cc3f89920e0f4803274d5edd8dc06f7"
ALIKE = 0.6  # cosine of TF-IDF vectors from which two texts must be in the same split
LARGEST = 40  # messages of a group made of nearest neighbours: a chain of neighbours of neighbours would take in half of all
_SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}
_FILLERS = {"a", "an", "the", "your", "this", "please", "is", "are"}  # "the page" and "this page" are no different meanings


@dataclass(frozen=True)
class Retrieval:
    """Queries, the candidates to choose from, and for each query the index of its right candidate."""

    queries: list[str]
    candidates: list[str]
    gold: list[int]


def retrieval(rows: Iterable[Row]) -> Retrieval:
    """Pairs as a search task: every first sentence that has a match is a query, all second sentences are candidates.

    Args:
        rows: With ``sentence1``, ``sentence2`` and ``label`` (1 is a match), such as ``load_data("pairs")["test"]``.

    Raises:
        RoadmapError: If no pair matches.
    """
    rows = list(rows)
    candidates = list(dict.fromkeys(row["sentence2"] for row in rows))
    place = {text: i for i, text in enumerate(candidates)}
    gold: dict[str, int] = {}
    for row in rows:
        if row["label"] == 1:
            gold.setdefault(row["sentence1"], place[row["sentence2"]])
    if not gold:
        raise RoadmapError("No pair has the label 1, so there is nothing to find; check which column is the label.")
    return Retrieval(list(gold), candidates, list(gold.values()))


@cache
def messages() -> list[dict[str, Any]]:
    """The frozen messages: ``english``, ``zh_cn``, ``zh_tw``, ``group``, ``split``, and ``nearest``.

    ``nearest`` is the index of the message of the same split whose zh-CN text looks most like this zh-TW text.

    Raises:
        RoadmapError: If the file is missing or changed.
    """
    rows = _frozen()
    across, alike = _similarities(rows)
    best = across.argmax(1).tolist()
    closest_first = sorted(range(len(rows)), key=lambda i: -across[i, best[i]])
    groups = connected(len(rows), alike, [(i, best[i]) for i in closest_first], largest=LARGEST)
    splits = divide(groups)
    for row, others, group, split in zip(rows, across, groups, splits):
        others[[s != split for s in splits]] = -1
        row |= {"group": group, "split": split, "nearest": int(others.argmax())}
    return rows


def originals() -> dict[str, str]:
    """The English original of every frozen Chinese text: a gloss for readers, never an input of a model."""
    return {row[column]: row["english"] for row in _frozen() for column in ("zh_cn", "zh_tw")}


def _frozen() -> list[dict[str, Any]]:
    if not FROZEN.is_file() or sha256(FROZEN) != SHA256:
        raise RoadmapError(f"{FROZEN} is missing or was changed; get it back with: git checkout -- assets/data")
    head, *lines = (line.split("\t") for line in FROZEN.read_text(encoding="utf-8").splitlines())
    return [dict(zip(head, line, strict=True)) for line in lines]


def connected(n: int, edges: Iterable[tuple[int, int]], wishes: Iterable[tuple[int, int]] = (), largest: int = 0) -> list[int]:
    """The groups of ``n`` things, each named by its smallest member (union-find).

    Args:
        n: How many things.
        edges: Two things that must be in one group.
        wishes: Two things that should be, the strongest wish first: granted unless the group would outgrow ``largest``.
        largest: The most members that a wish may lead to.
    """
    parent, size = list(range(n)), [1] * n

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for must, pairs in ((True, edges), (False, wishes)):
        for pair in pairs:
            low, high = sorted(map(root, pair))
            if low != high and (must or size[low] + size[high] <= largest):
                parent[high] = low
                size[low] += size[high]
    return [root(i) for i in range(n)]


def divide(groups: Sequence[Any]) -> list[str]:
    """A split for every row, whole groups only, 80/10/10 as near as the groups allow, among large groups and small ones.

    Groups of one size come in the order of a hash, not of the file, where every other label may be a 1.
    """
    members: dict[Any, list[int]] = defaultdict(list)
    for i, group in enumerate(groups):
        members[group].append(i)
    have = dict.fromkeys(SPLITS, 0.0)
    splits = [""] * len(groups)
    for _, rows in sorted(members.items(), key=lambda item: (-len(item[1]), hashlib.md5(repr(item[0]).encode()).digest())):
        split = min(SPLITS, key=lambda s: (have[s] + len(rows)) / _SHARES[s])
        have[split] += len(rows)
        for i in rows:
            splits[i] = split
    return splits


def _similarities(rows: list[dict[str, Any]]) -> tuple[Any, list[tuple[int, int]]]:
    """TF-IDF similarity of each zh-TW text to each zh-CN text, -1 where both say the same; and the pairs that are alike."""
    import numpy as np
    from sklearn.feature_extraction.text import TfidfVectorizer

    cn, tw = ([row[column] for row in rows] for column in ("zh_cn", "zh_tw"))
    vectorizer = TfidfVectorizer(analyzer="char", ngram_range=(1, 2), sublinear_tf=True).fit(cn + tw)
    a, b = vectorizer.transform(cn), vectorizer.transform(tw)
    across = (b @ a.T).toarray().round(6)  # rounded: the last bits differ between machines
    alike = [
        (int(i), int(j))
        for matrix in (across, (a @ a.T).toarray().round(6), (b @ b.T).toarray().round(6))
        for i, j in zip(*np.nonzero(matrix >= ALIKE))
    ]
    meaning: dict[str, list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        meaning[_gist(row["english"])].append(i)
    for same in meaning.values():  # a message is no negative of itself, nor of one with the same original
        across[np.ix_(same, same)] = -1
        alike += pairwise(same)
    return across, alike


def _gist(english: str) -> str:
    """The English original without what changes no meaning: case, fillers, plurals, punctuation."""
    words = [word for word in re.findall(r"\w+", english.lower()) if word not in _FILLERS]
    return " ".join(word.removesuffix("s") if len(word) > 3 else word for word in words)


def _pairs() -> Splits:
    rows = messages()
    splits: Splits = {split: [] for split in SPLITS}
    for row in rows:
        for label, second in ((1, row["zh_cn"]), (0, rows[row["nearest"]]["zh_cn"])):
            pair = {"sentence1": row["zh_tw"], "sentence2": second, "label": label, "group": row["group"]}
            splits[row["split"]].append(pair)
    return shuffled(splits)


def _features() -> Features:
    from datasets import ClassLabel, Features, Value

    text, names = Value("string"), ["different", "same"]
    return Features({"sentence1": text, "sentence2": text, "label": ClassLabel(names=names), "group": Value("int32")})


def _from_clue(row: dict[str, Any]) -> dict[str, Any]:
    """The Hub's own splits are kept; a pair is a group of its own."""
    return {"sentence1": row["sentence1"], "sentence2": row["sentence2"], "label": row["label"], "group": row["idx"]}


CARDS = {
    "pairs": Card(
        about="Pairs of sentences that mean the same or not: two translations of a message, or of two that look alike",
        features=_features,
        archives=(),
        build=_pairs,
        tiny_source="assets/data/firefox_pairs.tsv: Firefox and Thunderbird 140.12 in zh-CN and zh-TW; split by look-alikes",
        tiny_licence="MPL-2.0 (Mozilla translators); frozen in assets/data with a card",
        full=("clue/clue", "afqmc", None),
        full_columns={},
        full_size="38,650 labelled pairs of questions to a bank, 4 MB",
        full_licence="not stated on the Hub (AFQMC, CLUE benchmark)",
        convert=_from_clue,
    ),
}
