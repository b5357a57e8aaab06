"""Conversations: Alpaca, ShareGPT, messages (OpenAI), prompt and response."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from common.data.readers.base import Item, Reader, Source, text_of
from common.data.readers.tables import Table, pick_columns, read_table
from common.data.splits import Row, normalise
from common.errors import RoadmapError
from common.text import check_conversation

if TYPE_CHECKING:
    from datasets import Features

Messages = list[dict[str, Any]]
_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant"}
_PROMPTS, _ANSWERS = ("prompt", "question", "query"), ("response", "completion", "answer", "output")


def read_chats(source: Source) -> list[Item]:
    """Conversations that begin with the user and end with the assistant, with turns in between.

    Raises:
        RoadmapError: As :func:`common.data.readers.tables.read_table`; or no known columns.
    """
    table = read_table(source)
    convert = _converter(source, table)
    items = []
    for at, row in table.rows:
        try:
            messages = convert(row)
            check_conversation(messages)
            _check_ends(messages)
        except (RoadmapError, KeyError, TypeError, ValueError, AttributeError) as error:
            said = (
                str(error).removesuffix(".").partition(";")[0] if isinstance(error, RoadmapError) else f"no messages ({error!r})"
            )
            source.faults.add(at, said[:1].lower() + said[1:])
            continue
        asked = next(m["content"] for m in messages if m["role"] == "user")
        kind = text_of(row.get("kind")) or "open"
        key = "\n".join(f"{m['role']} {normalise(m['content'])}" for m in messages)
        items.append(Item({"kind": kind, "messages": messages}, at, key, normalise(asked) or asked))
    return items


def _converter(source: Source, table: Table) -> Callable[[Row], Messages]:
    """How this file writes a conversation."""
    if source.columns:
        chosen = pick_columns(source, table, {"prompt": _PROMPTS, "response": _ANSWERS}, {"system": ()})
        return lambda row: _pair(row, chosen["prompt"], chosen["response"], chosen.get("system", "system"))
    for name in ("messages", "conversations", "conversation"):
        if name in table.columns:
            return lambda row: _turns(row, name)
    if {"instruction", "output"} <= set(table.columns):
        return _alpaca
    chosen = pick_columns(source, table, {"prompt": _PROMPTS, "response": _ANSWERS})
    return lambda row: _pair(row, chosen["prompt"], chosen["response"], "system")


def _system(row: Row, column: str = "system") -> Messages:
    said = text_of(row.get(column))
    return [{"role": "system", "content": said}] if said.strip() else []


def _turns(row: Row, column: str) -> Messages:
    """ShareGPT's ``from`` and ``value``, or OpenAI's ``role`` and ``content``."""
    messages = _system(row)
    for turn in row[column]:
        role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
        if (
            isinstance(content, list)
            and content
            and all(isinstance(part, dict) and part.get("type") == "text" for part in content)
        ):
            content = "".join(part["text"] for part in content)
        messages.append({"role": _ROLES.get(role, role), "content": content})
    return messages


def _alpaca(row: Row) -> Messages:
    """``instruction``, ``input`` and ``output``, with ``history`` as pairs of earlier turns."""
    messages = _system(row)
    for asked, said in row.get("history") or []:
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
    question = "\n".join(part for part in (text_of(row["instruction"]), text_of(row.get("input"))) if part.strip())
    return [*messages, {"role": "user", "content": question}, {"role": "assistant", "content": row["output"]}]


def _pair(row: Row, prompt: str, response: str, system: str) -> Messages:
    """A prompt and its response, each a text or a list of messages."""
    messages = _system(row, system)
    for column, role in ((prompt, "user"), (response, "assistant")):
        value = row[column]
        messages += _turns(row, column) if isinstance(value, list) else [{"role": role, "content": value}]
    return messages


def _check_ends(messages: Sequence[Row]) -> None:
    """See that there is something to learn, which can be stored as role and content.

    Raises:
        RoadmapError: A message is empty or about tools, or the assistant does not speak last.
    """
    if not messages or messages[-1]["role"] != "assistant":
        raise RoadmapError("The last message is not the assistant's.")
    for number, message in enumerate(messages, 1):
        if message["role"] == "tool" or message["content"] is None:
            raise RoadmapError(f"Message {number} ({message['role']}) belongs to a tool's call, which these columns do not hold.")
        if not message["content"].strip():
            raise RoadmapError(f"Message {number} ({message['role']}) is empty.")


def features(items: list[Item]) -> Features:
    """A kind, and messages with role and content."""
    from datasets import Features, Value

    return Features({"kind": Value("string"), "messages": [{"role": Value("string"), "content": Value("string")}]})


CHATS = Reader(
    read_chats,
    features,
    ("prompt", "response", "system"),
    (
        "messages: role and content (OpenAI)",
        "ShareGPT: conversations of from (human, gpt) and value",
        "Alpaca: instruction, input, output; also history and system",
        "prompt and response (CSV, TSV, JSON, JSON lines, Parquet)",
    ),
)
