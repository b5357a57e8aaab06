"""Files of one's own: every format of ``tests/own_data``, every encoding, and every fault with its sentence."""

import json
import re
from collections import Counter
from pathlib import Path

from common import load_data
from common.data import DATA, SPLITS
from common.errors import RoadmapError

import pytest

HERE = Path(__file__).parent / "own_data"
REVIEWS = [(f"第{i}条评论说得很好", "好" if i % 2 else "坏") for i in range(40)]


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


def table(path: Path, rows, head=("text", "label"), separator=",") -> Path:
    return write(path, "".join(separator.join(map(str, row)) + "\n" for row in ([head] if head else []) + list(rows)))


def refused(says: str, *arguments, **options) -> str:
    """The sentence of the error, which holds what is said."""
    with pytest.raises(RoadmapError, match=re.escape(says)) as caught:
        load_data(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def whole(splits) -> list[dict]:
    return [row for split in SPLITS for row in splits[split]]


def check(splits, rows: int) -> None:
    """All rows are there, each split has some, and none is in two."""
    assert list(splits) == list(SPLITS) and all(len(splits[split]) for split in SPLITS)
    assert len(whole(splits)) == rows


# ------------------------------------------------------------------------------------------------ encodings and tables


@pytest.mark.parametrize(
    "name, says",
    [
        ("reviews.csv", ""),
        ("reviews_mark.csv", "reviews_mark.csv: read as UTF-8 with a mark at its start."),
        ("reviews_utf16.csv", "reviews_utf16.csv: read as UTF-16, low byte first."),
        ("reviews_gb18030.csv", "reviews_gb18030.csv: read as GB18030 (GBK)."),
        ("reviews_semicolon.csv", "reviews_semicolon.csv: the columns are separated by a semicolon."),
        ("reviews.tsv", ""),
        ("reviews.json", ""),
        ("reviews_nested.json", ""),
        ("reviews.jsonl", ""),
        ("reviews.parquet", ""),
        ("reviews_doccano.jsonl", ""),
    ],
)
@pytest.mark.parametrize("task", ["", "sentiment"])
def test_reviews_in_every_format(capsys, name, says, task):
    splits = load_data(task, file=HERE / name) if task else load_data(HERE / name)
    check(splits, 16)
    assert splits["train"].features["label"].names == ["好评", "差评"]
    assert splits["train"].features["text"] == DATA["sentiment"].features()["text"]
    labels = {row["text"].replace(",", "，"): row["label"] for row in whole(splits)}
    assert labels["房间很干净，窗外能看到河"] == 0 and labels["空调整晚响个不停"] == 1
    assert {row["label"] for row in splits["test"]} == {0, 1}
    printed = capsys.readouterr().out
    assert says in printed and ("read as" in printed) == ("read as" in says)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-16", "gb18030", "utf-8-sig"])
def test_encodings_with_and_without_marks(tmp_path, encoding):
    rows = "text,label\n" + "".join(f"{text},{label}\n" for text, label in REVIEWS)
    text = ("\ufeff" if encoding == "utf-16-be" else "") + rows  # one with a mark, one without
    assert whole(load_data(write(tmp_path / "a.csv", text, encoding))) == whole(load_data(write(tmp_path / "a.csv", rows)))


def test_five_classes_in_a_text_file_with_tabs():
    says = refused("has no column 'text'; it has: id, document, label", "topics", file=HERE / "five_classes.txt")
    assert 'load_data("topics", file="five_classes.txt", text="...")' in says
    splits = load_data("topics", file=HERE / "five_classes.txt", text="document")
    check(splits, 15)
    assert sorted(splits["train"].features["label"].names) == sorted(["很差", "较差", "一般", "较好", "很好"])


def test_a_table_without_names():
    says = refused("seems to have no line with column names", "sentiment", file=HERE / "reviews_no_header.tsv")
    assert "header=False" in says and "text=0" in says
    for options in ({"header": False}, {"text": 0, "label": 1}):
        check(load_data("sentiment", file=HERE / "reviews_no_header.tsv", **options), 16)


def test_a_row_without_a_label_is_named_and_the_others_keep_whole_numbers(tmp_path, capsys):
    path = table(tmp_path / "gap.csv", [(text, i % 2) for i, (text, _) in enumerate(REVIEWS)] + [("没有标签的一条", "")])
    assert "gap.csv has 1 row that cannot be used: line 42: no label." in refused("no label", path)
    splits = load_data(path, faults="drop")
    check(splits, 40)
    assert splits["train"].features["label"].names == ["0", "1"]
    assert "gap.csv: 1 row with faults left out: line 42: no label." in capsys.readouterr().out


def test_labels_with_a_minus():
    assert load_data(HERE / "scores.csv")["train"].features["label"].names == ["-1", "0", "1"]


def test_plain_text_one_on_each_line():
    splits = load_data("corpus", file=HERE / "lines.txt")
    check(splits, 16)
    assert splits["train"].features == DATA["corpus"].features()


def test_several_labels_and_labels_that_are_no_classes(tmp_path):
    rows = '{"text": "甲很好", "label": ["a", "b"]}\n{"text": "乙很好", "label": {"x": 1}}\n{"text": "丙很好", "label": []}\n'
    says = refused("has 3 rows", "sentiment", file=write(tmp_path / "a.jsonl", rows))
    assert "line 1: 2 labels" in says and "line 2: the label is" in says and "line 3: no label" in says


@pytest.mark.parametrize("row", ['"label": [[0, 2, "PER"]]', '"entities": [], "relations": []'])
@pytest.mark.parametrize("task", ["", "topics"])
def test_a_file_of_names_is_no_classification(tmp_path, row, task):
    path = write(tmp_path / "d.jsonl", f'{{"text": "王明在北京", {row}}}\n' * 12)
    says = refused('load_data("ner", file="d.jsonl")', *([task] if task else [path]), **({"file": path} if task else {}))
    assert "marks names" in says


def test_only_three_faults_are_shown(tmp_path):
    path = table(tmp_path / "a.csv", [*REVIEWS, *[(f"没有标签{i}", "") for i in range(7)]])
    says = refused("has 7 rows", path)
    assert says.count("no label") == 3 and "and 4 more" in says


def test_rows_with_too_many_columns_and_stray_quotation_marks(tmp_path, capsys):
    path = table(tmp_path / "a.csv", [*REVIEWS, ("一,个,逗号", "好")])
    refused("line 42: 4 columns, but the first line has 2", path)
    path = write(tmp_path / "q.csv", 'text,label\n好,1\n"没有结束,0\n坏,1\n')
    refused("begins in line 3, a quotation mark does not close", path)
    path = table(tmp_path / "q.tsv", [*REVIEWS, ('"没有结束', "好")], separator="\t")
    check(load_data(path), 41)
    assert "quotation marks do not come in pairs" in capsys.readouterr().out


def test_a_line_is_counted_where_quoted_text_has_several(tmp_path):
    path = table(tmp_path / "a.csv", [('"两\n行"', "好"), *REVIEWS, ("没有标签", "")])
    refused("line 44: no label", path)


@pytest.mark.parametrize(
    "name, text, says",
    [
        ("a.xlsx", "x", 'save it as "CSV UTF-8"'),
        ("a.docx", "x", "not a kind of file this reads; convert it to one of: .csv"),
        ("a.json", '[{"text": "a",]', "could not be read as json"),
        ("a.jsonl", '{"text": "a"}\nx\n', "line 2 could not be read as json"),
        ("a.jsonl", '[\n{"text": "a"}]\n', "name it .json"),
        ("a.json", "[1, 2]", "row 1 is '1', not an object with named columns"),
        ("a.json", "[]", "it holds no rows"),
        ("a.csv", "text,label\n", "it holds no rows"),
        ("a.csv", "  \n", "it is empty"),
        ("a.csv", "text,text\na,b\n", "two columns named 'text'"),
        ("a.parquet", "x", "could not be read as parquet"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, text, says):
    refused(says, "sentiment", file=write(tmp_path / name, text))


def test_one_damaged_byte_is_found_by_its_line(tmp_path):
    text = ("text,label\n" + "".join(f"{text},{label}\n" for text, label in REVIEWS)).encode()
    (tmp_path / "a.csv").write_bytes(text[:60] + b"\xff" + text[60:])
    refused("a.csv, line 3: the byte 0xff is not UTF-8", tmp_path / "a.csv")


def test_half_of_an_emoji_is_a_fault(tmp_path):
    rows = [{"text": text, "label": label} for text, label in REVIEWS] + [{"text": "笑\ud83d", "label": "好"}]
    path = write(tmp_path / "a.json", json.dumps(rows))
    refused("row 41: half of an emoji", "sentiment", file=path)
    check(load_data("sentiment", file=path, faults="drop"), 40)


def test_a_file_whose_task_was_not_said():
    refused('names.conll is no table; say what it is for: load_data(TASK, file="', HERE / "names.conll")
    refused("pictures is no table", HERE / "pictures")
    refused('For a task other than classification: load_data(TASK, file="pairs.csv")', HERE / "pairs.csv")


def test_options_that_do_not_exist(tmp_path):
    path = table(tmp_path / "a.csv", REVIEWS)
    refused("lable is not one of them", "sentiment", file=path, lable="x")
    refused('faults="skip"'.replace('"', "'"), "sentiment", file=path, faults="skip")
    refused("header='no'", "sentiment", file=path, header="no")
    refused("There is no data set that a file can stand for", "sentimnt", file=path)


# ------------------------------------------------------------------------------------------------ dividing


def test_copies_are_counted_and_contradictions_left_out(tmp_path, capsys):
    path = table(tmp_path / "a.csv", [*REVIEWS, REVIEWS[0], ("又好又坏的一条", "好"), ("又好又坏的一条。", "坏"), ("", "好")])
    check(load_data(path), 40)
    printed = capsys.readouterr().out
    assert "44 rows, 40 kept; left out: 1 without text, 1 repeated, 2 repeated with another label (line 43, line 44)." in printed


def test_groups_stay_together_and_labels_are_shared_out(tmp_path):
    rows = [(f"第{i}条，第{i % 25}位客人写的", "好" if (i % 25) % 2 else "坏", f"客人{i % 25}") for i in range(100)]
    path = table(tmp_path / "a.csv", rows, ("text", "label", "guest"))
    splits = load_data("sentiment", file=path, group="guest")
    check(splits, 100)
    guests = {split: {text.partition("，")[2] for text in splits[split]["text"]} for split in SPLITS}
    assert sum(map(len, guests.values())) == 25
    assert all(set(splits[split]["label"]) == {0, 1} for split in SPLITS)
    assert splits["test"][:] == load_data("sentiment", file=path, group="guest")["test"][:]
    rare = table(tmp_path / "b.csv", [*rows, ("只有一位客人", "中", "甲"), ("还是这位", "中", "甲")], ("text", "label", "guest"))
    refused("'中' in b.csv stands in fewer than 3 different groups", "sentiment", file=rare, group="guest")


def test_the_share_of_each_split_and_its_order_do_not_depend_on_the_order_of_the_file(tmp_path):
    one = load_data(table(tmp_path / "a.csv", REVIEWS))
    other = load_data(table(tmp_path / "a.csv", REVIEWS[::-1]))
    assert {split: len(one[split]) for split in SPLITS} == {"train": 32, "validation": 4, "test": 4}
    assert whole(one) == whole(other)


def test_splits_of_ones_own(tmp_path, capsys):
    train = table(tmp_path / "train.csv", REVIEWS[:30])
    test = table(tmp_path / "test.csv", [*REVIEWS[30:], REVIEWS[0]])
    dev = table(tmp_path / "dev.csv", REVIEWS[20:24])
    splits = load_data("sentiment", file={"train": train, "validation": dev, "test": test})
    assert {split: len(splits[split]) for split in SPLITS} == {"train": 25, "validation": 4, "test": 11}
    assert "5 rows of train left out, because a later split holds the same text" in capsys.readouterr().out
    assert whole(splits) == whole(load_data("sentiment", file=[train, dev, test])) == whole(load_data("sentiment", file=tmp_path))
    cut = load_data("sentiment", file={"train": train, "test": test})
    assert Counter(map(len, cut.values()))[11] == 1 and "validation cut from train" in capsys.readouterr().out
    refused("both the validation split", "sentiment", file={"dev": dev, "validation": dev, "train": train})
    refused("There is no train split", "sentiment", file={"dev": dev})
    refused("'mine' names no split", "sentiment", file={"mine": dev})
