"""Questions, choices, pairs, FAQ and summaries of one's own: each format gives the declared columns, each fault its sentence."""

import json

from common import load_data
from common.data import DATA, SPLITS

import pytest

from tests.test_own_data import HERE, check, refused, table, whole, write

TEXT = "石桥建于1903年，长二十八米。"


def squad(path, asked, text=TEXT):
    answers = [{"text": "石桥", "answer_start": 0}]
    good = [{"context": f"{text}第{i}段。", "qas": [{"question": f"问{i}", "answers": answers}]} for i in range(12)]
    return write(path, json.dumps({"data": [{"title": "t", "paragraphs": [*good, {"context": text, "qas": [asked]}]}]}))


# ------------------------------------------------------------------------------------------------ questions


@pytest.mark.parametrize("name", sorted(path.name for path in HERE.glob("questions*")))
def test_questions_in_every_format(name):
    splits = load_data("mrc", file=HERE / name)
    check(splits, 20)
    assert splits["train"].features == DATA["mrc"].features()
    for row in whole(splits):
        for text, start in zip(row["answers"]["text"], row["answers"]["answer_start"]):
            assert row["context"].startswith(text, start)
    assert sum(not row["answers"]["text"] for row in whole(splits)) == (10 if "v2" in name else 0)
    contexts = [set(splits[split]["context"]) for split in SPLITS]
    assert sum(map(len, contexts)) == len(set.union(*contexts)) == 10  # no text is in two splits


@pytest.mark.parametrize(
    "answers, says",
    [
        ([{"text": "1903年", "answer_start": -1}], "the answer '1903年' does not stand at character -1; no text is there"),
        ([{"text": "1903年", "answer_start": 90}], "does not stand at character 90; no text is there"),
        ([{"text": "铁路", "answer_start": 2}], "the answer '铁路' does not stand at character 2; the text there is '建于'"),
        ([], "no answer, and is_impossible does not say that there is none"),
        ([{"text": "", "answer_start": 0}], "an answer is empty"),
        ([{"answer_start": 0}], "no answers (KeyError('text'))"),
        (["石桥", "二"], None),
        (["铁路"], "the answer '铁路' stands 0 times in its text, and no place is given"),
    ],
)
def test_faults_of_answers(tmp_path, answers, says):
    path = squad(tmp_path / "a.json", {"id": "q7", "question": "问", "answers": answers})
    if says is None:
        return check(load_data("mrc", file=path), 13)
    assert "a.json has 1 row that cannot be used: question 13 (q7): " in refused(says, "mrc", file=path)
    return check(load_data("mrc", file=path, faults="drop"), 12)


def test_an_answer_a_little_beside_its_place_is_moved_and_said(tmp_path, capsys):
    path = squad(tmp_path / "a.json", {"question": "问", "answers": [{"text": "1903年", "answer_start": 5}]})
    (row,) = [row for row in whole(load_data("mrc", file=path)) if row["question"] == "问"]
    assert row["answers"] == {"text": ["1903年"], "answer_start": [4]}
    assert "the answers of 1 questions stand a little beside their place; moved (question 13)" in capsys.readouterr().out
    twice = squad(tmp_path / "b.json", {"question": "问", "answers": [{"text": "二", "answer_start": 4}]}, text="石桥一二三四二")
    refused("the answer '二' does not stand at character 4", "mrc", file=twice)


def test_rows_that_are_no_questions(tmp_path):
    refused("has no column 'context'; it has: text", "mrc", file=write(tmp_path / "a.json", '[{"text": "a"}]'))
    asked = '{"data": [{"paragraphs": [{"context": "a", "qas": [{}]}]}]}'
    refused("question 1: no question", "mrc", file=write(tmp_path / "b.json", asked))
    refused("article 1: no paragraphs with questions", "mrc", file=write(tmp_path / "c.json", '{"data": [{"paragraphs": []}]}'))
    rows = [{"context": "甲乙", "question": "?", "answer": "甲", "answer_start": "x"}]
    refused("answer_start is 'x', not a number", "mrc", file=write(tmp_path / "d.json", json.dumps(rows)))


# ------------------------------------------------------------------------------------------------ choices


@pytest.mark.parametrize("name", ["choices_c3.json", "choices_number.jsonl", "choices_letter.csv", "choices_text.jsonl"])
def test_choices_in_every_format(name):
    splits = load_data("multiple_choice", file=HERE / name)
    check(splits, 10)
    assert splits["train"].features == DATA["multiple_choice"].features()
    right = {row["question"]: row["choices"][row["label"]] for row in whole(splits)}
    assert right["石桥建于哪一年？"] == "1903年" and right["哪天闭馆？"] == "周一"


@pytest.mark.parametrize("labels, first", [([0, 1, 2], 0), ([1, 2, 3], 1), (["0", "2"], 0), (["3", "1"], 1)])
def test_numbers_count_from_0_or_from_1(tmp_path, labels, first):
    rows = [{"question": f"问{i}", "choices": ["甲", "乙", "丙"], "label": labels[i % len(labels)]} for i in range(12)]
    for row in whole(load_data("multiple_choice", file=write(tmp_path / "a.json", json.dumps(rows)))):
        assert row["label"] == int(labels[int(row["question"][1:]) % len(labels)]) - first
    rows = [{"question": f"问{i}", "choices": ["甲", "乙", "丙"], "label": 1 + i % 2} for i in range(12)]
    refused("the labels [1, 2] can count from 0 or from 1", "multiple_choice", file=write(tmp_path / "b.json", json.dumps(rows)))


