"""Checkpoints: shipped whole, small, loadable, and made by recipes that run."""

from common import models, pretraining
from common.errors import RoadmapError
from common.models import MODELS, MODELS_DIR, checkpoint, from_scratch, read_card, verify
from common.pretraining import Distillation, Recipe, Trial, character_tokenizer, distil, make, mask_tokens, measure, pack_blocks

import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer

TEXTS = [
    "今天天气很好，我们去公园散步吧。",
    "酒店的服务不错，房间也很干净。Wifi 6 快。",
    "第一条 为了保护公民的权利，制定本法。",
] * 8


@pytest.fixture
def small(monkeypatch, tmp_path):
    """The recipes on a corpus of a few sentences, two steps each, in an empty folder of models."""
    from datasets import Dataset, DatasetDict

    def load(name):
        if name == "corpus":
            return DatasetDict({s: Dataset.from_dict({"text": TEXTS}) for s in ("train", "validation")})
        real = pretraining_load(name)
        return DatasetDict({s: real[s].select(range(24)) for s in real})

    pretraining_load = pretraining.load_data
    monkeypatch.setattr(pretraining, "load_data", load)
    monkeypatch.setattr(models, "MODELS_DIR", tmp_path)
    monkeypatch.setattr(pretraining, "MODELS_DIR", tmp_path)
    monkeypatch.setitem(pretraining.RECIPES, "tiny-bert-zh", Recipe(steps=2, batch=4, length=16, lr=1e-3, mask=0.2))
    monkeypatch.setitem(pretraining.RECIPES, "tiny-qwen-zh", Recipe(steps=2, batch=4, length=16, lr=1e-3))
    trial = Trial("ner", 16, epochs=1, lr=1e-3, batch=8)
    monkeypatch.setitem(pretraining.TRIALS, "tiny-bert-zh", (trial, Trial("sentiment", None, epochs=1, lr=1e-3, batch=8)))
    monkeypatch.setitem(pretraining.FINE_TUNED, "tiny-bert-zh-ner", ("tiny-bert-zh", trial))
    return tmp_path


@pytest.mark.parametrize("name", list(MODELS))
def test_shipped_checkpoints_are_whole_small_and_described(name):
    folder = MODELS_DIR / MODELS[name].tiny
    assert verify(name) == []
    assert (folder / "model.safetensors").stat().st_size < 12e6
    assert read_card(name)["held_out"] and (folder / "README.md").read_text().startswith(f"# {MODELS[name].tiny}")
    AutoTokenizer.from_pretrained(checkpoint(name))


def test_pre_training_is_real():
    """The shipped encoder guesses masked characters of held-out text far better than chance, and than a random one."""
    from common.data import load_data

    tokenizer = AutoTokenizer.from_pretrained(checkpoint("bert"))
    blocks = pack_blocks(tokenizer, load_data("corpus")["validation"]["text"][:200], 64)[:64]
    trained = AutoModelForMaskedLM.from_pretrained(checkpoint("bert"), dtype=torch.float32)
    random = from_scratch(AutoModelForMaskedLM, checkpoint("bert"))
    good = pretraining.masked_accuracy(trained, tokenizer, blocks)["masked_accuracy"]
    bad = pretraining.masked_accuracy(random, tokenizer, blocks)["masked_accuracy"]
    assert good > 0.35 and bad < 0.05


def test_full_scale_names_the_hub(monkeypatch):
    monkeypatch.setenv("ROADMAP_SCALE", "full")
    assert checkpoint("bert") == "hfl/chinese-macbert-base"


def test_unknown_and_missing(monkeypatch, tmp_path):
    with pytest.raises(RoadmapError, match="no checkpoint named 'brt'; choose one of: bert"):
        checkpoint("brt")
    with pytest.raises(RoadmapError, match="no checkpoint named"):
        read_card("brt")
    monkeypatch.setattr(models, "MODELS_DIR", models.ASSETS / "nowhere")
    with pytest.raises(RoadmapError, match="git checkout -- .*python -m common pretrain tiny-bert-zh"):
        checkpoint("bert")
    with pytest.raises(RoadmapError, match=r"no card\.json"):
        read_card("bert")


