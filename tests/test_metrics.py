"""Every metric against another implementation: scikit-learn, scipy, seqeval, or a slower algorithm written here."""

import itertools
import math
import os
import random
import subprocess
import sys
from functools import cache
from itertools import combinations

from common import metrics as m
from common.errors import RoadmapError

import evaluate
import numpy as np
import pytest
import sklearn.metrics as sk
from scipy.stats import spearmanr as scipy_spearmanr
from seqeval.metrics import classification_report
from seqeval.scheme import IOB2

TINY = "天地人ab1 ，"  # a small alphabet, so that random texts share pieces


def texts(seed: int, n: int = 40) -> list[str]:
    rng = random.Random(seed)
    return ["".join(rng.choices(TINY, k=rng.randrange(0, 9))) for _ in range(n)]


# --- classification ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("classes", [2, 3, 7])
def test_classification_equals_sklearn(seed, classes):
    rng = np.random.default_rng(seed)
    size = int(rng.integers(1, 30))
    predicted, true = rng.integers(classes, size=size), rng.integers(classes, size=size)
    assert m.accuracy(predicted, true) == pytest.approx(sk.accuracy_score(true, predicted))
    for ours, theirs in ((m.f1, sk.f1_score), (m.precision, sk.precision_score), (m.recall, sk.recall_score)):
        expected = theirs(true, predicted, average="macro", zero_division=0)
        assert ours(predicted.tolist(), true.tolist(), average="macro") == pytest.approx(expected)
        if classes == 2:
            for positive in {*predicted.tolist(), *true.tolist()}:
                expected = theirs(true, predicted, pos_label=positive, zero_division=0)
                assert ours(predicted, true, pos_label=positive) == pytest.approx(expected)
    columns = sk.precision_recall_fscore_support(true, predicted, zero_division=0)
    ours = [list(scores.values()) for scores in m.per_class(predicted, true).values()]
    np.testing.assert_allclose(ours, np.transpose(columns))


def test_classification_by_hand():
    predicted, true = ["猫", "猫", "狗"], ["猫", "狗", "狗"]
    assert m.accuracy(predicted, true) == pytest.approx(2 / 3)
    assert m.per_class(predicted, true)["猫"] == {"precision": 0.5, "recall": 1.0, "f1": pytest.approx(2 / 3), "support": 1}
    assert m.precision(predicted, true, pos_label="猫") == 0.5
    assert m.f1([0, 0], [0, 0]) == 0.0  # no positive anywhere


@pytest.mark.parametrize("function", [m.accuracy, m.f1, m.precision, m.recall, m.per_class])
@pytest.mark.parametrize(
    ("predictions", "references", "says"),
    [
        ([1, 0], [1], "2 predictions cannot be compared with 1"),
        ([], [], "nothing to score"),
        (None, [1], "nothing to score"),
        ([[0.1, 0.9]], [1], "argmax"),
        ([0.7, 0.2], [1, 0], "argmax"),
    ],
)
def test_classification_refuses(function, predictions, references, says):
    with pytest.raises(RoadmapError, match=says):
        function(predictions, references)


def test_averages_are_checked():
    with pytest.raises(RoadmapError, match='use average="macro"'):
        m.f1([0, 1, 2], [0, 1, 2])
    with pytest.raises(RoadmapError, match="scores the class 1 of two"):
        m.f1(["a", "b"], ["a", "b"])
    with pytest.raises(RoadmapError, match="no average named 'weighted'"):
        m.recall([0, 1], [0, 1], average="weighted")


