"""Run lessons at full scale, unchanged, against the local Hub: ``python -m tests.rehearse [LESSON ... | sample | all]``.

The models there have the real classes and know nothing, so a failing cell with the tag ``claim`` is noted and any other
failing cell fails the rehearsal. Training and data are cut short by ROADMAP_MAX_STEPS and ROADMAP_MAX_ROWS.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from common.course.lessons import Lesson, resolve
from common.errors import RoadmapError
from common.paths import ROOT

from tests.hub import ready
from tests.hub.server import serve

SAMPLE = (  # one lesson of each chapter, as far as they pass
    "01-transformers_practices/06-evaluate",
    "02-NLP_tasks/14-decoder_anatomy",
    "05-Distribution_Training/07-zero",
    "06-Multimodal-LLM/02-build_llava",
)
LIMITS = {"ROADMAP_MAX_STEPS": "3", "ROADMAP_MAX_ROWS": "96"}
CELL_TIMEOUT = 900  # wall-clock seconds, only against hangs
PRETEND = "from tests.hub.second_device import install\n\ninstall()"


@dataclass(frozen=True)
class Outcome:
    """What came of one lesson.

    Attributes:
        lesson: Which.
        seconds: Wall-clock time.
        claims: Numbers of the claim cells that failed, which they may.
        error: The first other failure, with the number of its cell; None if there was none.
    """

    lesson: Lesson
    seconds: float
    claims: list[int] = field(default_factory=list)
    error: str | None = None


def main(arguments: list[str] | None = None) -> int:
    """Rehearse and print a table; 1 if a cell without the tag ``claim`` failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.rehearse", description=__doc__)
    parser.add_argument("target", nargs="+", help="lessons or chapters, 'sample' or 'all'")
    parser.add_argument("--second-device", action="store_true", help="also find tensors that are not moved with the model")
    options = parser.parse_args(arguments)
    try:
        targets = [name for target in options.target for name in (SAMPLE if target == "sample" else (target,))]
        lessons = list(dict.fromkeys(lesson for target in targets for lesson in resolve(target)))
    except RoadmapError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    failed = 0
    for outcome in rehearse(lessons, second_device=options.second_device):
        failed += outcome.error is not None
        claims = f"; claims that failed, as they may: cells {outcome.claims}" if outcome.claims else ""
        print(f"{'FAILED' if outcome.error else 'ok':6} {outcome.lesson.name}  {outcome.seconds:.0f} s{claims}", flush=True)
        if outcome.error:
            print(f"       {outcome.error}", flush=True)
    print(f"{len(lessons) - failed} of {len(lessons)} lessons ran at full scale against the local Hub.")
    return 1 if failed else 0


def rehearse(lessons: Iterable[Lesson], *, second_device: bool = False) -> Iterator[Outcome]:
    """Run lessons one after another against one server.

    Args:
        lessons: Which.
        second_device: Pretend that there is one, see :mod:`tests.hub.second_device`.
    """
    with serve(ready()) as endpoint, tempfile.TemporaryDirectory() as folder:
        paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "ROADMAP_"))}
        environment |= {"ROADMAP_SCALE": "full", "ROADMAP_QUIET": "1", "HF_ENDPOINT": endpoint, "HF_HOME": folder, **LIMITS}
        environment |= {"ROADMAP_OUTPUTS": f"{folder}/outputs", "ROADMAP_RESULTS": f"{folder}/results", "PYTHONPATH": paths}
        environment |= {"HF_HUB_DISABLE_XET": "1"}  # another protocol for large files, which the local server does not speak
        for lesson in lessons:
            yield one(lesson, environment, second_device)


def one(lesson: Lesson, environment: dict[str, str], second_device: bool) -> Outcome:
    """Run one lesson in a fresh kernel."""
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError

    notebook = nbformat.read(lesson.path, as_version=4)
    offset = 0
    if second_device:
        notebook.cells.insert(0, nbformat.v4.new_code_cell(PRETEND))
        offset = 1
    claims = [i for i, cell in enumerate(notebook.cells) if "claim" in cell.metadata.get("tags", [])]
    for i in claims:
        notebook.cells[i].metadata["tags"] = ["claim", "raises-exception"]  # nbclient then goes on
    at = [0]
    client = NotebookClient(
        notebook,
        timeout=CELL_TIMEOUT,
        kernel_name="python3",
        resources={"metadata": {"path": str(lesson.path.parent)}},
        extra_arguments=["--log-level=ERROR"],
        on_cell_start=lambda cell, cell_index: at.__setitem__(0, cell_index),
    )
    began, error = time.perf_counter(), None
    try:
        client.execute(env=environment)
    except (CellExecutionError, CellTimeoutError, RuntimeError) as problem:
        lines = [line for line in str(problem).strip().splitlines() if line.strip()]
        error = f"cell {at[0] - offset}: {lines[-1][:300] if lines else type(problem).__name__}"
    failed = [i - offset for i in claims if any(out.output_type == "error" for out in notebook.cells[i].get("outputs", []))]
    return Outcome(lesson, time.perf_counter() - began, failed, error)


if __name__ == "__main__":
    sys.exit(main())
