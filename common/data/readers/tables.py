"""Rows of a table or a JSON file, each with the place where it stands."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.data.readers.base import Faults, Source, quoted
from common.data.readers.encodings import read_text
from common.data.splits import Row
from common.errors import RoadmapError

_USUAL = {".csv": ",", ".tsv": "\t", ".txt": "\t"}
_NAMES = {",": "a comma", "\t": "a tab", ";": "a semicolon", "|": "a vertical bar"}
QUOTED_DOTS = '"..."'
_LOOK = 20  # lines that decide what separates the columns
_SENTENCE = re.compile(r"[。！？，；、!?]|\s\S+\s\S+\s\S+\s|^-?\d+(\.\d+)?$|.{25}")


@dataclass(frozen=True)
class Table:
    """Rows of a file.

    Attributes:
        rows: Where each stands, and its columns.
        columns: All their names, in order.
        named: Whether the file names its columns.
    """

    rows: list[tuple[str, Row]]
    columns: list[str]
    named: bool = True


def read_table(source: Source) -> Table:
    """The rows of a ``.csv``, ``.tsv``, ``.txt``, ``.json``, ``.jsonl`` or ``.parquet`` file.

    Raises:
        RoadmapError: No such file, another kind of file, or one that cannot be read.
    """
    path = source.path
    kind = check_kind(path, READERS)
    if kind == ".parquet":
        return _parquet(path)
    text = read_text(path)
    if kind == ".jsonl":
        return records([(f"line {n}", row) for n, row in json_lines(path, text)], path)
    if kind == ".json":
        return records(numbered(nested(read_json(path, text))), path)
    return _separated(source, text)


def read_frame(path: Path) -> Any:
    """A file of one's own as a pandas data frame, for programs with columns of their own; empty cells are missing.

    Raises:
        RoadmapError: As :func:`read_table`, or a row has more or fewer columns than the first line.
    """
    import pandas

    faults = Faults(path.name)
    table = read_table(Source(path, "", {}, True, faults))
    faults.close(drop=False)
    return pandas.DataFrame([row for _, row in table.rows], columns=table.columns).replace("", None)


def check_kind(path: Path, allowed: Mapping[str, Any]) -> str:
    """The ending of a file, in lower case.

    Raises:
        RoadmapError: The file is missing, or its ending is not allowed.
    """
    if not path.is_file():
        raise RoadmapError(f"There is no file {path}; check the path (it is read relative to {Path.cwd()}).")
    kind = path.suffix.lower()
    if kind in (".xlsx", ".xls"):
        raise RoadmapError(f'{path.name} is not a kind of file this reads; in Excel, save it as "CSV UTF-8".')
    if kind not in allowed:
        raise RoadmapError(f"{path.name} is not a kind of file this reads; convert it to one of: {', '.join(allowed)}.")
    return kind


# --- JSON -------------------------------------------------------------------------------------------------------------


def read_json(path: Path, text: str) -> Any:
    """A JSON file; a file with one value per line is read as such, whatever it is called.

    Raises:
        RoadmapError: The text is not JSON.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text[: error.pos].count("\n"):
            return [row for _, row in json_lines(path, text)]
        raise RoadmapError(f"{path.name} could not be read as json: {error.msg} in line {error.lineno}.") from error


def json_lines(path: Path, text: str) -> list[tuple[int, Any]]:
    """Every value of a file with one JSON value per line, with the number of its line.

    Raises:
        RoadmapError: A line is not JSON.
    """
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                rows.append((number, json.loads(line)))
            except json.JSONDecodeError as error:
                advice = "the file seems to be one JSON value, so name it .json" if number == 1 and line.strip() in "[{" else ""
                advice = advice or "correct that line"
                message = (
                    f"{path.name}, line {number} could not be read as json ({error.msg} at character {error.pos}); {advice}."
                )
                raise RoadmapError(message) from error
    return rows


def nested(value: Any) -> list[Any]:
    """The list of rows in a JSON value: the value itself, or the only list in it, such as ``{"data": [...]}``."""
    while isinstance(value, dict):
        lists = [part for part in value.values() if isinstance(part, list) and part and isinstance(part[0], dict)]
        inner = [part for part in value.values() if isinstance(part, dict)]
        if len(lists) != 1 and not (not lists and len(inner) == 1):
            return [value]
        value = lists[0] if lists else inner[0]
    return value if isinstance(value, list) else [value]


def numbered(rows: list[Any]) -> list[tuple[str, Any]]:
    """Rows with their numbers, from 1."""
    return [(f"row {n}", row) for n, row in enumerate(rows, 1)]


def records(rows: list[tuple[str, Any]], path: Path) -> Table:
    """JSON objects as a table.

    Raises:
        RoadmapError: A row is not an object, or there is none.
    """
    for at, row in rows:
        if not isinstance(row, dict):
            raise RoadmapError(f"{path.name}, {at} is {quoted(row)}, not an object with named columns; write {{...}} there.")
    if not rows:
        raise RoadmapError(f"{path.name} could not be read: it holds no rows.")
    return Table(rows, list(dict.fromkeys(name for _, row in rows for name in row)))


def _parquet(path: Path) -> Table:
    from pyarrow import ArrowException
    from pyarrow.parquet import read_table as read

    try:
        rows = read(path).to_pylist()
    except (ArrowException, OSError) as error:
        raise RoadmapError(f"{path.name} could not be read as parquet: {str(error).splitlines()[0][:160]}") from error
    return records(numbered(rows), path)


# --- separated columns ------------------------------------------------------------------------------------------------