# --- entities ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_seqeval_equals_its_report_and_a_set_of_spans(seed):
    rng = random.Random(seed)
    tags = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
    true = [[rng.choice(tags) for _ in range(rng.randrange(1, 12))] for _ in range(8)] + [["B-PER", "O"]]
    predicted = [[tag if rng.random() < 0.6 else rng.choice(tags) for tag in sentence] for sentence in true]
    result = m.seqeval(predicted, true)

    report = classification_report(true, predicted, mode="strict", scheme=IOB2, output_dict=True, zero_division=0)
    assert result["overall_f1"] == pytest.approx(report["micro avg"]["f1-score"])
    for name in report.keys() - {"micro avg", "macro avg", "weighted avg"}:
        row = result[name]
        expected = [report[name][key] for key in ("precision", "recall", "f1-score", "support")]
        assert [row["precision"], row["recall"], row["f1"], row["number"]] == pytest.approx(expected)

    def spans(sentences):  # every maximal run B-x I-x ... I-x, found by trying all borders
        found = set()
        for s, sentence in enumerate(sentences):
            for i, j in combinations(range(len(sentence) + 1), 2):
                kind = sentence[i][2:]
                if sentence[i] == f"B-{kind}" and sentence[i + 1 : j] == [f"I-{kind}"] * (j - i - 1):
                    if j == len(sentence) or sentence[j] != f"I-{kind}":
                        found.add((s, kind, i, j))
        return found

    a, b = spans(predicted), spans(true)
    assert result["overall_precision"] == pytest.approx(len(a & b) / max(len(a), 1))
    assert result["overall_recall"] == pytest.approx(len(a & b) / max(len(b), 1))


def test_seqeval_is_strict():
    assert m.seqeval([["I-PER", "I-PER"]], [["B-PER", "I-PER"]])["overall_f1"] == 0.0
    one_border_off = m.seqeval([["B-PER", "O", "B-LOC"]], [["B-PER", "I-PER", "B-LOC"]])
    assert one_border_off["overall_f1"] == 0.5
    assert one_border_off["PER"]["f1"] == 0.0 and one_border_off["LOC"] == {"precision": 1, "recall": 1, "f1": 1, "number": 1}
    assert one_border_off["overall_accuracy"] == pytest.approx(2 / 3)


def test_seqeval_without_entities_or_tags():
    nothing = {"overall_precision": 0, "overall_recall": 0, "overall_f1": 0}
    assert m.seqeval([["O", "O"]], [["O", "I-PER"]]) == nothing | {"overall_accuracy": 0.5}
    assert m.seqeval([[]], [[]]) == nothing | {"overall_accuracy": 0}
    assert m.seqeval([["B-PER"]], [["O"]])["PER"] == {"precision": 0, "recall": 0, "f1": 0, "number": 0}


@pytest.mark.parametrize(
    ("predictions", "references", "says"),
    [
        ([["O"]], [["O"], ["O"]], "1 predictions cannot be compared with 2"),
        ([["O"]], [["O", "O"]], "Sentence 0 has 1 predicted tags and 2"),
        ([["S-PER"]], [["O"]], "'S-PER' is not a BIO tag"),
        ([["B-"]], [["O"]], "not a BIO tag"),
        ([], [], "nothing to score"),
    ],
)
def test_seqeval_refuses(predictions, references, says):
    with pytest.raises(RoadmapError, match=says):
        m.seqeval(predictions, references)


# --- language modelling -----------------------------------------------------------------------------------------------


def test_perplexity_is_the_inverse_geometric_mean():
    probabilities = [0.5, 0.25, 0.125, 0.5]
    nll = -sum(math.log(p) for p in probabilities)
    assert m.perplexity(nll, 4) == pytest.approx(math.prod(probabilities) ** (-1 / 4))
    assert m.perplexity(100 * math.log(6000), 100) == pytest.approx(6000)  # guessing over 6,000 tokens
    assert m.perplexity([math.log(4), 0.0], [1, 3]) == pytest.approx(math.sqrt(2))  # weighted by tokens, not batches
    assert m.perplexity(1e6, 1) == math.inf


def test_perplexity_refuses():
    for sums, tokens in (([1.0], [0]), (1.0, 0), ([1.0, 1.0], [3, -1])):
        with pytest.raises(RoadmapError, match="at least one token"):
            m.perplexity(sums, tokens)
    with pytest.raises(RoadmapError, match="2 predictions cannot"):
        m.perplexity([1.0, 2.0], [3])


# --- overlap of texts -------------------------------------------------------------------------------------------------


