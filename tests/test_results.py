"""The ledger: what is recorded, refused, stored, printed and compared."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from common import hardware
from common.course import results
from common.course.lessons import Lesson
from common.course.results import Record, compare, markdown, read_ledger, report, store
from common.errors import RoadmapError

import pytest
import torch

NER = "02-NLP_tasks/02-ner"


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    """Runs write to a temporary folder, at tiny scale."""
    monkeypatch.setenv("ROADMAP_RESULTS", str(tmp_path / "runs"))
    monkeypatch.setenv("ROADMAP_SCALE", "tiny")
    return tmp_path / "runs"


@pytest.fixture
def record():
    return Record(
        lesson=NER,
        scale="tiny",
        metric="strict_f1",
        value=0.61,
        baseline=0.34,
        baseline_name="dictionary",
        higher_is_better=True,
        more={"random_start": 0.51},
        seconds=41.2,
        peak_mb=812,
        gpu_mb=None,
        machine="Some CPU, 2 cores",
        cpu_seconds=41.0,
        versions={"python": "3.11.7", "torch": "2.13.0", "transformers": "5.23.0"},
        date="2026-11-22",
    )


def test_report_records_and_prints(folder, capsys):
    report(NER, f1=torch.tensor(0.61), baseline=0.34, baseline_name="dictionary", random_start=0.51)
    (found,) = read_ledger(folder)
    assert (found.lesson, found.scale, found.metric, found.value, found.baseline) == (NER, "tiny", "f1", 0.61, 0.34)
    assert found.more == {"random_start": 0.51} and found.baseline_name == "dictionary"
    assert found.seconds > 0 and found.peak_mb > 50 and found.machine == hardware.machine()
    assert found.versions["torch"] == torch.__version__ and set(found.versions) == {"python", "torch", "transformers"}
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{NER} (tiny): ") and lines[1].split() == ["f1", "0.610"]
    assert lines[2].split() == ["baseline:", "dictionary", "0.340"] and lines[3].split() == ["random", "start", "0.510"]


def test_a_second_run_replaces_the_first_and_a_scale_has_its_own_file(folder, monkeypatch):
    report(NER, accuracy=0.7, baseline=0.5, seconds=1)
    report(NER, accuracy=0.8, baseline=0.5, seconds=2)
    monkeypatch.setenv("ROADMAP_SCALE", "full")
    report(NER, accuracy=0.9, baseline=0.5, seconds=3)
    unsorted = results.Path.glob  # a folder has no order of its own; alphabetically, full comes first
    monkeypatch.setattr(results.Path, "glob", lambda self, pattern: iter(sorted(unsorted(self, pattern))))
    assert [(r.scale, r.value, r.seconds) for r in read_ledger(folder)] == [("tiny", 0.8, 2.0), ("full", 0.9, 3.0)]
    assert sorted(p.name for p in folder.rglob("*.*")) == ["02-ner.full.json", "02-ner.tiny.json"]  # no temporary file is left


def test_kernels_that_report_at_once_lose_nothing(folder):
    names = [f"01-a/{i:02d}-lesson" for i in range(20)] * 2
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: report(name, accuracy=0.9, baseline=0.5), names))
    assert [r.lesson for r in read_ledger(folder)] == sorted(set(names))


def test_lower_can_be_better(folder):
    report(NER, perplexity=12.0, baseline=80.0, higher_is_better=False)
    assert not read_ledger(folder)[0].higher_is_better
    with pytest.raises(RoadmapError, match=r"perplexity 90.00 does not beat its baseline, unigram 80.00.*lower is better"):
        report(NER, perplexity=90.0, baseline=80.0, baseline_name="unigram", higher_is_better=False)


@pytest.mark.parametrize(
    ("lesson", "figures", "message"),
    [
        (NER, {"accuracy": 0.5}, "does not beat its baseline"),
        (NER, {"accuracy": 0.4}, "accuracy 0.400 does not beat its baseline, majority class 0.500"),
        (NER, {"accuracy": float("nan")}, "accuracy is nan"),
        (NER, {"accuracy": float("inf")}, "accuracy is inf"),
        (NER, {"accuracy": 0.9, "f1": float("nan")}, "f1 is nan"),
        (NER, {"accuracy": "good"}, "'good', which is not a number"),
        (NER, {"accuracy": None}, "not a number"),
        (NER, {"accuracy": 0.9, "seconds": float("nan")}, "seconds is nan"),
        (NER, {}, "report needs a figure"),
        ("ner", {"accuracy": 0.9}, "no lesson's name"),
        (NER + ".ipynb", {"accuracy": 0.9}, "without '.ipynb'"),
        ("../02-x/02-ner", {"accuracy": 0.9}, "no lesson's name"),
    ],
)
def test_what_should_not_be_reported_is_not_recorded(folder, lesson, figures, message):
    with pytest.raises(RoadmapError, match=message):
        report(lesson, baseline=0.5, **figures)
    assert not list(folder.rglob("*.json"))


def test_a_baseline_that_is_no_number_is_refused():
    with pytest.raises(RoadmapError, match="baseline is nan"):
        report(NER, accuracy=0.9, baseline=float("nan"))


def test_gpu_memory_is_recorded_where_a_gpu_was_used(folder, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda index: 2e9)
    report(NER, accuracy=0.9, baseline=0.5)
    assert read_ledger(folder)[0].gpu_mb == 4000 and "GPU peak 4,000 MB" in capsys.readouterr().out


def test_runs_never_touch_the_ledger_of_record(monkeypatch, tmp_path):
    monkeypatch.delenv("ROADMAP_RESULTS")
    monkeypatch.setenv("ROADMAP_OUTPUTS", str(tmp_path / "out"))
    assert results.results_folder() == tmp_path / "out" / "results"
    assert results.LEDGER not in (results.results_folder(), *results.results_folder().parents)


def test_the_default_seconds_are_those_of_the_kernel(tmp_path):
    code = "import time; start = time.time(); from common import report; report('01-a/01-b', accuracy=1.0, baseline=0.5)"
    env = os.environ | {"ROADMAP_RESULTS": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, cwd=results.ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert 0.5 < read_ledger(tmp_path)[0].seconds < 100 and done.stdout.startswith("01-a/01-b (tiny): ")


def test_a_package_that_is_absent_is_said_to_be():
    assert results._version("no-such-package-here") == "not installed"


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"lesson": 1}', "\x00"])
def test_a_broken_file_is_named(folder, content):
    (folder / "01-a").mkdir(parents=True)
    (folder / "01-a" / "01-b.tiny.json").write_text(content)
    with pytest.raises(RoadmapError, match=r"01-b\.tiny\.json is not a lesson's record"):
        read_ledger(folder)


def test_a_file_under_another_name_is_refused(folder):
    report(NER, accuracy=0.9, baseline=0.5)
    path = folder / f"{NER}.tiny.json"
    path.rename(path.with_name("03-other.tiny.json"))
    with pytest.raises(RoadmapError, match="not those of its file name"):
        read_ledger(folder)


def test_an_absent_ledger_is_empty(tmp_path):
    assert read_ledger(tmp_path / "absent") == []


def test_a_file_reads_back_as_it_was_written(record, tmp_path):
    results._write(record, tmp_path)
    assert read_ledger(tmp_path) == [record]
    path = tmp_path / f"{NER}.tiny.json"
    assert list(json.loads(path.read_text()))[:3] == ["lesson", "scale", "metric"] and path.stat().st_mode & 0o777 == 0o644


def test_store_copies_what_was_run_and_keeps_the_rest(record, folder, tmp_path, monkeypatch):
    kept = replace(record, lesson="01-a/01-kept")
    monkeypatch.setattr(
        results, "all_lessons", lambda: [Lesson(name, tmp_path) for name in ("01-a/01-kept", "01-a/02-never", NER)]
    )
    results._write(kept, tmp_path / "ledger")
    results._write(replace(record, value=0.4), tmp_path / "ledger")
    results._write(record, folder)
    page = tmp_path / "RESULTS.md"
    assert store(target=tmp_path / "ledger", results_md=page) == [record]
    assert read_ledger(tmp_path / "ledger") == [kept, record]
    assert page.read_text().startswith(markdown([kept, record], ["01-a/02-never"]))


def test_store_refuses_nothing_and_lessons_that_are_gone(record, folder, tmp_path, monkeypatch):
    page = tmp_path / "RESULTS.md"
    with pytest.raises(RoadmapError, match=r"no result in .* run lessons first"):
        store(target=tmp_path / "ledger", results_md=page)
    monkeypatch.setattr(results, "all_lessons", lambda: [Lesson("01-a/01-b", tmp_path)])
    results._write(record, folder)
    with pytest.raises(RoadmapError, match="there is no such lesson"):
        store(target=tmp_path / "ledger", results_md=page)
    assert not page.exists() and not (tmp_path / "ledger").exists()


def test_in_a_copy_a_result_below_its_baseline_is_a_note(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(results, "ROOT", tmp_path)  # no pyproject.toml here: a copied lesson
    monkeypatch.setenv("ROADMAP_RESULTS", str(tmp_path))
    results.report(NER, accuracy=0.4, baseline=0.5)
    assert "Note: accuracy 0.400 does not beat its baseline" in capsys.readouterr().out


def test_the_page_has_a_row_for_every_lesson_and_scale(record):
    gpu = replace(record, scale="full", value=0.953, gpu_mb=5120.0, peak_mb=3000, machine="Some GPU, 80 GiB", more={})
    loss = replace(record, lesson="01-a/01-b", metric="perplexity", value=1234.5, higher_is_better=False, baseline_name="a|b")
    page = markdown([gpu, record, loss], [NER, "03-c/01-later"])
    rows = [line for line in page.splitlines() if line.startswith("| [")]
    assert [line.split(" | ")[:3] for line in rows] == [
        ["| [01-b](01-a/01-b)", "tiny", "perplexity (lower is better)"],
        ["| [01-b](01-a/01-b)", "full", "not measured yet"],
        [
            f"| [02-ner]({'02-NLP_tasks/02-ner.ipynb' if (results.ROOT / (NER + '.ipynb')).exists() else NER})",
            "tiny",
            "strict f1",
        ],
        [
            f"| [02-ner]({'02-NLP_tasks/02-ner.ipynb' if (results.ROOT / (NER + '.ipynb')).exists() else NER})",
            "full",
            "strict f1",
        ],
        ["| [01-later](03-c/01-later)", "tiny", "not measured yet"],
        ["| [01-later](03-c/01-later)", "full", "not measured yet"],
    ]
    assert "**0.610** | dictionary 0.340 | random start 0.510 | 41 | 812 | 1 |" in rows[2]
    assert "**0.953**" in rows[3] and "3,000 + 5,120 GPU | 2 |" in rows[3] and "**1,234** | a/b 0.340" in rows[0]
    assert {line.count("|") for line in page.splitlines() if line.startswith("|")} == {10}
    assert page.count("Some CPU, 2 cores") == 1 and "2. Some GPU, 80 GiB, python 3.11.7" in page
    assert page == markdown([loss, record, gpu], ["03-c/01-later", NER])


def test_an_empty_page_has_no_setups():
    assert "Setups" not in markdown([], [NER])


def test_compare_finds_what_moved(record):
    assert compare([record], [replace(record, value=0.60, seconds=900)], tolerance=0.05) == []
    (move,) = compare([record], [replace(record, value=0.50)], tolerance=0.05)
    assert str(move) == f"{NER} (tiny): strict_f1 was 0.610, is 0.500"
    moves = compare([record], [replace(record, baseline=0.2, more={"other": 1.0})])
    assert [(m.figure, m.old, m.new) for m in moves] == [
        ("baseline (dictionary)", 0.34, 0.2), ("random_start", 0.51, None), ("other", None, 1.0),
    ]  # fmt: skip
    assert str(moves[1]).endswith("is absent")


def test_compare_passes_over_lessons_of_one_side_and_has_a_sharp_edge(record):
    other = replace(record, lesson="01-a/01-b", value=0.1)
    assert compare([record], [other]) == [] == compare([record], [replace(record, scale="full", value=0.9)])
    assert compare([record], [record], tolerance=0) == []
    assert len(compare([record], [replace(record, value=0.612)], tolerance=0)) == 1


def test_compare_at_the_precision_it_prints_and_with_each_figures_own_tolerance(record):
    """Never "was 0.000, is 0.000"; and a figure that is known to vary may."""
    tiny = replace(record, more={"error": 1e-5, "seconds_a_step": 0.2})
    assert compare([tiny], [replace(tiny, more={"error": 4e-5, "seconds_a_step": 0.2})]) == []
    slower = replace(tiny, more={"error": 1e-5, "seconds_a_step": 0.4})
    assert [move.figure for move in compare([tiny], [slower])] == ["seconds_a_step"]
    assert compare([tiny], [replace(slower, tolerances={"seconds_a_step": 0.6})]) == []
    assert len(compare([tiny], [replace(slower, tolerances={"seconds_a_step": 0.3})])) == 1


def test_a_tolerance_belongs_to_a_figure(folder):
    report(NER, f1=0.6, baseline=0.3, noise=1.0, tolerances={"noise": 0.5})
    (made,) = read_ledger(folder)
    assert made.tolerances == {"noise": 0.5} and made.cpu_seconds > 0
    with pytest.raises(RoadmapError, match="no figure nois to have a tolerance; there are f1, noise"):
        report(NER, f1=0.6, baseline=0.3, noise=1.0, tolerances={"nois": 0.5})


@pytest.mark.parametrize("tolerance", [-0.1, float("nan"), "x"])
def test_compare_refuses_a_tolerance_that_is_none(record, tolerance):
    with pytest.raises(RoadmapError, match="tolerance is"):
        compare([record], [record], tolerance=tolerance)


def test_a_finding_below_the_baseline_is_recorded_when_it_is_the_finding(folder):
    with pytest.raises(RoadmapError, match="does not beat its baseline"):
        report(NER, f1=0.2, baseline=0.3)
    report(NER, f1=0.2, baseline=0.3, beats_baseline=False)
    (made,) = read_ledger(folder)
    assert made.value == 0.2 and "0.300 (not beaten)" in markdown([made])


def test_a_rehearsal_reports_with_a_note(folder, monkeypatch, capsys):
    monkeypatch.setenv("ROADMAP_MAX_STEPS", "2")
    report(NER, f1=0.2, baseline=0.3)
    assert "Note: f1 0.200 does not beat its baseline" in capsys.readouterr().out
