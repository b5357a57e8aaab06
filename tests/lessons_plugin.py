"""The pytest plugin that runs the lessons: nbval, with its gaps closed.

nbval runs each code cell as a test in one kernel per notebook. Left alone it waits out the whole cell timeout when a kernel
has died, keeps running cells after a failure, accepts a cell that should raise and does not, and measures nothing. Here:

* the kernel is always this Python, watched while a cell runs (:class:`WatchedKernel`); a cell that hangs is ended;
* after a failed cell the rest of the lesson is skipped (:class:`LessonCell`);
* the folded solutions of the exercises run too, after the lesson, in its kernel;
* each lesson has a budget of reference seconds (see ``tests/calibration.py``) and memory (:class:`LessonBudget`) and a line
  in the summary; no verdict depends on how fast or how busy the machine is;
* a kernel that outlives the run fails it;
* this process and every child of it are offline (``tests/guard``) and use one thread.

Run the lessons with ``pytest --nbval-lax -n 2 --dist loadfile 0*-*/``.
Source: nbval 0.11 (``nbval.plugin``), the pytest and pytest-xdist hook references.
"""

from __future__ import annotations

import os
import sys
import time
import uuid
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from queue import Empty
from typing import Any

import psutil
import pytest
from nbformat.v4 import new_code_cell
from nbval.kernel import CURRENT_ENV_KERNEL_NAME, RunningKernel
from nbval.plugin import IPyNbCell, IPyNbFile

from tests import calibration
from tests.lint import BUDGET, budget, solutions

CELL_TIMEOUT = 900.0  # wall-clock seconds, only against hangs
IDLE_TIMEOUT = 120.0  # wall-clock seconds in which neither the kernel nor a child of it has used CPU time
IDLE_VARIABLE = "ROADMAP_IDLE_TIMEOUT"  # another number of seconds, for tests of this file
OUTPUT_TIMEOUT = 120.0  # seconds between a cell's reply and its last output; nbval's 5 are too few on a busy machine
NBVAL_DEFAULT_TIMEOUT = 2000
IMPORTS = 15.0  # the most reference seconds of a lesson's first code cell that count as imports
FAILS_AT = 2.0  # times the budget; above the budget is reported, above this fails
POLL = 0.5  # seconds between two looks at whether the kernel still lives
GUARD = Path(__file__).parent / "guard"
RUN_MARK = "ROADMAP_TEST_RUN"  # an environment variable that tells our kernels from everybody else's


def prepare_environment() -> None:
    """Set what the whole run inherits: xdist workers, kernels, and the processes that those start."""
    os.environ |= {
        "ROADMAP_SCALE": "tiny",
        "ROADMAP_QUIET": "1",
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
    }
    os.environ.pop("MPLBACKEND", None)  # the kernel chooses its inline backend
    folders = [str(GUARD), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(folders))
    if "PYTEST_XDIST_WORKER" not in os.environ:  # a worker keeps the mark of the run that started it
        os.environ[RUN_MARK] = uuid.uuid4().hex
    sys.path.insert(0, str(GUARD))
    import offline_guard

    offline_guard.install()


prepare_environment()  # at import: before any test module can import torch


def pytest_configure(config: pytest.Config) -> None:
    option = config.option
    if not option.nbval_lax and not option.nbval:
        return
    if option.nbval_cell_timeout == NBVAL_DEFAULT_TIMEOUT:
        option.nbval_cell_timeout = CELL_TIMEOUT
    if getattr(option, "numprocesses", None) and option.dist != "loadfile":
        raise pytest.UsageError("A lesson's cells must stay together on one worker: add --dist loadfile.")
    if calibration.VARIABLE not in os.environ and not option.collectonly:  # once a run: workers inherit it
        os.environ[calibration.VARIABLE] = str(calibration.cpu_seconds_per_reference_second())