def test_units():
    assert m.units("Qwen2.5 发布了，共 7 种大小。") == ["qwen2.5", "发", "布", "了", "共", "7", "种", "大", "小"]
    assert m.units("增长5%，至¥3.5；COVID-19 café_①") == [*"增长5%至¥", "3.5", "covid", "19", "café", "①"]
    assert m.units("3.5") != m.units("35") and m.units("人工 智能") == m.units("人工智能")
    assert m.units("——。 \n") == []


def common_subsequence(a, b):
    @cache
    def length(i, j):
        if i == len(a) or j == len(b):
            return 0
        return 1 + length(i + 1, j + 1) if a[i] == b[j] else max(length(i + 1, j), length(i, j + 1))

    return length(0, 0)


def common_substring(a, b):
    pieces = {tuple(a[i:j]) for i, j in combinations(range(len(a) + 1), 2)}
    return max((j - i for i, j in combinations(range(len(b) + 1), 2) if tuple(b[i:j]) in pieces), default=0)


def harmonic(common, a, b):
    p, r = (common / len(side) if len(side) else 0.0 for side in (a, b))
    return 2 * p * r / (p + r) if p + r else 0.0


def common_ngrams(a, b, n):
    a, left = [a[i : i + n] for i in range(len(a) - n + 1)], [b[i : i + n] for i in range(len(b) - n + 1)]
    right, common = list(left), 0
    for gram in a:
        if gram in left:
            left.remove(gram)  # each reference n-gram is matched once
            common += 1
    return harmonic(common, a, right)


@pytest.mark.parametrize("seed", range(10))
def test_rouge_equals_brute_force(seed):
    for p, r in zip(texts(seed), texts(seed + 1000)):
        a, b = m.units(p), m.units(r)
        expected = [common_ngrams(a, b, 1), common_ngrams(a, b, 2), harmonic(common_subsequence(a, b), a, b)]
        assert list(m.rouge([p], [r]).values()) == pytest.approx(expected)


def test_rouge_by_hand():
    result = m.rouge(["今天天气好"], ["天气今天很好"])  # common: 今天天气好, 今天 天气, and 天气好 in order
    assert result == pytest.approx({"rouge1": 10 / 11, "rouge2": 4 / 9, "rougeL": 6 / 11})
    assert m.rouge(["", "好", "，"], ["好", "", "，"]) == {"rouge1": 0, "rouge2": 0, "rougeL": 0}
    mean = m.rouge(["好人", ""], ["好人", "好人"])
    assert mean == {"rouge1": 0.5, "rouge2": 0.5, "rougeL": 0.5}
    with pytest.raises(RoadmapError):
        m.rouge([], [])


@pytest.mark.parametrize("seed", range(10))
def test_cmrc_equals_brute_force(seed):
    for p, *golds in zip(texts(seed), texts(seed + 1000), texts(seed + 2000)):
        a, bs = m.units(p), [m.units(gold) for gold in golds]
        expected = max(1.0 if a == b else harmonic(common_substring(a, b), a, b) for b in bs)
        assert m.cmrc([p], [golds]) == pytest.approx({"exact_match": float(any(a == b for b in bs)), "f1": expected})


def test_cmrc_by_hand():
    assert m.cmrc(["北京。"], ["《北 京》"]) == {"exact_match": 1.0, "f1": 1.0}  # punctuation and spaces do not count
    substring = m.cmrc(["今天天气"], ["天气今天"])  # the same four characters, but only two in a row
    assert substring == {"exact_match": 0.0, "f1": 0.5}
    assert m.cmrc(["上海"], [["北京", "上海市", "上海"]])["f1"] == 1.0
    assert m.cmrc(["", "", "好"], ["", "好", ""]) == pytest.approx({"exact_match": 1 / 3, "f1": 1 / 3})
    with pytest.raises(RoadmapError, match="Question 1 has no gold answer"):
        m.cmrc(["a", "b"], [["a"], []])


