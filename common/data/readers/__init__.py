"""A file of one's own, in the formats of the field, with the columns of a registered data set.

One module a concern: encodings, tables, one for each kind of task, dividing. :data:`READERS` says which task is read how.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.data.readers.base import Faults, Item, Reader, Source
from common.data.readers.chats import CHATS
from common.data.readers.choices import CHOICES
from common.data.readers.classes import CLASSES, EITHER, TEXTS
from common.data.readers.dividing import Divided, cleaned, divide, rows_of, without_leaks
from common.data.readers.names import LINES, NAMES
from common.data.readers.pictures import CAPTIONS, SCENES
from common.data.readers.questions import QUESTIONS
from common.data.readers.sentences import FAQ, PAIRS, SUMMARIES
from common.data.splits import SPLITS
from common.errors import RoadmapError, unknown

if TYPE_CHECKING:
    from datasets import DatasetDict

File = str | Path | Mapping[str, str | Path] | Sequence[str | Path]

READERS: dict[str, Reader] = {
    "sentiment": CLASSES,
    "topics": CLASSES,
    "entity_types": CLASSES,
    "corpus": TEXTS,
    "ner": NAMES,
    "ner_daily": NAMES,
    "instructions": CHATS,
    "extraction": CHATS,
    "mrc": QUESTIONS,
    "multiple_choice": CHOICES,
    "pairs": PAIRS,
    "faq": FAQ,
    "headlines": SUMMARIES,
    "image_text": CAPTIONS,
    "scenes": SCENES,
}
_SURROGATE = re.compile("[\\ud800-\\udfff]")
_NAMES = {"train": "train", "dev": "validation", "val": "validation", "valid": "validation", "validation": "validation"}
_NAMES |= {"test": "test"}


@dataclass(frozen=True)
class Own:
    """A file of one's own, read and divided.

    Attributes:
        reader: How it was read.
        read: All rows that could be read, before copies were removed, for each file.
        splits: The rows that are kept.
        faults: What cannot be used.
    """

    reader: Reader
    read: dict[str, list[Item]]
    splits: Divided
    faults: list[Faults]


def from_file(task: str, file: File, options: Mapping[str, Any]) -> DatasetDict:
    """The splits of a file; arguments and errors as in :func:`common.data.load_data`."""
    from datasets import Dataset, DatasetDict

    own = read_own(task, file, options)
    kept = [item for items in own.splits.values() for item in items]
    features = own.reader.features(kept)
    splits = {split: Dataset.from_list(rows, features=features) for split, rows in rows_of(own.splits, features).items()}
    print(f"{_said(file)}: {', '.join(f'{split} {len(rows):,}' for split, rows in splits.items())}.")
    return DatasetDict(splits)


def read_own(task: str, file: File, options: Mapping[str, Any]) -> Own:
    """Read, clean and divide; ``task`` is empty for texts with or without a class.

    Raises:
        RoadmapError: As :func:`common.data.load_data`.
    """
    if task and task not in READERS:
        raise unknown("data set that a file can stand for", task, READERS)
    reader = READERS[task] if task else EITHER
    if not task and isinstance(file, (str, Path)) and (Path(file).is_dir() or Path(file).suffix.lower() in LINES):
        raise RoadmapError(f'{Path(file).name} is no table; say what it is for: load_data(TASK, file="{file}").')
    columns, header, drop = _options(task, reader, options)
    paths = _files(file)
    read, faults = {}, []
    for split, path in paths.items():
        found = Faults(path.name)
        items = reader.read(Source(path, task, columns, header, found))
        read[split] = [item for item in items if not _broken(item.row)]
        for item in items:
            if _broken(item.row):
                found.add(item.at, "half of an emoji (a surrogate without its other half), which is no text")
        found.close(drop)
        faults.append(found)
    every_label = reader in (CLASSES, EITHER)
    if list(paths) == [""]:
        name = paths[""].name
        return Own(reader, read, divide(name, cleaned(name, read[""]), every_label=every_label), faults)
    given = without_leaks(_said(file), {split: cleaned(paths[split].name, items) for split, items in read.items()})
    if missing := [split for split in SPLITS if split not in given]:
        print(f"{_said(file)}: {' and '.join(missing)} cut from train.")
        given |= divide(paths["train"].name, given["train"], ("train", *missing))
    if empty := [split for split in SPLITS if not given[split]]:
        raise RoadmapError(f"{_said(file)}: the {empty[0]} split has no row of its own; give another file for it.")
    return Own(reader, read, given, faults)


def _options(task: str, reader: Reader, options: Mapping[str, Any]) -> tuple[dict[str, str | int], bool, bool]:
    """Columns, whether the file names them, and whether faulty rows are left out."""
    columns = dict(options)
    header, faults = columns.pop("header", True), columns.pop("faults", "stop")
    if faults not in ("stop", "drop"):
        raise RoadmapError(f'faults={faults!r} is not known; it is "stop" (refuse the file) or "drop" (leave such rows out).')
    if not isinstance(header, bool):
        raise RoadmapError(f"header={header!r} is not known; it is True, or False if the first line is a row.")
    if wrong := set(columns) - set(reader.fields):
        raise RoadmapError(
            f"A file{f' for {task}' if task else ''} has the columns {', '.join(reader.fields)}; "
            f"{', '.join(sorted(wrong))} is not one of them."
        )
    numbers = [value for value in columns.values() if isinstance(value, int)]
    return columns, header and not numbers, faults == "drop"


def _files(file: File) -> dict[str, Path]:
    """The path of each split; of one file under the name ``""``.

    Raises:
        RoadmapError: A split is not known, occurs twice, or train is missing.
    """
    if isinstance(file, (str, Path)):
        path = Path(file)
        inside = sorted(p for p in path.iterdir() if p.stem in _NAMES) if path.is_dir() else []
        if not any(p.stem == "train" for p in inside):
            return {"": path}
        file = inside
    pairs: list[tuple[str, str | Path]] = (
        list(file.items()) if isinstance(file, Mapping) else [(Path(path).stem, path) for path in file]
    )
    paths: dict[str, Path] = {}
    for name, given in pairs:
        words = name.lower().replace("-", "_").replace(".", "_").split("_")
        split = next((_NAMES[word] for word in words if word in _NAMES), None)
        if split is None:
            raise RoadmapError(f"{name!r} names no split; name the files: file={{'train': ..., 'validation': ..., 'test': ...}}.")
        if split in paths:
            raise RoadmapError(f"{paths[split].name} and {Path(given).name} are both the {split} split; give one file for each.")
        paths[split] = Path(given)
    if "train" not in paths:
        raise RoadmapError(f"There is no train split among {', '.join(name for name, _ in pairs)}; give a file for it.")
    return {split: paths[split] for split in SPLITS if split in paths}


def _broken(value: Any) -> bool:
    """Whether text holds half of a surrogate pair, which JSON can write and no encoding can."""
    if isinstance(value, str):
        return _SURROGATE.search(value) is not None
    if isinstance(value, dict):
        return any(map(_broken, value.values()))
    return isinstance(value, list) and any(map(_broken, value))


def _said(file: File) -> str:
    """How a file, or the files of the splits, are named in messages."""
    paths = _files(file)
    return ", ".join(path.name for path in paths.values())
