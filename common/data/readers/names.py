"""Names marked in texts: tags on lines (CoNLL), spans of characters (doccano, Label Studio, CLUENER), rows of tags.

Everything becomes characters or tokens with BIO tags over the file's own types. Spans count characters from 0.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from common.data.readers.base import Item, Reader, Source, quoted, text_of
from common.data.readers.encodings import read_text
from common.data.readers.tables import check_kind, pick_columns, read_table
from common.data.splits import Row, normalise
from common.errors import RoadmapError
from common.text import bio_to_spans, spans_to_bio

if TYPE_CHECKING:
    from datasets import Features

LINES = (".conll", ".bio", ".bmes", ".bioes", ".iob", ".iob2")
_LINES = (*LINES, ".txt", ".tsv")
_RECORDS = (".json", ".jsonl", ".parquet")
_TAG = re.compile(r"([BIMESLU])[-_](.+)")
_BIO = {"B": "B", "S": "B", "U": "B", "I": "I", "M": "I", "E": "I", "L": "I"}  # BMES, BIOES, BILOU
_COLUMNS = range(2, 5)  # of a line: a token, up to two that are not read, a tag
_DOCUMENTS = 10  # from so many, sentences of one document stay in one split
_SENTENCE = re.compile(r"[\u4e00-\u9fff，、].*[，。！？；、]|[\u4e00-\u9fff]{8}")  # a token that is no word
Span = tuple[str, int, int]


@dataclass(frozen=True)
class _Tagged:
    """A sentence as it stands in the file."""

    at: str
    tokens: list[str]
    tags: list[str]
    group: str = ""


def read_names(source: Source) -> list[Item]:
    """Sentences with BIO tags.

    Raises:
        RoadmapError: As :func:`common.data.readers.tables.read_table`; or the file marks no name, its tags are numbers,
            or its Chinese text was not split into characters.
    """
    kind = check_kind(source.path, dict.fromkeys((*_LINES, *_RECORDS)))
    found = _lines(source) if kind in _LINES else _records(source)
    if sum(len(s.tokens) == 1 and bool(_SENTENCE.search(s.tokens[0])) for s in found) > len(found) / 2:
        raise RoadmapError(
            f"{source.path.name}, {found[0].at}: the token {quoted(found[0].tokens[0], 20)} is a whole sentence, so the text was "
            "not split into characters; export it as JSON, which has the places of the names."
        )
    first = _begins_inside(found)
    if first:
        print(f"{source.path.name}: the tags follow IOB1 (a name begins with I, or with B after another name); read as such.")
    items = []
    for sentence in found:
        tags = _bio(source, sentence, first)
        if tags is not None:
            row = {"tokens": sentence.tokens, "ner_tags": tags}
            items.append(Item(row, sentence.at, normalise("".join(sentence.tokens)), sentence.group))
    if items and not any(tag != "O" for item in items for tag in item.row["ner_tags"]):
        raise RoadmapError(f"{source.path.name} marks no name in {len(items)} texts; check that the labels were exported.")
    return items


# --- tags -------------------------------------------------------------------------------------------------------------


def _begins_inside(found: Iterable[_Tagged]) -> bool:
    """Whether names begin with I everywhere, and B stands only between two names of one type, as in CoNLL-2003."""
    inside = False
    for sentence in found:
        for before, tag in zip(["O", *sentence.tags], sentence.tags):
            if tag[:1] not in ("O", "B", "I") or (tag[0] == "B" and before[1:] != tag[1:]):
                return False
            inside |= tag[0] == "I" and before == "O"
    return inside


def _bio(source: Source, sentence: _Tagged, begins_inside: bool) -> list[str] | None:
    """A sentence's tags as BIO; None, with a fault noted, for a tag that is none or continues nothing."""
    tags: list[str] = []
    for place, tag in enumerate(sentence.tags):
        match = _TAG.fullmatch(tag)
        if tag != "O" and not match:
            source.faults.add(sentence.at, f"{quoted(tag)} is not a tag; a tag is O, B-type or I-type (or of BMES, BIOES)")
            return None
        if match is None:
            tags.append("O")
            continue
        prefix, kind = _BIO[match[1]], match[2]
        if prefix == "I" and (not tags or tags[-1][2:] != kind):
            if not begins_inside:
                source.faults.add(sentence.at, f"the tag {tag} of {quoted(sentence.tokens[place])} continues no name of its type")
                return None
            prefix = "B"
        tags.append(f"{prefix}-{kind}")
    return tags