# --- retrieval and similarity -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
def test_retrieval_equals_counting(seed):
    rng = np.random.default_rng(seed)
    scores, gold = rng.normal(size=(12, 9)), rng.integers(9, size=12)
    place = [1 + sum(other > row[right] for other in row) for row, right in zip(scores.tolist(), gold)]
    rankings = m.rank(scores)
    assert m.mrr(rankings, gold) == pytest.approx(np.mean([1 / p for p in place]))
    for k in (1, 3, 8):
        assert m.recall_at_k(rankings, gold, k) == pytest.approx(sk.top_k_accuracy_score(gold, scores, k=k, labels=range(9)))
    result = m.retrieval(rankings.tolist(), gold.tolist(), k=(1, 3))
    assert result == {"mrr": m.mrr(rankings, gold), **{f"recall@{k}": m.recall_at_k(rankings, gold, k) for k in (1, 3)}}


def test_retrieval_by_hand():
    rankings, gold = [["甲", "乙"], ["丙", "甲", "乙"], ["甲"]], ["甲", "乙", "乙"]  # ranks 1, 3, not listed
    assert m.mrr(rankings, gold) == pytest.approx((1 + 1 / 3 + 0) / 3)
    assert [m.recall_at_k(rankings, gold, k) for k in (1, 2, 3)] == pytest.approx([1 / 3, 1 / 3, 2 / 3])
    assert m.rank([[0.0, 0.0, 1.0]]).tolist() == [[2, 0, 1]]
    assert set(m.retrieval([[1]], [1], k=np.int64(2))) == {"mrr", "recall@2"}


def test_retrieval_refuses():
    with pytest.raises(RoadmapError, match="k of at least 1, not 0"):
        m.recall_at_k([[0]], [0], 0)
    for scores in ([[0.1, float("nan")]], [0.1, 0.2]):
        with pytest.raises(RoadmapError, match="matrix"):
            m.rank(scores)
    with pytest.raises(RoadmapError, match="1 predictions cannot"):
        m.mrr([[0]], [0, 1])


@pytest.mark.parametrize("seed", range(20))
def test_spearman_equals_scipy(seed):
    rng = np.random.default_rng(seed)
    a, b = rng.integers(6, size=30), rng.normal(size=30)  # many ties on one side
    assert m.spearmanr(a, b) == pytest.approx(scipy_spearmanr(a, b).statistic)


def test_spearman_edges():
    assert m.spearmanr([1, 2, 3], [10, 100, 1000]) == pytest.approx(1.0)
    assert math.isnan(m.spearmanr([1, 1, 1], [1, 2, 3])) and math.isnan(m.spearmanr([1, math.nan], [1, 2]))
    with pytest.raises(RoadmapError, match="two pairs"):
        m.spearmanr([1], [1])


# --- bootstrap --------------------------------------------------------------------------------------------------------


def test_bootstrap_agrees_with_the_normal_interval():
    rng = np.random.default_rng(0)
    true = rng.integers(2, size=400)
    predicted = np.where(rng.random(400) < 0.8, true, 1 - true)
    low, high = m.bootstrap_interval(m.accuracy, predicted, true, seed=1)
    share = m.accuracy(predicted, true)
    half = 1.96 * math.sqrt(share * (1 - share) / 400)
    assert (low, high) == pytest.approx((share - half, share + half), abs=0.01)
    assert (low, high) == m.bootstrap_interval(m.accuracy, predicted.tolist(), true.tolist(), seed=1)
    assert (low, high) != m.bootstrap_interval(m.accuracy, predicted, true, seed=2)
    narrow = m.bootstrap_interval(m.accuracy, predicted, true, seed=1, level=0.5)
    assert low < narrow[0] < narrow[1] < high


def test_bootstrap_equals_every_draw_listed():
    """With three examples all 27 draws can be listed; their quantiles are what many random draws converge to."""
    predicted, true = [1, 1, 0], [1, 0, 0]
    draws = [[predicted[i] == true[i] for i in draw] for draw in itertools.product(range(3), repeat=3)]
    expected = np.quantile([np.mean(draw) for draw in draws], [0.1, 0.9])
    assert m.bootstrap_interval(m.accuracy, predicted, true, n=4000, level=0.8) == pytest.approx(tuple(expected))


