"""The retrieval bot: BM25 by the formula, vectors without padding, saving, refusal, the chat with piped input, the server."""

import importlib.util
import json
import math
import signal
import subprocess
import sys
import urllib.error
import urllib.request

from common import RoadmapError, checkpoint, set_seed
from common.paths import ROOT

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from tests.tiny import small_encoder

FOLDER = ROOT / "02-NLP_tasks" / "08-retrieval_bot"
SPEC = importlib.util.spec_from_file_location("retrieval_bot", FOLDER / "bot.py")
bot_py = importlib.util.module_from_spec(SPEC)
sys.modules["retrieval_bot"] = bot_py  # a dataclass looks its module up
SPEC.loader.exec_module(bot_py)
BM25, Bot, Dense, indexed, lines, shallow, terms = (
    getattr(bot_py, name) for name in ("BM25", "Bot", "Dense", "indexed", "lines", "shallow", "terms")
)

ENTRIES = [
    {"law": "拍卖法", "answer": "参加竞购拍卖标的的公民、法人或者其他组织。"},
    {"law": "合伙企业法", "answer": "（一）有二个以上合伙人；（二）有书面合伙协议。"},
    {"law": "", "answer": "定居在国外的中国公民。"},
]


@pytest.fixture(scope="module")
def dense():
    """A random encoder of three small layers with the real tokenizer; one layer is kept."""
    set_seed(1)
    encoder = shallow(small_encoder(3), 1)
    return Dense(encoder, AutoTokenizer.from_pretrained(checkpoint("bert")), length=24)


@pytest.fixture(scope="module")
def saved(dense, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bot")
    bot = Bot(ENTRIES, dense, weight=0.1, threshold=0.35)
    bot.save(folder)
    return bot, folder


def test_terms_are_characters_and_pairs():
    assert terms("拍卖人？") == ["拍", "卖", "人", "拍卖", "卖人"]
    assert terms("？！ ，") == [] and terms("A b") == ["a", "b", "ab"]


def test_bm25_is_the_formula():
    texts = ["合伙协议", "合伙合伙合伙", "公司"]
    search, k1, b = BM25(texts), 1.5, 0.75
    counts = [[terms(text).count(term) for text in texts] for term in terms("合伙")]
    lengths = [len(terms(text)) for text in texts]
    for i, length in enumerate(lengths):
        norm = k1 * (1 - b + b * length / np.mean(lengths))
        idf = [math.log(1 + (3 - sum(map(bool, n)) + 0.5) / (sum(map(bool, n)) + 0.5)) for n in counts]
        expected = sum(w * n[i] * (k1 + 1) / (n[i] + norm) for w, n in zip(idf, counts))
        assert search.scores("合伙")[i] == pytest.approx(expected)
    assert search.scores("合伙")[2] == 0


def test_coverage_keeps_the_order_and_stays_within_one():
    search = BM25([indexed(entry) for entry in ENTRIES])
    for question in ("什么是竞买人？", "合伙", "无关的问题", "？"):
        scores, covered = search.scores(question), search.coverage(question)
        assert (0 <= covered).all() and (covered <= 1).all()
        assert np.array_equal(np.argsort(scores, kind="stable"), np.argsort(covered, kind="stable"))
    assert search.coverage("合伙协议").max() > search.coverage("合伙协议和龘龘龘龘").max(), "unknown words count against it"


def test_padding_is_not_averaged_in(dense):
    texts = ["拍卖", "参加竞购拍卖标的的公民、法人或者其他组织。" * 3, "国外"]
    alone = np.concatenate([dense.encode([text]) for text in texts])
    assert np.allclose(dense.encode(texts), alone, atol=1e-5) and np.allclose(np.linalg.norm(alone, axis=1), 1, atol=1e-5)
    assert dense.vectors(["拍卖"]).requires_grad


def test_shallow_keeps_the_first_layers(dense):
    assert len(dense.encoder.layers) == dense.encoder.config.num_hidden_layers == len(dense.encoder.config.layer_types) == 1


def test_scores_are_coverage_plus_weighted_cosine(saved, dense):
    bot, _ = saved
    question = "什么是竞买人？"
    cosine = dense.encode([question]) @ dense.encode([indexed(entry) for entry in ENTRIES]).T
    assert np.allclose(bot.scores([question]), bot.bm25.coverage(question) + 0.1 * cosine, atol=1e-5)
    hits = bot.search("设立合伙企业，应当具备哪些条件？", k=9)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True) and len(hits) == 3
    assert hits[0].entry["law"] == "合伙企业法"


def test_saved_and_loaded_it_is_the_same(saved):
    bot, folder = saved
    again = Bot.load(folder)
    questions = ["什么是竞买人？", "合伙协议", "今天天气怎么样？"]
    assert np.allclose(bot.scores(questions), again.scores(questions), atol=1e-5)
    assert (again.weight, again.threshold, again.dense.length, again.entries) == (0.1, 0.35, 24, ENTRIES)
    assert {path.suffix for path in folder.rglob("*") if path.is_file()} <= {".json", ".faiss", ".safetensors"}, "no pickles"


