"""The checks themselves are checked: every kind of failure is planted once and must be caught, with its message."""

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from tests import calibration, drift, lessons_plugin
from tests.lint import ROOT, Lesson, chapter_findings, lint, lint_files, repeated_code

# ---------------------------------------------------------------------------------------------------------- planted lessons


def code(text: str, *tags: str, **cell: Any) -> dict[str, Any]:
    new = {"cell_type": "code", "source": text, "metadata": {"tags": list(tags)} if tags else {}, "outputs": []}
    return new | {"execution_count": None} | cell


def prose(text: str) -> dict[str, Any]:
    return {"cell_type": "markdown", "source": text, "metadata": {}}


def notebook(*cells: dict[str, Any], **metadata: Any) -> dict[str, Any]:
    for i, cell in enumerate(cells):
        cell["id"] = f"cell-{i}"
    known = {
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
        "language_info": {"name": "python"},
    }
    return {"cells": list(cells), "metadata": known | metadata, "nbformat": 4, "nbformat_minor": 5}


def write(folder: Path, name: str, *cells: dict[str, Any], **metadata: Any) -> None:
    (folder / f"{name}.ipynb").write_text(json.dumps(notebook(*cells, **metadata)), encoding="utf-8")


def run_lessons(folder: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """pytest with the project's plugin on a folder of planted notebooks, as a run of its own."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")} | environment
    environment.setdefault(calibration.VARIABLE, "1")  # measured elsewhere; a planted lesson needs no calibration
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "pytest", "-p", "tests.lessons_plugin", "-p", "no:cacheprovider", "--nbval-lax"]
    command += ["--rootdir", str(folder), "--color=no", "-rA", *options, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, timeout=900)


SOLUTION = (
    "## Exercises\n\n**1. One** (5 minutes, easy)\n\n<details><summary>Solution</summary>\n\n```python\n{}\n```\n\n</details>"
)
CONNECT = 'import socket\nsocket.create_connection(("192.0.2.1", 80), timeout=5)'
LOOK_UP = 'import socket\nsocket.getaddrinfo("example.com", 443)'
LOOPBACK = """import asyncio, socket
server = socket.create_server(("127.0.0.1", 0))
socket.create_connection(("localhost", server.getsockname()[1])).close()
left, right = socket.socketpair()
left.sendall(b"x")
assert right.recv(1) == b"x\""""
CHILD = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {CONNECT!r}], check=True)"
STUBBORN = "import time\ntry:\n    time.sleep(3600)\nexcept KeyboardInterrupt:\n    pass"
WORK = "import time\nbegan = time.process_time()\nwhile time.process_time() - began < {}:\n    pass"  # so many CPU seconds
START = "import subprocess, sys\n"
WORKER = f"[sys.executable, '-c', {WORK.format(1.0)!r}]"
SPINNER = "[sys.executable, '-c', 'while True: pass  # planted spinner']"
LEFT_OVER = """import os, subprocess, sys
environment = {k: v for k, v in os.environ.items() if k != "JPY_PARENT_PID"}
quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
_ = subprocess.Popen([sys.executable, "-m", "ipykernel_launcher"], env=environment, start_new_session=True, **quiet)"""