def test_from_scratch_is_the_architecture_with_other_weights():
    torch.manual_seed(0)
    a = from_scratch(AutoModelForSequenceClassification, checkpoint("bert"), num_labels=3)
    b = AutoModelForSequenceClassification.from_pretrained(checkpoint("bert"), num_labels=3, dtype=torch.float32)
    assert a.dtype == torch.float32 and a.config.num_labels == 3
    assert {n: p.shape for n, p in a.named_parameters()} == {n: p.shape for n, p in b.named_parameters()}
    assert not torch.equal(next(a.parameters()), next(b.parameters()))


def test_pretrain_measure_and_specialise(small):
    for name in ("tiny-bert-zh", "tiny-qwen-zh"):
        folder = make(name, out=small / name)
        assert read_card(name)["recipe"]["steps"] == 2 and verify(name) == []
        assert not list(small.glob(".*-run"))
        AutoTokenizer.from_pretrained(folder)
    with pytest.raises(RoadmapError, match="--force to replace"):
        make("tiny-bert-zh")
    tuned = make("tiny-bert-zh-ner")
    assert "fine-tuned from tiny-bert-zh" in (tuned / "README.md").read_text()
    page = (measure("tiny-bert-zh", seeds=(0, 1)) / "README.md").read_text()
    assert "| ner | strict entity F1 |" in page and "±" in page
    (small / "tiny-bert-zh" / "config.json").write_text("{}")
    assert verify("tiny-bert-zh") == ["config.json"]


def test_second_stage_draws_the_vectors_to_the_teachers(small, monkeypatch):
    """A teacher whose vector is the mix of characters: in a few steps the student comes nearer, on text it was not shown."""

    class Teacher:
        def embed(self, texts):
            mix = torch.randn(5_000, 256, generator=torch.Generator().manual_seed(0))
            return torch.stack([mix[[ord(c) % 5_000 for c in text]].mean(0) for text in texts])

    monkeypatch.setattr(pretraining, "load_teacher", Teacher)
    recipe = Recipe(steps=2, batch=4, length=16, lr=1e-3, mask=0.2, distil=Distillation(steps=1, batch=8, pieces=8))
    monkeypatch.setitem(pretraining.RECIPES, "tiny-bert-zh", recipe)
    make("tiny-bert-zh")
    few = read_card("tiny-bert-zh")["held_out"]["teacher_cosine"]
    distil("tiny-bert-zh", small / "tiny-bert-zh", steps=60)
    card = read_card("tiny-bert-zh")
    assert card["held_out"]["teacher_cosine"] > few + 0.1
    assert card["distillation"]["steps"] == 60 and card["recipe"]["steps"] == 2 and verify("tiny-bert-zh") == []
    assert "second stage" in (small / "tiny-bert-zh" / "README.md").read_text()
    assert not list(small.glob(".*-run"))


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
    pretraining.encoder_model(a).config.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = "酒店wifi很好。"
    assert loaded.tokenize(text) == ["酒", "店", "w", "##i", "##f", "##i", "很", "好", "。"]
    assert loaded(text)["input_ids"] == a(text)["input_ids"] and list(loaded(text)) == ["input_ids", "attention_mask"]


def test_blocks_lose_only_the_remainder():
    tokenizer = character_tokenizer(TEXTS, at_least=1)
    blocks = pack_blocks(tokenizer, TEXTS, 16)
    ids = [i for text in TEXTS for i in [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.sep_token_id]]
    joined = [i for block in blocks for i in block[1:].tolist()]
    assert joined == ids[: len(joined)] and len(ids) - len(joined) < 15
    assert all(block[0] == tokenizer.cls_token_id for block in blocks)
