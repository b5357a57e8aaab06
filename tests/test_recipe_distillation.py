"""What students learn from: texts cut into pieces, and a teacher's states at every token, kept in a file."""

from common.errors import RoadmapError
from common.recipes import distillation
from common.recipes.bert import character_tokenizer
from common.recipes.distillation import LONGEST, WIDTH, mixes, pieces, teacher_states
from common.recipes.teacher import Teacher, _tokenizer

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from tests.tiny import FakeTeacher

TEXTS = [
    "今天天气很好，我们去公园散步吧。",
    "酒店的服务不错，房间也很干净。Wifi 6 快。",
    "第一条 为了保护公民的权利，制定本法。",
] * 8
UNSEEN = ["公园的天气不错，我们散步。", "今天的房间很干净，服务也好。", "为了公民，第一条法。"] * 3


@pytest.fixture
def tokenizer():
    return character_tokenizer(TEXTS, at_least=1)


@pytest.fixture(autouse=True)
def _fake_teacher(monkeypatch):
    monkeypatch.setattr(distillation, "load_teacher", FakeTeacher)


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
    made = mixes(reviews, 50, 42)
    clauses = ["房间很大，", "床很软，", "早餐一般。", "物流很快！", "书很新。"]
    for text in made:
        for clause in clauses:
            text = text.replace(clause, "")
        assert text == ""
    assert any("床" in text and "物流" in text for text in made) and len(set(made)) > 20
    assert made == mixes(reviews, 50, 42) != mixes(reviews, 50, 1)


# ------------------------------------------------------------------------------------------------ what the teacher says


def test_every_token_gets_the_state_of_the_piece_that_holds_it(tokenizer, tmp_path):
    text = "酒店wifi很快。"  # pieces: 酒店, wi, fi, 很快, 。
    states, _ = teacher_states(tokenizer, [text, *TEXTS], UNSEEN, tmp_path)
    row = states[0]
    assert tokenizer.convert_ids_to_tokens(row["input_ids"]) == [
        *("[CLS]", "酒", "店", "w", "##i", "##f", "##i", "很", "快", "。", "[SEP]")
    ]
    own = torch.from_numpy(np.load(tmp_path / "texts.npy")[states.starts[0] : states.starts[1]]).float()
    assert own.shape == (6, WIDTH)
    assert torch.equal(row["states"], own[[0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 0]])
    assert torch.allclose(row["vector"], own.mean(0), atol=1e-6)
    assert 0.99 < states.kept < 1.001 and states.lengths[0] == 11


def test_a_decoders_token_gets_the_piece_of_its_last_character(tmp_path):
    """A decoder that has read 酒店w knows w, so the token belongs to the piece that holds its last character."""
    from common.recipes.qwen import bpe_tokenizer

    bpe = bpe_tokenizer(["酒店很快"] * 50, size=300)
    text = "酒店很快。"  # the teacher's pieces: 酒店, 很快, 。
    assert bpe.tokenize(text) != list(text), "the point needs a token of several characters"
    states, _ = teacher_states(bpe, [text, *TEXTS], UNSEEN, tmp_path, place="last")
    own = torch.from_numpy(np.load(tmp_path / "texts.npy")[: states.starts[1]]).float()
    ends = [end for _, end in bpe(text, return_offsets_mapping=True)["offset_mapping"]]
    assert torch.equal(states[0]["states"], own[[1 + (end - 1) // 2 for end in ends]])


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
    monkeypatch.setattr(distillation, "_batches", lambda texts: [[i, i + 1, i + 2] for i in range(0, len(texts), 3)])
    first, _ = teacher_states(tokenizer, TEXTS, UNSEEN, tmp_path)
    before = [row["states"].clone() for row in first]
    (tmp_path / "texts.done").unlink()
    table = np.load(tmp_path / "texts.npy", mmap_mode="r+")
    table[first.starts[19] :] = 0  # as if stopped in the middle of the batch of texts 18, 19 and 20
    table.flush()
    asked = []
    real = FakeTeacher.states
    monkeypatch.setattr(FakeTeacher, "states", lambda self, texts, layers: asked.extend(texts) or real(self, texts, layers))
    again, _ = teacher_states(tokenizer, TEXTS, UNSEEN, tmp_path)
    assert asked == TEXTS[18:] and all(torch.equal(row["states"], old) for row, old in zip(again, before))


def test_states_of_other_texts_are_refused(tokenizer, tmp_path):
    teacher_states(tokenizer, TEXTS, UNSEEN, tmp_path)
    with pytest.raises(RoadmapError, match="other texts; begin anew, without --resume"):
        teacher_states(tokenizer, TEXTS[:-1], UNSEEN, tmp_path)
