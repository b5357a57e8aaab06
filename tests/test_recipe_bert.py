"""The encoder: a recipe that runs, resumes and learns from hidden words and from a teacher."""

import json
import random

from common.errors import RoadmapError
from common.recipes import bert, distillation, trials
from common.recipes.bert import (
    NAME,
    BertRecipe,
    Student,
    character_tokenizer,
    encoder_model,
    held_out_blocks,
    make_bert,
    mask_tokens,
    masking,
)
from common.recipes.distillation import TeacherStates, teacher_states
from common.recipes.skeleton import file_hashes

import pytest
import torch
from transformers import AutoTokenizer

from tests.tiny import FakeTeacher, check_resume

TEXTS = [
    "今天天气很好，我们去公园散步吧。",
    "酒店的服务不错，房间也很干净。Wifi 6 快。",
    "第一条 为了保护公民的权利，制定本法。",
] * 8
UNSEEN = ["公园的天气不错，我们散步。", "今天的房间很干净，服务也好。", "为了公民，第一条法。"] * 3


@pytest.fixture
def tokenizer():
    return character_tokenizer(TEXTS, at_least=1)


@pytest.fixture
def small(monkeypatch, tmp_path):
    from datasets import Dataset, DatasetDict

    splits = {"train": TEXTS, "validation": UNSEEN}
    data = DatasetDict({split: Dataset.from_dict({"text": texts}) for split, texts in splits.items()})
    monkeypatch.setattr(bert, "load_data", lambda name: data)
    monkeypatch.setattr(trials, "MODELS_DIR", tmp_path)
    return BertRecipe(steps=12, batch=16, precision="no", lr=1e-3)


@pytest.fixture(autouse=True)
def _fake_teacher(monkeypatch):
    monkeypatch.setattr(distillation, "load_teacher", FakeTeacher)


# ------------------------------------------------------------------------------------------------ tokenizer and blocks


def test_masking_follows_the_rule():
    tokenizer = character_tokenizer(TEXTS, at_least=1)
    ids = torch.randint(5, len(tokenizer), (200, 100))
    ids[:, 0], ids[:, -1] = tokenizer.cls_token_id, tokenizer.sep_token_id
    masked, labels = mask_tokens(ids, tokenizer, 0.2, torch.Generator().manual_seed(0))
    chosen = labels != -100
    assert abs(chosen[:, 1:-1].float().mean() - 0.2) < 0.01 and not chosen[:, 0].any() and not chosen[:, -1].any()
    assert torch.equal(labels[chosen], ids[chosen]) and torch.equal(masked[~chosen], ids[~chosen])
    share = (masked[chosen] == tokenizer.mask_token_id).float().mean()
    assert abs(share - 0.8) < 0.02


def test_character_tokenizer_is_reproducible_and_reversible(tmp_path):
    a, b = character_tokenizer(TEXTS, at_least=1), character_tokenizer(list(TEXTS), at_least=1)
    assert a.get_vocab() == b.get_vocab()
    a.save_pretrained(tmp_path)
    encoder_model(a).config.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = "酒店wifi很好。"
    assert loaded.tokenize(text) == ["酒", "店", "w", "##i", "##f", "##i", "很", "好", "。"]
    assert loaded(text)["input_ids"] == a(text)["input_ids"] and list(loaded(text)) == ["input_ids", "attention_mask"]


def test_blocks_lose_only_the_remainder(tokenizer):
    blocks = held_out_blocks(tokenizer, TEXTS, 16)
    ids = [i for text in TEXTS for i in [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.sep_token_id]]
    joined = blocks[:, 1:].flatten().tolist()
    assert joined == ids[: len(joined)] and len(ids) - len(joined) < 15
    assert (blocks[:, 0] == tokenizer.cls_token_id).all()


# ------------------------------------------------------------------------------------------------ learning


def _student(tokenizer, states: TeacherStates) -> Student:
    torch.manual_seed(0)
    return Student(encoder_model(tokenizer), states, BertRecipe()).eval()


