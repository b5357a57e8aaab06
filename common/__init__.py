"""What the lessons are not about, held once: data, tiny models, metrics, a training loop, plots.

Names load on first use, so that ``import common`` stays fast and sets the environment before torch is imported.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from common.scale import prepare_environment

prepare_environment()

_HOME = {
    "RoadmapError": "errors",
    "pick": "scale",
    "progress": "scale",
    "ASSETS": "paths",
    "outputs": "paths",
    "load_data": "data",
    "checkpoint": "models",
    "from_scratch": "models",
    "Probe": "hardware",
    "device": "hardware",
    "set_seed": "hardware",
    "fit": "training",
    "training_arguments": "training",
    "report": "course.results",
}
__all__ = sorted(_HOME)

if TYPE_CHECKING:
    from common.course.results import report
    from common.data import load_data
    from common.errors import RoadmapError
    from common.hardware import Probe, device, set_seed
    from common.models import checkpoint, from_scratch
    from common.paths import ASSETS, outputs
    from common.scale import pick, progress
    from common.training import fit, training_arguments


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'common' has no attribute {name!r}")
    return getattr(import_module(f"common.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
