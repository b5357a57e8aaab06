"""Texts with a class, and plain texts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from common.data.cards import text, text_label
from common.data.readers.base import Item, Reader, Source, quoted, text_of
from common.data.readers.tables import Table, pick_columns, read_table
from common.data.splits import normalise
from common.errors import RoadmapError

if TYPE_CHECKING:
    from datasets import Features

_SPANS = ("entities", "annotations", "completions", "spans")  # columns that only files of names have


def read_classes(source: Source) -> list[Item]:
    """Rows of text and label; a label is text or a whole number, or a list with one of them (doccano).

    Raises:
        RoadmapError: As :func:`common.data.readers.tables.read_table`; or the file marks names in texts.
    """
    return _classes(source, read_table(source))


def _classes(source: Source, table: Table) -> list[Item]:
    _refuse_names(source, table)
    required: dict[str, tuple[str, ...]] = {"text": ("data",), "label": ()}
    chosen = pick_columns(source, table, required, {"group": ()} if "group" in source.columns else None)
    items = []
    for at, row in table.rows:
        said, label = text_of(row.get(chosen["text"])).strip(), _label(source, at, row.get(chosen["label"]))
        if not normalise(said) and label is not None:
            items.append(Item({}, at, ""))
        elif label is not None:
            group = text_of(row.get(chosen["group"])) if "group" in chosen else said
            items.append(Item({"text": said, "label": label}, at, normalise(said), group, label))
    return items


def _label(source: Source, at: str, value: Any) -> str | None:
    """A class's name; None, with a fault noted, for anything that is no class."""
    if isinstance(value, list):
        if len(value) > 1:
            source.faults.add(at, f"{len(value)} labels ({quoted(value)}), where a text has one")
            return None
        value = value[0] if value else None
    if isinstance(value, dict):
        source.faults.add(at, f"the label is {quoted(value)}, not the name of a class")
        return None
    if isinstance(value, float) and value.is_integer():  # a table with a gap stores whole numbers as 1.0
        value = int(value)
    name = text_of(value).strip()
    if not name:
        source.faults.add(at, "no label")
        return None
    return name


def read_texts(source: Source) -> list[Item]:
    """Rows of text alone; a ``.txt`` file has one on each line.

    Raises:
        RoadmapError: As :func:`common.data.readers.tables.read_table`.
    """
    return _texts(source, read_table(source))


def _texts(source: Source, table: Table) -> list[Item]:
    chosen = pick_columns(source, table, {"text": ("data", "content")}, {"group": ()} if "group" in source.columns else None)
    items = []
    for at, row in table.rows:
        said = text_of(row.get(chosen["text"])).strip()
        group = text_of(row.get(chosen["group"])) if "group" in chosen else said
        items.append(Item({"text": said}, at, normalise(said), group))
    return items


def read_either(source: Source) -> list[Item]:
    """Texts with a class if the file has a column ``label`` or one was named, else texts alone."""
    table = read_table(source)
    if "label" in source.columns or "label" in table.columns:
        return _classes(source, table)
    _refuse_names(source, table)
    return _texts(source, table)


def _refuse_names(source: Source, table: Table) -> None:
    columns, labels = table.columns, [row.get("label") for _, row in table.rows]
    spans = any(isinstance(label, list) and label and isinstance(label[0], (list, dict)) for label in labels)
    if spans or ("label" not in columns and set(_SPANS) & set(columns)):
        raise RoadmapError(
            f"{source.path.name} marks names in texts and has no class for a whole text; "
            f'read it as names: load_data("ner", file="{source.path.name}"), or as plain text: '
            f'load_data("corpus", file="{source.path.name}").'
        )


def features(items: list[Item]) -> Features:
    """Text, and the classes that the file has."""
    names = sorted({item.row["label"] for item in items if "label" in item.row})
    return text_label(names)() if names else text()


_TABLES = ("CSV, TSV, tab-separated .txt", "JSON, JSON lines, Parquet")
CLASSES = Reader(
    read_classes,
    features,
    ("text", "label", "group"),
    (*_TABLES, "doccano, text classification"),
)
TEXTS = Reader(read_texts, features, ("text", "group"), (*_TABLES, "plain text, one on each line"))
EITHER = Reader(read_either, features, ("text", "label", "group"), CLASSES.formats)
