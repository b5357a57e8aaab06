"""Your own file as data: columns named, cleaned, split."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.data.splits import SPLITS, Row, Splits, normalise, shuffled, unique
from common.errors import RoadmapError

if TYPE_CHECKING:
    from datasets import DatasetDict


def _read_csv(path: Path) -> Any:
    import pandas

    return pandas.read_csv(path, sep="\t" if path.suffix.lower() == ".tsv" else ",", encoding="utf-8-sig")


def _read_json(path: Path) -> Any:
    import pandas

    return pandas.read_json(path, lines=path.suffix.lower() == ".jsonl", encoding="utf-8")


def _read_parquet(path: Path) -> Any:
    import pandas

    return pandas.read_parquet(path)


READERS: dict[str, Callable[[Path], Any]] = {
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".json": _read_json,
    ".jsonl": _read_json,
    ".parquet": _read_parquet,
}


def read_table(path: Path) -> Any:
    """A file of one's own as a pandas data frame.

    Raises:
        RoadmapError: No such file, another kind of file, one that is not UTF-8, or one that cannot be read.
    """
    if not path.is_file():
        raise RoadmapError(f"There is no file {path}; check the path (it is read relative to {Path.cwd()}).")
    if path.suffix.lower() not in READERS:
        raise RoadmapError(f"{path.name} is not a kind of file this reads; convert it to one of: {', '.join(READERS)}.")
    try:
        return READERS[path.suffix.lower()](path)
    except UnicodeDecodeError as error:
        raise RoadmapError(
            f"{path.name} is not UTF-8; convert it first: iconv -f gb18030 -t utf-8 {path.name} > utf8{path.suffix}"
        ) from error
    except Exception as error:  # pandas and pyarrow raise many kinds; all mean the same to a reader
        raise RoadmapError(f"{path.name} could not be read as {path.suffix[1:]}: {str(error).splitlines()[0][:160]}") from error


def from_file(path: Path, columns: dict[str, str]) -> DatasetDict:
    """The splits of a file; arguments and errors as in :func:`common.data.load_data`."""
    from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

    frame = read_table(path)
    if unexpected := set(columns) - {"text", "label"}:
        raise RoadmapError(f"A file has the columns text and label; {', '.join(sorted(unexpected))} is not one of them.")
    source = {"text": columns.get("text", "text")}
    if "label" in columns or "label" in frame.columns:
        source["label"] = columns.get("label", "label")
    for here, there in source.items():
        if there not in frame.columns:
            raise RoadmapError(
                f"{path.name} has no column {there!r}; it has: {', '.join(map(str, frame.columns))}. "
                f'Name the right one: load_data("{path.name}", {here}="...").'
            )
    frame = frame[list(source.values())].dropna()
    rows: list[Row] = [dict(zip(source, map(str, values))) for values in frame.itertuples(index=False)]
    rows = [row for row in rows if normalise(row["text"])]
    kept = unique(rows, set())
    features = {"text": Value("string")}
    if "label" in source:
        names = sorted({row["label"] for row in kept})
        features["label"] = ClassLabel(names=names)
        few = [label for label, count in Counter(row["label"] for row in kept).items() if count < len(SPLITS)]
        if few:
            raise RoadmapError(
                f"The label {few[0]!r} in {path.name} has fewer than 3 different texts; train, validation and test need one each."
            )
        kept = [row | {"label": names.index(row["label"])} for row in kept]
    if len(kept) < 10:
        raise RoadmapError(
            f"{path.name} has {len(kept)} usable rows after empty and repeated texts are removed; 10 is the least."
        )
    print(f"{path.name}: {len(frame)} rows, {len(kept)} after removing empty and repeated texts.")
    splits = _stratified(kept)
    return DatasetDict({s: Dataset.from_list(splits[s], features=Features(features)) for s in SPLITS})


def _stratified(rows: list[Row]) -> Splits:
    """80/10/10 within each label; the order is that of a hash of the text, so it is the same everywhere."""
    groups: dict[Any, list[Row]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: hashlib.sha256(row["text"].encode()).digest()):
        groups[row.get("label")].append(row)
    splits: Splits = {s: [] for s in SPLITS}
    for group in groups.values():
        held = max(1, len(group) // 10)
        for split, part in zip(SPLITS, (group[2 * held :], group[:held], group[held : 2 * held])):
            splits[split] += part
    return shuffled(splits)  # not label after label: the first rows of a split must be a fair sample


# ------------------------------------------------------------------------------------------------ cleaning and splitting
