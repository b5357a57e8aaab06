"""Reading comprehension: answers stand where the data says, and no page shows what another split holds out."""

from collections import Counter

from common.data import SPLITS, load_data, normalise, reading, sources
from common.data.splits import plain

import pytest


@pytest.fixture(scope="module")
def mrc():
    return load_data("mrc")


def asked(question: str) -> str:
    return "what" if question.startswith("什么是") else question[-5:]


def test_every_answer_stands_where_the_data_says(mrc):
    for split in SPLITS:
        for row in mrc[split]:
            (answer,), (start,) = row["answers"]["text"], row["answers"]["answer_start"]
            assert row["context"][start : start + len(answer)] == answer != ""
            assert row["title"] and row["question"].endswith("？")
        assert len(set(mrc[split]["id"])) == len(mrc[split]), "an id is one question"


def test_there_is_enough_of_every_kind_of_question(mrc):
    assert len(mrc["train"]) > 2_500 and min(len(mrc["validation"]), len(mrc["test"])) > 250
    for split, least in zip(SPLITS, (250, 30, 30)):
        kinds = Counter(asked(question) for question in mrc[split]["question"])
        assert {"what", "发自哪里？", "哪天发的？", "是谁写的？"} <= set(kinds)
        assert all(kinds[kind] >= least for kind in ("what", "发自哪里？", "哪天发的？", "是谁写的？"))


def test_answers_stand_in_both_halves_of_a_page(mrc):
    late = [row["answers"]["answer_start"][0] > len(row["context"]) / 2 for row in mrc["train"]]
    assert 0.3 < sum(late) / len(late) < 0.7


def test_no_text_of_a_page_is_in_two_splits(mrc):
    homes: dict[str, set[str]] = {}
    for split in SPLITS:
        for row in mrc[split]:
            for line in row["context"].split("\n"):
                if len(normalise(line)) > 30:  # a text, not a headline
                    homes.setdefault(normalise(line), set()).add(split)
    assert [line for line, where in homes.items() if len(where) > 1] == []


def test_no_held_out_run_of_characters_is_in_a_training_page(mrc):
    """Independent of HeldOut: every run of 39 characters of the held-out texts, searched for in the training texts."""

    def runs(split):
        texts = {normalise(line) for row in mrc[split] for line in row["context"].split("\n")}
        return {text[i : i + 39] for text in texts for i in range(len(text) - 38)}

    test, validation, train = (runs(split) for split in ("test", "validation", "train"))
    assert len(test) > 10_000
    assert not train & (test | validation) and not validation & test


def test_pages_keep_the_division_of_their_sources(mrc):
    laws = {split: {row["law"] for row in sources.law()[split]} for split in SPLITS}
    names = {normalise(plain(row)) for rows in sources.msra().values() for row in rows if len(row["tokens"]) >= 20}
    for split in SPLITS:
        titles = {row["title"] for row in mrc[split] if asked(row["question"]) == "what"}
        assert titles and titles <= laws[split]
        pages = {normalise(line) for row in mrc[split] for line in row["context"].split("\n")}
        assert not pages & names, "a whole sentence of ner is no text here"


def test_a_date_line_is_read():
    text = "据新华社莫斯科1月22日电（记者张铁柱）莫斯科市市长卢日科夫22日宣布，该市将申办奥运会。"
    found = list(reading._dateline("莫斯科申办奥运会", text))
    assert [(question[-4:], answer) for question, answer, _ in found] == [
        ("自哪里？", "莫斯科"),
        ("天发的？", "1月22日"),
        ("谁写的？", "张铁柱"),
    ]
    assert all(text[at:].startswith(answer) for _, answer, at in found)
    assert not list(reading._dateline("一" * 25, text)), "a headline too long to quote"
    assert not list(reading._dateline("莫斯科申办奥运会", text[3:])), "the line stands in front or is none"


