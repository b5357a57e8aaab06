"""Rows of one's own without copies, divided so that nothing leaks, always in the same way."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from common.data.readers.base import SHOWN, Item
from common.data.splits import SPLITS
from common.errors import RoadmapError

LEAST = 10  # rows of a file
_SHARE = 10  # one part in so many is held out for validation, and one for test
Divided = dict[str, list[Item]]


def cleaned(file: str, items: Sequence[Item]) -> list[Item]:
    """The rows with text, each once; what is left out is counted and printed.

    Copies with different labels contradict each other, so none of them is kept.

    Args:
        file: Its name, for what is printed.
        items: Its rows.
    """
    with_text = [item for item in items if item.key]
    labels: dict[str, set[Hashable]] = defaultdict(set)
    for item in with_text:
        labels[item.key].add(item.label)
    agreed = [item for item in with_text if len(labels[item.key]) == 1]
    kept = list({item.key: item for item in reversed(agreed)}.values())[::-1]
    counts = {
        "without text": len(items) - len(with_text),
        "repeated": len(agreed) - len(kept),
        "repeated with another label": len(with_text) - len(agreed),
    }
    removed = [f"{count:,} {what}" for what, count in counts.items() if count]
    if places := [item.at for item in with_text if len(labels[item.key]) > 1][:SHOWN]:
        removed[-1] += f" ({', '.join(places)}{' ...' if counts['repeated with another label'] > SHOWN else ''})"
    print(f"{file}: {len(items):,} rows, {len(kept):,} kept" + (f"; left out: {', '.join(removed)}." if removed else "."))
    return kept


def divide(file: str, items: Sequence[Item], splits: Sequence[str] = SPLITS, every_label: bool = False) -> Divided:
    """80/10/10 within each label, whole groups only; the order is that of a hash, so it is the same everywhere.

    Args:
        file: Its name, for messages.
        items: Rows without copies.
        splits: Which splits to make: train, and at least one that is held out.
        every_label: Refuse a label that is too rare to stand in every split.

    Raises:
        RoadmapError: Too few rows, too few groups, or a label that is too rare.
    """
    if len(items) < LEAST:
        raise RoadmapError(
            f"{file} has {len(items)} usable rows after empty and repeated ones are removed; {LEAST} is the least."
        )
    groups: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        groups[item.group or item.key].append(item)
    strata: dict[Hashable, list[str]] = defaultdict(list)
    for name in sorted(groups, key=_digest):
        strata[_label(groups[name])].append(name)
    rare = [label for label, names in strata.items() if len(names) < len(splits)]
    if every_label and rare:
        grouped = len(groups) < len(items)
        what = "stands in fewer than" if grouped else "has fewer than"
        raise RoadmapError(
            f"The label {rare[0]!r} in {file} {what} {len(splits)} different {'groups' if grouped else 'texts'}; "
            f"{_listed(splits)} need one each."
        )
    for label in rare:  # labels that are too rare for a share of their own share one
        strata[("rare",)] += strata.pop(label)
    divided: Divided = {split: [] for split in splits}
    for names in strata.values():
        for split, part in zip(splits, _parts([groups[name] for name in names], len(splits) - 1)):
            divided[split] += part
    if empty := [split for split, part in divided.items() if not part]:
        raise RoadmapError(
            f"{file} has {len(groups)} groups of rows that must stay together, too few for a {empty[0]} split; "
            'give the splits as files: file={"train": ..., "validation": ..., "test": ...}.'
        )
    return divided


def _parts(groups: list[list[Item]], held: int) -> list[list[Item]]:
    """The rest, then ``held`` parts of a tenth of the rows each. A group that is much larger than a part stays in the rest."""
    total = sum(map(len, groups))
    size = max(1, total // _SHARE)
    taken: set[int] = set()
    parts = []
    for i in range(held):
        part: list[Item] = []
        free = [place for place in range(len(groups)) if place not in taken]
        small = [place for place in free if len(groups[place]) <= 2 * size]
        for place in small or sorted(free, key=lambda place: len(groups[place]))[:1]:
            if len(part) >= size or len(groups) - len(taken) <= held - i:  # the other parts need a group each
                break
            part += groups[place]
            taken.add(place)
        parts.append(part)
    return [[item for place, group in enumerate(groups) if place not in taken for item in group], *parts]


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def _label(items: Iterable[Item]) -> Hashable:
    """The most frequent label of a group."""
    counts = Counter(item.label for item in items)
    return min(counts, key=lambda label: (-counts[label], str(label)))


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"


def without_leaks(file: str, given: Divided) -> Divided:
    """Splits that came as files, without what a later one repeats: rows whose text or group is held out leave training.

    Args:
        file: A name, for what is printed.
        given: Splits without copies in themselves.
    """
    seen: set[str] = set()
    fresh: Divided = {}
    for split in reversed([s for s in SPLITS if s in given]):
        fresh[split] = [item for item in given[split] if not {item.key, item.group or item.key} & seen]
        if left_out := len(given[split]) - len(fresh[split]):
            print(f"{file}: {left_out:,} rows of {split} left out, because a later split holds the same text or group.")
        seen |= {name for item in fresh[split] for name in (item.key, item.group or item.key)}
    return {split: fresh[split] for split in SPLITS if split in fresh}


def linked(items: Sequence[Item], texts: Sequence[Iterable[str]]) -> list[Item]:
    """Rows grouped by shared texts: two rows with a text in common are in one group, and so are their neighbours.

    Args:
        items: The rows.
        texts: The texts of each.
    """
    from common.data.pairs import connected

    first: dict[str, int] = {}
    edges = [(first.setdefault(text, i), i) for i, row in enumerate(texts) for text in row]
    return [replace(item, group=f"group {group}") for item, group in zip(items, connected(len(items), edges))]


def rows_of(divided: Divided, features: Any) -> dict[str, list[dict[str, Any]]]:
    """The columns alone, classes as numbers, in the order of a hash: any prefix of a split is a fair sample.

    Args:
        divided: The rows of each split.
        features: Their declared columns.
    """
    from datasets import ClassLabel

    classes = {column: feature.encode_example for column, feature in features.items() if isinstance(feature, ClassLabel)}

    def numbered(row: dict[str, Any]) -> dict[str, Any]:
        return {column: classes[column](value) if column in classes else value for column, value in row.items()}

    def order(item: Item) -> bytes:
        """A picture counts by its content (in the key), not by where its file lies, which differs between machines."""
        row = numbered(item.row)
        said = row | {"image": item.key} if "image" in row else row
        return hashlib.md5(repr(said).encode()).digest()

    return {split: [numbered(item.row) for item in sorted(divided.get(split, []), key=order)] for split in SPLITS}
