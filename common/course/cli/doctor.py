"""``python -m common doctor``: what this machine has, what is missing, and the command that fixes it."""

from __future__ import annotations

import argparse
import os
import sys

from common.errors import RoadmapError
from common.paths import home
from common.scale import scale

HELP = "what this machine has, what is missing, and the command that fixes it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Nothing can be said after this verb."""


def run(options: argparse.Namespace) -> int:
    """Versions, device, memory, disk, cache, Hub; every line that is not ok says what to do."""
    from importlib.metadata import PackageNotFoundError, version

    import psutil  # type: ignore[import-untyped]

    problems = 0

    def line(ok: bool | None, what: str, fix: str = "") -> None:
        nonlocal problems
        problems += ok is False
        print(f"{ {True: 'ok', False: 'MISSING', None: 'note'}[ok]:8}{what}" + (f"\n        -> {fix}" if fix and not ok else ""))

    line(sys.version_info >= (3, 11), f"Python {sys.version.split()[0]}", "install Python 3.11 or newer and remove .venv")
    needed = (
        "torch",
        "transformers",
        "datasets",
        "evaluate",
        "accelerate",
        "peft",
        "bitsandbytes",
        "deepspeed",
        "ipykernel",
        "nbclient",
    )
    for package in needed:
        try:
            line(True, f"{package} {version(package)}")
        except PackageNotFoundError:
            line(False, package, "make demo, or: pip install -c constraints.txt -e .")
    for package, extra in (("nbval", "test"), ("fastapi", "serve"), ("jupyterlab", "docs")):
        try:
            line(True, f"{package} {version(package)}")
        except PackageNotFoundError:
            line(None, f"{package} is not installed (optional)", f"pip install -c constraints.txt -e '.[{extra}]'")
    import torch

    memory = psutil.virtual_memory().total / 2**30
    line(memory >= 4, f"{os.cpu_count()} cores, {memory:.0f} GiB memory", "4 GiB are needed; close other programs")
    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(0)
        line(True, f"GPU {gpu.name}, {gpu.total_memory / 2**30:.0f} GiB")
    else:
        line(None, "no CUDA device: tiny scale runs on the CPU", "full scale needs a GPU and a CUDA build of torch")
    free = psutil.disk_usage(str(home())).free / 2**30
    line(free >= 2, f"cache {home()}, {free:.0f} GiB free", "2 GiB are needed; set ROADMAP_HOME to another disk")
    from common.data import DATA
    from common.packages import is_cached

    archives = {archive for card in DATA.values() for archive in card.archives}
    absent = [name for name in archives if not is_cached(name)]
    line(
        not absent or None,
        f"data archives: {len(archives) - len(absent)} of {len(archives)} cached",
        "python -m common data --fetch",
    )
    from common.models import MODELS, checkpoint

    for name in MODELS:
        try:
            line(True, f"checkpoint {name}: {checkpoint(name)}")
        except RoadmapError as error:
            line(False, f"checkpoint {name}", str(error))
    line(True, f"scale {scale()}")
    if scale() == "full":
        line(*_hub())
    print("Everything that is needed is here." if not problems else f"{problems} thing(s) missing.")
    return 1 if problems else 0


def _hub() -> tuple[bool, str, str]:
    """Whether the Hub, or the mirror in ``HF_ENDPOINT``, answers."""
    import urllib.request

    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        urllib.request.urlopen(f"{endpoint}/api/models/hfl/chinese-macbert-base", timeout=10).close()
        return True, f"Hub {endpoint}", ""
    except OSError as error:
        return False, f"Hub {endpoint} does not answer ({error})", "set HF_ENDPOINT to a mirror you can reach"
