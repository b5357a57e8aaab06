"""The local server: valid answers, one sentence for a wrong request, batching, this machine only, and a clean start and stop."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

from common.errors import RoadmapError
from common.models import checkpoint
from common.paths import ROOT
from common.serve import HOST, Batcher, _load, build, serve

import pytest
from fastapi.testclient import TestClient


@pytest.fixture(scope="module")
def client():
    opened = {}

    def get(task):
        if task not in opened:
            opened[task] = TestClient(build(task), base_url=f"http://{HOST}")
            opened[task].__enter__()
        return opened[task]

    yield get
    for one in opened.values():
        one.__exit__(None, None, None)


def test_names_are_found_where_they_stand(client):
    text = "北京大学校长陈佳洱昨天在上海会见了美国客人。"
    (found,) = client("ner").post("/ner", json={"texts": [text]}).json()["results"]
    assert {name["type"] for name in found} <= {"PER", "LOC", "ORG"} and found
    assert all(text[name["start"] : name["end"]] == name["text"] and 0 < name["score"] <= 1 for name in found)


def test_a_text_longer_than_the_model_is_tagged_to_its_end(client):
    text = "他昨天在上海会见了美国客人。" * 60  # 840 characters, the encoder reads 512 tokens
    (found,) = client("ner").post("/ner", json={"texts": [text]}).json()["results"]
    places = [name["text"] for name in found]
    assert 110 <= places.count("上海") + places.count("美国") <= 120 and found[-1]["end"] > 800


def test_classes(client):
    good, bad = client("classify").post("/classify", json={"texts": ["很好，非常满意", "太差了，很失望"]}).json()["results"]
    assert good["label"] != bad["label"] and min(good["score"], bad["score"]) > 0.5


def test_pairs_one_tower_and_two(client, tmp_path):
    from common import from_scratch

    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    pairs = [["打开新窗口", "打开新窗口"], ["打开新窗口", "删除邮件"]]
    same, other = client("pairs").post("/pairs", json={"pairs": pairs}).json()["scores"]
    assert abs(same - 1) < 1e-5 and other < 0.99
    model = from_scratch(AutoModelForSequenceClassification, checkpoint("bert"), num_labels=2)
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(checkpoint("bert")).save_pretrained(tmp_path)
    with TestClient(build("pairs", tmp_path), base_url=f"http://{HOST}") as one:
        scores = one.post("/pairs", json={"pairs": pairs}).json()["scores"]
    assert all(0 <= score <= 1 for score in scores) and abs(scores[0] - 1) > 1e-3  # a probability, not a cosine


def test_chat_streams_what_it_says_at_once(client):
    messages = [{"role": "user", "content": "这条评论是好评还是差评？\n很好，非常满意"}]
    whole = client("chat").post("/v1/chat/completions", json={"messages": messages, "max_tokens": 8}).json()
    said = whole["choices"][0]["message"]["content"]
    streamed = client("chat").post("/v1/chat/completions", json={"messages": messages, "max_tokens": 8, "stream": True}).text
    events = [line.removeprefix("data: ") for line in streamed.splitlines() if line]
    assert events[-1] == "[DONE]" and json.loads(events[-2])["choices"][0]["finish_reason"] == "stop"
    pieces = [json.loads(event)["choices"][0]["delta"].get("content", "") for event in events[:-1]]
    assert said and "".join(pieces).strip() == said


def test_an_answer_that_was_cut_says_so(client):
    messages = [{"role": "user", "content": "这条评论是好评还是差评？\n很好，非常满意"}]
    for limit, reason in ((1, "length"), (20, "stop")):
        body = {"messages": messages, "max_tokens": limit}
        whole = client("chat").post("/v1/chat/completions", json=body).json()
        streamed = client("chat").post("/v1/chat/completions", json=body | {"stream": True}).text
        last = json.loads(streamed.split("data: ")[-2])
        assert whole["choices"][0]["finish_reason"] == last["choices"][0]["finish_reason"] == reason


def test_another_model_than_the_one_here_is_refused(client):
    asked = {"messages": [{"role": "user", "content": "好还是差？"}], "max_tokens": 2}
    assert client("chat").post("/v1/chat/completions", json=asked | {"model": "tiny-qwen-zh-chat"}).status_code == 200
    refused = client("chat").post("/v1/chat/completions", json=asked | {"model": "gpt"})
    assert refused.status_code == 404 and "only 'tiny-qwen-zh-chat'" in refused.json()["error"]


def test_a_long_chat_loses_its_oldest_turns_and_keeps_the_system_message(client):
    old = [{"role": role, "content": "很好" * 60} for role in ("user", "assistant") * 12]
    messages = [{"role": "system", "content": "简短回答"}, *old, {"role": "user", "content": "好还是差？"}]
    kept = _load("chat", checkpoint("chat")).recent(messages, 4)
    assert kept[0] == messages[0] and kept[1:] == messages[-len(kept) + 1 :] and 3 < len(kept) < len(messages)
    assert kept[1]["role"] == "user"  # turns go in pairs
    chat = build("chat")
    with TestClient(chat, base_url=f"http://{HOST}") as one:
        answered = one.post("/v1/chat/completions", json={"messages": messages, "max_tokens": 4})
        assert answered.status_code == 200, answered.text
        too_long = one.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "天地玄黄" * 1_500}]})
    assert too_long.status_code == 413 and "do not fit into 1024 tokens" in too_long.json()["error"]


@pytest.mark.parametrize(
    ("task", "path", "body", "says"),
    [
        ("ner", "/ner", {"texts": []}, "texts: List should have at least 1 item"),
        ("ner", "/ner", {"texts": ["  "]}, "texts.0: String should have at least 1 character"),
        ("ner", "/ner", {"text": "x"}, "texts: Field required"),
        ("ner", "/ner", {"texts": ["x"], "top_k": 3}, "top_k: Extra inputs are not permitted"),
        ("ner", "/ner", {"texts": ["x"] * 257}, "at most 256 items"),
        ("ner", "/ner", {"texts": ["x" * 20_001]}, "at most 20000 characters"),
        ("pairs", "/pairs", {"pairs": [["a"]]}, "pairs.0.1: Field required"),
        ("chat", "/v1/chat/completions", {"messages": [{"role": "robot", "content": "x"}]}, "'system', 'user' or 'assistant'"),
        ("chat", "/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}] * 2}, "where assistant is expected"),
        (
            "chat",
            "/v1/chat/completions",
            {"messages": [{"role": "assistant", "content": "x"}]},
            "last message must be the user's",
        ),
        ("chat", "/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], "temperature": 1}, "temperature"),
    ],
)
def test_a_wrong_request_gets_one_sentence(client, task, path, body, says):
    answered = client(task).post(path, json=body)
    assert answered.status_code == 422 and says in answered.json()["error"]


def test_no_other_host_name_is_answered():
    with TestClient(build("classify"), base_url="http://evil.example") as one:
        assert one.get("/health").status_code == 400


def test_what_arrives_together_is_computed_together_and_errors_reach_their_own_request():
    calls = []

    def compute(items, key):
        calls.append((key, list(items)))
        if key == "bad":
            raise ValueError("no")
        return [item * 10 for item in items]

    async def scenario():
        batcher = Batcher(size=8, wait=0.05)
        batcher.compute = compute
        worker = asyncio.create_task(batcher.run())
        asked = [batcher.all([i]) for i in range(5)] + [batcher.all([7, 8], key="other"), batcher.all([9], key="bad")]
        results = await asyncio.gather(*asked, return_exceptions=True)
        again = await batcher.all(list(range(20)))  # more than one batch holds; the worker has survived the error
        worker.cancel()
        return results, again

    results, again = asyncio.run(scenario())
    assert results[:5] == [[0], [10], [20], [30], [40]] and results[5] == [70, 80] and isinstance(results[6], ValueError)
    assert again == [10 * i for i in range(20)]
    assert calls[:3] == [(None, [0, 1, 2, 3, 4]), ("other", [7, 8]), ("bad", [9])]
    assert max(len(items) for _, items in calls) <= 8


def test_errors_before_the_start(tmp_path, monkeypatch):
    with pytest.raises(RoadmapError, match="no task named 'translate'"):
        build("translate")
    with pytest.raises(RoadmapError, match="No model for ner could be loaded"):
        build("ner", tmp_path)
    with pytest.raises(RoadmapError, match="no chat template"):
        build("chat", _without_template(tmp_path))
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        with pytest.raises(RoadmapError, match="choose another with --port"):
            serve("classify", port=taken.getsockname()[1])
    monkeypatch.setitem(sys.modules, "fastapi", None)
    with pytest.raises(RoadmapError, match="pip install fastapi uvicorn"):
        build("ner")


def _without_template(folder):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    AutoModelForCausalLM.from_pretrained(checkpoint("qwen")).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint("qwen"))
    tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    return folder


def test_the_command_starts_answers_and_stops():
    with socket.socket() as free:
        free.bind((HOST, 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "common", "serve", "ner", "--port", str(port)]
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ)
    try:
        end = time.monotonic() + 120
        while True:
            try:
                with urllib.request.urlopen(f"http://{HOST}:{port}/health", timeout=5) as reply:
                    assert json.load(reply)["task"] == "ner"
                break
            except urllib.error.URLError:
                assert server.poll() is None and time.monotonic() < end, server.stdout.read()
                time.sleep(0.3)
        body = json.dumps({"texts": ["他在北京。"]}).encode()
        request = urllib.request.Request(f"http://{HOST}:{port}/ner", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as reply:
            assert json.load(reply)["results"][0][0]["text"] == "北京"
        server.send_signal(signal.SIGINT)
        output, _ = server.communicate(timeout=30)
        assert server.returncode in (0, 130, -signal.SIGINT) and "Traceback" not in output, output
    finally:
        if server.poll() is None:
            server.kill()
            server.wait()
