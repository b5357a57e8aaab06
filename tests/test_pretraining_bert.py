"""The encoder: what it reads, what the teacher says of it, and a recipe that runs, resumes and learns."""

import json
import random
import zlib
from types import SimpleNamespace

from common import models, pretraining, pretraining_bert
from common.errors import RoadmapError
from common.pretraining_bert import (
    LONGEST,
    NAME,
    WIDTH,
    BertRecipe,
    Lessons,
    Student,
    character_tokenizer,
    encoder_model,
    held_out_blocks,
    make_bert,
    mask_tokens,
    masking,
    mixes,
    pieces,
    teach,
)
from common.teacher import Teacher, _tokenizer

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertModel

from tests.tiny import check_resume

TEXTS = [
    "今天天气很好，我们去公园散步吧。",
    "酒店的服务不错，房间也很干净。Wifi 6 快。",
    "第一条 为了保护公民的权利，制定本法。",
] * 8
UNSEEN = ["公园的天气不错，我们散步。", "今天的房间很干净，服务也好。", "为了公民，第一条法。"] * 3


class Pairs:
    """A teacher whose pieces are pairs of characters after one marker, and whose states add up a fixed noise for each."""

    model = SimpleNamespace(to=lambda home: None)

    def pieces(self, text):
        return [(0, 0), *((i, min(i + 2, len(text))) for i in range(0, len(text), 2))]

    def states(self, texts, layers):
        def noise(character):
            return torch.randn(len(layers) * WIDTH, generator=torch.Generator().manual_seed(zlib.crc32(character.encode())))

        def state(pair):
            return torch.stack([noise(character) for character in pair or "^"]).sum(0)

        return [torch.stack([state(text[start:end]) for start, end in self.pieces(text)]) for text in texts]


@pytest.fixture
def tokenizer():
    return character_tokenizer(TEXTS, at_least=1)


@pytest.fixture
def small(monkeypatch, tmp_path):
    from datasets import Dataset, DatasetDict

    splits = {"train": TEXTS, "validation": UNSEEN}
    data = DatasetDict({split: Dataset.from_dict({"text": texts}) for split, texts in splits.items()})
    monkeypatch.setattr(pretraining_bert, "load_data", lambda name: data)
    monkeypatch.setattr(pretraining, "MODELS_DIR", tmp_path)
    return BertRecipe(steps=12, batch=16, precision="no", lr=1e-3)


@pytest.fixture(autouse=True)
def _fake_teacher(monkeypatch):
    monkeypatch.setattr(pretraining_bert, "load_teacher", Pairs)


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


# ------------------------------------------------------------------------------------------------ what is read


def test_pieces_are_cut_between_sentences_and_lose_nothing():
    sentence = "一二三四五六七八九十" * 3 + "。"
    long = sentence * 7 + "无" * 300
    cut = pieces([long, "短", "好的。"])
    assert "".join(cut) == long, "texts under four characters are left out, of others nothing"
    assert all(len(piece) <= LONGEST for piece in cut)
    assert cut[0] == sentence * 3, "as many whole sentences as fit"


def test_mixes_are_clauses_of_reviews():
    reviews = ["房间很大，床很软，早餐一般。", "物流很快！书很新。", ""]
    made = mixes(reviews, BertRecipe(mixes=50))
    clauses = ["房间很大，", "床很软，", "早餐一般。", "物流很快！", "书很新。"]
    for text in made:
        for clause in clauses:
            text = text.replace(clause, "")
        assert text == ""
    assert any("床" in text and "物流" in text for text in made) and len(set(made)) > 20
    assert made == mixes(reviews, BertRecipe(mixes=50)) != mixes(reviews, BertRecipe(mixes=50, seed=1))


# ------------------------------------------------------------------------------------------------ what the teacher says


