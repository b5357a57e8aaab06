"""``python -m common doctor``: what this machine has, what is missing, and the command that fixes it."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator

from common.errors import RoadmapError
from common.paths import home
from common.scale import scale

HELP = "what this machine has, what is missing, and the command that fixes it"
NEEDED = (
    *("torch", "transformers", "datasets", "evaluate", "accelerate"),
    *("peft", "bitsandbytes", "deepspeed", "ipykernel", "nbclient"),
)
OPTIONAL = {"nbval": "test", "fastapi": "serve", "jupyterlab": "docs"}  # package: the extra that brings it
Line = tuple[bool | None, str, str]  # whether it is there (None: not needed), what, and what to do


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Nothing can be said after this verb."""


def run(options: argparse.Namespace) -> int:
    """Print a line for everything that is looked at; every line that is not ok says what to do."""
    missing = 0
    for check in (packages, hardware, files, hub):
        for ok, what, fix in check():
            missing += ok is False
            word = {True: "ok", False: "MISSING", None: "note"}[ok]
            print(f"{word:8}{what}" + (f"\n        -> {fix}" if fix and not ok else ""))
    print("Everything that is needed is here." if not missing else f"{missing} thing(s) missing.")
    return 1 if missing else 0


def packages() -> Iterator[Line]:
    """Python and the libraries."""
    from importlib.metadata import PackageNotFoundError, version

    yield sys.version_info >= (3, 11), f"Python {sys.version.split()[0]}", "install Python 3.11 or newer and remove .venv"
    for package in NEEDED:
        try:
            yield True, f"{package} {version(package)}", ""
        except PackageNotFoundError:
            yield False, package, "make demo, or: pip install -c constraints.txt -e ."
    for package, extra in OPTIONAL.items():
        try:
            yield True, f"{package} {version(package)}", ""
        except PackageNotFoundError:
            yield None, f"{package} is not installed (optional)", f"pip install -c constraints.txt -e '.[{extra}]'"


def hardware() -> Iterator[Line]:
    """Memory, GPU and disk."""
    import psutil  # type: ignore[import-untyped]
    import torch

    memory = psutil.virtual_memory().total / 2**30
    yield memory >= 4, f"{os.cpu_count()} cores, {memory:.0f} GiB memory", "4 GiB are needed; close other programs"
    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(0)
        yield True, f"GPU {gpu.name}, {gpu.total_memory / 2**30:.0f} GiB", ""
    else:
        yield None, "no CUDA device: tiny scale runs on the CPU", "full scale needs a GPU and a CUDA build of torch"
    free = psutil.disk_usage(str(home())).free / 2**30
    yield free >= 2, f"cache {home()}, {free:.0f} GiB free", "2 GiB are needed; set ROADMAP_HOME to another disk"


def files() -> Iterator[Line]:
    """Archives of data and shipped checkpoints."""
    from common.data import DATA
    from common.models import MODELS, checkpoint
    from common.packages import is_cached

    archives = {archive for card in DATA.values() for archive in card.archives}
    cached = sum(is_cached(name) for name in archives)
    yield cached == len(archives) or None, f"data archives: {cached} of {len(archives)} cached", "python -m common data --fetch"
    for name in MODELS:
        try:
            yield True, f"checkpoint {name}: {checkpoint(name)}", ""
        except RoadmapError as error:
            yield False, f"checkpoint {name}", str(error)


def hub() -> Iterator[Line]:
    """The scale; at full scale, whether the Hub, or the mirror in ``HF_ENDPOINT``, answers."""
    import urllib.request

    yield True, f"scale {scale()}", ""
    if scale() != "full":
        return
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        urllib.request.urlopen(f"{endpoint}/api/models/hfl/chinese-macbert-base", timeout=10).close()
        yield True, f"Hub {endpoint}", ""
    except OSError as error:
        yield False, f"Hub {endpoint} does not answer ({error})", "set HF_ENDPOINT to a mirror you can reach"
