"""Names in files of one's own: each format gives the same rows, and each fault its sentence."""

import json

from common import load_data
from common.text import bio_to_spans

import pytest

from tests.test_own_data import HERE, check, refused, whole, write

WHOLE = sorted(path.name for path in HERE.glob("names*") if "iob1" not in path.name)
TEXT = "王明在北京工作。"


def jsonl(path, rows):
    return write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def found(splits) -> dict[str, list[tuple[str, str]]]:
    """Text to its names and their types."""
    tags = splits["train"].features["ner_tags"].feature.names
    return {
        (text := "".join(row["tokens"])): [(text[a:b], k) for k, a, b in bio_to_spans([tags[i] for i in row["ner_tags"]])]
        for row in whole(splits)
    }


@pytest.mark.parametrize("name", WHOLE)
def test_names_in_every_format(name):
    splits = load_data("ner", file=HERE / name)
    check(splits, 12)
    assert len(WHOLE) == 11
    assert splits["train"].features["ner_tags"].feature.names == ["O", "B-LOC", "I-LOC", "B-ORG", "I-ORG", "B-PER", "I-PER"]
    names = found(splits)
    assert names["林小河昨天到了青石镇。"] == [("林小河", "PER"), ("青石镇", "LOC")]
    assert names["雨下了一夜，河水涨了。"] == []
    assert names == found(load_data("ner", file=HERE / "names_doccano_old.jsonl"))


def test_tags_of_iob1_are_recognised_and_said(capsys):
    names = found(load_data("ner", file=HERE / "names_iob1.txt"))
    assert names["云雀书店在南湖路开了分店。"] == [("云雀书店", "ORG"), ("南湖路", "LOC")]
    assert "the tags follow IOB1" in capsys.readouterr().out


def test_a_whole_sentence_as_one_token(tmp_path):
    text = "-DOCSTART- -X- O\n" + "".join(f"{TEXT}{i} -X- _ O\n\n" for i in range(12))
    says = refused("was not split into characters", "ner", file=write(tmp_path / "a.conll", text))
    assert "a.conll, line 2: the token '王明在北京工作。0' is a whole sentence" in says


@pytest.mark.parametrize(
    "lines, says",
    [
        ("王 O\n明 I-PER\n", "line 1: the tag I-PER of '明' continues no name of its type"),
        ("王 B-PER\n明 I-LOC\n", "line 1: the tag I-LOC of '明' continues no name"),
        ("王 B-PER\n明\n", "line 1: line 2 has 1 column, not a token and its tag"),
        ("王 B-PER\n明 person\n", "line 1: 'person' is not a tag"),
        ("王\tB-PER\n明\t\n", "line 1: '' is not a tag"),
        ("王 1 2 3 B-PER\n", "line 1 has 5 columns"),
    ],
)
def test_faults_of_lines(tmp_path, lines, says):
    good = "".join(f"\n第 O\n{i} O\n张 B-PER\n三 I-PER\n" for i in range(12))
    path = write(tmp_path / "a.bio", lines + good)
    refused(says, "ner", file=path)
    check(load_data("ner", file=path, faults="drop"), 12)


@pytest.mark.parametrize(
    "row, says",
    [
        ({"text": TEXT, "label": [[6, 12, "LOC"]]}, "the span 6 to 12 (LOC) ends after the text, which has 8 characters"),
        ({"text": TEXT, "label": [[0, 2, "PER"], [1, 3, "LOC"]]}, "the spans 0 to 2 (PER) and 1 to 3 (LOC) overlap"),
        ({"text": TEXT, "label": [[2, 2, "PER"]]}, "the span 2 to 2 (PER) is empty"),
        ({"text": TEXT, "label": [[-1, 2, "PER"]]}, "begins before the text"),
        ({"text": TEXT, "label": [[0, 2, None]]}, "the span 0 to 2 has no type"),
        ({"text": TEXT}, "label or entities is missing"),
        ({"sentence": TEXT, "label": []}, "text is missing"),
        ({"text": TEXT, "label": [[0, 2]]}, "no text with spans"),
        ({"data": {"text": TEXT}, "annotations": [{"result": [{"value": {"start": 0, "end": 2}}]}]}, "0 to 2 has no label"),
        (
            {
                "data": {"text": TEXT},
                "annotations": [{"result": [{"value": {"start": 0, "end": 2, "text": "张三", "labels": ["A"]}}]}],
            },
            "the text at 0 to 2 is",
        ),
        ({"tokens": list(TEXT), "ner_tags": ["O"]}, "8 tokens and 1 tags"),
    ],
)
def test_faults_of_records(tmp_path, row, says):
    spans = [{"text": f"第{i}次见张三", "label": [[len(f"第{i}次见"), len(f"第{i}次见张三"), "PER"]]} for i in range(12)]
    rows = [{"tokens": list(r["text"]), "ner_tags": ["B-PER", *"O" * (len(r["text"]) - 1)]} for r in spans]
    path = jsonl(tmp_path / "a.jsonl", [*(rows if "tokens" in row else spans), row])
    assert "a.jsonl has 1 row that cannot be used: line 13: " in refused(says, "ner", file=path)
    check(load_data("ner", file=path, faults="drop"), 12)


def test_a_span_given_twice_counts_once_and_an_emoji_as_one_character(tmp_path):
    rows = [{"text": f"{i}😀张三来了", "label": []} for i in range(12)]
    for row in rows:
        start = len(row["text"]) - 4
        region = {"start": start + 1, "end": start + 3, "text": "张三", "labels": ["PER"]}  # a browser counts 😀 as two
        row["label"] = [region, region]
    names = found(load_data("ner", file=jsonl(tmp_path / "a.jsonl", rows)))
    assert names["3😀张三来了"] == [("张三", "PER")]


def test_sentences_of_a_document_stay_together(tmp_path):
    documents = ["".join(f"第 O\n{d} O\n{i} O\n张 B-PER\n\n" for i in range(4)) for d in range(20)]
    splits = load_data("ner", file=write(tmp_path / "a.conll", "".join(f"-DOCSTART- O\n\n{text}" for text in documents)))
    check(splits, 80)
    assert sum(len({row["tokens"][1] for row in rows}) for rows in splits.values()) == 20


def test_files_that_mark_nothing_or_only_numbers(tmp_path):
    refused(
        "marks no name in 12 texts", "ner", file=jsonl(tmp_path / "a.jsonl", [{"text": f"{i}", "label": []} for i in range(12)])
    )
    refused("the tags are numbers", "ner", file=jsonl(tmp_path / "b.jsonl", [{"tokens": ["a"], "tags": [0]}] * 12))
    refused("holds no rows", "ner", file=write(tmp_path / "c.conll", "-DOCSTART- -X- O\n"))
    refused("not a kind of file", "ner", file=write(tmp_path / "c.csv", "a,b\n"))
