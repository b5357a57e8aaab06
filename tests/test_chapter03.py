"""Chapter 03: the stored comparison is of the shipped base, complete, and made by runs that differ only in what they say."""

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

from common import ASSETS
from common.models import MODELS_DIR
from common.packages import sha256

import pytest

CHAPTER = Path(__file__).resolve().parent.parent / "03-PEFT"


@pytest.fixture(scope="module")
def compare() -> ModuleType:
    sys.path.insert(0, str(CHAPTER))
    try:
        return importlib.import_module("compare")
    finally:
        sys.path.remove(str(CHAPTER))


def test_the_store_is_complete_and_of_the_shipped_base(compare):
    store = json.loads((ASSETS / "results" / "peft_lora.json").read_text(encoding="utf-8"))
    assert store["model_sha256"] == sha256(MODELS_DIR / "tiny-qwen-zh-chat" / "model.safetensors")
    runs = store["runs"]
    assert compare.missing(compare.lora_runs(), runs) == compare.missing(compare.repeated(runs), runs) == []
    assert all(run["loss"] > 0 and 0 <= run["f1"] <= 1 and 0 <= run["old_skills"] <= 1 for run in runs)
    assert {run["trained"] for run in runs if run["method"] == "full"} == {4_489_472}


def test_a_run_that_is_stored_is_not_repeated(compare):
    planned = [
        {"method": "full", "lr": 1e-3, "seed": 0, "old_rows": 0.0},
        {"method": "full", "lr": 1e-3, "seed": 1, "old_rows": 0.0},
    ]
    assert compare.missing(planned, [planned[0] | {"loss": 1.0}]) == planned[1:]


def test_seeds_are_repeated_at_the_rate_of_the_lowest_validation_loss(compare):
    def row(method: str, lr: float, loss: float, **more: object) -> dict:
        return {"method": method, "lr": lr, "seed": 0, "old_rows": 0.0, "steps": compare.SHORT, "loss": loss} | more

    lora = [row("lora", lr, loss, rank=16, alpha=16) for lr, loss in ((1e-3, 2.0), (3e-3, 1.0))]
    lora.append(row("lora", 1e-2, 0.5, rank=4, alpha=16))  # another rank does not choose
    lora.append(row("lora", 1e-2, 0.1, rank=16, alpha=16, steps=compare.LONG))  # nor does a longer run
    runs = compare.repeated([*lora, row("full", 3e-4, 1.2), row("full", 6e-4, 1.4)])
    assert {(run["method"], run["lr"]) for run in runs} == {("lora", 3e-3), ("full", 3e-4)}
    assert len(runs) == 2 * 2 * 3 and {run["old_rows"] for run in runs} == {0.0, 0.25}
    assert {run["steps"] for run in runs} == {compare.LONG}


def test_old_rows_take_the_place_of_new_ones(compare):
    plain, mixed = (compare.conversations({"old_rows": part, "steps": 60}) for part in (0.0, 0.25))
    rows = 60 * compare.BATCH
    assert len(plain) == len(mixed) == rows
    assert mixed[: rows * 3 // 4] == plain[: rows * 3 // 4] and not any(talk in plain for talk in mixed[rows * 3 // 4 :])


def test_figures_of_another_checkpoint_are_not_continued(compare, tmp_path):
    path = tmp_path / "store.json"
    compare.save(path, [{"method": "full"}])
    assert compare.load(path)["runs"] == [{"method": "full"}]
    path.write_text(path.read_text(encoding="utf-8").replace(compare.weights(), "0" * 64), encoding="utf-8")
    assert compare.load(path)["runs"] == []
