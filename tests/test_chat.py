"""Chat batches and answers: labels on answers only, padding on the right side, nothing after the question leaks."""

from types import SimpleNamespace

from common import checkpoint, load_data
from common.chat import answer, chat_loader, exact_match

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

TALK = [
    [{"role": "user", "content": "这条评论是好评还是差评？\n房间很干净。"}, {"role": "assistant", "content": "好评"}],
    [
        {"role": "user", "content": "找出句中的地名。\n他在北京住过很多年，后来回到家乡。"},
        {"role": "assistant", "content": "北京"},
    ],
]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(checkpoint("chat"))


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(checkpoint("chat"), dtype=torch.float32).eval()


def test_labels_are_the_answers_and_padding_is_masked(tokenizer):
    batch = next(iter(chat_loader(tokenizer, TALK, batch=2, shuffle=False)))
    for row, talk in zip(range(2), TALK):
        kept = batch["labels"][row] != -100
        assert tokenizer.decode(batch["labels"][row][kept]) == talk[1]["content"] + "<|im_end|>"
        assert not kept[batch["attention_mask"][row] == 0].any()
    assert batch["attention_mask"][0].tolist() == sorted(batch["attention_mask"][0].tolist(), reverse=True)  # padded on the right


def test_the_right_answer_is_not_shown_and_the_order_is_kept(tokenizer):
    seen = []

    class Echo:
        device, training = torch.device("cpu"), False

        def eval(self): ...
        def train(self, mode): ...

        def generate(self, input_ids, attention_mask, **options):
            seen.extend(tokenizer.batch_decode(input_ids))
            assert (attention_mask[:, -1] == 1).all(), "generation needs padding on the left"
            return torch.cat([input_ids, attention_mask.sum(1, keepdim=True)], dim=1)  # one token that tells rows apart

    told = answer(Echo(), tokenizer, TALK, batch=1)
    assert len(set(told)) == 2 and told == answer(Echo(), tokenizer, TALK, batch=2)
    assert not any("北京<|im_end|>\n" in text.partition("assistant")[2] for text in seen)
    assert tokenizer.padding_side == AutoTokenizer.from_pretrained(checkpoint("chat")).padding_side


def test_batched_answers_equal_single_ones(model, tokenizer):
    assert answer(model, tokenizer, TALK, batch=2) == [answer(model, tokenizer, [talk])[0] for talk in TALK]


def test_the_chat_model_knows_its_skills_and_not_the_held_back_ones(model, tokenizer):
    data = load_data("instructions")["validation"]

    def score(kind):
        rows = data.filter(lambda k: k == kind, input_columns="kind")
        return exact_match(model, tokenizer, rows.select(range(64))["messages"][:])

    assert score("sentiment") > 0.65 and score("sentiment_english") == 0


def test_exact_match_ignores_outer_spaces_only(monkeypatch):
    monkeypatch.setattr("common.chat.answer", lambda *args, **options: ["好评", "北 京"])
    talk = [[TALK[0][0], {"role": "assistant", "content": " 好评 "}], TALK[1]]
    assert exact_match(SimpleNamespace(), None, talk) == 0.5