def test_every_token_gets_the_state_of_the_piece_that_holds_it(tokenizer, tmp_path):
    text = "酒店wifi很快。"  # pieces: 酒店, wi, fi, 很快, 。
    lessons, _ = teach(tokenizer, [text, *TEXTS], UNSEEN, tmp_path)
    row = lessons[0]
    assert tokenizer.convert_ids_to_tokens(row["input_ids"]) == [
        *("[CLS]", "酒", "店", "w", "##i", "##f", "##i", "很", "快", "。", "[SEP]")
    ]
    own = torch.from_numpy(np.load(tmp_path / "texts.npy")[lessons.starts[0] : lessons.starts[1]]).float()
    assert own.shape == (6, WIDTH)
    assert torch.equal(row["states"], own[[0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 0]])
    assert torch.allclose(row["vector"], own.mean(0), atol=1e-6)
    assert 0.99 < lessons.kept < 1.001 and lessons.lengths[0] == 11


@pytest.fixture
def teacher():
    """The real class over a tokenizer that joins characters and a random model of two layers."""
    names = ["<s>", "<pad>", "</s>", "<unk>", "▁", "passage", ":", "酒店", "很", "快"]
    made = _tokenizer(names, np.array([0, 0, 0, -9, -2, -1, -1, -1, -2, -2], dtype=np.float32))
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return Teacher(made, BertModel(BertConfig(vocab_size=len(names) + 1, max_position_embeddings=64, **shape)).eval())


def test_the_real_teachers_places_are_those_of_the_text(teacher):
    """With the prefix in front, places count from the text's own first character."""
    assert teacher.pieces("酒店很快")[-4:] == [(0, 2), (2, 3), (3, 4), (0, 0)]
    assert len(Teacher(teacher.tokenizer, None, longest=5).pieces("酒店很快")) == 5


def test_the_real_teachers_states_are_the_layers_asked_for_one_a_piece(teacher):
    """Side by side in the order asked for, and the same beside a longer text as alone."""
    short, long = teacher.states(["酒店很", "酒店很快很快"], layers=(1, 2))
    assert short.shape == (len(teacher.pieces("酒店很")), 32) and long.shape == (len(teacher.pieces("酒店很快很快")), 32)
    with torch.no_grad():
        inputs = teacher.tokenizer("passage: 酒店很", return_tensors="pt")
        hidden = teacher.model(**inputs, output_hidden_states=True).hidden_states
    assert torch.allclose(short, torch.cat([hidden[1][0], hidden[2][0]], dim=-1), atol=1e-5)


