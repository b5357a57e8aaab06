"""Find, execute and copy lessons: what the command line does with notebooks."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import RoadmapError
from common.models import MODELS
from common.paths import ROOT, outputs

_NUMBERED = re.compile(r"\d\d-[\w-]+")
_TO_EDIT = re.compile(r"^[A-Z_]+ *= *(?:checkpoint|load_data|pick)\(.*$", re.M)


@dataclass(frozen=True)
class Lesson:
    """A numbered notebook. ``name`` is what commands and results call it, such as ``02-NLP_tasks/02-ner``."""

    name: str
    path: Path

    def read(self) -> dict[str, Any]:
        """The notebook as JSON.

        Raises:
            RoadmapError: If the file is not a notebook.
        """
        try:
            notebook: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8"))
            notebook["cells"]
        except (ValueError, KeyError, UnicodeDecodeError) as error:
            raise RoadmapError(f"{self.path} is not a notebook; only .ipynb files can be run.") from error
        return notebook

    @property
    def code(self) -> str:
        """All code cells as one text."""
        return "\n".join("".join(cell["source"]) for cell in self.read()["cells"] if cell["cell_type"] == "code")

    @property
    def scripts(self) -> list[Path]:
        """The programs beside the notebook of a lesson that is a folder."""
        return sorted(self.path.parent.rglob("*.py")) if self.path.parent.name == self.path.stem else []


@dataclass(frozen=True)
class Run:
    """What came of executing a lesson.

    Attributes:
        lesson: Which.
        seconds: Wall-clock time.
        written: The executed notebook.
        error: Of the first failing cell; None if every cell ran.
        claims: In a copied lesson, the numbers of the cells that claim something of the course's data and do not hold here.
    """

    lesson: Lesson
    seconds: float
    written: Path
    error: str | None
    claims: tuple[int, ...] = ()


def all_lessons(root: Path = ROOT) -> list[Lesson]:
    """Every lesson in reading order: ``NN-*/NN-*.ipynb``, or ``NN-*/NN-slug/NN-*.ipynb`` for a lesson that is a folder."""
    found = []
    for chapter in sorted(root.glob("[0-9][0-9]-*/")):
        for path in chapter.glob("**/[0-9][0-9]-*.ipynb"):
            parts = path.relative_to(root).parts
            if ".ipynb_checkpoints" not in parts and all(_NUMBERED.match(part) for part in parts):
                name = "/".join(parts[:2]).removesuffix(".ipynb")
                found.append(Lesson(name, path))
    return sorted(found, key=lambda lesson: lesson.name)


def resolve(target: str, root: Path = ROOT) -> list[Lesson]:
    """The lessons that a name means.

    Args:
        target: ``all``; ``demo`` (a short one of each chapter); a chapter (``01`` or its full name); a lesson (its
            full name, or the part after the slash); or the path of a notebook.
        root: Where the chapters are.

    Raises:
        RoadmapError: Nothing, or more than one lesson, has that name.
    """
    lessons = all_lessons(root)
    if target.endswith(".ipynb") and Path(target).is_file():
        path = Path(target).resolve()
        return [next((one for one in lessons if one.path == path), Lesson(path.stem, path))]
    if target == "all":
        return lessons
    if target == "demo":
        return _demo(lessons)
    name = target.strip("/").removesuffix(".ipynb")
    chapter = [one for one in lessons if name in (one.name.split("/")[0], one.name[:2])]
    exact = [one for one in lessons if name in (one.name, one.name.split("/")[1])]
    if len(exact) > 1:
        raise RoadmapError(f"{target!r} means {len(exact)} lessons: {', '.join(one.name for one in exact)}; give the full name.")
    if not (exact or chapter):
        close = [one.name for one in lessons if name.lower() in one.name.lower()]
        hint = f" Did you mean {', '.join(close[:3])}?" if close else ""
        raise RoadmapError(f"There is no lesson or chapter named {target!r}.{hint} See: python -m common list")
    return exact or chapter


def _demo(lessons: list[Lesson]) -> list[Lesson]:
    """Of each chapter the lesson whose metadata says so, else its first."""
    chosen: dict[str, Lesson] = {}
    for one in lessons:
        chapter = one.name.split("/")[0]
        if chapter not in chosen or one.read()["metadata"].get("roadmap", {}).get("demo"):
            chosen[chapter] = one
    return list(chosen.values())


def execute(lesson: Lesson, *, scale: str = "tiny", store: bool = False, tick: Callable[[], object] = lambda: None) -> Run:
    """Run a lesson top to bottom in a fresh kernel.

    Args:
        lesson: What to run.
        scale: ``"tiny"`` or ``"full"``.
        store: Write the outputs into the lesson itself (only if every cell ran); else into ``outputs/executed``.
        tick: Called after each cell.

    Returns:
        Seconds, where the executed notebook was written, and the error of the first failing cell. In a folder made by
        :func:`copy` the data is the reader's, so cells with the tag ``claim`` may fail there.
    """
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError

    lesson.read()
    notebook = nbformat.read(lesson.path, as_version=4)
    copied = not (ROOT / "pyproject.toml").exists()
    claims = [i for i, cell in enumerate(notebook.cells) if copied and "claim" in cell.metadata.get("tags", [])]
    for i in claims:
        notebook.cells[i].metadata["tags"].append("raises-exception")  # for the client: go on
    environment = os.environ | {"ROADMAP_SCALE": scale, "ROADMAP_QUIET": "1", "PYTHONPATH": _python_path()}
    if scale == "tiny":  # the same figures on every machine, and no quarrel between two kernels
        environment |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    else:
        for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
            environment.pop(name, None)
    client = NotebookClient(
        notebook,
        timeout=600 if scale == "tiny" else None,
        kernel_name="python3",
        record_timing=False,
        extra_arguments=["--log-level=ERROR"],  # or each kernel warns that it talks over a local port
        coalesce_streams=True,
        resources={"metadata": {"path": str(lesson.path.parent)}},
        on_cell_executed=lambda **_: tick(),
    )
    began, error = time.perf_counter(), None
    try:
        client.execute(env=environment)
    except (CellExecutionError, CellTimeoutError, RuntimeError) as problem:  # the last: a kernel that died or never started
        error = str(problem).strip()
    seconds = time.perf_counter() - began
    failed = tuple(i for i in claims if any(out.output_type == "error" for out in notebook.cells[i].get("outputs", [])))
    for i in claims:
        notebook.cells[i].metadata["tags"].remove("raises-exception")
    executed = outputs("executed") / f"{lesson.name.replace('/', '--')}.{scale}.ipynb"
    target = lesson.path if store and error is None else executed
    _write(_tidy(notebook), target)
    return Run(lesson, seconds, target, error, failed)


def _python_path() -> str:
    """Kernels start in the lesson's folder; a copied lesson's ``common`` is found through this."""
    return os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))


def _tidy(notebook: Any) -> Any:
    """Keep what a reader sees, so that a second run gives the same bytes."""
    notebook.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata["language_info"] = {"name": "python"}
    notebook.metadata.pop("widgets", None)
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number:02d}"
        cell.metadata.pop("execution", None)
    return notebook


def _write(notebook: Any, path: Path) -> None:
    import nbformat

    part = path.with_suffix(".part")
    nbformat.write(notebook, part)
    part.replace(path)  # an interrupted run leaves the old notebook whole


def copy(
    target: str,
    destination: Path,
    *,
    data: Path | None = None,
    columns: Mapping[str, str] | None = None,
    force: bool = False,
    root: Path = ROOT,
) -> list[Path]:
    """Copy lessons into a folder that runs on its own: with ``common``, the assets they use and their requirements.

    Args:
        target: As in :func:`resolve`.
        destination: A new or empty folder.
        data: A file or folder of one's own. It is copied too, and the lesson's line ``DATA = load_data(...)`` reads it.
        columns: Only with ``data``: field of the task to column of the file, where their names differ.
        force: Allow a folder that holds files; those of the same name are replaced.
        root: The repository.

    Returns:
        The copied notebooks.

    Raises:
        RoadmapError: Unknown lesson; a destination that holds files, lies inside the repository's own folders, or is a file;
            a file of data that is missing, or a lesson that reads none.
    """
    lessons = resolve(target, root)
    if data is not None:
        _check_reads(lessons, data)
    destination = destination.expanduser().resolve()
    if destination.is_file():
        raise RoadmapError(f"{destination} is a file; give the name of a folder.")
    if destination == root or root in destination.parents:
        raise RoadmapError(f"{destination} lies inside the course itself; give a folder outside {root}.")
    if destination.is_dir() and any(destination.iterdir()) and not force:
        raise RoadmapError(f"{destination} is not empty; give another folder, or --force to write into it.")
    try:
        destination.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RoadmapError(f"The folder {destination} cannot be made ({error.strerror}); give another folder.") from error
    copied = []
    for lesson in lessons:
        if lesson.path.parent.parent == root:
            copied.append(Path(shutil.copy(lesson.path, destination / lesson.path.name)))
        else:  # a lesson that is a folder takes its scripts along
            shutil.copytree(lesson.path.parent, destination / lesson.path.parent.name, dirs_exist_ok=True, ignore=_LITTER)
            copied.append(destination / lesson.path.parent.name / lesson.path.name)
    if data is not None:
        _bring_data(copied, destination, data, columns or {})
    shutil.copytree(root / "common", destination / "common", dirs_exist_ok=True, ignore=_LITTER)
    for name in _assets_used(lessons):
        source, place = root / "assets" / name, destination / "assets" / name
        if source.is_dir():
            shutil.copytree(source, place, dirs_exist_ok=True, ignore=_LITTER)
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, place)
    (destination / "requirements.txt").write_text("\n".join(_requirements(root)) + "\n", encoding="utf-8")
    (destination / "README.md").write_text(_readme(lessons, copied, destination), encoding="utf-8")
    return copied


_READS = re.compile(r"""^(\w+ = load_data\(["'][\w-]+["'])\)""", re.M)  # the line of a lesson that says what data it reads


def _check_reads(lessons: list[Lesson], data: Path) -> None:
    """Refuse data that is not there, and lessons without a line that reads data."""
    if not data.expanduser().exists():
        raise RoadmapError(f"There is no file {data}; check the path (it is read relative to {Path.cwd()}).")
    if without := [lesson.name for lesson in lessons if not _READS.search(lesson.code)]:
        raise RoadmapError(f"{without[0]} has no line DATA = load_data(...), so it cannot read a file; leave --data out.")


def _bring_data(notebooks: list[Path], destination: Path, data: Path, columns: Mapping[str, str]) -> None:
    """Put the data into the folder, and its path into the line of each notebook that reads data."""
    source, place = data.expanduser().resolve(), destination / "data" / data.name
    place.parent.mkdir(exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, place, dirs_exist_ok=True)
    else:
        shutil.copy(source, place)
    named = "".join(f", {column}={json.dumps(name, ensure_ascii=False)}" for column, name in columns.items())
    for path in notebooks:
        file = Path(os.path.relpath(place, path.parent)).as_posix()
        notebook = json.loads(path.read_text(encoding="utf-8"))
        _read_file(notebook, f', file="{file}"{named}')
        path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _read_file(notebook: dict[str, Any], options: str) -> None:
    """Add options to the first line that reads data. Stored outputs go: they are of other data."""
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for cell in cells:
        cell["outputs"], cell["execution_count"] = [], None
    first = next(cell for cell in cells if _READS.search("".join(cell["source"])))
    line = _READS.search(code := "".join(first["source"]))
    assert line is not None
    first["source"] = (code[: line.end() - 1] + options + code[line.end() - 1 :]).splitlines(keepends=True)


_LITTER = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", ".*-run", "outputs")


def _assets_used(lessons: list[Lesson]) -> Iterator[str]:
    """Names below ``assets`` of what lessons and their scripts need; frozen data is small and always goes along."""
    yield from ("fonts", "metrics", "data")
    code = "\n".join(text for one in lessons for text in (one.code, *(path.read_text("utf-8") for path in one.scripts)))
    yield from (f"results/{name}" for name in sorted(set(re.findall(r"""ASSETS / ["']results["'] / ["']([\w.-]+)["']""", code))))
    for name, card in MODELS.items():
        if re.search(rf"""checkpoint\(["']{name}["']\)""", code):
            yield f"models/{card.tiny}"


def _requirements(root: Path) -> list[str]:
    """The project's own dependencies at the versions that were tested together."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    tested = dict(line.split("==") for line in (root / "constraints.txt").read_text().splitlines() if "==" in line)
    tested = {name.lower().replace("_", "-"): version for name, version in tested.items()}
    names = [re.split(r"[<>=!~\[ ]", requirement)[0] for requirement in project["dependencies"]]
    return [f"{name}=={tested[key]}" if (key := name.lower().replace("_", "-")) in tested else name for name in names]


def _readme(lessons: list[Lesson], copied: list[Path], destination: Path) -> str:
    first = copied[0].relative_to(destination).as_posix()
    lines = [
        f"# Started from {', '.join(lesson.name for lesson in lessons)}",
        "",
        "This folder runs on its own. In it:",
        "",
        "```",
        "python3 -m venv .venv && .venv/bin/pip install -r requirements.txt",
        f".venv/bin/python -m common run {first}",
        "```",
        "",
        "or open the notebook in JupyterLab. The executed notebook is written to `outputs/executed`.",
        "",
        "## The lines to edit",
        "",
    ]
    for lesson in lessons:
        found = list(dict.fromkeys(match.group().split("  #")[0].rstrip() for match in _TO_EDIT.finditer(lesson.code)))
        lines += [f"In `{lesson.path.name}`:", "", "```python", *found[:3], "```", ""]
        programs = [path for path in lesson.scripts if "__main__" in path.read_text("utf-8")]
        if programs:
            where = lesson.path.parent.name
            lines += [f"Its programs run from this folder (what each does is in `{where}/README.md`):", "", "```"]
            lines += [*(f"PYTHONPATH=. .venv/bin/python {where}/{path.name} --help" for path in programs), "```", ""]
    lines += [
        'Your own data: `DATA = load_data("my.csv", text="review", label="stars")` - a `.csv`, `.tsv`, `.json`, `.jsonl` or',
        "`.parquet` file; the two names are your columns. It is deduplicated and split 80/10/10 within each label.",
        'For another task, name it: `load_data("ner", file="my.jsonl")`; `common/data/readers/FORMATS.md` shows every format.',
        "",
        'Your own model: `MODEL = "path/or/hub-name"`. Real models on a GPU without editing: `ROADMAP_SCALE=full`.',
        "",
    ]
    return "\n".join(lines)