def _lines(source: Source) -> list[_Tagged]:
    """One token and its tag on each line, first and last of two to four columns; blank lines between sentences."""
    found: list[_Tagged] = []
    tokens: list[str] = []
    tags: list[str] = []
    begin = document = 0
    broken = ""
    for number, line in enumerate([*read_text(source.path).splitlines(), ""], 1):
        fields = line.split("\t") if "\t" in line else line.split()
        boundary = line.startswith("-DOCSTART-")
        document += boundary
        if boundary or not line.strip():
            if broken:
                source.faults.add(f"line {begin}", broken)
            elif tokens:
                found.append(_Tagged(f"line {begin}", tokens, tags, f"document {document}"))
            tokens, tags, broken = [], [], ""
            continue
        if not tokens and not broken:
            begin = number
        if len(fields) == 1 and line[0].isspace():
            fields = [" ", *fields]  # a blank character leaves only its tag
        if len(fields) not in _COLUMNS:
            broken = broken or f"line {number} has {len(fields)} column{'s' * (len(fields) > 1)}, not a token and its tag"
            continue
        tokens.append(fields[0] or " ")
        tags.append(fields[-1].strip())
    if document < _DOCUMENTS:
        found = [_Tagged(s.at, s.tokens, s.tags) for s in found]
    if not found and not source.faults.found:
        raise RoadmapError(f"{source.path.name} could not be read: it holds no rows.")
    return found


# --- records ----------------------------------------------------------------------------------------------------------


def _records(source: Source) -> list[_Tagged]:
    """Rows of tokens and tags, or of a text and spans."""
    table = read_table(source)
    tokens = next((name for name in (source.columns.get("tokens"), "tokens", "words") if name in table.columns), None)
    if tokens is not None:
        usual: dict[str, tuple[str, ...]] = {"tokens": ("words",), "ner_tags": ("tags", "labels")}
        chosen = pick_columns(source, table, usual)
        rows = [_row_of_tags(source, at, row.get(chosen["tokens"]), row.get(chosen["ner_tags"])) for at, row in table.rows]
    else:
        rows = [_row_of_spans(source, at, row) for at, row in table.rows]
    return [row for row in rows if row is not None]


def _row_of_tags(source: Source, at: str, tokens: Any, tags: Any) -> _Tagged | None:
    if not isinstance(tokens, list) or not isinstance(tags, list) or len(tokens) != len(tags):
        counts = [f"{len(part)}" if isinstance(part, list) else quoted(part) for part in (tokens, tags)]
        source.faults.add(at, f"{counts[0]} tokens and {counts[1]} tags, which must be lists of one length")
        return None
    if tags and isinstance(tags[0], int):
        raise RoadmapError(f"{source.path.name}, {at}: the tags are numbers; write their names, such as B-PER, into the file.")
    return _Tagged(at, [text_of(token) for token in tokens], [text_of(tag) for tag in tags])


def _row_of_spans(source: Source, at: str, row: Row) -> _Tagged | None:
    """A text and its spans, whatever program wrote them."""
    try:
        text, spans = _spans(row)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        source.faults.add(at, f"no text with spans ({quoted(error, 60)})")
        return None
    if fault := _fault(text, spans):
        source.faults.add(at, fault)
        return None
    return _Tagged(at, list(text), spans_to_bio(spans, len(text)))