def test_bootstrap_takes_any_of_the_functions():
    low, high = m.bootstrap_interval(m.rouge, ["好人", "天", ""], ["好人", "地", "天"], n=50, key="rougeL")
    assert 0 <= low < high <= 1
    assert m.bootstrap_interval(m.perplexity, [2.0, 2.0], [1, 1], n=5) == pytest.approx((math.e**2, math.e**2))
    low, high = m.bootstrap_interval(m.spearmanr, [1, 2, 3], [1, 2, 3], n=200)  # some draws are constant: NaN, left out
    assert (low, high) == pytest.approx((1, 1))
    low, high = m.bootstrap_interval(lambda p, r: m.recall_at_k(p, r, 1), [[0], [1]], [0, 0], n=20)
    assert (low, high) == (0, 1)


def test_bootstrap_refuses():
    for wrong in ({"n": 0}, {"level": 1.0}, {"level": 0.0}):
        with pytest.raises(RoadmapError, match="n of at least 1"):
            m.bootstrap_interval(m.accuracy, [1], [1], **wrong)
    for key in (None, "rouge9"):
        with pytest.raises(RoadmapError, match="choose one of: rouge1, rouge2, rougeL"):
            m.bootstrap_interval(m.rouge, ["a"], ["a"], key=key)
    with pytest.raises(RoadmapError, match="undefined"):
        m.bootstrap_interval(m.spearmanr, [1, 1], [1, 2], n=5)
    with pytest.raises(RoadmapError, match="nothing to score"):
        m.bootstrap_interval(m.accuracy, [], [])


# --- evaluate modules -------------------------------------------------------------------------------------------------

BATCHES = {
    "accuracy": ([1, 0, 1], [1, 1, 1], {}),
    "precision": ([1, 0, 1], [1, 1, 0], {}),
    "recall": ([1, 0, 1], [1, 1, 0], {}),
    "f1": ([2, 0, 1], [2, 1, 1], {"average": "macro"}),
    "per_class": ([2, 0, 1], [2, 1, 1], {}),
    "seqeval": ([["B-PER", "O"], ["O"], []], [["B-PER", "I-PER"], ["O"], []], {}),
    "perplexity": ([2.5, 3.0, 1.0], [3, 4, 2], {}),
    "rouge": (["好人", "天", ""], ["好", "天", "地"], {}),
    "cmrc": (["北京", "天", ""], [["北京市", "北京"], ["地"], [""]], {}),
    "retrieval": ([[2, 0, 1], [1, 0], [0]], [0, 0, 1], {"k": 2}),
    "spearmanr": ([0.1, 0.4, 0.2], [1.0, 2.0, 3.0], {}),
}


def test_every_script_is_tested_and_registered():
    folders = {path.name for path in m.METRICS.iterdir()}
    assert folders == BATCHES.keys() == m._MODULES.keys()


@pytest.mark.parametrize("name", BATCHES)
def test_module_equals_function(name):
    predictions, references, options = BATCHES[name]
    expected = getattr(m, name)(predictions, references, **options)
    expected = expected if isinstance(expected, dict) else {name: expected}
    module = evaluate.load(str(m.METRICS / name))  # what a lesson writes
    assert module.name == name and module.description.splitlines()[0] in getattr(m, name).__doc__

    assert module.compute(predictions=predictions, references=references, **options) == expected
    module.add_batch(predictions=predictions[:2], references=references[:2])
    module.add(prediction=predictions[2], reference=references[2])
    assert len(module) == 3
    assert module.compute(**options) == expected
    with pytest.raises(RoadmapError, match="nothing to score"):  # compute has emptied it
        module.compute()
    for call in (module.compute, module.add_batch):
        with pytest.raises(RoadmapError, match="3 predictions cannot be compared with 2"):
            call(predictions=predictions, references=references[:2])


