"""The local Hub: every registry entry loads at full scale, wrong schemas are caught, and a rehearsal judges what it should."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from common.data import DATA
from common.models import MODELS
from common.paths import ROOT

import nbformat
import pytest

from tests.hub import ready
from tests.hub.server import serve

LOAD = """
import json, sys
import transformers
from common.data import DATA, load_data
from common.errors import RoadmapError
from common.models import checkpoint

AUTO = {
    "bert": "AutoModelForMaskedLM", "bert-sentiment": "AutoModelForSequenceClassification",
    "bert-ner": "AutoModelForTokenClassification", "qwen": "AutoModelForCausalLM", "chat": "AutoModelForCausalLM",
    "t5": "AutoModelForSeq2SeqLM", "clip": "AutoModel", "llava": "AutoModelForImageTextToText",
}
found = {}
for name in sys.argv[1:]:
    kind, _, entry = name.partition(":")
    try:
        if kind == "data":
            splits = load_data(entry)
            same = all(rows.features == DATA[entry].features() for rows in splits.values())
            found[name] = {"same": same, "rows": {split: len(rows) for split, rows in splits.items()}}
        else:
            model = getattr(transformers, AUTO[entry]).from_pretrained(checkpoint(entry))
            reader = transformers.AutoProcessor if entry in ("clip", "llava") else transformers.AutoTokenizer
            processor = reader.from_pretrained(checkpoint(entry))
            tokenizer = getattr(processor, "tokenizer", processor)
            found[name] = {"class": type(model).__name__, "dtype": str(model.dtype)}
            found[name] |= {"inputs": list(tokenizer("好 a")), "tokens": len(tokenizer("好 a")["input_ids"])}
            found[name] |= {"template": bool(getattr(processor, "chat_template", None))}
            found[name] |= {"layers": getattr(model.config.get_text_config(), "num_hidden_layers", 0)}
    except RoadmapError as error:
        found[name] = {"error": str(error)}
