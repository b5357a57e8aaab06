"""What the lessons measured: a ledger of one small file a lesson and scale, and RESULTS.md made from it.

A run writes to ``outputs/results`` (or ``ROADMAP_RESULTS``), never to the ledger of record in ``assets/results``:
that one changes only by :func:`store`. One file a lesson lets two kernels report at once without losing a line.
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import groupby
from pathlib import Path
from typing import Any

from common import hardware
from common.course.lessons import all_lessons
from common.errors import RoadmapError
from common.paths import ASSETS, ROOT, outputs
from common.scale import SCALES, cap, scale

import torch

LEDGER = ASSETS / "results"
RESULTS_MD = ROOT / "RESULTS.md"
_LESSON = re.compile(r"\d\d-[\w-]+/\d\d-[\w-]+")


@dataclass(frozen=True)
class Record:
    """One lesson's result at one scale.

    Attributes:
        lesson: Chapter and lesson, such as ``"02-NLP_tasks/02-ner"``.
        scale: ``"tiny"`` or ``"full"``.
        metric: Name of the figure that is compared with the baseline.
        value: That figure.
        baseline: What it has to beat.
        baseline_name: What the baseline does.
        higher_is_better: False for losses, perplexities, bytes.
        more: Further figures by name.
        seconds: Wall-clock seconds of the run.
        peak_mb: Peak resident memory of the process in MB (10**6 bytes).
        gpu_mb: Peak memory allocated on the GPUs in MB; None without one.
        machine: GPU, or CPU and cores.
        versions: Of Python, torch and transformers.
        date: The day (UTC) it was measured.
        cpu_seconds: User and system time of the kernel and its children, imports included; None in older records.
        tolerances: By how much a figure may move between two runs, relative to its size; 0.05 where nothing is said.
    """

    lesson: str
    scale: str
    metric: str
    value: float
    baseline: float
    baseline_name: str
    higher_is_better: bool
    more: dict[str, float]
    seconds: float
    peak_mb: float
    gpu_mb: float | None
    machine: str
    versions: dict[str, str]
    date: str
    cpu_seconds: float | None = None
    tolerances: dict[str, float] = field(default_factory=dict)

    @property
    def figures(self) -> dict[str, float]:
        """Every figure by name, the baseline included."""
        return {self.metric: self.value, f"baseline ({self.baseline_name})": self.baseline, **self.more}


@dataclass(frozen=True)
class Move:
    """A figure that is not what it was; None where a ledger does not have it."""

    lesson: str
    scale: str
    figure: str
    old: float | None
    new: float | None

    def __str__(self) -> str:
        return f"{self.lesson} ({self.scale}): {self.figure} was {_number(self.old)}, is {_number(self.new)}"


def report(
    lesson: str,
    *,
    baseline: float,
    baseline_name: str = "majority class",
    higher_is_better: bool = True,
    seconds: float | None = None,
    tolerances: Mapping[str, float] | None = None,
    beats_baseline: bool = True,
    **figures: float,
) -> None:
    """Record a lesson's result and print it beside its baseline: the last cell of every lesson.

    >>> report("02-NLP_tasks/02-ner", f1=0.61, baseline=0.34, baseline_name="dictionary", random_start=0.51)  # doctest: +SKIP

    Args:
        lesson: Chapter and lesson, such as ``"02-NLP_tasks/02-ner"``.
        baseline: What the first figure has to beat.
        baseline_name: What the baseline does.
        higher_is_better: Whether beating means being above; say False for a loss or a perplexity.
        seconds: Wall-clock seconds; by default those since this kernel was started, imports included.
        tolerances: For figures that move by more than 5 % between two runs of the same lesson on different machines: the
            allowed relative difference, by name.
        beats_baseline: False for a lesson whose finding is that the first figure does not beat its baseline.
        **figures: The metric that is compared with the baseline, then any further figures.

    Raises:
        RoadmapError: If there is no figure, one is not a finite number, or the first does not beat the baseline although it
            should. Also if the lesson's name is not ``NN-chapter/NN-lesson``. Nothing is recorded then. (In a folder
            made by ``python -m common copy``, and in a rehearsal, a result below its baseline is recorded with a note.)
    """
    if not _LESSON.fullmatch(lesson):
        raise RoadmapError(f"{lesson!r} is no lesson's name; it has the form 'NN-chapter/NN-lesson', without '.ipynb'.")
    if not figures:
        raise RoadmapError("report needs a figure to record, such as accuracy=0.83.")
    clean = {name: _finite(name, value) for name, value in figures.items()}
    metric, value = next(iter(clean.items()))
    floor = _finite("baseline", baseline)
    if beats_baseline and not (value > floor if higher_is_better else value < floor):
        says = f"{metric} {_number(value)} does not beat its baseline, {baseline_name} {_number(floor)}"
        rehearsing = cap("steps") is not None or cap("rows") is not None
        if (ROOT / "pyproject.toml").exists() and not rehearsing:
            tail = "" if higher_is_better else " (lower is better here)"
            raise RoadmapError(f"{says}; a result that does not is not reported{tail}.")
        print(f"Note: {says}.")  # on a reader's own data, and with models that know nothing, that is no fault of the lesson
    if unknown := set(tolerances or {}) - {metric, "baseline", *clean}:
        raise RoadmapError(f"There is no figure {', '.join(sorted(unknown))} to have a tolerance; there are {', '.join(clean)}.")
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    record = Record(
        lesson=lesson,
        scale=scale(),
        metric=metric,
        value=value,
        baseline=floor,
        baseline_name=baseline_name,
        higher_is_better=higher_is_better,
        more={name: clean[name] for name in list(clean)[1:]},
        seconds=round(hardware.process_seconds() if seconds is None else _finite("seconds", seconds), 1),
        peak_mb=round(hardware.process_peak_mb()),
        gpu_mb=round(sum(torch.cuda.max_memory_allocated(i) for i in gpus) / hardware.MB) if gpus else None,
        machine=hardware.machine(),
        versions={"python": platform.python_version(), "torch": _version("torch"), "transformers": _version("transformers")},
        date=datetime.now(UTC).date().isoformat(),
        cpu_seconds=round(sum(os.times()[:4]), 1),
        tolerances={name: _finite(f"the tolerance of {name}", value) for name, value in (tolerances or {}).items()},
    )
    _write(record, results_folder())
    print(_table(record))


def results_folder() -> Path:
    """Where :func:`report` writes: ``ROADMAP_RESULTS``, else ``outputs/results``."""
    given = os.environ.get("ROADMAP_RESULTS")
    return Path(given).expanduser() if given else outputs("results")


def read_ledger(folder: Path = LEDGER) -> list[Record]:
    """The records in a folder, by lesson, tiny before full; none if the folder does not exist.

    Raises:
        RoadmapError: If a file is not a record.
    """
    records = []
    for path in folder.glob("[0-9][0-9]-*/*.json"):
        try:
            record = Record(**json.loads(path.read_text(encoding="utf-8")))
            if f"{record.lesson}.{record.scale}.json" != path.relative_to(folder).as_posix() or record.scale not in SCALES:
                raise ValueError("its lesson and scale are not those of its file name")
            records.append(record)
        except (ValueError, TypeError) as error:
            raise RoadmapError(f"{path} is not a lesson's record ({error}); delete it and run the lesson again.") from error
    return sorted(records, key=lambda record: (record.lesson, SCALES.index(record.scale)))


def store(source: Path | None = None, target: Path = LEDGER, results_md: Path = RESULTS_MD) -> list[Record]:
    """Make the last runs the ledger of record and rebuild RESULTS.md; lessons that were not run keep their records.

    Args:
        source: What runs wrote; by default :func:`results_folder`.
        target: The ledger of record.
        results_md: The page to rebuild.

    Returns:
        The records that were stored.

    Raises:
        RoadmapError: If there is nothing to store, or a record's lesson does not exist (it was renamed or removed).
    """
    source = results_folder() if source is None else source
    records = read_ledger(source)
    if not records:
        raise RoadmapError(f"There is no result in {source} to store; run lessons first: python -m common run all")
    known = [lesson.name for lesson in all_lessons()]
    for record in records:
        if record.lesson not in known:
            raise RoadmapError(
                f"{source} holds a result of {record.lesson!r}, but there is no such lesson; correct the name in its report(...) "
                f"or delete {record.lesson}.{record.scale}.json there."
            )
    for record in records:
        _write(record, target)
    write_results_md(target, results_md)
    return records


def write_results_md(ledger: Path = LEDGER, path: Path = RESULTS_MD) -> None:
    """Rebuild RESULTS.md from a ledger, with a row for every lesson there is."""
    page = markdown(read_ledger(ledger), [lesson.name for lesson in all_lessons()])
    path.write_text(page + gpu_table(ledger / "gpu"), encoding="utf-8")


def gpu_table(folder: Path) -> str:
    """What ``python -m tests.gpu`` measured, a table a card; says so where nothing has been measured.

    Args:
        folder: Holds the files that it wrote.

    Raises:
        RoadmapError: If a file there is not one of them, or was made at toy size.
    """
    lines = ["", "## On a GPU", ""]
    files = sorted(folder.glob("*.json"))
    if not files:
        lines.append("Not measured yet. `make gpu-bundle` makes an archive that runs where a GPU is at hand.")
    for path in files:
        try:
            run = json.loads(path.read_text(encoding="utf-8"))
            if run["toy"]:
                raise ValueError("it was made at toy size, which measures nothing")
            versions = ", ".join(f"{package} {number}" for package, number in run["versions"].items())
            lines += [f"{run['card']}, driver {run['driver']}, CUDA {run['cuda']}, {versions}; {run['date']}", ""]
            lines += ["| row | figure | median | spread | repeats |", "|---|---|---:|---:|---:|"]
            for name, row in run["rows"].items():
                for one in row["figures"]:
                    value, spread = f"{_number(one['value'])} {one['unit']}", _number(one["spread"])
                    lines.append(f"| {name} | {one['name']} | {value} | {spread} | {one['repeats']} |")
                if row.get("error"):
                    lines.append(f"| {name} | did not end well | {_words(row['error'][:80])} | | |")
            lines += [f"| {name} | left out | {_words(reason)} | | |" for name, reason in run["left_out"].items()]
        except (KeyError, TypeError, ValueError) as error:
            raise RoadmapError(f"{path} is not what `python -m tests.gpu` writes ({error}); remove it.") from error
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def markdown(records: Sequence[Record], names: Iterable[str] = ()) -> str:
    """The results page: a table a chapter, a row a lesson and scale.

    Args:
        records: What was measured.
        names: Lessons that get a row even where nothing was measured.
    """
    measured = {(record.lesson, record.scale): record for record in records}
    setups: dict[str, int] = {}
    lines = [
        "# Results",
        "",
        "Generated by `make results` from `assets/results`; nobody types a number into it. Every value stands beside its",
        "baseline, on a test split that no choice was made on; where it does not beat it, that is the lesson's finding.",
        "Tiny results are those of tiny models on small data.",
    ]
    every = sorted({*names, *(record.lesson for record in records)})
    for chapter, group in groupby(every, key=lambda name: name.partition("/")[0]):
        lines += ["", f"## {chapter}", ""]
        lines += ["| lesson | scale | metric | value | baseline | further figures | CPU seconds | peak MB | setup |"]
        lines += ["|---|---|---|---:|---|---|---:|---:|---:|"]
        for name in group:
            for size in SCALES:
                record = measured.get((name, size))
                lines.append(_row(name, size, record, setups))
    if setups:
        lines += ["", "## Setups", ""]
        lines += [f"{number}. {setup}" for setup, number in setups.items()]
    return "\n".join(lines) + "\n"


def compare(old: Sequence[Record], new: Sequence[Record], tolerance: float = 0.05) -> list[Move]:
    """Which figures of the new runs are not those of the old ones; lessons only one side has are passed over.

    Figures that are printed alike are alike.

    Args:
        old: The ledger of record.
        new: The last runs.
        tolerance: Allowed difference, relative to the larger of the two magnitudes, of figures without one of their own.

    Raises:
        RoadmapError: If the tolerance is negative or not a number.
    """
    if _finite("tolerance", tolerance) < 0:
        raise RoadmapError(f"The tolerance is {tolerance}; it must be 0 or more.")
    before = {(record.lesson, record.scale): record.figures for record in old}
    moves = []
    for record in new:
        was = before.get((record.lesson, record.scale), record.figures)
        for figure in {**was, **record.figures}:
            a, b = was.get(figure), record.figures.get(figure)
            own = record.tolerances.get("baseline" if figure.startswith("baseline (") else figure, tolerance)
            if _number(a) != _number(b) and (a is None or b is None or abs(a - b) > own * max(abs(a), abs(b))):
                moves.append(Move(record.lesson, record.scale, figure, a, b))
    return moves


def _write(record: Record, folder: Path) -> None:
    """Write beside, then replace: a reader, or a second kernel, never sees half a file."""
    path = folder / f"{record.lesson}.{record.scale}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".part", delete=False, encoding="utf-8") as file:
        file.write(json.dumps(asdict(record), ensure_ascii=False, indent=2) + "\n")
    os.chmod(file.name, 0o644)  # a temporary file is private, but these are committed
    os.replace(file.name, path)


def _finite(name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise RoadmapError(f"{name} is {value!r}, which is not a number.") from None
    if not math.isfinite(number):
        raise RoadmapError(
            f"{name} is {number}; the computation before it went wrong, often a division by zero or a diverged loss."
        )
    return float(f"{number:.6g}")  # more digits than that are noise in a diff


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _number(value: float | None) -> str:
    if value is None:
        return "absent"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.2f}" if abs(value) >= 10 else f"{value:.3f}"


def _words(name: str) -> str:
    return name.replace("_", " ").replace("|", "/")  # a bar would end the cell of a Markdown table


def _table(record: Record) -> str:
    rows = [(_words(record.metric), _number(record.value)), (f"baseline: {record.baseline_name}", _number(record.baseline))]
    rows += [(_words(name), _number(value)) for name, value in record.more.items()]
    wide, tall = (max(len(row[i]) for row in rows) for i in (0, 1))
    memory = f"peak {record.peak_mb:,.0f} MB" + (f", GPU peak {record.gpu_mb:,.0f} MB" if record.gpu_mb is not None else "")
    head = f"{record.lesson} ({record.scale}): {record.seconds:.0f} s, {memory}, {record.machine}"
    return "\n".join([head, *(f"  {name:<{wide}}  {value:>{tall}}" for name, value in rows)])


def _row(name: str, size: str, record: Record | None, setups: dict[str, int]) -> str:
    target = f"{name}.ipynb" if (ROOT / f"{name}.ipynb").exists() else name
    link = f"[{name.partition('/')[2]}]({target})"
    if record is None:
        return f"| {link} | {size} | not measured yet | | | | | | |"
    setup = ", ".join([record.machine, *(f"{package} {number}" for package, number in record.versions.items())])
    number = setups.setdefault(setup, len(setups) + 1)
    cpu = f"{record.cpu_seconds:,.0f}" if record.cpu_seconds is not None else "not measured yet"
    metric = _words(record.metric) + ("" if record.higher_is_better else " (lower is better)")
    further = ", ".join(f"{_words(key)} {_number(value)}" for key, value in record.more.items())
    memory = f"{record.peak_mb:,.0f}" + (f" + {record.gpu_mb:,.0f} GPU" if record.gpu_mb is not None else "")
    beaten = record.value > record.baseline if record.higher_is_better else record.value < record.baseline
    verdict = "" if beaten else " (not beaten)"
    figures = f"**{_number(record.value)}** | {_words(record.baseline_name)} {_number(record.baseline)}{verdict}"
    return f"| {link} | {size} | {metric} | {figures} | {further} | {cpu} | {memory} | {number} |"
