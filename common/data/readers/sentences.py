"""Two texts that belong together: pairs of sentences, questions with answers, documents with summaries."""

from __future__ import annotations

from dataclasses import replace

from common.data import faq, headlines, pairs
from common.data.readers.base import Item, Reader, Source, quoted, text_of
from common.data.readers.dividing import linked
from common.data.readers.tables import Table, pick_columns, read_table
from common.data.splits import Row, normalise
from common.errors import RoadmapError

_FIRST = ("text1", "text_a", "sentence_a", "question1", "query1", "s1", "premise")
_SECOND = ("text2", "text_b", "sentence_b", "question2", "query2", "s2", "hypothesis")
_SAME = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "False": 0, "True": 1, "different": 0, "same": 1}


def read_pairs(source: Source) -> list[Item]:
    """Pairs of sentences with the label 0 (different) or 1 (same); pairs that share a sentence stay in one split.

    Raises:
        RoadmapError: As :func:`common.data.readers.tables.read_table`; or there is no pair of one of the two labels.
    """
    table = read_table(source)
    required = {"sentence1": _FIRST, "sentence2": _SECOND, "label": ("score", "is_duplicate")}
    chosen = pick_columns(source, table, required)
    items, texts = [], []
    for at, row in table.rows:
        one, other, said = (text_of(row.get(column)).strip() for column in chosen.values())
        if said not in _SAME:
            source.faults.add(
                at, f"the label is {quoted(said)}, where 0 (different) or 1 (same) is needed" if said else "no label"
            )
            continue
        keys = sorted((normalise(one), normalise(other)))
        columns = {"sentence1": one, "sentence2": other, "label": _SAME[said]}
        items.append(Item(columns, at, "\n".join(keys) if all(keys) else "", label=_SAME[said]))
        texts.append([key for key in keys if key])
    if items and len(labels := {item.label for item in items}) == 1:
        raise RoadmapError(f"{source.path.name} has only pairs with the label {labels.pop()}; both 0 and 1 are needed.")
    items = linked(items, texts)
    numbers = {group: number for number, group in enumerate(dict.fromkeys(item.group for item in items))}
    return [replace(item, row=item.row | {"group": numbers[item.group]}) for item in items]


def read_faq(source: Source) -> list[Item]:
    """Questions with answers; rows that share a question or an answer stay in one split.

    Raises:
        RoadmapError: As :func:`common.data.readers.tables.read_table`.
    """
    table = read_table(source)
    required = {"question": ("问题", "query", "q", "ask"), "answer": ("答案", "回答", "response", "reply", "a")}
    chosen = pick_columns(source, table, required, {"law": ("title", "category")})
    items, texts = [], []
    for at, row, question, answer in _two(source, table, chosen["question"], chosen["answer"], ("question", "answer")):
        columns = {"question": question, "answer": answer, "kind": "open", "law": text_of(row.get(chosen.get("law", "")))}
        keys = normalise(question), normalise(answer)
        items.append(Item(columns, at, "\n".join(keys) if any(keys) else ""))
        texts.append([f"{name} {key}" for name, key in zip(("question", "answer"), keys) if key])
    return linked(items, texts)


def read_summaries(source: Source) -> list[Item]:
    """Documents with summaries; the summaries of one document stay in one split.

    Raises:
        RoadmapError: As :func:`common.data.readers.tables.read_table`.
    """
    table = read_table(source)
    required = {"document": ("content", "article", "text", "正文"), "summary": ("title", "headline", "abstract", "标题")}
    chosen = pick_columns(source, table, required)
    items = []
    for at, _, document, summary in _two(source, table, chosen["document"], chosen["summary"], ("document", "summary")):
        key = normalise(document)
        both = f"{key}\n{normalise(summary)}" if document else ""
        items.append(Item({"document": document, "summary": summary}, at, both, key or document))
    return items


def _two(source: Source, table: Table, first: str, second: str, names: tuple[str, str]) -> list[tuple[str, Row, str, str]]:
    """Rows with both texts; a row without any is passed on as empty, one with half of them is a fault."""
    found = []
    for at, row in table.rows:
        one, other = text_of(row.get(first)).strip(), text_of(row.get(second)).strip()
        if bool(one) == bool(other):
            found.append((at, row, one, other))
        else:
            source.faults.add(at, f"no {names[bool(one)]}")
    return found


_TABLES = "(CSV, TSV, JSON, JSON lines, Parquet)"
PAIRS = Reader(
    read_pairs,
    lambda items: pairs.CARDS["pairs"].features(),
    ("sentence1", "sentence2", "label"),
    (f"rows of sentence1, sentence2 and label {_TABLES}", "the same without column names, as LCQMC has them: header=False"),
)
FAQ = Reader(
    read_faq,
    lambda items: faq.CARDS["faq"].features(),
    ("question", "answer", "law"),
    (f"rows of question and answer {_TABLES}",),
)
SUMMARIES = Reader(
    read_summaries,
    lambda items: headlines.CARDS["headlines"].features(),
    ("document", "summary"),
    (f"rows of document and summary, or content and title {_TABLES}",),
)
