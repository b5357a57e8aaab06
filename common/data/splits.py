"""Dividing a source so that nothing leaks: copies found, groups kept together, held-out text kept out."""

from __future__ import annotations

import hashlib
import re
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

Row = dict[str, Any]
Splits = dict[str, list[Row]]
SPLITS = ("train", "validation", "test")
_NOISE = re.compile(r"[^\u4e00-\u9fffA-Za-z0-9]")


def normalise(text: str) -> str:
    """The text without spaces and punctuation, for finding copies."""
    return _NOISE.sub("", text)


def plain(row: Row) -> str:
    """A row's text, whether it is stored as text or as tokens."""
    return row["text"] if "text" in row else "".join(row["tokens"])


def unique(rows: Iterable[Row], seen: set[str]) -> list[Row]:
    """The rows whose text, spaces and punctuation aside, has not been seen; ``seen`` grows."""
    fresh = []
    for row in rows:
        key = normalise(plain(row))
        if key and key not in seen:
            seen.add(key)
            fresh.append(row)
    return fresh


def bucket(group: str) -> str:
    """The split of a group, from a hash of its name: adding records never moves the old ones."""
    place = zlib.crc32(group.encode()) % 10
    return {8: "validation", 9: "test"}.get(place, "train")


def shuffled(splits: Splits) -> Splits:
    """Each split in the order of a hash of its rows, so that any prefix of it is a fair sample."""
    return {s: sorted(splits[s], key=lambda row: hashlib.md5(repr(row).encode()).digest()) for s in SPLITS}


class HeldOut:
    """Finds training text that repeats held-out text.

    A text touches the held-out set if it contains a whole held-out text of at least 8 characters. Longer ones are cut into
    pieces of 20 characters, and one piece is enough. Spaces and punctuation do not count. So no run of 39 characters is
    shared.
    """

    PIECE, SHORTEST = 20, 8

    def __init__(self, texts: Iterable[str]):
        self.pieces: dict[str, set[str]] = defaultdict(set)
        for text in texts:
            for piece in self._cut(normalise(text)):
                self.pieces[piece[: self.SHORTEST]].add(piece)

    def _cut(self, text: str) -> Iterator[str]:
        if self.SHORTEST <= len(text) < self.PIECE:
            yield text
        for start in range(0, len(text) - self.PIECE + 1, self.PIECE):
            yield text[start : start + self.PIECE]

    def touches(self, text: str) -> bool:
        """Whether the text repeats held-out text."""
        text = normalise(text)
        for i in range(len(text) - self.SHORTEST + 1):
            if any(text.startswith(piece, i) for piece in self.pieces.get(text[i : i + self.SHORTEST], ())):
                return True
        return False