@pytest.hookimpl(wrapper=True)
def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> Iterator[Any]:
    """Let nbval decide which files are notebooks, then collect them our way."""
    collected = yield
    return [LessonFile.from_parent(parent, path=file_path) if isinstance(node, IPyNbFile) else node for node in collected]


# ---------------------------------------------------------------------------------------------------------- running


class KernelDied(Exception):
    """The kernel's process ended while a cell ran."""


class WatchedKernel(RunningKernel):
    """nbval's kernel, which notices within :data:`POLL` seconds that it has died, and after a while that it hangs.

    Attributes:
        peak_mb: Peak resident memory in units of 1e6 bytes.
        cpu_seconds: User and system time of the kernel and of all its children, those that have ended included.
        hung: What the guard has found, or "".
    """

    peak_mb = 0.0
    cpu_seconds = 0.0
    last_total = 0.0  # CPU seconds of the kernel and the children that were there at the last look
    hung = ""

    def get_message(self, stream: str, timeout: float | None = None) -> dict:
        """The next message of a stream.

        Raises:
            queue.Empty: After ``timeout`` seconds without one, or when the kernel has been idle for too long.
            KernelDied: If the process has ended and everything it sent has been read.
        """
        began = time.monotonic()
        deadline = float("inf") if timeout is None else began + timeout
        idle_limit = float(os.environ.get(IDLE_VARIABLE, IDLE_TIMEOUT))
        used, moved = self.last_total, began
        while True:
            left = deadline - time.monotonic()
            try:
                return super().get_message(stream, timeout=max(0.0, min(POLL, left)))
            except Empty:
                if hasattr(self, "km") and not self.is_alive():
                    raise KernelDied from None
                self.measure()
                now = time.monotonic()
                # a sleeping kernel still looks at its sockets; a total that falls is a child that has gone, also a sign of life
                if abs(self.last_total - used) > 0.01 * (now - moved):
                    used, moved = self.last_total, now
                if left <= POLL and stream == "shell":
                    self.hung = f"it ran for {now - began:.0f} seconds, the limit of a cell"
                if now - moved > idle_limit and stream == "shell":
                    self.hung = f"for {now - moved:.0f} seconds neither the kernel nor a child of it used CPU time"
                if self.hung:
                    self.end_children()  # or the kernel may wait for one, and not answer the interrupt
                if left <= POLL or self.hung:
                    raise

    def exit_code(self) -> int | None:
        """The exit code of a kernel that has died; negative is the number of the signal that killed it."""
        process = getattr(self.km.provisioner, "process", None)
        return process.poll() if process else None

    def measure(self) -> None:
        """Update ``peak_mb`` and ``cpu_seconds``; a kernel that has gone leaves the last values."""
        if hasattr(self, "km") and self.is_alive():
            self.peak_mb = max(self.peak_mb, peak_megabytes(self.km.provisioner.pid))
            total = tree_cpu_seconds(self.km.provisioner.pid)
            self.cpu_seconds += max(0.0, total - self.last_total)
            self.last_total = total

    def end_children(self) -> None:
        """Kill what a cell has started and left running."""
        if not hasattr(self, "km"):
            return
        try:
            for child in psutil.Process(self.km.provisioner.pid).children(recursive=True):
                child.kill()
        except psutil.Error:
            pass  # the kernel has gone; what it left is found by its mark at the end of the run


def tree_cpu_seconds(pid: int) -> float:
    """User and system time of a process and its descendants, in seconds.

    A child that has ended is in its parent's ``children`` times (once the parent has waited for it); one that lives is
    asked itself. So nothing is counted twice.
    """
    try:
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
    except psutil.Error:
        return 0.0
    total = 0.0
    for member in family:
        try:
            total += sum(member.cpu_times()[:4])  # user, system, and both of children that have ended
        except psutil.Error:  # gone between the two looks
            continue
    return total