print("FOUND " + json.dumps(found))
"""


def load(root: Path, home: Path, *names: str) -> dict:
    """Load registry entries in a process at full scale against a Hub of these files."""
    with serve(root) as endpoint:
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "ROADMAP_"))}
        environment |= {"ROADMAP_SCALE": "full", "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")])
        command = [sys.executable, "-c", LOAD, *names]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900)
    lines = [line for line in done.stdout.splitlines() if line.startswith("FOUND ")]
    assert lines, done.stderr[-3000:]
    return json.loads(lines[0].removeprefix("FOUND "))


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> dict:
    names = [*(f"data:{name}" for name in DATA), *(f"model:{name}" for name in MODELS)]
    return load(ready(), tmp_path_factory.mktemp("home"), *names)


@pytest.mark.parametrize("name", DATA)
def test_every_data_set_has_the_declared_features_at_full_scale(everything: dict, name: str):
    found = everything[f"data:{name}"]
    assert found.get("same"), found
    assert set(found["rows"]) == {"train", "validation", "test"} and min(found["rows"].values()) > 10


CLASSES = {
    "bert": ("BertForMaskedLM", "torch.float32", 12, False),
    "bert-sentiment": ("BertForSequenceClassification", "torch.float32", 12, False),
    "bert-ner": ("BertForTokenClassification", "torch.float32", 12, False),
    "qwen": ("Qwen2ForCausalLM", "torch.bfloat16", 24, True),
    "chat": ("Qwen2ForCausalLM", "torch.bfloat16", 24, True),
    "t5": ("MT5ForConditionalGeneration", "torch.float32", 8, False),
    "clip": ("CLIPModel", "torch.float32", 12, False),
    "llava": ("LlavaForConditionalGeneration", "torch.float16", 24, True),
}


@pytest.mark.parametrize("name", MODELS)
def test_every_model_is_of_the_real_class(everything: dict, name: str):
    found = everything[f"model:{name}"]
    cls, dtype, layers, template = CLASSES[name]
    assert (found["class"], found["dtype"], found["template"]) == (cls, dtype, template), found
    assert found["layers"] == layers or (name == "clip" and found["layers"] in (0, layers))
    assert ("token_type_ids" in found["inputs"]) == name.startswith("bert") and found["tokens"] >= 2


OTHER = {"sentiment": "lansinuote/ChnSentiCorp", "faq": "Skepsun/lawyer_llama_data"}


@pytest.mark.parametrize("name", OTHER)
def test_the_other_plausible_schema_loads_too(tmp_path: Path, name: str):
    source = ready() / "datasets" / f"{OTHER[name]}-other"
    shutil.copytree(source, tmp_path / "datasets" / OTHER[name])
    assert load(tmp_path, tmp_path / "home", f"data:{name}")[f"data:{name}"].get("same")


def test_a_wrong_schema_is_caught(tmp_path: Path):
    """One entry whose label column has another name."""
    from datasets import Dataset

    for path in (ready() / "datasets" / "lansinuote/ChnSentiCorp").rglob("*.parquet"):
        target = tmp_path / "datasets" / path.relative_to(ready() / "datasets")
        target.parent.mkdir(parents=True, exist_ok=True)
        Dataset.from_parquet(str(path), cache_dir=str(tmp_path / "cache")).rename_column("label", "stars").to_parquet(str(target))
    error = load(tmp_path, tmp_path / "home", "data:sentiment")["data:sentiment"]["error"]
    assert "does not have the columns that 'sentiment' expects" in error and "stars" in error


# ------------------------------------------------------------------------------------------------ rehearsals


def lesson(folder: Path, *cells: tuple[str, str]) -> Path:
    made = nbformat.v4.new_notebook()
    for source, tag in cells:
        cell = nbformat.v4.new_code_cell(source)
        cell.metadata["tags"] = [tag] if tag else []
        made.cells.append(cell)
    path = folder / "01-planted.ipynb"
    nbformat.write(made, path)
    return path


def rehearsed(path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    ready()
    command = [sys.executable, "-m", "tests.rehearse", str(path), *options]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=900)


def test_only_claims_may_fail(tmp_path: Path):
    good = lesson(
        tmp_path, ("from common.scale import scale\nassert scale() == 'full'", ""), ("assert 1 > 2", "claim"), ("x = 1", "")
    )
    done = rehearsed(good)
    assert done.returncode == 0 and "claims that failed, as they may: cells [1]" in done.stdout, done.stdout
    bad = lesson(tmp_path, ("x = 1", ""), ("assert x == 2, 'two is not one'", ""), ("raise SystemExit", "claim"))
    done = rehearsed(bad)
    assert done.returncode == 1 and "cell 1: " in done.stdout and "two is not one" in done.stdout, done.stdout


def test_a_rehearsal_is_short_and_says_so(tmp_path: Path):
    done = rehearsed(lesson(tmp_path, ("from common import load_data\nassert len(load_data('sentiment')['train']) == 96", "")))
    assert done.returncode == 0, done.stdout


MODEL = """
import torch
from common import checkpoint
from transformers import AutoModelForSequenceClassification, AutoTokenizer
DEVICE = torch.device("cpu")
tokenizer = AutoTokenizer.from_pretrained(checkpoint("bert"))
model = AutoModelForSequenceClassification.from_pretrained(checkpoint("bert"), num_labels=2).to(DEVICE)
"""
MOVED = "batch = tokenizer(['好', '不好'], padding=True, return_tensors='pt').to(DEVICE)\n"
LEFT = MOVED.replace(".to(DEVICE)", "")
STEP = """
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
loss = model(**batch, labels=torch.tensor([0, 1]).to(DEVICE)).loss
loss.backward()
torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
optimizer.step()
print(loss.item(), model(**batch).logits.softmax(-1).detach().cpu().numpy())
"""


def test_a_tensor_left_on_the_cpu_is_caught(tmp_path: Path):
    """A whole training step passes when everything is moved, and fails when the batch, or the labels, are not."""
    done = rehearsed(lesson(tmp_path, (MODEL, ""), (MOVED + STEP, "")), "--second-device")
    assert done.returncode == 0, done.stdout
    done = rehearsed(lesson(tmp_path, (MODEL, ""), (LEFT + STEP, "")), "--second-device")
    assert done.returncode == 1 and "Expected all tensors to be on the same device" in done.stdout, done.stdout
    forgotten = STEP.replace("torch.tensor([0, 1]).to(DEVICE)", "torch.tensor([0, 1])")
    done = rehearsed(lesson(tmp_path, (MODEL, ""), (MOVED + forgotten, "")), "--second-device")
    assert done.returncode == 1 and "move them with .to(DEVICE)" in done.stdout, done.stdout