@pytest.fixture(scope="module")
def failures(tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    """One run over one notebook per kind of failure, two at a time, as the lessons are run."""
    folder = tmp_path_factory.mktemp("failures")
    write(folder, "asserts", code("x = 1"), code("assert x == 2"), code("raise SystemError('ran on')"))
    write(folder, "dies", code("import os; os._exit(7)"), code("x = 1"))
    write(folder, "killed", code("import os; os.kill(os.getpid(), 9)"))
    write(folder, "no_raise", code("1 / 0", "raises-exception"), code("x = 1", "raises-exception"))
    write(folder, "slow", code("x = 1"), code(WORK.format(1.0)), roadmap={"budget_seconds": 0.3})
    write(folder, "slow_child", code("x = 1"), code(f"{START}subprocess.run({WORKER})"), roadmap={"budget_seconds": 0.3})
    write(folder, "fat", code("x = b'1' * 300_000_000"), roadmap={"budget_mb": 150})
    write(folder, "bad_budget", code("x = 1"), roadmap={"budget_minutes": 3})
    write(folder, "connects", code(LOOPBACK), code(CONNECT))
    write(folder, "looks_up", code(LOOK_UP))
    write(folder, "child", code(CHILD))
    write(folder, "sleeps", code("import time; time.sleep(3600)"), code("x = 1"))
    write(folder, "sleeps_on", code(STUBBORN))
    write(folder, "spins", code("while True:\n    pass"), code("x = 1"))
    write(folder, "child_spins", code(f"{START}subprocess.Popen({SPINNER}).wait()"), code("x = 1"))
    write(folder, "wrong_solution", code("x = 1"), prose(SOLUTION.format("assert x == 2")))
    limits = {lessons_plugin.IDLE_VARIABLE: "5"}
    return run_lessons(folder, "-n", "2", "--dist", "loadfile", "--nbval-cell-timeout=20", **limits)


FAILURES = {
    "asserts": ("Cell 1", "AssertionError"),
    "dies": ("Cell 0", "The kernel died with exit code 7"),
    "killed": ("Cell 0", "The kernel died with exit code -9"),
    "no_raise": ("Cell 1", "tagged raises-exception but raised nothing"),
    "slow": ("budget", r"slow.ipynb is over twice its budget: it used [\d.]+ reference seconds of 0.3 reference seconds;"),
    "slow_child": ("budget", r"slow_child.ipynb is over twice its budget: it used [\d.]+ reference seconds of 0.3"),
    "fat": ("budget", r"fat.ipynb is over twice its budget: it used [\d.]+ MB of 150 MB;"),
    "bad_budget": ("budget", "metadata.roadmap has no key 'budget_minutes'"),
    "connects": ("Cell 1", "offline guard: a connection to 192.0.2.1:80 was refused"),
    "looks_up": ("Cell 0", "offline guard: looking up the name 'example.com' was refused"),
    "child": ("Cell 0", "CalledProcessError"),
    "sleeps": ("Cell 0", r"ended because for \d+ seconds neither the kernel nor a child of it used CPU time; look for"),
    "sleeps_on": ("Cell 0", r"ended because for \d+ seconds neither the kernel nor a child of it used CPU time"),
    "spins": ("Cell 0", r"ended because it ran for \d+ seconds, the limit of a cell; look for a loop"),
    "child_spins": ("Cell 0", r"ended because it ran for \d+ seconds, the limit of a cell"),
    "wrong_solution": ("Solution 1", "AssertionError"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_failing_lesson_is_caught(failures: subprocess.CompletedProcess[str], name: str):
    cell, message = FAILURES[name]
    assert failures.returncode == 1
    failed = re.findall(rf"(?m)^FAILED {name}\.ipynb::(\w+(?: \d+)?)", failures.stdout)
    assert failed == [cell], failures.stdout[-3000:]
    title = re.escape(f"{name}.ipynb::{cell}")
    story = re.search(rf"(?ms)^_+ {title} _+$(.*?)^(?:_{{5,}}|={{5,}})", failures.stdout)
    assert story and re.search(message, story[1]), story and story[1]
    assert re.search(rf"(?m)^{name}\.ipynb +FAILED +-?[\d.]+ ", failures.stdout), "no line in the summary"


def test_the_rest_of_a_failed_lesson_is_skipped(failures: subprocess.CompletedProcess[str]):
    assert "Cell 1 failed, so the rest of asserts.ipynb was not run" in failures.stdout
    assert "Cell 0 failed, so the rest of dies.ipynb was not run" in failures.stdout
    assert "ran on" not in re.sub(r"raise SystemError\('ran on'\)", "", failures.stdout)


def test_nothing_that_a_hanging_cell_started_is_left(failures: subprocess.CompletedProcess[str]):
    """The kernels are ended, and their children too."""
    words = [" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])]
    assert not [line for line in words if "planted spinner" in line]
    assert "outlived the run" not in failures.stdout


@pytest.mark.parametrize("work, speed, verdict", [(2.4, 1, "FAILED"), (2.4, 3, "passed"), (1.3, 1, "over")])
def test_a_slower_machine_changes_no_verdict(tmp_path: Path, work: float, speed: int, verdict: str):
    """A budget of one second: 2.4 CPU seconds fail, unless the machine needs three for a reference second; 1.3 are reported."""
    write(tmp_path, "lesson", code("x = 1"), code(WORK.format(work)), roadmap={"budget_seconds": 1.0})
    done = run_lessons(tmp_path, **{calibration.VARIABLE: str(speed)})
    assert done.returncode == (1 if verdict == "FAILED" else 0), done.stdout
    line = re.search(r"(?m)^lesson\.ipynb +(FAILED|passed) .*$", done.stdout)
    assert line and line[1] == ("FAILED" if verdict == "FAILED" else "passed")
    assert ("over its budget" in line[0]) == (verdict != "passed")


def test_imports_are_not_counted_but_only_so_many(tmp_path: Path):
    write(tmp_path, "lesson", code(WORK.format(1.5)), code("x = 1"), roadmap={"budget_seconds": 0.5})
    assert run_lessons(tmp_path).returncode == 0
    tiny = str(0.05)  # a machine so fast that 1.5 CPU seconds are 30 reference seconds, of which 15 count as imports
    assert run_lessons(tmp_path, **{calibration.VARIABLE: tiny}).returncode == 1


def test_the_calibration_is_about_work_and_not_about_the_clock():
    """Beside two processes that keep both cores busy it says about the same; a factor of 2 would be a verdict."""
    alone = calibration.cpu_seconds_per_reference_second()
    spin = [sys.executable, "-c", "while True: pass"]
    busy = [subprocess.Popen(spin) for _ in range(2)]
    try:
        beside = calibration.cpu_seconds_per_reference_second()
    finally:
        for process in busy:
            process.kill()
            process.wait()
    assert 0.5 < beside / alone < 2


def test_cpu_seconds_are_those_of_all_children():
    """A child that has ended is in its parent's times, one that lives is asked itself: together once."""
    before = lessons_plugin.tree_cpu_seconds(os.getpid())
    work = WORK.format(0.6)
    subprocess.run([sys.executable, "-c", work], check=True)
    ended = lessons_plugin.tree_cpu_seconds(os.getpid()) - before
    with subprocess.Popen([sys.executable, "-c", work + "\nprint(flush=True)\ninput()"], stdin=-1, stdout=-1) as living:
        living.stdout.readline()
        both = lessons_plugin.tree_cpu_seconds(os.getpid()) - before
        living.communicate(b"\n")
    after = lessons_plugin.tree_cpu_seconds(os.getpid()) - before
    assert 0.6 <= ended < 1.2 <= both < 2.4 and abs(after - both) < 0.5


def test_a_kernel_that_does_not_start_gets_a_second_chance(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    attempts: list[object] = []

    def start(*_: object, **__: object) -> object:
        attempts.append(object())
        if len(attempts) in fails:
            raise RuntimeError("Kernel didn't respond in 60 seconds")
        return attempts[-1]

    monkeypatch.setattr(lessons_plugin, "WatchedKernel", start)
    option = SimpleNamespace(nbval_kernel_startup_timeout=60)
    lesson: Any = SimpleNamespace(
        path=tmp_path / "x.ipynb", config=SimpleNamespace(option=option), setup_sanitize_files=lambda: None
    )
    fails = {1}
    lessons_plugin.LessonFile.setup(lesson)
    assert lesson.kernel is attempts[1]
    fails = {3, 4}
    with pytest.raises(RuntimeError, match="respond"):
        lessons_plugin.LessonFile.setup(lesson)


def test_good_lessons_pass_and_a_left_over_kernel_fails_the_run(tmp_path: Path):
    write(tmp_path, "good", code(LOOPBACK), code("1 / 0", "raises-exception"), prose(SOLUTION.format("assert left")))
    done = run_lessons(tmp_path)
    assert done.returncode == 0, done.stdout
    assert "4 passed" in done.stdout and re.search(r"(?m)^good\.ipynb +passed +-?[\d.]+ +\(75\) +\d+ +\(2,000\)$", done.stdout)
    write(tmp_path, "good", code(LEFT_OVER))
    done = run_lessons(tmp_path)
    assert "2 passed" in done.stdout and "1 process(es) outlived the run" in done.stdout
    assert done.returncode == 1


def test_a_child_in_a_session_of_its_own_is_found(tmp_path: Path):
    write(tmp_path, "good", code(f"{START}_ = subprocess.Popen({SPINNER}, start_new_session=True)"))
    done = run_lessons(tmp_path)
    assert done.returncode == 1 and "1 process(es) outlived the run" in done.stdout and "planted spinner" in done.stdout


def test_cells_of_a_lesson_may_not_be_spread_over_workers(tmp_path: Path):
    done = run_lessons(tmp_path, "-n", "2")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR and "add --dist loadfile" in done.stderr


# ---------------------------------------------------------------------------------------------------------- the offline guard


def test_this_process_is_offline(request: pytest.FixtureRequest):
    assert request.config.pluginmanager.has_plugin("tests.lessons_plugin")
    for refused in (CONNECT, LOOK_UP, LOOK_UP.replace("getaddrinfo", "gethostbyname").replace(", 443", "")):
        with pytest.raises(ConnectionRefusedError, match="offline guard"):
            exec(refused, {})
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams, pytest.raises(ConnectionRefusedError, match="offline"):
        datagrams.sendto(b"x", ("192.0.2.1", 53))
    exec(LOOPBACK, {})


def test_a_child_process_is_offline():
    done = subprocess.run([sys.executable, "-c", CONNECT], capture_output=True, text=True)
    assert done.returncode and "offline guard: a connection to 192.0.2.1:80 was refused" in done.stderr
    assert subprocess.run([sys.executable, "-c", LOOPBACK]).returncode == 0


# ---------------------------------------------------------------------------------------------------------- the drift guard


def test_drifted_code_is_found(tmp_path: Path):
    lesson = tmp_path / "01-drifted.ipynb"
    cells = [
        code("from sklearn.linear_model import LogisticRegression, LogisticRegresion\nimport torch.nn.functional as F"),
        prose("Words."),
        code("model = LogisticRegression(C=1.0, no_such=1)"),
        code("model.fit([[0], [1]], [0, 1], no_such=2)\nF.cross_entropy(x, y, ignore_index=0, reductoin='sum')\nF.no_such(x)"),
        code("def f(model):\n    return model.fit(fine=1)"),
    ]
    lesson.write_text(json.dumps(notebook(*cells)), encoding="utf-8")
    assert drift.check(lesson) == [
        "01-drifted.ipynb cell 0 line 1: sklearn.linear_model has no 'LogisticRegresion'",
        "01-drifted.ipynb cell 2 line 1: sklearn.linear_model.LogisticRegression() has no keyword 'no_such'",
        "01-drifted.ipynb cell 3 line 1: sklearn.linear_model.LogisticRegression.fit() has no keyword 'no_such'",
        "01-drifted.ipynb cell 3 line 2: torch.nn.functional.cross_entropy() has no keyword 'reductoin'",
        "01-drifted.ipynb cell 3 line 3: torch.nn.functional has no 'no_such'",
    ]


def test_keywords_that_a_library_swallows_are_found(tmp_path: Path):
    script = tmp_path / "train.py"
    script.write_text(
        "from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, TrainingArguments\n"
        "GenerationConfig(max_new_tokens=1, max_new_token=1)\n"
        "TrainingArguments(output_dir='x', eval_strategy='no', evaluation_strategy='no')\n"
        "tokenizer = AutoTokenizer.from_pretrained('x', anything=1)\n"
        "model = AutoModelForCausalLM.from_pretrained('x').to('cpu')\n"
        "model.generate(**tokenizer('x', truncation=True, max_len=3), do_sample=True, do_sampel=True)\n",
        encoding="utf-8",
    )
    missing = [re.search(r"line (\d).*'(\w+)'$", finding) for finding in drift.check(script)]
    expected = {("2", "max_new_token"), ("3", "evaluation_strategy"), ("6", "max_len"), ("6", "do_sampel")}
    assert {found.groups() for found in missing if found} == expected


# ---------------------------------------------------------------------------------------------------------- the lint

SENTENCE = "Every step says what it does and why before the code that does it, and then how its result is read. "
PICTURE = {"output_type": "display_data", "data": {"image/png": "aGVsbG8="}, "metadata": {}}
CARD = """# 02 A good lesson

| | |
|---|---|
| **You will learn** | to do a thing; to check it; to measure it |
| **You need** | [the first lesson](01-first.ipynb) |
| **Data and model** | tiny: a toy · full: a real one |
| **Time and memory** | tiny: 2 s, 0.1 GB · full: 20 s, 2 GB |"""
EXERCISE = """**{0}. Again** (10 minutes, easy) Do it again. *Check:* `assert again`.

<details><summary>Solution</summary>

```python
again = [x for x in range({0})]
```

</details>"""


def good_lesson() -> dict[str, Any]:
    """A lesson without findings: 13 steps of prose and code, then the four last sections."""
    cells = [prose(CARD), prose("## The idea\n\n" + SENTENCE * 4)]
    for i in range(11):
        cells += [prose(SENTENCE * 4), code(f"value_{i} = {i}\nassert value_{i} == {i}")]
    cells += [prose("## Result\n\n" + SENTENCE * 4), code('report("01-chapter/02-good", accuracy=value_1)')]
    cells += [
        prose("## Make it yours\n\n" + SENTENCE * 4),
        prose("## Exercises\n\n" + EXERCISE.format(1)),
        prose(EXERCISE.format(2)),
    ]
    cells += [prose("## Sources\n\n*A paper*, A. Author. Previous: [first](01-first.ipynb), next: [third](03-third/README.md)")]
    for count, cell in enumerate((cell for cell in cells if cell["cell_type"] == "code"), 1):
        cell["execution_count"] = count
    cells[3]["outputs"] = [PICTURE]
    return notebook(*cells)


@pytest.fixture
def chapter(tmp_path: Path) -> Path:
    folder = tmp_path / "01-chapter"
    (folder / "03-third").mkdir(parents=True)
    for name in ("01-first.ipynb", "02-good.ipynb", "03-third/README.md"):
        (folder / name).touch()
    return folder


def test_a_good_lesson_has_no_findings(chapter: Path):
    assert lint(Lesson(chapter / "02-good.ipynb", good_lesson())) == []


def replace(old: str, new: str) -> Callable[[dict[str, Any]], None]:
    """A change of the good lesson's text: the first place that holds ``old``."""

    def change(lesson: dict[str, Any]) -> None:
        cell = next(cell for cell in lesson["cells"] if old in cell["source"])
        cell["source"] = cell["source"].replace(old, new)

    return change


def add(text: str) -> Callable[[dict[str, Any]], None]:
    """More code in the lesson's first code cell."""
    return replace("assert value_0 == 0", f"assert value_0 == 0\n{text}")


def store(*tags: str, **output: Any) -> Callable[[dict[str, Any]], None]:
    def change(lesson: dict[str, Any]) -> None:
        lesson["cells"][5] |= {"outputs": [output] if output else [], "metadata": {"tags": list(tags)}}

    return change


def cut(start: int, stop: int) -> Callable[[dict[str, Any]], None]:
    def change(lesson: dict[str, Any]) -> None:
        del lesson["cells"][start:stop]

    return change


def in_metadata(**entries: Any) -> Callable[[dict[str, Any]], None]:
    return lambda lesson: lesson["metadata"].update(entries)


def swap_sections(lesson: dict[str, Any]) -> None:
    lesson["cells"].insert(-4, lesson["cells"].pop())


def rerun(lesson: dict[str, Any]) -> None:
    lesson["cells"][5]["execution_count"] = 9


def all_code_together(lesson: dict[str, Any]) -> None:
    lesson["cells"][2:24] = sorted(lesson["cells"][2:24], key=lambda cell: cell["cell_type"])


TEN_LINES = "\n".join(f"y{i} = {i}" for i in range(10))
ERROR = {"output_type": "error", "ename": "ValueError", "evalue": "", "traceback": []}
PLANTED = {
    "number": (replace("# 02 A", "# 03 A"), "the title says 03, the file says 02"),
    "dotted number": (replace("# 02 A", "# 02. A"), "does not begin with '# NN Title'"),
    "second title": (replace("## The idea", "# The idea"), "a second title"),
    "card row": (replace("You need", "Wanted"), "no row 'You need'"),
    "card scale": (replace(" · full: a real one", ""), "'Data and model' does not name the full scale"),
    "section": (replace("## Make it yours", "## More"), "no section '## Make it yours'"),
    "section order": (swap_sections, "the last sections are"),
    "idea": (replace("## The idea", "The idea"), "no section on the idea"),
    "steps": (replace("## The idea", "## 2 Look at the data"), "the numbered sections are [2]"),
    "few cells": (cut(2, 8), "24 cells; 25-60"),
    "long median": (
        lambda n: (
            [add(TEN_LINES)(n)]
            + [c.update(source=c["source"] + "\n" + TEN_LINES) for c in n["cells"] if c["cell_type"] == "code"]
        ),
        "median 12 lines",
    ),
    "long cell": (add("\n".join([TEN_LINES] * 5)), "longest 52 lines, at most 45"),
    "few words": (
        lambda n: [c.update(source=c["source"].replace(SENTENCE * 4, SENTENCE * 2)) for c in n["cells"]],
        "words of prose; 900-2000",
    ),
    "many words": (replace("## The idea", "## The idea\n" + SENTENCE * 60), "words of prose; 900-2000"),
    "code over prose": (add("x = [" + "1, " * 1200 + "]"), "less prose than code"),
    "rhythm": (all_code_together, "three code cells in a row"),
    "asserts": (
        lambda n: [c.update(source="x = 1") for c in n["cells"][:20] if c["cell_type"] == "code"] and cut(20, 24)(n),
        "0 asserts",
    ),
    "constant assert": (add("assert 1 == 1"), "an assert that cannot fail"),
    "tuple assert": (add("assert (value_0, 'message')"), "an assert that cannot fail"),
    "report": (replace("report(", "print("), "does not call report"),
    "report of another": (replace("02-good", "05-other"), "report() names the lesson '01-chapter/05-other'"),
    "picture": (lambda n: n["cells"][3].update(outputs=[]), "no picture"),
    "one run": (rerun, "execution count 9, expected 2"),
    "timestamps": (lambda n: n["cells"][3]["metadata"].update(execution={}), "stored timestamps"),
    "stderr": (store(output_type="stream", name="stderr", text="Warning: old"), "stored stderr: 'Warning: old'"),
    "error": (store(**ERROR), "without the tag raises-exception: ValueError"),
    "no error": (store("raises-exception"), "its stored output has no error"),
    "skip": (store("nbval-skip"), "a skipped cell"),
    "widget": (store(output_type="display_data", data={"application/vnd.jupyter.widget-view+json": {}}), "a widget output"),
    "widget state": (in_metadata(widgets={}), "stored widget state"),
    "long output": (store(output_type="stream", name="stdout", text="x" * 6001), "an output of over 6,000 characters"),
    "path in output": (
        store(output_type="stream", name="stdout", text="in /home/somebody/x"),
        "an absolute path: /home/somebody/x",
    ),
    "path": (add("x = '/mnt/models/big'"), "an absolute path"),
    "secret": (add("key = 'hf_" + "a1B2" * 6 + "'"), "looks like a secret: hf_…"),
    "todo": (add("x = 1  # TODO: better"), "a leftover TODO"),
    "ticket": (replace("## The idea", "## The idea\n\nSee issue #12."), "a ticket number: 'issue #12'"),
    "remote code": (add("load(x, trust_remote_code=True)"), "trust_remote_code=True"),
    "weights": (add("torch.load(x, weights_only=False)"), "weights_only=False"),
    "except": (add("try:\n    x()\nexcept:\n    raise"), "a bare except"),
    "swallowed": (add("try:\n    x()\nexcept Exception:\n    pass"), "an exception swallowed"),
    "pickle": (add("import pickle"), "pickle"),
    "install": (add("!pip install torch"), "an install command"),
    "install magic": (add("%pip install torch"), "an install command"),
    "widget bar": (add("from tqdm.auto import tqdm"), "tqdm.auto stores widgets"),
    "scale": (add("from common import pick, scale"), "branches on scale()"),
    "scale variable": (add("x = os.environ['ROADMAP_SCALE']"), "branches on ROADMAP_SCALE"),
    "commented out": (add("# x = train(model)"), "commented-out code: 'x = train(model)'"),
    "syntax": (add("x ="), "does not parse"),
    "dead link": (replace("(01-first.ipynb) |", "(01-gone.ipynb) |"), "a dead link: 01-gone.ipynb"),
    "previous": (replace("Previous: [first](01-first.ipynb), ", ""), "does not link to the previous lesson, 01-first.ipynb"),
    "next": (replace(", next: [third](03-third/README.md)", ""), "does not link to the next lesson, 03-third"),
    "exercises": (replace("**2. Again**", "**Again**"), "1 exercises; 2-4"),
    "minutes": (replace("(10 minutes, easy)", "(easy)"), "exercise 1: no minutes"),
    "difficulty": (replace("(10 minutes, easy)", "(10 minutes)"), "exercise 1: no difficulty"),
    "exercise check": (replace("*Check:* `assert again`", ""), "exercise 1: no check"),
    "fold": (replace("<details>", ""), "exercise 1: no folded solution"),
    "solution code": (replace("```python", "```text"), "exercise 1: no ```python block"),
    "solution syntax": (replace("again = [", "again = [["), "solution 1: does not parse"),
    "kernel": (in_metadata(kernelspec={"name": "my-env"}), "the kernel is 'my-env'"),
    "language": (in_metadata(language_info={"name": "python", "version": "3.11.7"}), "language_info holds more"),
    "budget key": (in_metadata(roadmap={"minutes": 1}), "no key 'minutes'"),
    "budget value": (in_metadata(roadmap={"budget_mb": "2 GB"}), "metadata.roadmap.budget_mb is '2 GB'"),
    "own host": (replace("## The idea", "## The idea\n\nOn root@gpu-box-7."), "the name of a private host"),
    "budget ceiling": (in_metadata(roadmap={"budget_seconds": 900}), "at most 120 for any lesson"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_found(chapter: Path, name: str):
    change, expected = PLANTED[name]
    lesson = good_lesson()
    change(lesson)
    findings = lint(Lesson(chapter / "02-good.ipynb", lesson, size=1000))
    assert any(expected in finding for finding in findings), findings


def test_comments_that_are_no_code(chapter: Path):
    lesson = good_lesson()
    add("# the loss falls: see below\n# new\n# shape (batch, time)\nx = 1  # p = q / r\nprint('%d'\n% 3)\n!ls")(lesson)
    assert lint(Lesson(chapter / "02-good.ipynb", lesson)) == []


def test_what_a_lesson_may_say_of_itself(chapter: Path):
    lesson = good_lesson()
    lesson["metadata"]["roadmap"] = {"demo": True, "budget_seconds": 120}
    replace("## The idea", "## The idea\n\nSet HF_ENDPOINT=https://hf-mirror.com, open an InferenceSession.")(lesson)
    assert lint(Lesson(chapter / "02-good.ipynb", lesson)) == []


def test_a_notebook_that_is_too_large(chapter: Path):
    assert lint(Lesson(chapter / "02-good.ipynb", good_lesson(), size=1_600_000)) == ["1,600,000 bytes; at most 1,500,000"]


def test_repeated_code(chapter: Path):
    lessons = [Lesson(chapter / f"0{i}-x.ipynb", notebook(code(TEN_LINES.replace("y9", f"z{i}")), code("x = 1"))) for i in (1, 2)]
    assert [str(path.name) for path, _ in repeated_code(lessons)] == ["02-x.ipynb"]
    lessons[1].cells[0]["source"] = "\n".join(f"import a{i}" for i in range(9)) + TEN_LINES[-30:]
    del lessons[1].__dict__["code"]
    assert list(repeated_code(lessons)) == []


def test_chapter(chapter: Path):
    def findings() -> list[str]:
        return [f"{path.name}: {finding}" for path, finding in chapter_findings(chapter)]

    assert findings() == ["README.md: missing: a chapter lists its lessons there"]
    rows = "| [First](01-first.ipynb) |\n| [Third](03-third/) |\nNot a row: [good](02-good.ipynb)"
    (chapter / "README.md").write_text(rows, encoding="utf-8")
    assert findings() == ["README.md: its table has no row that links to 02-good.ipynb"]
    (chapter / "README.md").write_text(rows.replace("Not a row", "| row"), encoding="utf-8")
    assert findings() == []
    (chapter / "02-same.ipynb").touch()
    assert "02-same.ipynb: the number 02 is also that of 02-good.ipynb" in findings()


def test_the_lint_is_a_program(chapter: Path):
    bad = chapter / "02-good.ipynb"
    bad.write_text(json.dumps(notebook(code("x = 1"))), encoding="utf-8")
    done = subprocess.run([sys.executable, ROOT / "tests" / "lint.py", bad], capture_output=True, text=True)
    assert done.returncode == 1
    assert f"{bad}: cell 0: does not begin with '# NN Title' (two digits, no dot)" in done.stdout.splitlines()
    (chapter / "01-first.ipynb").write_text("{", encoding="utf-8")
    assert next(f for _, f in lint_files([chapter / "01-first.ipynb"])).startswith("not a notebook")
