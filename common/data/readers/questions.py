"""Questions about a text: SQuAD and CMRC, nested or in rows, with or without questions that have no answer."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any

from common.data.readers.base import Item, Reader, Source, listed, named, quoted, text_of
from common.data.readers.encodings import read_text
from common.data.readers.tables import numbered, pick_columns, read_json, read_table, records
from common.data.reading import CARDS
from common.data.splits import Row, normalise

NEAR = 20  # characters that a stated place may be off; further away, a place is no help


def read_questions(source: Source) -> list[Item]:
    """Questions with their answers, each at a place that holds it; a group is a text.

    An answer that stands once, at most 20 characters from its stated place, is moved there, counted and printed.

    Raises:
        RoadmapError: As :func:`common.data.readers.tables.read_table`.
    """
    items, moved = [], []
    for at, row in _rows(source):
        context, question = text_of(row.get("context")), text_of(row.get("question")).strip()
        if not context.strip() or not question:
            source.faults.add(at, "no context" if not context.strip() else "no question")
            continue
        try:
            pairs, off = _answers(context, row)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            source.faults.add(at, str(error) if isinstance(error, ValueError) else f"no answers ({error!r})")
            continue
        if off:
            moved.append(at)
        answers = {"text": [answer for answer, _ in pairs], "answer_start": [start for _, start in pairs]}
        name = text_of(row.get("id")) or f"{zlib.crc32((context + question).encode()):08x}"
        columns = {"id": name, "title": text_of(row.get("title")), "context": context, "question": question, "answers": answers}
        items.append(Item(columns, at, f"{normalise(context)}\n{normalise(question)}", normalise(context) or context))
    if moved:
        shown = ", ".join(moved[:3]) + (" ..." if len(moved) > 3 else "")
        print(f"{source.path.name}: the answers of {len(moved)} questions stand a little beside their place; moved ({shown}).")
    return items


def _rows(source: Source) -> Iterator[tuple[str, Row]]:
    """Every question with its context, from paragraphs or from rows."""
    if source.path.suffix.lower() == ".json" and source.path.is_file():
        value = read_json(source.path, read_text(source.path))
        articles = value.get("data", [value]) if isinstance(value, dict) else value
        if isinstance(articles, list) and any(isinstance(a, dict) and {"paragraphs", "qas"} & set(a) for a in articles):
            yield from _nested(source, articles)
            return
        table = records(numbered(articles if isinstance(articles, list) else [articles]), source.path)
    else:
        table = read_table(source)
    required = {"context": ("context_text",), "question": ("query_text",)}
    optional: dict[str, tuple[str, ...]] = {"answers": (), "answer": ("answer_text",), "answer_start": (), "id": (), "title": ()}
    chosen = pick_columns(source, table, required, {**optional, "is_impossible": ()})
    for at, row in table.rows:
        yield at, {field: row.get(column) for field, column in chosen.items()}


def _nested(source: Source, articles: list[Any]) -> Iterator[tuple[str, Row]]:
    """``data[].paragraphs[].qas[]`` of SQuAD and CMRC, and the flatter form of CMRC 2018 with ``context_text``."""
    number = 0
    for place, article in enumerate(map(named, articles), 1):
        paragraphs = [named(paragraph) for paragraph in listed(article.get("paragraphs", [article]))]
        if not any(listed(paragraph.get("qas")) for paragraph in paragraphs):
            source.faults.add(f"article {place}", "no paragraphs with questions")
        for paragraph in paragraphs:
            context = paragraph.get("context", paragraph.get("context_text"))
            for asked in map(named, listed(paragraph.get("qas"))):
                number += 1
                question = asked.get("question", asked.get("query_text"))
                name = text_of(asked.get("id", asked.get("query_id")))
                known = {"context": context, "question": question, "id": name, "title": article.get("title")}
                yield f"question {number}{f' ({name})' if name else ''}", asked | known


def _answers(context: str, row: Row) -> tuple[list[tuple[str, int]], bool]:
    """Each answer with its place, and whether one was moved.

    Raises:
        ValueError: An answer is empty, or does not stand where it should.
    """
    found = _stated(row)
    empty_lists = isinstance(row.get("answers"), dict) and row["answers"].get("text") == []  # how the Hub stores no answer
    if row.get("is_impossible") in (True, 1, "true", "True", "1"):
        return [], False
    if not found:
        if empty_lists:
            return [], False
        raise ValueError("no answer, and is_impossible does not say that there is none")
    placed = [_placed(context, answer, start) for answer, start in found]
    unique = dict.fromkeys((answer, start) for (answer, _), (start, _) in zip(found, placed))
    return list(unique), any(moved for _, moved in placed)


def _stated(row: Row) -> list[tuple[str, int | None]]:
    """Answers and places as the row states them; None for a place that it does not state."""
    answers = row.get("answers")
    if isinstance(answers, dict):
        starts = answers.get("answer_start")
        return list(zip(answers["text"], [None] * len(answers["text"]) if starts is None else starts, strict=True))
    if isinstance(answers, list):
        return [(a, None) if isinstance(a, str) else (a["text"], a.get("answer_start")) for a in answers]
    answer = answers if isinstance(answers, str) else row.get("answer")
    if not text_of(answer):
        return []
    start = text_of(row.get("answer_start"))
    try:
        return [(text_of(answer), int(float(start)) if start else None)]
    except ValueError:
        raise ValueError(f"answer_start is {quoted(start)}, not a number") from None


def _placed(context: str, answer: str, start: int | None) -> tuple[int, bool]:
    """Where the answer stands, and whether that is not where it was said to stand.

    Raises:
        ValueError: It stands there not at all, or too often to tell.
    """
    if not text_of(answer).strip():
        raise ValueError("an answer is empty")
    if start is None:
        if context.count(answer) != 1:
            raise ValueError(
                f"the answer {quoted(answer)} stands {context.count(answer)} times in its text, and no place is given"
            )
        return context.index(answer), False
    if start >= 0 and context.startswith(answer, start):
        return start, False
    low = max(0, start - NEAR)
    near = context[low : start + NEAR + len(answer)] if start >= 0 else ""
    if near.count(answer) == 1:
        return low + near.index(answer), True
    there = context[start : start + len(answer)] if start >= 0 else ""
    found = f"the text there is {quoted(there)}" if there else "no text is there"
    raise ValueError(f"the answer {quoted(answer)} does not stand at character {start}; {found}")


QUESTIONS = Reader(
    read_questions,
    lambda items: CARDS["mrc"].features(),
    ("context", "question", "answers", "answer", "answer_start", "id", "title", "is_impossible"),
    (
        "SQuAD and CMRC: data, paragraphs, qas, answers with answer_start; version 2 with is_impossible",
        "CMRC 2018: context_text, query_text, answers without places, if each stands once in its text",
        "rows of context, question, answer and answer_start (CSV, TSV, JSON, JSON lines, Parquet)",
    ),
)
