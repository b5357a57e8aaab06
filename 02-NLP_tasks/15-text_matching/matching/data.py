"""Pairs from the registry or from a file of one's own, and how they become batches.

A training item is a *query*: one first text with up to four second texts. So a match and the hard negatives of the same text
arrive in one batch, and the text is encoded once.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import RoadmapError, load_data
from common.data import SPLITS, normalise
from common.data.pairs import connected, divide
from common.data.readers.tables import read_frame

import torch
from torch.utils.data import DataLoader

from matching.models import UNSUPERVISED, Spec

Row = dict[str, Any]  # sentence1, sentence2, label
YES, NO = {"1", "1.0", "true", "yes", "same"}, {"0", "0.0", "false", "no", "different"}
SECONDS = 4  # second texts in one training item


def load_pairs(
    source: str = "pairs", text1: str = "sentence1", text2: str = "sentence2", label: str = "label"
) -> dict[str, list[Row]]:
    """Rows by split.

    Args:
        source: ``pairs``, or the path of a file; a file is cleaned and divided 80/10/10 so that no text is in two splits.
        text1: Only for a file: its column of first texts.
        text2: Its column of second texts.
        label: Its column of labels: 1/0, true/false, yes/no or same/different.

    Raises:
        RoadmapError: No such file or column, a file that is empty or unreadable, a label that is neither yes
            nor no, too few pairs, or texts so entangled that they cannot be divided.
    """
    if source == "pairs":
        return {split: rows.to_list() for split, rows in load_data("pairs").items()}
    rows = read_pairs(source, text1, text2, label)
    groups, why = _groups(rows)
    splits: dict[str, list[Row]] = {split: [] for split in SPLITS}
    for row, split in zip(rows, divide(groups)):
        splits[split].append(row)
    print(f"{Path(source).name}: {len(rows)} pairs in {len(set(groups))} groups; {why}.")
    for split in SPLITS:
        found = {row["label"] for row in splits[split]}
        if found != {0, 1}:
            raise RoadmapError(
                f"The {split} split of {Path(source).name} has {len(splits[split])} pairs with the labels {sorted(found)}; "
                "it needs both 0 and 1. Give more pairs, or pairs that share fewer texts."
            )
    return splits


def read_pairs(source: str | Path, text1: str, text2: str, label: str | None) -> list[Row]:
    """The pairs of a file, without empty and repeated ones, in the order of the file.

    Args:
        source: A ``.csv``, ``.tsv``, ``.json``, ``.jsonl`` or ``.parquet`` file.
        text1: Column of first texts.
        text2: Column of second texts.
        label: Column of labels, or None for pairs without.

    Raises:
        RoadmapError: As :func:`load_pairs`.
    """
    path = Path(source)
    frame = read_frame(path)
    for flag, column in (("--text1", text1), ("--text2", text2), ("--label", label)):
        if column is not None and column not in frame.columns:
            raise RoadmapError(
                f"{path.name} has no column {column!r}; it has: {', '.join(map(str, frame.columns))}. "
                f"Name the right one with {flag}."
            )
    frame = frame[[column for column in (text1, text2, label) if column is not None]].dropna()
    rows: dict[tuple[str, str], Row] = {}
    for values in frame.itertuples(index=False):
        first, second = str(values[0]).strip(), str(values[1]).strip()
        if normalise(first) and normalise(second):
            row = {"sentence1": first, "sentence2": second}
            rows.setdefault((first, second), row | ({} if label is None else {"label": _label(values[2], path.name)}))
    if not rows:
        raise RoadmapError(
            f"{path.name} has no pair of two texts; is it empty, or are {text1!r} and {text2!r} the wrong columns?"
        )
    return list(rows.values())


def read_lines(path: str | Path) -> list[str]:
    """The lines of a UTF-8 text file, without empty and repeated ones.

    Raises:
        RoadmapError: No such file, not UTF-8, or no line with text.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise RoadmapError(f"{path} cannot be read ({error.strerror}); give a text file with one sentence a line.") from error
    except UnicodeDecodeError as error:
        raise RoadmapError(f"{path} is not UTF-8; convert it first: iconv -f gb18030 -t utf-8 {path} > utf8.txt") from error
    found = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not found:
        raise RoadmapError(f"{path} is empty; give a text file with one sentence a line.")
    return found


def _label(value: Any, name: str) -> int:
    text = str(value).strip().lower()
    if text not in YES | NO:
        raise RoadmapError(f"{name} has the label {value!r}; a label is 1 or 0 (or true/false, yes/no, same/different).")
    return int(text in YES)