def test_padding_and_the_rest_of_a_batch_change_no_distance(tokenizer, tmp_path):
    states, _ = teacher_states(tokenizer, TEXTS, UNSEEN, tmp_path)
    student, collate = _student(tokenizer, states), masking(tokenizer, 0.0)

    def distances(rows):
        batch = collate([states[i] for i in rows])
        batch.pop("labels")
        return student.parts(**batch)[1]

    short, long = distances([0]), distances([1])
    both, tokens = distances([0, 1]), [states.lengths[0], states.lengths[1]]
    assert tokens[0] < tokens[1], "so the first is padded beside the second"
    for kind in ("states", "inner"):
        expected = (short[kind] * tokens[0] + long[kind] * tokens[1]) / sum(tokens)
        assert torch.allclose(both[kind], expected, atol=1e-5)
    assert torch.allclose(both["vector"], (short["vector"] + long["vector"]) / 2, atol=1e-5)


def test_the_distances_are_zero_at_the_teacher_and_one_at_its_mean(tokenizer, tmp_path):
    states, _ = teacher_states(tokenizer, TEXTS, UNSEEN, tmp_path)
    student = _student(tokenizer, states)
    batch = masking(tokenizer, 0.0)([states[i] for i in range(len(states))])
    batch.pop("labels")
    for there in student.maps:
        torch.nn.init.zeros_(there.weight), torch.nn.init.zeros_(there.bias)
    assert abs(student.parts(**batch)[1]["states"].item() - 1) < 0.2, "tokens weigh by their piece's length, so not exactly 1"
    student.maps[-1] = _Says(batch["states"])
    student.whole = _Says((batch["vector"] - states.mean) / states.deviation)
    found = student.parts(**batch)[1]
    assert found["states"].item() < 1e-9 and abs(found["vector"].item()) < 1e-5


class _Says(torch.nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, _):
        return self.value


def test_a_teacher_teaches(small, tmp_path, monkeypatch):
    """On text it was not shown, a few steps bring the student's states nearer to the teacher's."""
    rng = random.Random(0)
    texts = ["".join(rng.choices("天地玄黄宇宙洪荒", k=12)) for _ in range(96)]
    data = {"train": {"text": texts[:64]}, "validation": {"text": texts[64:]}}
    monkeypatch.setattr(bert, "load_data", lambda name: data)
    few = make_bert(tmp_path / "few" / NAME, recipe=small, steps=1)
    many = make_bert(tmp_path / "many" / NAME, recipe=small, steps=40)
    few, many = (json.loads((folder / "card.json").read_text(encoding="utf-8"))["held_out"] for folder in (few, many))
    assert many["teacher_cosine"] > few["teacher_cosine"] + 0.4
    assert many["states_explained"] > few["states_explained"] + 0.2
    assert many["loss"] < few["loss"] - 0.3


def test_hidden_words_are_learned_beside_the_teacher(tokenizer, tmp_path):
    """The decoder and head get a gradient from the words alone, and none if nothing is hidden."""
    states, _ = teacher_states(tokenizer, TEXTS, UNSEEN, tmp_path)
    student = _student(tokenizer, states)
    for part, learns in ((0.5, True), (0.0, False)):
        student.zero_grad()
        student(**masking(tokenizer, part)([states[i] for i in range(8)])).loss.backward()
        assert (student.model.decoder.bias.grad is not None) == learns


def test_it_is_made_by_the_command_and_nothing_is_overwritten(small, tmp_path, monkeypatch):
    monkeypatch.setattr(bert, "BertRecipe", lambda: small)
    folder = trials.make(NAME, steps=2)
    assert folder == tmp_path / NAME and not list(tmp_path.glob(".*-run"))
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    assert {"masked_accuracy", "states_explained", "teacher_cosine"} <= set(card["held_out"]) and "e5-small" in card["teacher"]
    assert file_hashes(folder) == card["sha256"] and card["recipe"]["steps"] == 2
    with pytest.raises(RoadmapError, match="--force to replace"):
        trials.make(NAME, steps=2)


def test_an_interrupted_run_is_continued_with_the_same_numbers(small, tmp_path, monkeypatch):
    """Twelve steps are more than one pass over the texts, so the order of the second pass must be the same too."""
    check_resume(monkeypatch, NAME, make_bert, tmp_path, small, save_every=9, evaluate_every=5)