@pytest.mark.parametrize(
    "row, says",
    [
        ({"choices": ["甲", "乙"], "label": "丁"}, "the label '丁' is none of the 2 choices"),
        ({"choices": ["甲", "乙"], "label": "D"}, "the label 'D' is none of the 2 choices"),
        ({"choices": ["甲", "乙"], "label": None}, "no label"),
        ({"choices": ["甲"], "label": "A"}, "1 choices, where two are the least"),
        ({"choices": ["甲", "甲"], "label": "A"}, "the choice '甲' stands there twice"),
        ({"choices": "甲乙", "label": "A"}, "0 choices"),
    ],
)
def test_faults_of_choices(tmp_path, row, says):
    rows = [{"question": f"问{i}", "choices": ["甲", "乙"], "label": "AB"[i % 2]} for i in range(12)]
    path = write(tmp_path / "a.json", json.dumps([*rows, {"question": "问"} | row]))
    assert "row 13: " in refused(says, "multiple_choice", file=path)
    check(load_data("multiple_choice", file=path, faults="drop"), 12)


def test_choices_whose_texts_are_numbers(tmp_path):
    rows = [{"question": f"问{i}", "choices": ["2", "1", "0"], "label": "1"} for i in range(12)]
    assert {row["label"] for row in whole(load_data("multiple_choice", file=write(tmp_path / "a.json", json.dumps(rows))))} == {1}
    refused("text 1: not a list of lines", "multiple_choice", file=write(tmp_path / "b.json", '[["a"]]'))


# ------------------------------------------------------------------------------------------------ two texts


@pytest.mark.parametrize("name", ["pairs.tsv", "pairs.csv", "pairs_afqmc.json"])
def test_pairs_in_every_format(name):
    splits = load_data("pairs", file=HERE / name)
    check(splits, 20)
    assert splits["train"].features == DATA["pairs"].features()
    labels = {row["sentence1"]: row["label"] for row in whole(splits)}
    assert labels["怎样修改密码"] == 1 and labels["请问怎样修改密码"] == 0


def test_pairs_without_names():
    says = refused("pairs_no_header.tsv seems to have no line with column names", "pairs", file=HERE / "pairs_no_header.tsv")
    assert 'load_data("pairs", file="pairs_no_header.tsv", header=False)' in says
    named = load_data("pairs", file=HERE / "pairs.tsv")
    for options in ({"header": False}, {"sentence1": 0, "sentence2": 1, "label": 2}):
        assert whole(load_data("pairs", file=HERE / "pairs_no_header.tsv", **options)) == whole(named)


def test_pairs_that_share_a_sentence_stay_together_and_mirrored_pairs_are_copies(tmp_path):
    rows = [(f"甲{i % 30}", f"乙{i}", i % 2) for i in range(90)]
    head = ("sentence1", "sentence2", "label")
    path = table(tmp_path / "a.csv", [*rows, ("乙0", "甲0", 0)], head)
    splits = load_data("pairs", file=path)
    check(splits, 90)
    assert sum(len(set(splits[split]["group"])) for split in SPLITS) == 30 == len({row["group"] for row in whole(splits)})
    graded = table(tmp_path / "b.csv", [("甲", "乙", 0.7)], head)
    refused("line 2: the label is '0.7', where 0 (different) or 1 (same) is needed", "pairs", file=graded)
    same = table(tmp_path / "c.csv", [(f"甲{i}", f"乙{i}", 1) for i in range(12)], head)
    refused("has only pairs with the label 1", "pairs", file=same)
    chain = table(tmp_path / "d.csv", [(f"甲{i}", f"甲{i + 1}", i % 2) for i in range(12)], head)
    refused("1 groups of rows that must stay together", "pairs", file=chain)


@pytest.mark.parametrize(
    "task, name",
    [("faq", "faq.csv"), ("faq", "faq_chinese_names.json"), ("headlines", "summaries.csv"), ("headlines", "summaries.jsonl")],
)
def test_faq_and_summaries(task, name, capsys):
    splits = load_data(task, file=HERE / name)
    check(splits, 12)
    assert splits["train"].features == DATA[task].features()
    texts = {tuple(row.values())[:2] for row in whole(splits)}
    if task == "faq":
        assert ("订单多久能到？", "一般三到五天。") in texts
    else:
        assert ("松江口渡口从下月起增开两班夜船，方便晚上下班的人过江。", "松江口渡口增开夜船") in texts
    said = {
        "summaries.csv": "document is the column 'content', summary is the column 'title'",
        "faq_chinese_names.json": "'问题'",
    }
    assert said.get(name, "") in capsys.readouterr().out


def test_half_a_row_is_a_fault_and_shared_answers_stay_together(tmp_path):
    rows = [(f"问{i}", f"答{i % 15}") for i in range(30)]
    refused("line 32: no answer", "faq", file=table(tmp_path / "a.csv", [*rows, ("只有问题", "")], ("question", "answer")))
    refused(
        "line 32: no document", "headlines", file=table(tmp_path / "b.csv", [*rows, ("", "只有题目")], ("document", "summary"))
    )
    splits = load_data("faq", file=table(tmp_path / "c.csv", [*rows, ("", "")], ("question", "answer")))
    check(splits, 30)
    assert sum(len(set(splits[split]["answer"])) for split in SPLITS) == 15
