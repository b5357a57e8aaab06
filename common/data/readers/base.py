"""What the readers share: a file with its options, a row read from it, and the faults that were found."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.data.splits import Row
from common.errors import RoadmapError

if TYPE_CHECKING:
    from datasets import Features

SHOWN = 3  # faults, or places, that a message names


@dataclass(frozen=True)
class Item:
    """One row for training.

    Attributes:
        row: Its columns, as the features declare them.
        at: Where it stands, such as ``"line 3"``.
        key: The same for copies of one row; empty for a row without text.
        group: The same for rows that must be in one split; by default the key.
        label: Each split gets its share of each label; None where that does not matter.
    """

    row: Row
    at: str
    key: str
    group: str = ""
    label: Any = None


@dataclass
class Faults:
    """Rows that cannot be used, collected so that one message counts them all.

    Attributes:
        file: The file's name.
        found: Where, and what is wrong there.
    """

    file: str
    found: list[tuple[str, str]] = field(default_factory=list)

    def add(self, at: str, what: str) -> None:
        """Note a fault; ``what`` is a clause without a final full stop."""
        self.found.append((at, what))

    def close(self, drop: bool) -> None:
        """Refuse the file, or say which of its rows are left out.

        Args:
            drop: Leave the rows out and print how many they are.

        Raises:
            RoadmapError: There are faults, and ``drop`` is off.
        """
        if not self.found:
            return
        listed = "; ".join(f"{at}: {what}" for at, what in self.found[:SHOWN])
        more = f"; and {len(self.found) - SHOWN} more" if len(self.found) > SHOWN else ""
        rows = f"{len(self.found)} row{'s' if len(self.found) > 1 else ''}"
        if drop:
            print(f"{self.file}: {rows} with faults left out: {listed}{more}.")
            return
        raise RoadmapError(
            f"{self.file} has {rows} that cannot be used: {listed}{more}. "
            'Correct the file, or leave such rows out: load_data(..., faults="drop").'
        )


@dataclass(frozen=True)
class Source:
    """A file of one's own with what was said about it.

    Attributes:
        path: The file, or a folder of pictures.
        task: The registered data set whose columns are wanted; empty for texts with or without a class.
        columns: Field of the task to the name of the file's column; a number where the file has no names.
        header: Whether the first line of a table names its columns.
        faults: Where faults are noted.
    """

    path: Path
    task: str
    columns: Mapping[str, str | int]
    header: bool
    faults: Faults

    def call(self, **columns: str) -> str:
        """How this file is loaded, for messages."""
        said = "".join(f", {key}={value}" for key, value in columns.items())
        name = f'"{self.task}", file="{self.path.name}"' if self.task else f'"{self.path.name}"'
        return f"load_data({name}{said})"


@dataclass(frozen=True)
class Reader:
    """How the files of one kind of task are read.

    Attributes:
        read: All rows of a file.
        features: The declared columns of the rows that are kept.
        fields: What a column of a table can be named for.
        formats: What is read, for people.
    """

    read: Callable[[Source], list[Item]]
    features: Callable[[list[Item]], Features]
    fields: tuple[str, ...]
    formats: tuple[str, ...]


def quoted(value: Any, longest: int = 30) -> str:
    """A value as it stands in a message: short, in quotation marks."""
    text = str(value)
    return repr(text if len(text) <= longest else text[:longest] + "…")


def text_of(value: Any) -> str:
    """A cell as text: nothing for None and for what pandas calls missing."""
    if value is None or value != value:
        return ""
    return str(value)


def listed(value: Any) -> list[Any]:
    """A JSON value if it is a list, else an empty one, so that what is missing is found as missing."""
    return value if isinstance(value, list) else []


def named(value: Any) -> Row:
    """A JSON value if it is an object, else an empty one, so that what is missing is found as missing."""
    return value if isinstance(value, dict) else {}
