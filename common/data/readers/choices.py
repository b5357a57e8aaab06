"""A question with several answers to choose from: C3, or rows of context, question, choices and label."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from common.data.readers.base import Item, Reader, Source, listed, named, quoted, text_of
from common.data.readers.encodings import read_text
from common.data.readers.tables import Table, nested, numbered, pick_columns, read_json, read_table, records
from common.data.reading import CARDS
from common.data.splits import Row, normalise
from common.errors import RoadmapError

_LETTER = re.compile(r"\(?([A-Za-z])\)?[.．、]?")
_NUMBER = re.compile(r"\d+(\.0)?")
_COLUMN = re.compile(r"[A-Ha-h]|(?:choice|option)_?(?:[A-Ha-h]|\d)")
_CHOICES, _LABELS = ("choice", "options", "endings"), ("answer",)


def read_choices(source: Source) -> list[Item]:
    """Questions with two or more choices; a group is a text.

    A label is the right answer's text, its letter, or its number. Numbers count from 0 if a 0 occurs, and from 1 if none does
    and one of them is the number of its last choice.

    Raises:
        RoadmapError: As :func:`common.data.readers.tables.read_table`; or numbers that can count from 0 and from 1.
    """
    rows = list(_rows(source))
    first = _first(source, rows)
    items = []
    for at, row in rows:
        choices = [text_of(choice).strip() for choice in row["choices"] if text_of(choice).strip()]
        fault = _fault(row, choices)
        label = None if fault else _label(row["label"], choices, first)
        if fault or label is None:
            source.faults.add(at, fault or f"the label {quoted(text_of(row['label']))} is none of the {len(choices)} choices")
            continue
        context, question = text_of(row["context"]).strip(), text_of(row["question"]).strip()
        columns = {"context": context, "question": question, "choices": choices, "label": label}
        key = "\n".join(map(normalise, (context, question, *choices)))
        items.append(Item(columns, at, key, normalise(context) or normalise(question) or question))
    return items


def _rows(source: Source) -> Iterator[tuple[str, Row]]:
    """Every question with its text, choices and label."""
    if source.path.suffix.lower() == ".json" and source.path.is_file():
        value = read_json(source.path, read_text(source.path))
        if isinstance(value, list) and value and isinstance(value[0], list):
            yield from _c3(source, value)
            return
        table = records(numbered(nested(value)), source.path)
    else:
        table = read_table(source)
    separate = [] if "choices" in source.columns else _separate(table)
    required: dict[str, tuple[str, ...]] = (
        {"question": (), "label": _LABELS}
        if separate
        else {
            "question": (),
            "choices": _CHOICES,
            "label": _LABELS,
        }
    )
    chosen = pick_columns(source, table, required, {"context": ("passage", "article", "text")})
    for at, row in table.rows:
        context = row.get(chosen.get("context", ""))
        choices = [row.get(name) for name in separate] if separate else row.get(chosen["choices"])
        yield (
            at,
            {
                "context": "\n".join(map(text_of, context)) if isinstance(context, list) else context,
                "question": row.get(chosen["question"]),
                "choices": listed(choices),
                "label": row.get(chosen["label"]),
            },
        )


def _separate(table: Table) -> list[str]:
    """Columns that hold one choice each, such as A, B, C and D."""
    return [] if {"choices", *_CHOICES} & set(table.columns) else sorted(filter(_COLUMN.fullmatch, table.columns))


def _c3(source: Source, texts: list[Any]) -> Iterator[tuple[str, Row]]:
    """``[[lines of a text], [{"question", "choice", "answer"}], "id"]`` for each text."""
    for number, part in enumerate(texts, 1):
        if not isinstance(part, list) or len(part) < 2 or not all(isinstance(p, list) for p in part[:2]):
            source.faults.add(f"text {number}", "not a list of lines and a list of questions")
            continue
        for place, asked in enumerate(map(named, part[1]), 1):
            yield (
                f"text {number}, question {place}",
                {
                    "context": "\n".join(map(text_of, part[0])),
                    "question": asked.get("question"),
                    "choices": listed(asked.get("choice", asked.get("choices"))),
                    "label": asked.get("answer", asked.get("label")),
                },
            )


def _fault(row: Row, choices: list[str]) -> str:
    if len(choices) < 2:
        return f"{len(choices)} choices, where two are the least"
    if len(set(choices)) < len(choices):
        return f"the choice {quoted(next(c for c in choices if choices.count(c) > 1))} stands there twice"
    if not text_of(row["label"]).strip():
        return "no label"
    return "" if text_of(row["question"]).strip() or text_of(row["context"]).strip() else "no question"


def _first(source: Source, rows: list[tuple[str, Row]]) -> int:
    """What the first choice's number is, as far as numbers are used."""
    numbers, last = set(), False
    for _, row in rows:
        said, choices = text_of(row["label"]).strip(), row["choices"]
        if _NUMBER.fullmatch(said) and not _is_choice(row["label"], [text_of(c).strip() for c in choices]):
            numbers.add(int(float(said)))
            last |= int(float(said)) == len(choices)
    if numbers and 0 not in numbers and not last:
        raise RoadmapError(
            f"{source.path.name}: the labels {sorted(numbers)[:5]} can count from 0 or from 1; "
            "write the right answer's letter or its text as the label."
        )
    return int(bool(numbers) and 0 not in numbers)


def _is_choice(label: Any, choices: list[str]) -> bool:
    return isinstance(label, str) and label.strip() in choices


def _label(value: Any, choices: list[str], first: int) -> int | None:
    """The right choice's index; None if the label names no choice."""
    said = text_of(value).strip()
    if _is_choice(value, choices):
        return choices.index(said)
    if _NUMBER.fullmatch(said):
        index = int(float(said)) - first
    elif match := _LETTER.fullmatch(said):
        index = ord(match[1].upper()) - ord("A")
    else:
        return None
    return index if 0 <= index < len(choices) else None


CHOICES = Reader(
    read_choices,
    lambda items: CARDS["multiple_choice"].features(),
    ("context", "question", "choices", "label"),
    (
        "C3: lines of a text, questions with choice and answer (JSON)",
        "rows of context, question, choices and label (JSON, JSON lines, Parquet)",
        "rows with one column for each choice, such as A, B, C, D (CSV, TSV)",
        "the label is a number, a letter, or the right answer's text",
    ),
)
