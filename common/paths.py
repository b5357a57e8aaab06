"""Where things are: the repository, its assets, the cache and what a lesson writes."""

from __future__ import annotations

import os
from pathlib import Path

from common.errors import RoadmapError

ROOT = Path(__file__).resolve().parent.parent  # the repository, or the folder made by `python -m common copy`
ASSETS = ROOT / "assets"


def home() -> Path:
    """The cache for archives and built data sets: ``ROADMAP_HOME``, else the user's cache folder.

    Raises:
        RoadmapError: If the folder cannot be created or written.
    """
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(os.environ.get("ROADMAP_HOME") or Path(base) / "llm-roadmap").expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RoadmapError(
            f"The cache folder {folder} cannot be created ({error.strerror}); set ROADMAP_HOME to a folder you can write."
        ) from error
    if not os.access(folder, os.W_OK):
        raise RoadmapError(f"The cache folder {folder} cannot be written; set ROADMAP_HOME to a folder you can write.")
    return folder


def outputs(lesson: str) -> Path:
    """A folder for what a lesson writes (checkpoints, figures): ``outputs/<lesson>``, kept out of git.

    Args:
        lesson: The lesson's name, such as ``"01-transformers_practices/07-trainer"``.
    """
    folder = Path(os.environ.get("ROADMAP_OUTPUTS") or ROOT / "outputs") / lesson
    folder.mkdir(parents=True, exist_ok=True)
    return folder
