"""The encoder-decoder: targets that say what they should, a recipe that runs and resumes, and something learned."""

import json
import random
from dataclasses import replace

from common.errors import RoadmapError
from common.models import MODELS_DIR
from common.recipes import t5, trials
from common.recipes.skeleton import file_hashes
from common.recipes.t5 import (
    NAME,
    PREFIX,
    SENTINELS,
    T5Recipe,
    as_batch,
    corrupt_spans,
    damage,
    held_out_pairs,
    make_t5,
    objective,
    pieces,
    principal_clause,
    t5_model,
    t5_tokenizer,
)

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from tests.tiny import check_resume

PAPER = "南京长江大桥铁路桥大修竣工\n南京长江大桥铁路桥大修工程，1月4日竣工。列车通过大桥的时速可由原来的120公里提高到140公里。"
TEXTS = [
    PAPER,
    *(f"第{i}条本法所称的合同，是当事人之间设立、变更、终止民事关系的协议。依法成立的合同，受法律保护。" * 2 for i in range(40)),
]
FIRST, END = 1_000, 1


@pytest.fixture(scope="module")
def tokenizer():
    return t5_tokenizer(TEXTS, at_least=1)


@pytest.fixture
def small(monkeypatch, tmp_path):
    corpus = {"train": {"text": TEXTS}, "validation": {"text": [PAPER, *TEXTS[:3]]}}
    monkeypatch.setattr(t5, "load_data", lambda name: corpus)
    monkeypatch.setattr(trials, "MODELS_DIR", tmp_path)
    return T5Recipe(steps=4, batch=4)


# ------------------------------------------------------------------------------------------------ the objectives


@pytest.mark.parametrize("length", [2, 3, 7, 40, 96, 400])
def test_span_corruption_can_be_undone(length):
    """Putting the target's spans back where the sentinels stand gives the text; sentinels count up from the first."""
    ids = list(range(10, 10 + length))
    for seed in range(20):
        source, target = corrupt_spans(ids, FIRST, END, random.Random(seed))
        assert source[-1] == END and target[-1] == END and END not in source[:-1] + target[:-1]
        marks = [token for token in source if token >= FIRST]
        assert marks == list(range(FIRST, FIRST + len(marks))) and len(marks) < SENTINELS
        assert [token for token in target if token >= FIRST] == [*marks, FIRST + len(marks)], "one more sentinel ends the target"
        assert target[-2] == FIRST + len(marks)
        spans = {mark: target[target.index(mark) + 1 : target.index(mark + 1)] for mark in marks}
        assert all(spans.values())
        back = [token for s in source[:-1] for token in (spans[s] if s in spans else [s])]
        assert back == ids


def test_span_corruption_hides_fifteen_percent_in_spans_of_three():
    ids, rng = list(range(10, 110)), random.Random(0)
    pairs = [corrupt_spans(ids, FIRST, END, rng) for _ in range(50)]
    assert all(sum(token < FIRST for token in target) - 1 == 15 for _, target in pairs)
    assert all(sum(token >= FIRST for token in source) == 5 for source, _ in pairs)
    lengths = {len(source) for source, _ in pairs}
    assert lengths == {100 - 15 + 5 + 1} and len({tuple(source) for source, _ in pairs}) == 50


def test_the_principal_clause_is_the_headline_and_is_gone_from_the_source():
    rest, clause = principal_clause(PAPER)
    assert clause == "南京长江大桥铁路桥大修竣工" and "\n" not in rest
    assert rest == PAPER.split("\n")[1]
    assert principal_clause("只有一句话没有别的") is None
    assert principal_clause("短。短。短。") is None


def test_a_repair_names_the_whole_stretch():
    ids = list(range(10, 70))
    for seed in range(20):
        source, target = damage(ids, FIRST, END, random.Random(seed))
        assert target[0] == FIRST and target[-2:] == [FIRST + 1, END] and source[-1] == END
        stretch, start, stop = target[1:-2], source.index(FIRST), source.index(FIRST + 1)
        left = source[start + 1 : stop]
        assert [*source[:start], *stretch, *source[stop + 1 : -1]] == ids and 8 <= len(stretch) <= 24
        assert set(left) < set(stretch) or left == stretch
        assert left == sorted(left), "what is left keeps its order"


