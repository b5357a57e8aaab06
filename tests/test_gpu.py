"""The rows for a GPU, at toy size on the CPU: all run, what they write becomes a table, and what is cut off keeps what it has."""

import json
import tarfile
from pathlib import Path

from common.course.results import gpu_table
from common.errors import RoadmapError

import pytest

from tests.gpu import __main__ as command
from tests.gpu import bundle, rows
from tests.gpu.rows import ROWS, Figure, Row, batches, bert, figure, half_billion, operations_per_token


@pytest.mark.parametrize("name", [row.name for row in ROWS])
def test_every_row_runs_at_toy_size(name, tmp_path):
    bundle.data()
    out = tmp_path / "gpu.json"
    assert command.main(["--toy", "--rows", name, "--out", str(out)]) == 0, out.read_text()
    run = json.loads(out.read_text())
    figures = run["rows"][name]["figures"]
    assert figures and all(one["value"] > 0 and one["unit"] and one["repeats"] >= 1 for one in figures)
    assert run["versions"]["torch"] and run["card"] is None and run["toy"]


def test_without_a_gpu_it_says_so_and_nothing_is_overwritten(tmp_path, capsys):
    out = tmp_path / "gpu.json"
    assert command.main(["--out", str(out)]) == 2 and "there is no GPU here" in capsys.readouterr().err and not out.exists()
    out.write_text("mine")
    assert command.main(["--toy", "--out", str(out)]) == 2 and out.read_text() == "mine"


def test_a_row_that_fails_keeps_the_figures_before_it(tmp_path, monkeypatch):
    """The file is rewritten after every figure, so what kills a row, or the whole run, costs only what came after."""
    script = "import json; print('FIGURE ' + json.dumps({'name': 'a', 'value': 1.0}), flush=True); raise SystemExit('broken')"
    monkeypatch.setattr(command.sys, "executable", _python(tmp_path, script))
    report, out = {"rows": {}}, tmp_path / "gpu.json"
    command.run(Row("planted", "", 1, 1, lambda toy: iter(())), True, command.time.monotonic() + 60, report, out)
    kept = json.loads(out.read_text())["rows"]["planted"]
    assert [one["name"] for one in kept["figures"]] == ["a"] and "broken" in report["rows"]["planted"]["error"]


def test_a_row_that_hangs_ends_with_the_time(tmp_path, monkeypatch):
    monkeypatch.setattr(command.sys, "executable", _python(tmp_path, "import time; time.sleep(3600)"))
    report = {"rows": {}}
    command.run(Row("planted", "", 1, 1, lambda toy: iter(())), True, command.time.monotonic() - 58, report, tmp_path / "x.json")
    assert "error" in report["rows"]["planted"]


def _python(folder: Path, script: str) -> str:
    """A program that ignores its arguments and runs a script."""
    import sys

    (folder / "script.py").write_text(script)
    program = folder / "python"
    program.write_text(f"#!/bin/sh\nexec {sys.executable} {folder / 'script.py'}\n")
    program.chmod(0o755)
    return str(program)


def test_rows_are_left_out_with_a_reason(monkeypatch):
    monkeypatch.setattr(command.torch.cuda, "mem_get_info", lambda: (10e9, 80e9))
    assert "needs 40 GB of GPU memory, 10.0 GB are free" in command.left_out(Row("a", "", 10, 40, rows.decoder), 100, False)
    assert "needs about 200 s, 100 s are left" in command.left_out(Row("a", "", 200, 4, rows.decoder), 100, False)
    assert command.left_out(Row("a", "", 10, 4, rows.decoder), 100, False) is None


def test_operations_are_counted_as_the_formula_says():
    model = half_billion(toy=True)
    config, weights = model.config, sum(p.numel() for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n)
    expected = 6 * (weights + config.vocab_size * config.hidden_size) + 12 * config.num_hidden_layers * config.hidden_size * 16
    assert operations_per_token(model, 16) == expected
    assert operations_per_token(bert(toy=True), 32) > operations_per_token(bert(toy=True), 16)


def test_batches_have_the_labels_of_their_model():
    causal, classes = (next(iter(batches(make(True), 2, 16, 1))) for make in (half_billion, bert))
    assert causal["labels"].shape == causal["input_ids"].shape == (2, 16) and classes["labels"].shape == (2,)


def test_a_figure_is_the_median_with_its_spread():
    assert figure("x", [1.0, 4.0, 2.0], "s") == Figure("x", 2.0, "s", 3.0, 3)


def test_the_bundle_holds_what_the_rows_read(tmp_path):
    """Small, and with nothing that a run has written."""
    archive = bundle.make(tmp_path, wheels=False)
    with tarfile.open(archive) as packed:
        names = set(packed.getnames())
    for needed in ("README.txt", "common/training.py", "tests/gpu/rows.py", "tests/gpu/data/blocks.npy", "tests/rehearse.py"):
        assert f"gpu-bundle/{needed}" in names
    assert not any("__pycache__" in name or name.endswith(".safetensors") for name in names)
    assert archive.stat().st_size < bundle.LIMIT and len(bundle.README.splitlines()) == 3


def test_the_page_has_a_table_a_card_and_refuses_toys(tmp_path):
    assert "Not measured yet" in gpu_table(tmp_path)
    run = {"card": "NVIDIA X", "driver": "1", "cuda": "13", "versions": {"torch": "2.11"}, "date": "2026-01-01", "toy": False}
    run |= {"rows": {"fit": {"figures": [{"name": "rate", "value": 1234.0, "unit": "tokens/s", "spread": 5.0, "repeats": 3}]}}}
    run |= {"left_out": {"big": "needs 40 GB"}}
    (tmp_path / "x.json").write_text(json.dumps(run))
    page = gpu_table(tmp_path)
    assert (
        "NVIDIA X" in page
        and "| fit | rate | 1,234 tokens/s | 5.000 | 3 |" in page
        and "| big | left out | needs 40 GB |" in page
    )
    (tmp_path / "x.json").write_text(json.dumps(run | {"toy": True}))
    with pytest.raises(RoadmapError, match="toy size"):
        gpu_table(tmp_path)
