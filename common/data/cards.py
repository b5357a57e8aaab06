"""What is written down about a data set, and the declared features that data sets share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from common.data.sources import NER_TAGS
from common.data.splits import Splits

if TYPE_CHECKING:
    from datasets import Features


@dataclass(frozen=True)
class Card:
    """What a data set is, where it comes from at each scale, and what may be done with it."""

    about: str
    features: Callable[[], Features]
    archives: tuple[str, ...]
    build: Callable[[], Splits]
    tiny_source: str
    tiny_licence: str
    full: tuple[str, str | None, str | None]  # Hub repository, configuration, revision
    full_columns: dict[str, str]  # column there -> column here
    full_size: str
    full_licence: str
    convert: Callable[[dict[str, Any]], dict[str, Any]] | None = None  # a row there -> a row here, where renaming is not enough


def text() -> Features:
    from datasets import Features, Value

    return Features({"text": Value("string")})


def text_label(names: list[str]) -> Callable[[], Features]:
    def features() -> Features:
        from datasets import ClassLabel, Features, Value

        return Features({"text": Value("string"), "label": ClassLabel(names=names)})

    return features


def tagged() -> Features:
    from datasets import ClassLabel, Features, List, Value

    return Features({"tokens": List(Value("string")), "ner_tags": List(ClassLabel(names=NER_TAGS))})


_HUB_NER = ["O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC"]  # the order of both corpora on the Hub


def tags_from_hub(row: dict[str, Any]) -> dict[str, Any]:
    """A tagged sentence there as one here: the numbers mean other tags."""
    return {"tokens": row["tokens"], "ner_tags": [NER_TAGS.index(_HUB_NER[i]) for i in row["ner_tags"]]}