def _spans(row: Row) -> tuple[str, list[Span]]:
    """The text of a row and its spans, each once.

    Raises:
        ValueError: It has none; the message says what was looked for.
    """
    marks = row.get("annotations") or row.get("completions")
    if isinstance(row.get("data"), dict) and isinstance(marks, list):
        return _label_studio(row["data"], marks)
    text = row["text"] if "text" in row else row.get("data")
    if not isinstance(text, str):
        raise ValueError("text is missing")
    if isinstance(row.get("entities"), list):
        spans = [(e["label"], e["start_offset"], e["end_offset"]) for e in row["entities"]]
    elif isinstance(row.get("label"), dict):  # CLUENER: the last character is counted in
        places = [(kind, place) for kind, names in row["label"].items() for found in names.values() for place in found]
        spans = [(kind, start, end + 1) for kind, (start, end) in places]
    elif isinstance(label := row.get("label", row.get("labels", row.get("spans"))), list):
        spans = [_listed(text, span) for span in label]
    else:
        raise ValueError("label or entities is missing")
    return text, list(dict.fromkeys((text_of(kind), int(start), int(end)) for kind, start, end in spans))


def _listed(text: str, span: Any) -> Span:
    """A span as doccano lists it, ``[0, 2, "PER"]``, or as Label Studio's short export does."""
    if isinstance(span, dict):
        return _region(text, span)
    start, end, kind = span
    return kind, start, end


def _label_studio(data: Row, annotations: Sequence[Any]) -> tuple[str, list[Span]]:
    """The first annotation that was not cancelled; relations between regions are no spans."""
    texts = [value for value in data.values() if isinstance(value, str)]
    text = data["text"] if "text" in data else texts[0]
    taken = [a for a in annotations if not a.get("was_cancelled")][:1]
    regions = [result for annotation in taken for result in annotation["result"] if "value" in result]
    return text, list(dict.fromkeys(_region(text, region["value"]) for region in regions))


def _region(text: str, value: Row) -> Span:
    """A region of Label Studio. Its offsets may count an emoji as two, because browsers do."""
    labels = value.get("labels")
    if not labels:
        raise ValueError(f"the region {value.get('start')} to {value.get('end')} has no label")
    start, end = int(value["start"]), int(value["end"])
    said = value.get("text")
    if said is not None and text[start:end] != said:
        units = text.encode("utf-16-le")
        before, inside = (units[2 * a : 2 * b].decode("utf-16-le", "replace") for a, b in ((0, start), (start, end)))
        if inside != said:
            raise ValueError(f"the text at {start} to {end} is {text[start:end]!r}, not {said!r}")
        start, end = len(before), len(before) + len(inside)
    return labels[0], start, end


def _fault(text: str, spans: Sequence[Span]) -> str:
    """What is wrong with the spans of a text; empty if nothing is."""
    for kind, start, end in spans:
        if not kind:
            return f"the span {start} to {end} has no type"
        if not 0 <= start < end:
            return f"the span {start} to {end} ({kind}) is empty or begins before the text"
        if end > len(text):
            return f"the span {start} to {end} ({kind}) ends after the text, which has {len(text)} characters"
    ordered = sorted(spans, key=lambda span: span[1:])
    for (one, start, end), (other, begin, close) in pairwise(ordered):
        if begin < end:
            return f"the spans {start} to {end} ({one}) and {begin} to {close} ({other}) overlap, which tags cannot say"
    return ""


def features(items: list[Item]) -> Features:
    """Tokens, and BIO tags over the types of the file."""
    from datasets import ClassLabel, Features, List, Value

    types = sorted({tag[2:] for item in items for tag in item.row["ner_tags"] if tag != "O"})
    tags = ["O", *(f"{prefix}-{kind}" for kind in types for prefix in "BI")]
    return Features({"tokens": List(Value("string")), "ner_tags": List(ClassLabel(names=tags))})


def types_of(item: Item) -> list[str]:
    """The type of each name of a row."""
    return [kind for kind, _, _ in bio_to_spans(item.row["ner_tags"])]


NAMES = Reader(
    read_names,
    features,
    ("tokens", "ner_tags"),
    (
        "CoNLL: a token and its tag on each line (2 to 4 columns), tags in BIO, IOB1, BMES, BIOES or BILOU",
        "doccano, sequence labelling (JSON lines, old and new)",
        "Label Studio (JSON and JSON-MIN)",
        "CLUENER (JSON lines)",
        "rows of tokens and tags (JSON, JSON lines, Parquet)",
    ),
)
