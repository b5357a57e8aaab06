"""Pairs: what is frozen is intact, labels are right, and nothing that a split holds out is seen in another."""

from collections import Counter

from common.data import SPLITS, load_data, normalise, pairs
from common.data.pairs import connected, divide, retrieval
from common.errors import RoadmapError

import numpy as np
import pytest


@pytest.fixture(scope="module")
def rows():
    return pairs.messages()


def test_frozen_file_is_intact_sorted_and_without_repeats(rows):
    lines = pairs.FROZEN.read_text(encoding="utf-8").splitlines()[1:]
    assert lines == sorted(lines) and len(lines) == len(rows) == 4265
    seen = Counter(normalise(row[column]).lower() for row in rows for column in ("zh_cn", "zh_tw"))
    assert seen.most_common(1)[0][1] == 1, "a text stands in the file once"
    assert all("\t" not in text and text == text.strip() for row in rows for text in (row["english"], row["zh_cn"], row["zh_tw"]))
    card = (pairs.FROZEN.parent / "README.md").read_text(encoding="utf-8")
    assert pairs.SHA256 in card and "Mozilla Public License" in card


def test_a_changed_or_missing_file_is_one_sentence(monkeypatch, tmp_path):
    for name in ("missing.tsv", "changed.tsv"):
        (tmp_path / "changed.tsv").write_text("english\tzh_cn\tzh_tw\n")
        monkeypatch.setattr(pairs, "FROZEN", tmp_path / name)
        with pytest.raises(RoadmapError, match="git checkout -- assets/data"):
            pairs.originals()


def test_no_text_and_no_group_is_in_two_splits():
    data = load_data("pairs")
    homes: dict[object, set[str]] = {}
    for split in SPLITS:
        for row in data[split]:
            for thing in (normalise(row["sentence1"]), normalise(row["sentence2"]), row["group"]):
                homes.setdefault(thing, set()).add(split)
    assert [thing for thing, where in homes.items() if len(where) > 1] == []
    sizes = [len(data[split]) for split in SPLITS]
    assert np.allclose(np.array(sizes) / sum(sizes), (0.8, 0.1, 0.1), atol=0.01)


def test_no_near_copy_is_in_another_split(rows):
    """Independent of the code that groups: shared pairs of characters, by Jaccard's index."""
    texts = [(normalise(row[column]), row["split"]) for row in rows for column in ("zh_cn", "zh_tw")]
    grams = [frozenset(text[i : i + 2] for i in range(len(text) - 1)) for text, _ in texts]
    inside: dict[str, list[int]] = {}
    for i, found in enumerate(grams):
        for gram in found:
            inside.setdefault(gram, []).append(i)
    for i, (text, split) in enumerate(texts):
        if split == "train":
            continue
        shared = Counter(j for gram in grams[i] for j in inside[gram] if texts[j][1] != split)
        for j, common in shared.items():
            assert common / len(grams[i] | grams[j]) < 0.75, (text, texts[j][0])


def test_labels_are_what_they_say(rows):
    meaning = pairs.originals()
    for split, data in load_data("pairs").items():
        for row in data:
            same = meaning[row["sentence1"]] == meaning[row["sentence2"]]
            assert row["label"] == int(same)
        assert np.mean(data["label"][:]) == 0.5
        assert Counter(data["sentence1"][:]).most_common(1)[0][1] == 2, f"{split}: a match and a negative for every query"
    assert {row["split"] for row in rows if rows[row["nearest"]]["split"] != row["split"]} == set()


def test_the_same_meaning_is_no_negative():
    assert pairs._gist("Clear the history") == pairs._gist("Clear your History.")
    assert pairs._gist("Move to left side") != pairs._gist("Move to right side")
    rows = pairs.messages()
    assert all(pairs._gist(row["english"]) != pairs._gist(rows[row["nearest"]]["english"]) for row in rows)


def test_negatives_are_hard(rows):
    """The other message shares far more characters with the query than a random one does."""

    def overlap(a, b):
        return len(set(a) & set(b)) / len(set(a) | set(b))

    hard = np.mean([overlap(row["zh_tw"], rows[row["nearest"]]["zh_cn"]) for row in rows])
    far = np.mean([overlap(row["zh_tw"], rows[i - 2000]["zh_cn"]) for i, row in enumerate(rows)])
    assert hard > 4 * far


def test_groups_and_their_limit():
    assert connected(6, [(4, 2), (2, 5)]) == [0, 1, 2, 3, 2, 2]
    assert connected(5, [(0, 1)], [(1, 2), (2, 3), (3, 4)], largest=3) == [0, 0, 0, 3, 3]
    assert connected(4, [(0, 1), (1, 2), (2, 3)], largest=1) == [0] * 4, "what must be together is, however large"
    splits = divide([0] * 30 + list(range(1, 71)))
    assert len(set(splits[:30])) == 1 and Counter(splits) == {"train": 80, "validation": 10, "test": 10}
    assert divide(["a", "b", "a"]) == divide(["a", "b", "a"])


def test_retrieval_is_a_search_task_with_one_right_answer():
    task = retrieval(
        [
            {"sentence1": "q1", "sentence2": "a", "label": 1},
            {"sentence1": "q1", "sentence2": "b", "label": 0},
            {"sentence1": "q2", "sentence2": "b", "label": 1},
            {"sentence1": "q3", "sentence2": "c", "label": 0},
        ]
    )
    assert task == pairs.Retrieval(["q1", "q2"], ["a", "b", "c"], [0, 1])
    test = load_data("pairs")["test"]
    task = retrieval(test)
    assert len(task.queries) == len(test) // 2 == len(set(task.candidates))
    with pytest.raises(RoadmapError, match="nothing to find"):
        retrieval([{"sentence1": "q", "sentence2": "a", "label": 0}])


def test_full_scale_gives_the_same_columns(monkeypatch):
    from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

    monkeypatch.setenv("ROADMAP_SCALE", "full")
    text, label = Value("string"), ClassLabel(names=["0", "1"])
    features = Features({"sentence1": text, "sentence2": text, "label": label, "idx": Value("int32")})

    def made(n, label):
        rows = [{"sentence1": f"甲{i}", "sentence2": f"乙{i}", "label": label, "idx": i} for i in range(n)]
        return Dataset.from_list(rows, features=features)

    asked = []

    def load_dataset(*arguments, **options):
        asked.append(arguments)
        return DatasetDict(train=made(100, 1), validation=made(20, 0), test=made(20, -1))

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    data = load_data("pairs")
    assert asked == [("clue/clue", "afqmc")]
    assert list(data) == list(SPLITS) and data["train"].column_names == ["sentence1", "sentence2", "label", "group"]
    assert len(data["test"]) == 20 and data["test"][3] == {"sentence1": "甲3", "sentence2": "乙3", "label": 0, "group": 3}