def test_it_refuses_below_the_threshold_only(saved):
    bot, _ = saved
    said = list(lines(bot, "合伙企业的合伙协议", k=2))
    assert said[0].startswith("1. 《合伙企业法》（一）") and said[1].startswith("2. ") and len(said) == 2
    refusal = list(lines(bot, "早餐几点？"))
    assert "没有找到" in refusal[0] and "below 0.35" in refusal[1]
    assert bot.search("合伙企业的合伙协议")[0].score >= bot.threshold > bot.search("早餐几点？")[0].score


def test_wrong_input_is_one_sentence(saved, dense, tmp_path):
    bot, _ = saved
    for question, says in (("？？", "no word"), ("合" * 301, "301 characters")):
        with pytest.raises(RoadmapError, match=says):
            bot.search(question)
    with pytest.raises(RoadmapError, match="at least one entry"):
        Bot([], dense)
    with pytest.raises(RoadmapError, match="no bot.json"):
        Bot.load(tmp_path)
    bot.save(tmp_path)
    about = json.loads((tmp_path / "bot.json").read_text(encoding="utf-8"))
    (tmp_path / "bot.json").write_text(json.dumps(about | {"entries": about["entries"][:2]}), encoding="utf-8")
    with pytest.raises(RoadmapError, match="do not belong to its entries"):
        Bot.load(tmp_path)
    (tmp_path / "bot.json").write_text("{", encoding="utf-8")
    with pytest.raises(RoadmapError, match="cannot be read"):
        Bot.load(tmp_path)


def test_one_step_of_training_moves_the_right_answer_up(dense):
    """Gradients reach the encoder through both sides."""
    dense.encoder.zero_grad()
    questions, answers = dense.vectors(["拍卖", "合伙"]), dense.vectors(["竞买人", "协议"])
    torch.nn.functional.cross_entropy(questions @ answers.T / 0.05, torch.arange(2)).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for name, p in dense.encoder.named_parameters() if "mlp" in name)


def chat(*arguments, typed="", **options):
    return subprocess.run(
        [sys.executable, "chat.py", *map(str, arguments)],
        cwd=FOLDER,
        input=typed,
        capture_output=True,
        encoding="utf-8",
        **options,
    )


def test_chat_answers_refuses_and_ends(saved):
    _, folder = saved
    run = chat(folder, "-k", 2, typed="合伙企业的合伙协议\n早餐几点？\n？？\n")
    assert run.returncode == 0 and run.stderr == ""
    assert "3 answers" in run.stdout and "1. 《合伙企业法》" in run.stdout and "2. " in run.stdout
    assert "没有找到" in run.stdout and "no word in this question" in run.stdout


def test_chat_errors_are_one_sentence(tmp_path):
    run = chat(tmp_path / "nowhere")
    assert run.returncode == 1 and "There is no bot in" in run.stderr and len(run.stderr.strip().splitlines()) == 1
    assert chat("-k", 0).returncode == 2 and "--threshold" in chat("--help").stdout


# ------------------------------------------------------------------------------------------------ the server


@pytest.fixture
def server(saved):
    """``serve.py`` as a process of its own on a free port; stopped by its id."""
    _, folder = saved
    process = subprocess.Popen(
        [sys.executable, "serve.py", str(folder), "--port", "0"],
        cwd=FOLDER,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    line = process.stdout.readline()  # printed when the port is bound
    yield process, f"{line.split()[0]}/answer" if line else ""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=30)
    process.stdout.close()
    process.stderr.close()


def post(address, body):
    """Status and decoded answer of a request, whatever the status is."""
    request = urllib.request.Request(address, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_server_answers_a_batch_refuses_and_stops(server, saved):
    process, address = server
    assert address.startswith("http://127.0.0.1:"), process.stderr.read() if process.poll() is not None else ""
    status, replies = post(address, {"questions": ["合伙企业的合伙协议", "早餐几点？"], "k": 2})
    assert status == 200 and [reply["answered"] for reply in replies] == [True, False]
    bot, _ = saved
    hits = bot.search("合伙企业的合伙协议", 2)
    assert [found["answer"] for found in replies[0]["answers"]] == [hit.entry["answer"] for hit in hits]
    assert replies[1]["answers"] == [] and replies[0]["answers"][0]["score"] == pytest.approx(hits[0].score, abs=1e-3)
    for body, says in (
        ({"questions": []}, "at least 1 item"),
        ({"questions": ["合" * 301]}, "at most 300 characters"),
        ({"questions": ["合伙"], "k": 0}, "greater than or equal to 1"),
        ({"question": "合伙"}, "Field required"),
        ({"questions": ["？？"]}, "no word in this question"),
    ):
        status, error = post(address, body)
        assert status == 422 and says in error["error"], error
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) is not None


def test_server_errors_are_one_sentence(tmp_path):
    run = subprocess.run([sys.executable, "serve.py", tmp_path / "no"], cwd=FOLDER, capture_output=True, encoding="utf-8")
    assert run.returncode == 1 and "There is no bot in" in run.stderr and len(run.stderr.strip().splitlines()) == 1
