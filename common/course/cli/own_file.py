"""What is in a file of one's own: ``python -m common data --file FILE --as TASK``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from common.data.readers import READERS, Own, read_own
from common.data.readers.base import Item
from common.data.readers.names import types_of
from common.data.splits import SPLITS, Row
from common.errors import RoadmapError, unknown

EXAMPLES, SHOWN = 3, 20  # rows, and labels, that are printed
WIDTH = 200  # characters of an example
_MODELS = {
    "instructions": "chat",
    "extraction": "chat",
    "headlines": "t5",
    "image_text": "clip",
    "scenes": "llava",
    "corpus": "qwen",
}  # else bert
_ENDLESS = 1_000_000  # from here on, a tokenizer's limit means that there is none


def report(files: Sequence[str], task: str | None, columns: Sequence[str], header: bool) -> int:
    """Print rows, labels, lengths, faults, splits and examples.

    Args:
        files: One path, or one for each split.
        task: The registered data set whose columns are wanted.
        columns: Such as ``text=review``.
        header: Whether the first line of a table names its columns.

    Returns:
        1 if rows cannot be used, else 0.

    Raises:
        RoadmapError: Unknown task, or as :func:`common.data.load_data`.
    """
    if task is None:
        raise RoadmapError(f"Say what the file is for: --as TASK, where TASK is one of: {', '.join(sorted(READERS))}.")
    if task not in READERS:
        raise unknown("data set that a file can stand for", str(task), READERS, "python -m common data --file FILE --as TASK")
    own = read_own(task, files[0] if len(files) == 1 else list(files), _options(columns) | {"header": header, "faults": "drop"})
    kept = [item for items in own.splits.values() for item in items]
    faults = sum(len(part.found) for part in own.faults)
    print(f"\nrows       {sum(map(len, own.read.values())) + faults:,} read, {faults:,} with faults, {len(kept):,} kept")
    print(f"splits     {', '.join(f'{split} {len(own.splits[split]):,}' for split in SPLITS)}; {_shared(own)}")
    if labels := Counter(label for item in kept for label in _labels(item)):
        shown = [f"{label} {count:,}" for label, count in labels.most_common(SHOWN)]
        print(f"labels     {', '.join(shown)}{' ...' if len(labels) > SHOWN else ''}")
    print(f"characters {_spread([sum(map(len, _texts(item.row))) for item in kept])}")
    print(f"tokens     {_tokens(task, kept)}")
    for item in kept[:EXAMPLES]:
        print(f"{item.at:<10} {str(_shown(item.row))[:WIDTH]}")
    if faults:
        print(
            f'\n{faults:,} rows cannot be used. Correct them, or load the others: load_data("{task}", file=..., faults="drop").'
        )
    return int(faults > 0)


def _options(columns: Sequence[str]) -> dict[str, Any]:
    """``text=review`` as a dictionary; a whole number is the place of a column."""
    options: dict[str, Any] = {}
    for said in columns:
        field, mark, column = said.partition("=")
        if not mark or not column:
            raise RoadmapError(f"{said!r} names no column; say which field is which column, such as text=review.")
        options[field] = int(column) if column.isdigit() else column
    return options


def _shared(own: Own) -> str:
    """How many texts are in two splits. Reading leaves them out, so this checks the reading."""
    places = Counter(key for items in own.splits.values() for key in {item.key for item in items})
    twice = sum(count > 1 for count in places.values())
    return f"{twice:,} texts are in two splits" if twice else "no text is in two splits"


def _labels(item: Item) -> list[str]:
    """What is counted as labels: classes, types of names, places of right choices, whether there is an answer."""
    row = item.row
    if "ner_tags" in row:
        return types_of(item)
    if "sentence1" in row:
        return ["same" if row["label"] else "different"]
    if "label" in row:
        return [f"choice {row['label']}" if "choices" in row else str(row["label"])]
    if "answers" in row:
        return ["with an answer" if row["answers"]["text"] else "without an answer"]
    if "messages" in row:
        return [f"{len(row['messages'])} messages"]
    return []


def _texts(row: Row) -> list[str]:
    """The texts that a model reads together; of several choices the longest."""
    if "tokens" in row:
        return ["".join(row["tokens"])]
    if "messages" in row:
        return [message["content"] for message in row["messages"]]
    if "choices" in row:
        return [row["context"], row["question"] + max(row["choices"], key=len)]
    for fields in (("question", "context"), ("sentence1", "sentence2"), ("question", "answer"), ("document",), ("text",)):
        if set(fields) <= set(row):
            return [row[field] for field in fields]
    return [row["caption_zh"] or row["caption_en"]]


def _tokens(task: str, kept: Sequence[Item]) -> str:
    """Lengths in tokens of the model that the lessons of this task begin with, against what it can read."""
    from common.models import checkpoint
    from common.text import chat_prompt

    from transformers import AutoConfig, AutoTokenizer

    name = checkpoint(_MODELS.get(task, "bert"))
    try:
        tokenizer, config = AutoTokenizer.from_pretrained(name), AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        return f"not counted: {name} could not be loaded ({str(error).splitlines()[0][:80]})"
    text_config = getattr(config, "text_config", config)
    limit = getattr(text_config, "max_position_embeddings", None) or tokenizer.model_max_length
    if task == "instructions":
        lengths = [len(chat_prompt(tokenizer, item.row["messages"])[1]) for item in kept]
    else:
        lengths = [len(tokenizer(*_texts(item.row), verbose=False)["input_ids"]) for item in kept]
    fits = "" if limit >= _ENDLESS else f"; {sum(n > limit for n in lengths):,} are longer than the {limit:,} that it reads"
    return f"{_spread(lengths)} ({name.rpartition('/')[2]}{fits})"


def _spread(numbers: Sequence[int]) -> str:
    ordered = sorted(numbers)
    middle, most = ordered[len(ordered) // 2], ordered[int(0.95 * (len(ordered) - 1))]
    return f"median {middle:,}, 95 % at most {most:,}, longest {ordered[-1]:,}"


def _shown(row: Row) -> Row:
    """A row for people: of a picture only its file's name."""
    return {**row, "image": row["image"]["path"].rpartition("/")[2]} if "image" in row else row