def test_an_office_before_a_name_is_a_question():
    words = [
        ("俄罗斯", "ns"),
        ("总统", "n"),
        ("叶利钦", "nr"),
        ("与", "c"),
        ("国务院", "nt"),
        ("总理", "n"),
        ("李", "nr"),
        ("鹏", "nr"),
    ]
    text = "".join(word for word, _ in words)
    found = list(reading._people(text, words))
    assert [(question, answer) for question, answer, _ in found] == [("俄罗斯总统是谁？", "叶利钦"), ("国务院总理是谁？", "李鹏")]
    assert all(text[at:].startswith(answer) for _, answer, at in found)
    assert not list(reading._people("总统叶利钦", [("总统", "n"), ("叶利钦", "nr")])), "an office of nobody in particular"
    assert not list(reading._people(text * 2, words)), "a title that stands twice"


def test_a_definition_is_a_question():
    text = "竞买人是指参加竞购拍卖标的的公民、法人或者其他组织。本法所称拍卖标的，是指委托人所有的物品。"
    found = list(reading._definitions(text))
    assert [(question, answer) for question, answer, _ in found] == [
        ("什么是竞买人？", "参加竞购拍卖标的的公民、法人或者其他组织"),
        ("什么是拍卖标的？", "委托人所有的物品"),
    ]
    assert all(text[at:].startswith(answer) for _, answer, at in found)


def test_a_text_is_cut_after_a_sentence():
    assert reading._cut("短。") == "短。"
    assert reading._cut("一句话。" * 50) == "一句话。" * (reading.LONGEST // 4)
    assert reading._cut("一" * 100 + "，" + "二" * 100) == "一" * 100 + "，"
    assert reading._cut("一" * 200) == "一" * reading.LONGEST


def test_full_scale_repairs_or_leaves_out_an_answer():
    row = {"id": "Q1", "context": "北京是中国的首都。", "question": "首都是哪里？"}
    there = {"text": ["北京", "中国", "上海"], "answer_start": [0, 1, 5]}
    made = reading._from_cmrc({**row, "answers": there})
    assert made == {**row, "title": "", "answers": {"text": ["北京", "中国"], "answer_start": [0, 3]}}
    reading._features().encode_example(made)


# ------------------------------------------------------------------------------------------------ multiple choice


@pytest.fixture(scope="module")
def choices():
    return load_data("multiple_choice")


def test_the_right_choice_stands_in_the_text_and_one_choice_does_not(choices):
    numbers = Counter()
    for split in SPLITS:
        for row in choices[split]:
            inside = [choice in row["context"] for choice in row["choices"]]
            assert inside[row["label"]] and inside.count(False) == 1
            assert len(set(row["choices"])) == len(row["choices"]), "no choice twice"
            numbers[len(row["choices"])] += 1
    assert set(numbers) == {2, 3, 4, 5} and min(numbers.values()) > 40


def test_neither_place_nor_length_gives_the_answer_away(choices):
    rows = choices["train"]
    chance = sum(1 / len(row["choices"]) for row in rows) / len(rows)
    first = sum(row["label"] == 0 for row in rows) / len(rows)
    longest = sum(max(row["choices"], key=len) == row["choices"][row["label"]] for row in rows) / len(rows)
    assert len(rows) > 1_500 and abs(first - chance) < 0.04 and longest < chance + 0.1


def test_texts_to_choose_about_keep_the_division_of_the_pages(mrc, choices):
    homes: dict[str, set[str]] = {}
    for split in SPLITS:
        for text in choices[split]["context"]:
            homes.setdefault(normalise(text)[:39], set()).add(split)
        for page in mrc[split]["context"]:
            for line in page.split("\n"):
                if (start := normalise(line)[:39]) in homes:
                    homes[start].add(split)
    assert [text for text, where in homes.items() if len(where) > 1] == []


def test_hidden_answers_of_the_full_scale_get_no_label():
    row = {"id": 1, "context": ["男：你好。", "女：你好。"], "question": "他们在做什么？", "choice": ["问好", "吵架"]}
    assert reading._from_c3({**row, "answer": "吵架"})["label"] == 1
    assert reading._from_c3({**row, "answer": ""})["label"] == -1
    reading._choice_features().encode_example(reading._from_c3({**row, "answer": "问好"}))