def _separated(source: Source, text: str) -> Table:
    path, usual = source.path, _USUAL[source.path.suffix.lower()]
    separator = _separator(text, usual)
    if path.suffix.lower() == ".txt" and separator != usual:  # plain text, one a line
        lines = [(f"line {n}", {"text": line.strip()}) for n, line in enumerate(text.splitlines(), 1)]
        return Table(lines, ["text"])
    separator = separator or usual
    if separator != usual:
        print(f"{path.name}: the columns are separated by {_NAMES[separator]}.")
    cells = _cells(path, text, separator)
    named = source.header
    head = cells[0][1] if named else [str(i) for i in range(max(len(row) for _, row in cells))]
    head = [name.strip() for name in head]
    if len(set(head)) < len(head):
        twice = next(name for name in head if head.count(name) > 1)
        raise RoadmapError(
            f"{path.name} has two columns named {twice!r}; rename one, or say header=False if the file has no names."
        )
    rows = []
    for at, row in cells[named:]:
        if len(row) == len(head):
            rows.append((at, dict(zip(head, row))))
        elif any(cell.strip() for cell in row):
            source.faults.add(at, f"{len(row)} columns, but the first line has {len(head)} (quote text that holds the separator)")
    if not rows and not source.faults.found:
        raise RoadmapError(f"{path.name} could not be read: it holds no rows.")
    return Table(rows, head, named)


def _separator(text: str, usual: str) -> str | None:
    """What separates the columns: the usual mark if the first line has it, else the one that most lines agree on."""
    lines = [line for line in text.splitlines()[:_LOOK] if line.strip()]
    if not lines or usual in lines[0]:
        return usual
    for mark in (m for m in _NAMES if m != usual and m in lines[0]):
        try:
            rows = list(csv.reader(lines, delimiter=mark))
        except csv.Error:
            continue
        if sum(len(row) == len(rows[0]) for row in rows) > len(rows) / 2:
            return mark
    return None


def _cells(path: Path, text: str, separator: str) -> list[tuple[str, list[str]]]:
    """Every row with its line. In a file with tabs, a stray quotation mark is a character like any other."""
    csv.field_size_limit(sys.maxsize)
    try:
        return _rows(text, delimiter=separator, strict=True)
    except csv.Error as error:
        if separator == "\t":
            print(f"{path.name}: quotation marks do not come in pairs, so they are read as text.")
            return _rows(text, delimiter=separator, quoting=csv.QUOTE_NONE)
        line = _broken(text, separator)
        raise RoadmapError(
            f"{path.name} could not be read as {path.suffix[1:]}: in the row that begins in line {line}, a quotation mark "
            'does not close ("" is a quotation mark inside a quoted text).'
        ) from error


def _rows(text: str, **options: Any) -> list[tuple[str, list[str]]]:
    reader, before, rows = csv.reader(io.StringIO(text, newline=""), **options), 0, []
    for row in reader:
        if row:
            rows.append((f"line {before + 1}", row))
        before = reader.line_num
    return rows


def _broken(text: str, separator: str) -> int:
    """The line after the last row that could be read."""
    reader, before = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True), 0
    try:
        for _ in reader:
            before = reader.line_num
    except csv.Error:
        pass
    return before + 1


# --- which column is which --------------------------------------------------------------------------------------------


def pick_columns(
    source: Source, table: Table, required: Mapping[str, tuple[str, ...]], optional: Mapping[str, tuple[str, ...]] | None = None
) -> dict[str, str]:
    """The file's column for each field: the one that was named, else the first of the field's usual names that it has.

    Args:
        source: With the columns that were named.
        table: The rows.
        required: Field to usual names, beside its own.
        optional: The same, for fields that may be missing.

    Returns:
        Field to column; optional fields that the file lacks are left out.

    Raises:
        RoadmapError: A column is missing, or the file seems to have no names.
    """
    optional = optional or {}
    if not table.named and not source.columns:  # without names and without a word: the fields in their order
        if len(table.columns) != len(required):
            raise RoadmapError(
                f"{source.path.name} has {len(table.columns)} columns, but {', '.join(required)} are needed; "
                f"say which is which, counted from 0: {source.call(**{field: str(i) for i, field in enumerate(required)})}."
            )
        return dict(zip(required, table.columns))
    chosen: dict[str, str] = {}
    for field, usual in (*required.items(), *optional.items()):
        if field in source.columns:
            chosen[field] = str(source.columns[field])
            if chosen[field] not in table.columns:
                raise _missing(source, table, field, chosen[field])
            continue
        found = next((name for name in (field, *usual) if name in table.columns), None)
        if found is None and field in required:
            raise _missing(source, table, field, field)
        if found is not None:
            chosen[field] = found
    renamed = [
        f"{field} is the column {column!r}" for field, column in chosen.items() if column != source.columns.get(field, field)
    ]
    if renamed:
        print(f"{source.path.name}: {', '.join(renamed)}.")
    return chosen


def _missing(source: Source, table: Table, field: str, name: str) -> RoadmapError:
    names = ", ".join(table.columns)
    if table.named and source.path.suffix.lower() in _USUAL and any(_SENTENCE.search(name) for name in table.columns):
        shown = quoted(" | ".join(table.columns), 50)
        return RoadmapError(
            f"{source.path.name} seems to have no line with column names, because its first line is a row: {shown}. "
            f"Say so: {source.call(header='False')}, or number the columns from 0, such as {field}=0."
        )
    other = "" if source.task else f' For a task other than classification: load_data(TASK, file="{source.path.name}").'
    return RoadmapError(
        f"{source.path.name} has no column {name!r}; it has: {names}. "
        f"Name the right one: {source.call(**{field: QUOTED_DOTS})}.{other}"
    )


READERS: dict[str, Callable[..., Any] | None] = dict.fromkeys((".csv", ".tsv", ".txt", ".json", ".jsonl", ".parquet"))
