"""The one switch: tiny (default: CPU, offline, seconds) or full (real models and data from the Hub).

``import common`` runs this module first, because most of these variables are read once, when torch,
transformers or datasets are imported. A variable the reader has set is never overwritten.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal, TypeVar

from common.errors import RoadmapError

if TYPE_CHECKING:
    from tqdm.std import tqdm

T = TypeVar("T")
SCALES = ("tiny", "full")

_ALWAYS = {
    "OMP_WAIT_POLICY": "PASSIVE",  # spinning threads of two processes on two cores cost a factor of 4 to 20
    "TOKENIZERS_PARALLELISM": "false",  # its threads and fork do not mix, and it warns about that on every fork
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",  # the only way to silence the "Loading weights" bar
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",  # one bar style in lessons: `progress` below
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_VERBOSITY": "error",  # a new task head is announced as a table of missing weights at every load
}
_OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}


def scale() -> str:
    """The scale in force: ``"tiny"`` or ``"full"``, from the variable ``ROADMAP_SCALE``.

    Raises:
        RoadmapError: If the variable holds anything else.
    """
    value = os.environ.get("ROADMAP_SCALE", "tiny").strip().lower()
    if value not in SCALES:
        raise RoadmapError(f"ROADMAP_SCALE is {value!r}; it must be 'tiny' (default) or 'full'.")
    return value


def pick(*, tiny: T, full: T) -> T:
    """Return the value of the scale in force, so that a reader sees both side by side.

    >>> pick(tiny=2, full=3)  # with ROADMAP_SCALE unset
    2
    """
    return tiny if scale() == "tiny" else full


def cap(what: Literal["steps", "rows"]) -> int | None:
    """The most optimiser steps of a training, or rows of a split, in a rehearsal; None means no limit.

    A rehearsal runs real model classes in minutes: it sets ``ROADMAP_MAX_STEPS`` and ``ROADMAP_MAX_ROWS``, which ``fit``,
    ``training_arguments`` and ``load_data`` obey. The first time a limit is read, one line says so.

    Raises:
        RoadmapError: If the variable holds anything but a whole number above 0.
    """
    name = f"ROADMAP_MAX_{what.upper()}"
    value = os.environ.get(name, "")
    if not value:
        return None
    if not value.isdigit() or int(value) < 1:
        raise RoadmapError(f"{name} is {value!r}; it must be a whole number above 0, or unset.")
    if name not in _said:
        _said.add(name)
        print(f"Rehearsal: {name}={value}, so figures mean nothing.")
    return int(value)


_said: set[str] = set()  # limits that have been announced in this process


def prepare_environment() -> None:
    """Set the variables that libraries read at import; tiny scale also forbids every Hub call."""
    switches = _ALWAYS | (_OFFLINE if os.environ.get("ROADMAP_SCALE", "tiny").strip().lower() == "tiny" else {})
    for name, value in switches.items():
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore", message="IProgress not found")  # the course uses text bars, not widgets
    # on some CPUs it would fetch a kernel from the Hub and warns that it cannot; its built-in one gives the same numbers
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    # said at import, with the time of day, by a library that most lessons never use
    logging.getLogger("DeepSpeed").addFilter(lambda record: not record.getMessage().startswith("Setting accelerator to CPU"))


def quiet() -> bool:
    """Whether progress bars are off: ``ROADMAP_QUIET=1``, as in tests and when outputs are stored."""
    return os.environ.get("ROADMAP_QUIET", "") not in ("", "0")


def progress(iterable: Iterable[T] | None = None, *, total: int | None = None, label: str = "") -> tqdm[T]:
    """A plain text bar over an iterable, or one to be moved by hand; never a widget, and silent when :func:`quiet`."""
    from tqdm.std import tqdm

    return tqdm(iterable, total=total, desc=label or None, disable=quiet(), file=sys.stderr, leave=False)