def test_an_interrupted_teacher_goes_on_where_it_stopped(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(pretraining_bert, "_batches", lambda texts: [[i, i + 1, i + 2] for i in range(0, len(texts), 3)])
    first, _ = teach(tokenizer, TEXTS, UNSEEN, tmp_path)
    before = [row["states"].clone() for row in first]
    (tmp_path / "texts.done").unlink()
    table = np.load(tmp_path / "texts.npy", mmap_mode="r+")
    table[first.starts[19] :] = 0  # as if stopped in the middle of the batch of texts 18, 19 and 20
    table.flush()
    asked = []
    real = Pairs.states
    monkeypatch.setattr(Pairs, "states", lambda self, texts, layers: asked.extend(texts) or real(self, texts, layers))
    again, _ = teach(tokenizer, TEXTS, UNSEEN, tmp_path)
    assert asked == TEXTS[18:] and all(torch.equal(row["states"], old) for row, old in zip(again, before))


def test_states_of_other_texts_are_refused(tokenizer, tmp_path):
    teach(tokenizer, TEXTS, UNSEEN, tmp_path)
    with pytest.raises(RoadmapError, match="other texts; begin anew, without --resume"):
        teach(tokenizer, TEXTS[:-1], UNSEEN, tmp_path)


# ------------------------------------------------------------------------------------------------ learning


def _student(tokenizer, lessons: Lessons) -> Student:
    torch.manual_seed(0)
    return Student(encoder_model(tokenizer), lessons, BertRecipe()).eval()


def test_padding_and_the_rest_of_a_batch_change_no_distance(tokenizer, tmp_path):
    lessons, _ = teach(tokenizer, TEXTS, UNSEEN, tmp_path)
    student, collate = _student(tokenizer, lessons), masking(tokenizer, 0.0)

    def distances(rows):
        batch = collate([lessons[i] for i in rows])
        batch.pop("labels")
        return student.parts(**batch)[1]

    short, long = distances([0]), distances([1])
    both, tokens = distances([0, 1]), [lessons.lengths[0], lessons.lengths[1]]
    assert tokens[0] < tokens[1], "so the first is padded beside the second"
    for kind in ("states", "inner"):
        expected = (short[kind] * tokens[0] + long[kind] * tokens[1]) / sum(tokens)
        assert torch.allclose(both[kind], expected, atol=1e-5)
    assert torch.allclose(both["vector"], (short["vector"] + long["vector"]) / 2, atol=1e-5)


def test_the_distances_are_zero_at_the_teacher_and_one_at_its_mean(tokenizer, tmp_path):
    lessons, _ = teach(tokenizer, TEXTS, UNSEEN, tmp_path)
    student = _student(tokenizer, lessons)
    batch = masking(tokenizer, 0.0)([lessons[i] for i in range(len(lessons))])
    batch.pop("labels")
    for there in student.maps:
        torch.nn.init.zeros_(there.weight), torch.nn.init.zeros_(there.bias)
    assert abs(student.parts(**batch)[1]["states"].item() - 1) < 0.2, "tokens weigh by their piece's length, so not exactly 1"
    student.maps[-1] = _Says(batch["states"])
    student.whole = _Says((batch["vector"] - lessons.mean) / lessons.deviation)
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
    monkeypatch.setattr(pretraining_bert, "load_data", lambda name: data)
    few = make_bert(tmp_path / "few" / NAME, recipe=small, steps=1)
    many = make_bert(tmp_path / "many" / NAME, recipe=small, steps=40)
    few, many = (json.loads((folder / "card.json").read_text(encoding="utf-8"))["held_out"] for folder in (few, many))
    assert many["teacher_cosine"] > few["teacher_cosine"] + 0.4
    assert many["states_explained"] > few["states_explained"] + 0.2
    assert many["loss"] < few["loss"] - 0.3


def test_hidden_words_are_learned_beside_the_teacher(tokenizer, tmp_path):
    """The decoder and head get a gradient from the words alone, and none if nothing is hidden."""
    lessons, _ = teach(tokenizer, TEXTS, UNSEEN, tmp_path)
    student = _student(tokenizer, lessons)
    for part, learns in ((0.5, True), (0.0, False)):
        student.zero_grad()
        student(**masking(tokenizer, part)([lessons[i] for i in range(8)])).loss.backward()
        assert (student.model.decoder.bias.grad is not None) == learns


def test_it_is_made_by_the_command_and_nothing_is_overwritten(small, tmp_path, monkeypatch):
    monkeypatch.setattr(pretraining_bert, "BertRecipe", lambda: small)
    folder = pretraining.make(NAME, steps=2)
    assert folder == tmp_path / NAME and not list(tmp_path.glob(".*-run"))
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    assert {"masked_accuracy", "states_explained", "teacher_cosine"} <= set(card["held_out"]) and "e5-small" in card["teacher"]
    assert models.file_hashes(folder) == card["sha256"] and card["recipe"]["steps"] == 2
    with pytest.raises(RoadmapError, match="--force to replace"):
        pretraining.make(NAME, steps=2)


def test_an_interrupted_run_is_continued_with_the_same_numbers(small, tmp_path, monkeypatch):
    """Twelve steps are more than one pass over the texts, so the order of the second pass must be the same too."""
    check_resume(monkeypatch, pretraining_bert, make_bert, tmp_path, small, save_every=9, evaluate_every=5)
