"""FAQ: answers are the law's own words, questions stay with their law, and no question or answer is there twice."""

from collections import Counter

from common.data import SPLITS, faq, load_data, normalise, sources

import pytest


@pytest.fixture(scope="module")
def data():
    return load_data("faq")


def test_nothing_is_there_twice_and_every_law_is_in_one_split(data):
    seen, homes = Counter(), {}
    for split in SPLITS:
        for row in data[split]:
            seen.update({normalise(row["question"]), normalise(row["answer"])})
            homes.setdefault(row["law"], set()).add(split)
    assert seen.most_common(1)[0][1] == 1
    assert [law for law, where in homes.items() if len(where) > 1] == []
    assert len(data["train"]) > 1_300 and min(len(data["validation"]), len(data["test"])) > 180


def test_splits_are_those_of_the_law(data):
    """So no answer that is held out here is in the pre-training corpus or in another task's training split."""
    for split in SPLITS:
        texts = "\n".join(row["text"] for row in sources.law()[split])
        for row in data[split]:
            assert row["answer"].rstrip("。") in texts, row
    for name, shortest in (("topics", 8), ("corpus", 40)):  # the newspaper quotes a line of a law here and there
        training = "\n".join(map(normalise, load_data(name)["train"]["text"][:]))
        for split in SPLITS[1:]:
            long = (answer for answer in map(normalise, data[split]["answer"][:]) if len(answer) >= shortest)
            assert [answer for answer in long if answer in training] == [], name


def test_questions_and_answers_look_as_they_should(data):
    kinds = Counter()
    for split in SPLITS:
        for row in data[split]:
            kind = faq.KINDS[row["kind"]]
            kinds[kind] += 1
            assert row["question"].endswith("？") and row["answer"].endswith("。"), row
            assert 8 <= len(row["answer"]) <= faq.LONGEST and "下列" not in row["question"], row
            if kind == "list":
                assert row["answer"].startswith("（一）") and "（二）" in row["answer"] and "哪些" in row["question"]
            elif kind == "definition":
                assert row["question"].startswith("什么是")
            else:
                assert row["question"] == f"为什么要制定{row['law']}？" and row["answer"].startswith("为")
    assert min(kinds[kind] for kind in faq.KINDS[:3]) > 200 and not kinds["open"]


def test_the_three_rules():
    def made(text, law="中华人民共和国拍卖法"):
        return [(row["question"], row["answer"], row["law"]) for row in faq._pairs({"text": text, "law": law})]

    assert made("竞买人，是指参加竞购拍卖标的的公民、法人或者其他组织。") == [
        ("什么是竞买人？", "参加竞购拍卖标的的公民、法人或者其他组织。", "拍卖法")
    ]
    assert made("为了规范拍卖行为，维护拍卖秩序，保护拍卖活动各方的合法权益，根据宪法，制定本法。") == [
        ("为什么要制定拍卖法？", "为了规范拍卖行为，维护拍卖秩序，保护拍卖活动各方的合法权益。", "拍卖法")
    ]
    items = "（一）有二个以上合伙人；（二）有书面合伙协议。"
    assert made(f"设立合伙企业，应当具备下列条件：{items}合伙人另有约定的，从其约定。") == [
        ("设立合伙企业，应当具备哪些条件？", items, "拍卖法")
    ]
    assert made(f"律师事务所有下列情形之一的，应当终止：{items}")[0][0] == "律师事务所有哪些情形的，应当终止？"
    assert made(f"依照本法行使下列职权：{items}")[0][0] == "依照《拍卖法》行使哪些职权？"
    for no_question in (
        f"前款规定的下列情形：{items}",
        "前款所称国外，是指中国大陆以外的国家和地区。",
        f"依照第三条，有下列行为：{items}",
    ):
        assert made(no_question) == []


def test_full_scale_gives_the_same_columns(monkeypatch):
    from datasets import Dataset, DatasetDict

    monkeypatch.setenv("ROADMAP_SCALE", "full")
    rows = [{"instruction": f"问{i}", "input": "详" if i % 2 else "", "output": f"答{i}", "history": ""} for i in range(50)]
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: DatasetDict(train=Dataset.from_list(rows)))
    found = load_data("faq")
    assert list(found) == list(SPLITS) and found["train"].column_names == ["question", "answer", "kind", "law"]
    questions = {row["question"]: row["answer"] for split in SPLITS for row in found[split]}
    assert questions["问1\n详"] == "答1" and questions["问2"] == "答2" and len(questions) == 50