def test_objectives_and_batches(tokenizer):
    rng = random.Random(0)
    gap = objective(tokenizer, PAPER, "gap", rng)
    assert tokenizer.decode(gap[0], skip_special_tokens=True).startswith(PREFIX)
    assert tokenizer.decode(gap[1]) == "南京长江大桥铁路桥大修竣工</s>"
    no_gap = objective(tokenizer, "只有一句话没有别的", "gap", rng)
    assert tokenizer.convert_tokens_to_ids("<extra_id_0>") in no_gap[0], "falls back to spans"
    batch = as_batch(tokenizer, [gap, no_gap])
    assert batch["labels"].shape[0] == 2 and (batch["labels"] == -100).any() and not (batch["labels"] == 0).any()
    assert (batch["input_ids"][batch["attention_mask"] == 0] == tokenizer.pad_token_id).all()
    assert torch.isfinite(t5_model(tokenizer)(**batch).loss)


def test_pieces_keep_the_headline_and_drop_what_is_short():
    cut = pieces(["短", "一" * 250])
    assert [len(piece) for piece in cut] == [96, 96, 58] and pieces([PAPER])[0].startswith("南京长江大桥铁路桥大修竣工\n")


def test_the_tokenizer_keeps_text_as_it_is(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    ids = again(PAPER)["input_ids"]
    assert again.decode(ids, skip_special_tokens=True) == PAPER and ids[-1] == again.eos_token_id
    assert len(ids) == len(PAPER) + 1, "a character is a token"
    assert again.convert_tokens_to_ids([f"<extra_id_{i}>" for i in range(SENTINELS)]) == list(range(3, 3 + SENTINELS))
    assert again.tokenize("<extra_id_3>人") == ["<extra_id_3>", "人"] or again.unk_token in again.tokenize("人")


# ------------------------------------------------------------------------------------------------ making it


def test_it_is_made_by_the_command_and_nothing_is_overwritten(small, tmp_path):
    folder = trials.make(NAME, steps=2)
    assert folder == tmp_path / NAME and not list(tmp_path.glob(".*-run"))
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    assert {"spans", "gap", "repair"} <= set(card["held_out"]) and set(card["unigram"]) == {"spans", "gap", "repair"}
    assert file_hashes(folder) == card["sha256"]
    model = AutoModelForSeq2SeqLM.from_pretrained(folder)
    assert model.dtype == torch.float16 and model.lm_head.weight is model.shared.weight
    with pytest.raises(RoadmapError, match="--force to replace"):
        trials.make(NAME, steps=2)
    with pytest.raises(RoadmapError, match=NAME):
        trials.make("tiny-t5")


def test_an_interrupted_run_is_continued_with_the_same_numbers(small, tmp_path, monkeypatch):
    """The interruption comes in the second pass over the texts, whose order must be the same too."""
    small = replace(small, steps=26)
    check_resume(monkeypatch, NAME, make_t5, tmp_path, small, save_every=23, evaluate_every=12)


# ------------------------------------------------------------------------------------------------ what it has learned


def test_the_shipped_checkpoint_has_learned():
    """On text of the validation split, every objective costs clearly less than frequencies; numbers as in the card."""
    from common.data import load_data

    folder = MODELS_DIR / NAME
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32)
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    pairs = held_out_pairs(tokenizer, pieces(load_data("corpus")["validation"]["text"][:]), T5Recipe())
    losses = t5.held_out_losses(model, tokenizer, pairs)
    for kind, loss in losses.items():
        assert loss < card["unigram"][kind] - 0.5, kind
        assert abs(loss - card["held_out"][kind]) < 0.05, "half precision costs little"
    assert (folder / "model.safetensors").stat().st_size < 12e6
