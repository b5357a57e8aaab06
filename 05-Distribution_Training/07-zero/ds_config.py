"""DeepSpeed configurations from one template, and a check that finds what DeepSpeed itself would silently ignore.

    python ds_config.py --stage 3 --offload optimizer > zero3.json

DeepSpeed refuses an unknown key inside ``zero_optimization`` with a page of text; at the top level it says nothing, and
trains with the default. Here both are one sentence.
"""

from __future__ import annotations

import argparse
import difflib
import inspect
import json
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from common import RoadmapError, pick

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # or deepspeed warns that it has found nothing better

from deepspeed.runtime import constants
from deepspeed.runtime.precision_config import DeepSpeedBF16Config
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from deepspeed.runtime.zero.offload_config import DeepSpeedZeroOffloadOptimizerConfig, DeepSpeedZeroOffloadParamConfig

TEMPLATE = Path(__file__).with_name("ds_config.template.json")
DEFAULTS: dict[str, Any] = {
    "stage": 2,
    "batch_size": 8,
    "accumulate": 1,
    "clip": 0.0,
    "lr": pick(tiny=3e-4, full=2e-5),
    "weight_decay": 0.01,
    "bf16": pick(tiny=False, full=True),
    "offload_optimizer": "none",
    "offload_param": "none",
}
# one level below the top: where DeepSpeed says what it knows
KNOWN: dict[str, Iterable[str]] = {
    "": {v for k, v in vars(constants).items() if k.isupper() and isinstance(v, str)}
    | {"zero_optimization", "activation_checkpointing", "flops_profiler", "tensorboard", "csv_monitor", "wandb"},
    "zero_optimization": {name for n, field in DeepSpeedZeroConfig.model_fields.items() for name in (n, field.alias) if name},
    "zero_optimization.offload_optimizer": DeepSpeedZeroOffloadOptimizerConfig.model_fields,
    "zero_optimization.offload_param": DeepSpeedZeroOffloadParamConfig.model_fields,
    "optimizer": ("type", "params", "legacy_fusion"),
    "optimizer.params": {*inspect.signature(torch.optim.AdamW).parameters, "torch_adam", "adam_w_mode"} - {"params"},
    "bf16": DeepSpeedBF16Config.model_fields,
}


def make(**values: Any) -> dict[str, Any]:
    """Fill the template; what is not given has the value in :data:`DEFAULTS`.

    Args:
        values: ``stage`` 0 to 3, ``batch_size`` (texts a rank and batch), ``accumulate``, ``clip`` (0 for none), ``lr``,
            ``weight_decay``, ``bf16``, ``offload_optimizer`` and ``offload_param`` (``"none"`` or ``"cpu"``).

    Raises:
        RoadmapError: A value without a place in the template, or a configuration that :func:`validate` refuses.
    """
    _refuse_unknown("The template", values, DEFAULTS)
    config = _filled(json.loads(TEMPLATE.read_text(encoding="utf-8")), DEFAULTS | values)
    for offload in ("offload_optimizer", "offload_param"):
        if config["zero_optimization"][offload]["device"] == "none":
            del config["zero_optimization"][offload]
    validate(config)
    return config


def read(path: Path) -> dict[str, Any]:
    """A configuration from a file, checked by :func:`validate`.

    Raises:
        RoadmapError: No such file, a file that is not JSON, or a configuration that is refused.
    """
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RoadmapError(f"There is no configuration {path}; make one: python ds_config.py --stage 3 > {path}") from None
    except ValueError as error:
        raise RoadmapError(f"{path} is not JSON: {error}.") from None
    validate(config)
    return config


def validate(config: Mapping[str, Any]) -> None:
    """Find what cannot be meant, before any process is started.

    Raises:
        RoadmapError: An unknown key, with the place and the nearest known one; a stage that does not exist; an offload or a
            number format that the stage or the machine does not have; an optimiser that would need a C++ compiler.
    """
    adam = config.get("optimizer", {}).get("type", "AdamW") in ("Adam", "AdamW")
    for place, known in KNOWN.items():
        if place == "optimizer.params" and not adam:
            continue  # those of other optimisers are the reader's to know
        part: Any = config
        for step in filter(None, place.split(".")):
            part = part.get(step, {}) if isinstance(part, Mapping) else {}
        _refuse_unknown(f"{place} of the configuration" if place else "The top level of the configuration", part, known)
    zero, cpu = config.get("zero_optimization", {}), not torch.cuda.is_available()
    stage = zero.get("stage", 0)
    if stage not in (0, 1, 2, 3):
        raise RoadmapError(f"There is no ZeRO stage {stage!r}; choose 0, 1, 2 or 3.")
    if "offload_param" in zero and stage != 3:
        raise RoadmapError(f"offload_param needs stage 3, which alone cuts parameters up; this is stage {stage}.")
    if "offload_optimizer" in zero and stage == 0:
        raise RoadmapError("offload_optimizer needs stage 1, 2 or 3; stage 0 is plain data parallelism.")
    if cpu and config.get("fp16", {}).get("enabled"):
        raise RoadmapError("fp16 does not exist on a CPU; use bf16, or neither.")
    if cpu and adam and not config.get("optimizer", {}).get("params", {}).get("torch_adam"):
        raise RoadmapError('Without "torch_adam": true DeepSpeed compiles an optimiser of its own, which needs g++ and minutes.')


def _filled(part: Any, values: Mapping[str, Any]) -> Any:
    if isinstance(part, dict):
        return {key: _filled(value, values) for key, value in part.items()}
    return values[part[1:]] if isinstance(part, str) and part.startswith("$") else part


def _refuse_unknown(place: str, given: Iterable[str], known: Iterable[str]) -> None:
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, list(known), 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; it knows: {', '.join(sorted(known)[:12])} ..."
            raise RoadmapError(f"{place} has no key {name!r}{hint}")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", type=int, default=DEFAULTS["stage"])
    parser.add_argument("--offload", choices=("none", "optimizer", "all"), default="none", help="what waits in CPU memory")
    parser.add_argument("--batch-size", type=int, default=DEFAULTS["batch_size"], help="texts a process takes at a time")
    parser.add_argument("--accumulate", type=int, default=DEFAULTS["accumulate"], help="batches before an update")
    parser.add_argument("--lr", type=float, default=DEFAULTS["lr"])
    parser.add_argument("--clip", type=float, default=DEFAULTS["clip"], help="largest gradient norm (default: no limit)")
    options = vars(parser.parse_args(arguments))
    offload = options.pop("offload")
    options["offload_optimizer"] = "none" if offload == "none" else "cpu"
    options["offload_param"] = "cpu" if offload == "all" else "none"
    print(json.dumps(make(**options), indent=2))


if __name__ == "__main__":
    try:
        main()
    except RoadmapError as error:
        sys.exit(f"error: {error}")