def _groups(rows: list[Row]) -> tuple[list[int], str]:
    """Pairs that share a text belong together; if that chains up most of the file, the more varied column decides."""

    def joined(columns: Sequence[str]) -> list[int]:
        first: dict[str, int] = {}
        edges = [(first.setdefault(normalise(row[column]), i), i) for i, row in enumerate(rows) for column in columns]
        return connected(len(rows), edges)

    both = joined(["sentence1", "sentence2"])
    if max(Counter(both).values()) <= len(rows) // 2:
        return both, "no text is in two splits"
    column = max(("sentence1", "sentence2"), key=lambda c: len({normalise(row[c]) for row in rows}))
    return joined([column]), f"texts of {column} are in one split each (those of the other column are shared by most pairs)"


# ------------------------------------------------------------------------------------------------ batches


def queries(rows: list[Row]) -> list[list[Row]]:
    """Pairs gathered by first text, at most :data:`SECONDS` to an item; a match goes first into every item that can have one."""
    by_text: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_text[row["sentence1"]].append(row)
    items: list[list[Row]] = []
    for group in by_text.values():
        yes, no = ([row for row in group if row["label"] == label] for label in (1, 0))
        mixed = [row for pair in zip(yes, no) for row in pair] + yes[len(no) :] + no[len(yes) :]
        items += [mixed[i : i + SECONDS] for i in range(0, len(mixed), SECONDS)]
    return items


def sentences(rows: list[Row], more: Sequence[str] = ()) -> list[str]:
    """Every text once, without its label and its partner: what SimCSE learns from."""
    return list(dict.fromkeys([row[column] for row in rows for column in ("sentence1", "sentence2")] + list(more)))


class Batcher:
    """Turns items into tensors: a collate function."""

    def __init__(self, tokenizer: Any, spec: Spec, duplicate_rate: float = 0.0) -> None:
        self.tokenizer, self.spec, self.duplicate_rate = tokenizer, spec, duplicate_rate

    def __call__(self, items: Sequence[Any]) -> dict[str, torch.Tensor]:
        if self.spec.arch in UNSUPERVISED:
            return self.two_views(items)
        rows = [row for item in items for row in item]
        return self.joined(rows) if self.spec.arch == "pointwise" else self.apart(rows)

    def texts(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """``input_ids`` and ``attention_mask``, shape (texts, longest)."""
        return self._pad({"input_ids": self._ids(texts)})

    def joined(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        """Both texts in one row, with a separator; ``labels`` if the rows have any."""
        pairs = [[row["sentence1"] for row in rows], [row["sentence2"] for row in rows]]
        encoded = self.tokenizer(*pairs, truncation=True, max_length=2 * self.spec.max_length)
        return self._pad({key: encoded[key] for key in ("input_ids", "token_type_ids") if key in encoded}) | self._labels(rows)

    def apart(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        """Every text of the batch once; ``left`` and ``right`` say which two make a pair."""
        place: dict[str, int] = {}
        left, right = (torch.tensor([place.setdefault(row[c], len(place)) for row in rows]) for c in ("sentence1", "sentence2"))
        return self.texts(list(place)) | {"left": left, "right": right} | self._labels(rows)

    def two_views(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """Each sentence twice: rows 0..n-1, then n..2n-1, where ESimCSE repeats some tokens."""
        ids = self._ids(texts)
        again = [repeat_tokens(row, self.duplicate_rate, self.spec.max_length) for row in ids] if self.duplicate_rate else ids
        return self._pad({"input_ids": [*ids, *again]})

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        return self.tokenizer(list(texts), truncation=True, max_length=self.spec.max_length)["input_ids"]

    def _pad(self, rows: dict[str, list[list[int]]]) -> dict[str, torch.Tensor]:
        """A rectangle as wide as its longest row, and the mask that says what is real."""
        return dict(self.tokenizer.pad(rows, return_tensors="pt"))

    @staticmethod
    def _labels(rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        return {"labels": torch.tensor([row["label"] for row in rows])} if "label" in rows[0] else {}


def repeat_tokens(ids: list[int], rate: float, max_length: int) -> list[int]:
    """Some tokens twice, never the special ones at both ends, never past ``max_length``: ESimCSE's second view.

    The number is drawn evenly from 0 to max(2, rate * tokens), as in the source (Wu et al. 2022, section 3.1).
    """
    inner = range(1, len(ids) - 1)
    most = min(max(2, int(rate * len(inner))), len(inner), max_length - len(ids))
    chosen = set(random.sample(inner, random.randint(0, max(0, most))))
    return [token for i, token in enumerate(ids) for _ in range(2 if i in chosen else 1)]


def loader(items: list[Any], batcher: Batcher, batch_size: int) -> DataLoader[Any]:
    """Shuffled batches of items; an item left alone at the end is dropped, because it has nothing to be compared with."""
    alone = len(items) % batch_size == 1
    return DataLoader(items, batch_size, shuffle=True, collate_fn=batcher, drop_last=alone)  # type: ignore[arg-type]
