"""Checkpoints: shipped whole, small, loadable, and made by recipes that run."""

import shutil

from common import models
from common.errors import RoadmapError
from common.models import MODELS, MODELS_DIR, checkpoint, from_scratch, read_card, verify
from common.recipes import t5, trials
from common.recipes.bert import held_out_blocks, masked_accuracy
from common.recipes.t5 import T5Recipe
from common.recipes.trials import Trial, fine_tune, make, measure, tfidf_accuracy

import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer

TEXTS = [
    "今天天气很好，我们去公园散步吧。",
    "酒店的服务不错，房间也很干净。Wifi 6 快。",
    "第一条 为了保护公民的权利，制定本法，凡在中华人民共和国领域内的活动，都应当遵守本法的规定，保障公民的合法权益。",
] * 8


@pytest.fixture
def small(monkeypatch, tmp_path):
    """A few rows of each task, a recipe of two steps, an encoder, in an otherwise empty folder of models."""
    from datasets import Dataset, DatasetDict

    def load(name):
        real = pretraining_load(name)
        return DatasetDict({s: real[s].select(range(24)) for s in real})

    pretraining_load = trials.load_data
    corpus = DatasetDict({s: Dataset.from_dict({"text": TEXTS}) for s in ("train", "validation")})
    monkeypatch.setattr(trials, "load_data", load)
    monkeypatch.setattr(t5, "load_data", lambda name: corpus)
    monkeypatch.setattr(t5, "T5Recipe", lambda: T5Recipe(steps=2, batch=4))
    monkeypatch.setattr(models, "MODELS_DIR", tmp_path)
    monkeypatch.setattr(trials, "MODELS_DIR", tmp_path)
    shutil.copytree(MODELS_DIR / "tiny-bert-zh", tmp_path / "tiny-bert-zh")
    trial = Trial("ner", 16, epochs=1, lr=1e-3, batch=8)
    monkeypatch.setitem(trials.TRIALS, "tiny-bert-zh", (trial, Trial("sentiment", None, epochs=1, lr=1e-3, batch=8)))
    monkeypatch.setitem(trials.FINE_TUNED, "tiny-bert-zh-ner", ("tiny-bert-zh", trial))
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
    blocks = held_out_blocks(tokenizer, load_data("corpus")["validation"]["text"][:200])[:64]
    trained = AutoModelForMaskedLM.from_pretrained(checkpoint("bert"), dtype=torch.float32)
    random = from_scratch(AutoModelForMaskedLM, checkpoint("bert"))
    good = masked_accuracy(trained, tokenizer, blocks)["masked_accuracy"]
    bad = masked_accuracy(random, tokenizer, blocks)["masked_accuracy"]
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
    folder = make("tiny-t5-zh", out=small / "tiny-t5-zh")
    assert read_card("tiny-t5-zh")["recipe"]["steps"] == 2 and verify("tiny-t5-zh") == []
    assert not list(small.glob(".*-run"))
    AutoTokenizer.from_pretrained(folder)
    with pytest.raises(RoadmapError, match="--force to replace"):
        make("tiny-bert-zh")
    tuned = make("tiny-bert-zh-ner")
    assert "fine-tuned from tiny-bert-zh" in (tuned / "README.md").read_text()
    page = (measure("tiny-bert-zh", seeds=(0, 1)) / "README.md").read_text()
    assert "| ner | 16 | strict entity F1 |  |" in page and "| sentiment | all | accuracy | 0." in page and "±" in page
    (small / "tiny-bert-zh" / "config.json").write_text("{}")
    assert verify("tiny-bert-zh") == ["config.json"]


def test_a_trial_is_run_as_it_says(small, monkeypatch):
    asked = {}
    real = trials.fit
    monkeypatch.setattr(trials, "fit", lambda *args, **kwargs: asked.update(kwargs) or real(*args, **kwargs))
    trial = Trial("sentiment", 8, epochs=2, lr=3e-4, batch=4, precision="no")
    tuned = fine_tune(small / "tiny-bert-zh", trial, pretrained=True, seed=5)
    assert {key: asked[key] for key in ("epochs", "lr", "precision", "seed")} == {
        "epochs": 2,
        "lr": 3e-4,
        "precision": "no",
        "seed": 5,
    }
    assert len(tuned.history.steps) == 4 and Trial("ner", 8, epochs=1, lr=1e-3).precision == "bf16"


def test_counting_learns_from_train_is_chosen_on_validation_and_scored_on_test_once(monkeypatch):
    from datasets import Dataset, DatasetDict

    asked = []

    class Watched(DatasetDict):
        def __getitem__(self, split):
            asked.append(split)
            return super().__getitem__(split)

    good, bad = "房间很好，早餐不错。", "房间很脏，早餐难吃。"
    train = {"text": [good, bad] * 20, "label": [1, 0] * 20}
    fair = Watched({split: Dataset.from_dict(train) for split in ("train", "validation", "test")})
    turned = Watched(
        {
            "train": fair["train"],
            "validation": fair["validation"],
            "test": fair["test"].map(lambda label: {"label": 1 - label}, input_columns="label"),
        }
    )
    trial = Trial("sentiment", None, epochs=1, lr=1e-3)
    monkeypatch.setattr(trials, "load_data", lambda name: fair)
    assert tfidf_accuracy(trial) == 1.0
    monkeypatch.setattr(trials, "load_data", lambda name: turned)
    asked.clear()
    assert tfidf_accuracy(trial) == 0.0
    assert asked.count("test") == 2 and asked[-2:] == ["test", "test"] and "validation" in asked  # its texts and its labels