def peak_megabytes(pid: int) -> float:
    """The peak resident memory of a process, in units of 1e6 bytes: VmHWM of Linux, elsewhere what it holds now."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
        return psutil.Process(pid).memory_info().rss / 1e6
    except (OSError, psutil.Error):  # gone between the two looks
        return 0.0


class LessonFile(IPyNbFile):
    """A lesson: its code cells, then its budget, then the solutions of its exercises."""

    failed_at = ""  # the name of the cell that failed
    imports = 0.0  # CPU seconds of the first code cell
    kernel: WatchedKernel | None

    def collect(self) -> Iterator[pytest.Item]:
        number = -1
        for cell in super().collect():
            number = cell.cell_num
            yield LessonCell.from_parent(self, name=cell.name, cell_num=number, cell=cell.cell, options=cell.options)
        yield LessonBudget.from_parent(self, name="budget")
        for i, source in enumerate(solutions(self.nb.cells), 1):
            cell = new_code_cell(source)
            yield LessonCell.from_parent(self, name=f"Solution {i}", cell_num=number + i, cell=cell, options=defaultdict(bool))

    def setup(self) -> None:
        """Start the kernel: always this Python, whatever kernels the machine has installed."""
        start = partial(
            WatchedKernel,
            CURRENT_ENV_KERNEL_NAME,
            cwd=str(self.path.parent),
            startup_timeout=self.config.option.nbval_kernel_startup_timeout,
        )
        try:
            self.kernel = start()
        except RuntimeError:  # its ports are chosen before it binds them: now and then somebody else is faster, so once more
            self.kernel = start()
        self.setup_sanitize_files()

    def teardown(self) -> None:
        if self.kernel is not None and hasattr(self.kernel, "km"):  # nbval deletes `km` when it has stopped the kernel
            self.kernel.stop()


class LessonCell(IPyNbCell):
    """A code cell that runs only while everything before it has passed."""

    def setup(self) -> None:
        if self.parent.failed_at:
            pytest.skip(f"{self.parent.failed_at} failed, so the rest of {self.path.name} was not run")

    def runtest(self) -> None:
        try:
            self.output_timeout = OUTPUT_TIMEOUT
            super().runtest()
            if self.parent.timed_out:  # the cell swallowed nbval's interrupt
                self.raise_cell_error("The cell hung")
            if self.options["check_exception"] and not any(out.output_type == "error" for out in self.test_outputs):
                self.raise_cell_error("The cell is tagged raises-exception but raised nothing")
        except KernelDied:
            self.parent.failed_at = self.name
            self.raise_cell_error(f"The kernel died with exit code {self.parent.kernel.exit_code()} while this cell ran")
        except Exception:
            self.parent.failed_at = self.name
            if self.parent.kernel.hung:
                self.raise_cell_error(
                    f"The cell was ended because {self.parent.kernel.hung}; look for a loop, a lock or a process that never ends"
                )
            raise
        finally:
            if self.parent.kernel.hung:
                self.parent.kernel.end_children()
            self.parent.kernel.measure()
            self.parent.imports = self.parent.imports or self.parent.kernel.cpu_seconds

    def reportinfo(self) -> tuple[Path, int, str]:
        return self.path, 0, f"{self.path.name}::{self.name}"


class LessonBudget(pytest.Item):
    """The last test of a lesson: what it took against what it may take.

    Time is counted in reference seconds beside the imports, so a slower or busier machine changes nothing. Over the budget
    is reported, over twice the budget fails.
    """

    def runtest(self) -> None:
        try:
            allowed, problem = budget(self.parent.nb.metadata), ""
        except ValueError as error:
            allowed, problem = BUDGET, str(error)
        kernel, speed = self.parent.kernel, float(os.environ[calibration.VARIABLE])
        imports = min(self.parent.imports / speed, IMPORTS)
        seconds, megabytes = kernel.cpu_seconds / speed - imports, kernel.peak_mb
        self.user_properties.append(("lesson", [seconds, allowed["budget_seconds"], megabytes, allowed["budget_mb"]]))
        if problem:
            pytest.fail(problem, pytrace=False)
        if self.parent.failed_at:
            pytest.skip(f"{self.parent.failed_at} failed, so the budget of {self.path.name} was not judged")
        over = [
            f"{used:,.1f} {unit} of {limit:,} {unit}"
            for used, limit, unit in (
                (seconds, allowed["budget_seconds"], "reference seconds"),
                (megabytes, allowed["budget_mb"], "MB"),
            )
            if used > FAILS_AT * limit
        ]
        if over:
            pytest.fail(
                f"{self.path.name} is over twice its budget: it used {' and '.join(over)}; make the lesson smaller, "
                'or give the reason in it and raise metadata.roadmap {"budget_seconds", "budget_mb"}.',
                pytrace=False,
            )

    def reportinfo(self) -> tuple[Path, int, str]:
        return self.path, 0, f"{self.path.name}::budget"


# ---------------------------------------------------------------------------------------------------------- reporting

_LEFT_OVER = pytest.StashKey[list[str]]()


def left_over_kernels(mark: str) -> list[psutil.Process]:
    """What this run started and is still alive, kernels and their children alike, told by the mark in their environment."""
    found = []
    this = psutil.Process()
    ours = {this.pid, *(process.pid for process in this.parents())}
    for process in psutil.process_iter():
        try:
            if process.pid not in ours and process.cmdline() and process.environ().get(RUN_MARK) == mark:  # a zombie has none
                found.append(process)
        except psutil.Error:  # gone, or somebody else's
            continue
    return found


@pytest.hookimpl(trylast=True)  # after xdist has ended its workers
def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workerinput"):
        return
    alive = left_over_kernels(os.environ[RUN_MARK])
    _, alive = psutil.wait_procs(alive, timeout=2)  # one that is just ending is no fault
    session.config.stash[_LEFT_OVER] = [f"process {p.pid}: {' '.join(p.cmdline())}" for p in alive]
    for process in alive:
        process.kill()
    if alive:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """One line per lesson, however many workers ran them, and the kernels that were left running."""
    reports = [r for reports in terminalreporter.stats.values() for r in reports if isinstance(r, pytest.TestReport)]
    failed = {r.nodeid.partition("::")[0] for r in reports if r.failed}
    rows = sorted(
        (r.nodeid.partition("::")[0], *v) for r in reports if r.when == "call" for k, v in r.user_properties if k == "lesson"
    )
    if rows:
        terminalreporter.section("lessons")
        unit = float(os.environ[calibration.VARIABLE])
        terminalreporter.write_line(
            f"A reference second is {unit:.2f} CPU seconds here; imports (at most {IMPORTS:g} of them) are not counted."
        )
        width = max(len(row[0]) for row in rows)
        terminalreporter.write_line(f"{'lesson':{width}}  result   ref. s  (budget)  peak MB  (budget)")
        for name, seconds, max_seconds, megabytes, max_megabytes in rows:
            result = "FAILED" if name in failed else "passed"
            times = f"{seconds:7.1f}  {f'({max_seconds:g})':>8}  {megabytes:7,.0f}  {f'({max_megabytes:,g})':>8}"
            note = "  over its budget" if seconds > max_seconds or megabytes > max_megabytes else ""
            terminalreporter.write_line(f"{name:{width}}  {result}  {times}{note}")
        total, highest = sum(row[1] for row in rows), max(row[3] for row in rows)
        terminalreporter.write_line(f"{len(rows)} lessons, {total:.0f} reference seconds in all, at most {highest:,.0f} MB")
    if left := config.stash.get(_LEFT_OVER, []):
        terminalreporter.section("kernels left running")
        terminalreporter.write_line(f"{len(left)} process(es) outlived the run and were ended; close what a lesson opens:")
        for line in left:
            terminalreporter.write_line(f"  {line}")
