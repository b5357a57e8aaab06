"""Pictures with words: a folder with a table of captions or questions (ImageFolder), or LLaVA's JSON beside the pictures.

The pictures stay in their files: a row holds the path, and the picture is opened when the row is read.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from common.data import images
from common.data.readers.base import Item, Reader, Source, listed, named, quoted, text_of
from common.data.readers.tables import pick_columns, read_table
from common.data.splits import Row, normalise
from common.errors import RoadmapError

_METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
_FILES = ("file_name", "image_path", "path")
_CHINESE = re.compile(r"[\u4e00-\u9fff]")
IMAGE = "<image>"


def read_captions(source: Source) -> list[Item]:
    """Pictures with a caption each; one with Chinese characters is the Chinese caption, another the English one.

    Raises:
        RoadmapError: As :func:`common.data.readers.tables.read_table`; or a folder without a table of captions.
    """
    items = []
    for at, row in _rows(source, {"text": ("caption", "caption_zh", "caption_en", "answer")}):
        caption = text_of(row["text"]).strip()
        known = {"caption_zh": text_of(row.get("caption_zh")).strip(), "caption_en": text_of(row.get("caption_en")).strip()}
        if not any(known.values()):
            known["caption_zh" if _CHINESE.search(caption) else "caption_en"] = caption
        said = known["caption_zh"] or known["caption_en"]
        if not said:
            source.faults.add(at, "no caption")
        elif (found := _picture(source, at, row["image"])) is not None:
            image, digest = found
            rest = {"group": text_of(row.get("group")), "style": "photo", "emoji": ""}
            items.append(Item({"image": image, **known, **rest}, at, f"{digest} {normalise(said)}", digest))
    return items


def read_scenes(source: Source) -> list[Item]:
    """Pictures with a question and its answer; all questions about a picture stay in one split.

    Raises:
        RoadmapError: As :func:`read_captions`.
    """
    items = []
    for at, row in _rows(source, {"question": (), "answer": ("text",)}):
        question, answer = text_of(row["question"]).strip(), text_of(row["answer"]).strip()
        if not question or not answer:
            source.faults.add(at, "no question" if not question else "no answer")
        elif (found := _picture(source, at, row["image"])) is not None:
            image, digest = found
            columns = {"image": image, "question": question, "answer": answer, "kind": "open", "style": "photo"}
            items.append(Item(columns, at, f"{digest} {normalise(question)}", digest))
    return items


def _rows(source: Source, fields: dict[str, tuple[str, ...]]) -> Iterator[tuple[str, Row]]:
    """The picture's name and the fields of each row, from a table or from conversations."""
    source = replace(source, path=_metadata(source.path))
    table = read_table(source)
    if "conversations" in table.columns:
        for at, row in table.rows:
            yield from _turns(source, at, row, single="text" in fields)
        return
    chosen = pick_columns(
        source, table, {"image": _FILES, **fields}, {name: () for name in ("caption_zh", "caption_en", "group")}
    )
    for at, row in table.rows:
        yield at, {field: row.get(column) for field, column in chosen.items()}


def _metadata(path: Path) -> Path:
    """The table of a folder of pictures; a file is itself."""
    if not path.is_dir():
        return path
    found = [path / name for name in _METADATA if (path / name).is_file()]
    if len(found) == 1:
        return found[0]
    what = f"both {found[0].name} and {found[1].name}" if found else "no metadata.jsonl or metadata.csv"
    raise RoadmapError(
        f"The folder {path.name} has {what}; it needs one, with the columns file_name and text (or question and answer)."
    )


def _turns(source: Source, at: str, row: Row, single: bool) -> Iterator[tuple[str, Row]]:
    """Each question of a conversation about a picture (LLaVA), without the mark of the picture's place."""
    turns = [named(turn) for turn in listed(row.get("conversations"))]
    speakers = [turn.get("from") for turn in turns]
    if not speakers or speakers != ["human", "gpt"] * (len(speakers) // 2):
        source.faults.add(at, f"the turns are of {quoted(speakers)}, not of human and gpt in turn")
        return
    said = [text_of(turn.get("value")) for turn in turns]
    places = [text.count(IMAGE) for text in said]
    if places[0] > 1 or any(places[1:]):
        source.faults.add(at, f"{IMAGE} stands in {sum(places)} places, where it stands once, in the first question")
    elif single and len(said) > 2:
        source.faults.add(at, f"{len(said) // 2} questions about one picture, where a caption is one answer")
    else:
        for asked, answer in zip(said[::2], said[1::2]):
            yield at, {"image": row.get("image"), "question": asked.replace(IMAGE, ""), "answer": answer, "text": answer}


def _picture(source: Source, at: str, name: Any) -> tuple[Row, str] | None:
    """The picture as the ``Image`` feature takes it, and a hash of its bytes; None, with a fault noted, if it is none."""
    from PIL import Image, UnidentifiedImageError

    if not isinstance(name, str) or not name.strip():
        source.faults.add(at, f"the picture is {quoted(name)}, not the name of a file" if name else "no picture")
        return None
    folder = source.path if source.path.is_dir() else source.path.parent
    path = (folder / name.replace("\0", "")).resolve()
    if not path.is_file():
        source.faults.add(at, f"there is no picture {name} in {folder.name}")
        return None
    try:
        with Image.open(path) as image:
            image.load()
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        source.faults.add(at, f"{name} cannot be opened as a picture ({type(error).__name__})")
        return None
    return {"path": str(path), "bytes": None}, hashlib.sha256(path.read_bytes()).hexdigest()


CAPTIONS = Reader(
    read_captions,
    lambda items: images.CARDS["image_text"].features(),
    ("image", "text", "group"),
    (
        "a folder of pictures with metadata.jsonl or metadata.csv: file_name and text (ImageFolder)",
        "a table beside the pictures (CSV, TSV, JSON, JSON lines, Parquet)",
        "LLaVA JSON: image and conversations of one question and answer",
    ),
)
SCENES = Reader(
    read_scenes,
    lambda items: images.CARDS["scenes"].features(),
    ("image", "question", "answer"),
    (
        "LLaVA JSON: image and conversations of human and gpt",
        "a folder of pictures with metadata.jsonl or metadata.csv: file_name, question and answer",
    ),
)
