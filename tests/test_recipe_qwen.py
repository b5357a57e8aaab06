"""The decoder: next tokens and a teacher's states, two optimisers, and a recipe that runs, resumes and learns."""

import json

from common.recipes import distillation, qwen
from common.recipes.distillation import teacher_states
from common.recipes.qwen import (
    END,
    NAME,
    QwenRecipe,
    Student,
    bpe_tokenizer,
    decoder_model,
    make_qwen,
    optimizers,
    text_batch,
    with_texts,
)

import pytest
import torch

from tests.tiny import FakeTeacher, check_resume

TEXTS = [
    "今天天气很好，我们去公园散步吧。",
    "酒店的服务不错，房间也很干净。Wifi 6 快。",
    "第一条 为了保护公民的权利，制定本法。",
] * 8
UNSEEN = ["公园的天气不错，我们散步。", "今天的房间很干净，服务也好。", "为了公民，第一条法。"] * 3
RECIPE = QwenRecipe(steps=12, batch=4, length=16, texts=4, longest=48, precision="no", compiled=False)


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    from datasets import Dataset, DatasetDict

    data = DatasetDict({s: Dataset.from_dict({"text": texts}) for s, texts in (("train", TEXTS), ("validation", UNSEEN))})
    monkeypatch.setattr(qwen, "load_data", lambda name: data)
    monkeypatch.setattr(distillation, "load_teacher", FakeTeacher)


@pytest.fixture
def taught(tmp_path):
    """A tokenizer, the teacher's states of the texts, and a student in evaluation mode."""
    tokenizer = bpe_tokenizer(TEXTS, size=400)
    states, _ = teacher_states(tokenizer, TEXTS, UNSEEN, tmp_path / "states", place="last")
    torch.manual_seed(0)
    return tokenizer, states, Student(decoder_model(tokenizer), states, RECIPE).eval()


def test_what_fills_a_text_up_changes_no_distance(taught):
    """The student has no attention mask: it may not need one."""
    tokenizer, states, student = taught
    end = tokenizer.convert_tokens_to_ids(END)
    rows = [states[0], states[1]]
    narrow, wide = (student.distances(**text_batch(rows, end, longest)) for longest in (40, 60))
    for kind in ("states", "inner", "vector"):
        assert torch.allclose(narrow[kind], wide[kind], atol=1e-5)


def test_the_vector_is_read_where_the_whole_text_has_been_read(taught):
    """Another last character changes it; another text after the end token does not."""
    tokenizer, states, student = taught
    batch = text_batch([states[0], states[1]], tokenizer.convert_tokens_to_ids(END), 48)
    before = student.distances(**batch)["vector"]
    after, last = batch["texts"].clone(), batch["texts"].clone()
    after[:, -1] = 7
    last[torch.arange(2), batch["sizes"] - 1] = 7
    assert torch.allclose(student.distances(**batch | {"texts": after})["vector"], before, atol=1e-6)
    assert not torch.allclose(student.distances(**batch | {"texts": last})["vector"], before, atol=1e-4)


def test_muon_has_the_matrices_of_the_layers_and_adamw_all_else(taught):
    _, _, student = taught
    muon, adamw = optimizers(student, RECIPE)
    sizes = [sum(p.numel() for group in one.param_groups for p in group["params"]) for one in (muon, adamw)]
    assert sum(sizes) == sum(p.numel() for p in student.parameters())
    layers = sum(p.numel() for p in student.model.model.layers.parameters() if p.ndim == 2)
    assert sizes[0] == layers and all(p.ndim == 2 for p in muon.param_groups[0]["params"])


def test_a_batch_has_one_shape_whatever_texts_it_draws(taught):
    tokenizer, states, _ = taught
    collate = with_texts(states, tokenizer.convert_tokens_to_ids(END), RECIPE)
    shapes = {tuple(collate([torch.zeros(16, dtype=torch.long)] * 4)["texts"].shape) for _ in range(8)}
    assert shapes == {(4, 48)}


def test_every_part_of_the_loss_falls(taught):
    tokenizer, states, student = taught
    end = tokenizer.convert_tokens_to_ids(END)
    batch = text_batch([states[i] for i in range(6)], end, 48)
    blocks = batch["texts"]

    def parts():
        return {"next": student.next_token(blocks), **student.distances(**batch)}

    before, both = {name: value.item() for name, value in parts().items()}, optimizers(student, RECIPE)
    for _ in range(40):
        student(blocks, **batch).loss.backward()
        for one in both:
            one.step()
            one.zero_grad()
    after = {name: value.item() for name, value in parts().items()}
    assert all(after[name] < 0.8 * before[name] for name in before), (before, after)


def test_the_recipe_runs_and_its_card_says_what_was_measured(tmp_path):
    folder = make_qwen(tmp_path / NAME, recipe=RECIPE)
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    assert {"perplexity", "bits_per_character", "states_explained", "teacher_cosine"} <= set(card["held_out"])
    assert card["curve"][-1][1] < card["curve"][0][1] and card["recipe"]["steps"] == 12 and "e5-small" in card["teacher"]


def test_an_interrupted_decoder_is_continued_with_the_same_numbers(tmp_path, monkeypatch):
    check_resume(monkeypatch, NAME, make_qwen, tmp_path, RECIPE, save_every=9, evaluate_every=5)