def test_modules_combine():
    both = evaluate.combine([m.load_metric("accuracy"), m.load_metric("f1"), str(m.METRICS / "recall")])
    for predictions, references in (([1, 0], [1, 1]), ([1, 1], [0, 1])):
        both.add_batch(predictions=np.array(predictions), references=np.array(references))
    assert both.compute() == pytest.approx({"accuracy": 0.5, "f1": 2 / 3, "recall": 2 / 3})
    texts_ = evaluate.combine({"summary": m.load_metric("rouge"), "answer": m.load_metric("cmrc")}, force_prefix=True)
    assert texts_.compute(predictions=["好"], references=["好"])["answer_exact_match"] == 1.0


def test_cmrc_module_takes_one_gold_answer_too():
    assert m.load_metric("cmrc").compute(predictions=["北京"], references=["北京市"])["f1"] == pytest.approx(0.8)


def test_distributed_evaluation_still_shares_a_file(tmp_path):
    both = [
        evaluate.load(str(m.METRICS / "accuracy"), num_process=2, process_id=i, experiment_id="x", cache_dir=str(tmp_path))
        for i in range(2)
    ]
    assert [module.keep_in_memory for module in both] == [False, False]
    assert m.load_metric("accuracy").keep_in_memory


def test_unknown_metric_and_unwritable_cache(monkeypatch):
    for function in (m.load_metric, m.module_class):
        with pytest.raises(RoadmapError, match=r"no metric named 'bleu'; choose one of: accuracy, cmrc"):
            function("bleu")

    def refuse(path):
        raise PermissionError(13, "Permission denied", "/cache")

    monkeypatch.setattr(evaluate, "load", refuse)
    with pytest.raises(RoadmapError, match="set HF_HOME"):
        m.load_metric("f1")


def test_processes_at_once_offline_from_another_folder(tmp_path):
    """An empty cache and two processes, forked after the slow imports: both copy the scripts and score at the same time."""
    code = """
import multiprocessing, evaluate
from common.metrics import METRICS, load_metric

def score(hits):
    results = []
    for _ in range(5):
        for module in (load_metric("f1"), evaluate.load(str(METRICS / "accuracy"))):
            barrier.wait(60)
            for i in range(20):
                module.add(prediction=1, reference=int(i < hits))
            results += module.compute().values()
    assert results == [2 * hits / (20 + hits), hits / 20] * 5, results

fork = multiprocessing.get_context("fork")
barrier = fork.Barrier(2)
running = [fork.Process(target=score, args=(hits,)) for hits in (5, 10)]
for process in running: process.start()
for process in running: process.join()
assert [process.exitcode for process in running] == [0, 0]
"""
    environment = os.environ | {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1"}
    for name in ("HF_MODULES_CACHE", "HF_EVALUATE_CACHE", "HF_METRICS_CACHE"):
        environment.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "hf").rglob("accuracy.py"))  # the script is copied there
    assert not list((tmp_path / "hf").rglob("*.arrow*"))  # predictions are not, so there is no lock to wait for


def test_modules_refuse_scores_instead_of_labels():
    """evaluate casts 0.9 to the label 0 without a word; here it is an error with the way out."""
    with pytest.raises(RoadmapError, match="argmax"):
        m.load_metric("accuracy").compute(predictions=[0.2, 0.9], references=[0, 1])


# ------------------------------------------------------------------------------------------------ listed names


def test_listed_names_are_pairs_of_type_and_name():
    assert m.listed("人名：张三、李四；地名：北京") == {("人名", "张三"), ("人名", "李四"), ("地名", "北京")}
    assert m.listed("无") == m.listed("") == m.listed("张三") == set()


def test_listed_f1_counts_a_name_only_under_its_type():
    said = ["人名：张三；地名：上海", "无", "地名：北京"]
    true = ["人名：张三、李四；地名：北京", "无", "机构名：北京"]
    found = m.listed_f1(said, true)
    assert found["precision"] == 1 / 3 and found["recall"] == 1 / 4 and found["f1"] == 2 / 7 and found["exact_match"] == 1 / 3
    assert m.listed_f1(true, true)["f1"] == 1 and m.listed_f1(["无"], ["无"])["f1"] == 0  # no name, no F1
    with pytest.raises(RoadmapError):
        m.listed_f1(["无"], [])
