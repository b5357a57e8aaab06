"""Run the rows within a number of minutes and write one file: card, driver, versions, figures, and what was left out."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from tests.gpu.rows import ROWS, Row

VERSIONS = ("torch", "transformers", "datasets", "accelerate", "peft", "bitsandbytes")


def main(arguments: list[str] | None = None) -> int:
    """Measure; 0 if every row that was begun has ended well."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu", description=__doc__)
    parser.add_argument("--minutes", type=float, default=8, help="stop after so long (default 8)")
    parser.add_argument("--out", type=Path, required=True, help="the file to write, such as assets/results/gpu/h100.json")
    parser.add_argument("--rows", nargs="+", choices=[row.name for row in ROWS], help="only these")
    parser.add_argument("--toy", action="store_true", help="toy sizes, on a CPU too: checks the code, measures nothing")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available() and not options.toy:
        print("error: there is no GPU here; run this where there is one, or check the code with --toy.", file=sys.stderr)
        return 2
    if options.out.exists():
        print(f"error: {options.out} exists; give another file, or remove it.", file=sys.stderr)
        return 2
    report: dict[str, Any] = {**machine(), "toy": options.toy, "rows": {}, "left_out": {}}
    deadline = time.monotonic() + 60 * options.minutes
    for row in ROWS:
        if options.rows and row.name not in options.rows:
            continue
        if reason := left_out(row, deadline - time.monotonic(), options.toy):
            report["left_out"][row.name] = reason
        else:
            run(row, options.toy, deadline, report, options.out)
        write(report, options.out)
        print(f"{row.name}: {report['left_out'].get(row.name) or len(report['rows'][row.name]['figures'])}", flush=True)
    return 1 if any(row.get("error") for row in report["rows"].values()) else 0


def machine() -> dict[str, Any]:
    """The card, its driver, and the versions of what runs on it."""
    card = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = subprocess.run(command, capture_output=True, text=True).stdout.strip().split("\n")[0] if card else None
    found = {}
    for package in VERSIONS:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return {
        "card": card.name if card else None,
        "gigabytes": round(card.total_memory / 1e9, 1) if card else None,
        "driver": driver,
        "cuda": torch.version.cuda,
        "versions": {"python": platform.python_version(), **found},
        "date": datetime.now(UTC).date().isoformat(),
    }


def left_out(row: Row, seconds_left: float, toy: bool) -> str | None:
    """Why a row is not begun, or None."""
    if toy:
        return None
    free = torch.cuda.mem_get_info()[0] / 1e9
    if row.gigabytes > free:
        return f"needs {row.gigabytes:g} GB of GPU memory, {free:.1f} GB are free"
    if row.seconds > seconds_left:
        return f"needs about {row.seconds} s, {max(0, seconds_left):.0f} s are left"
    return None


def run(row: Row, toy: bool, deadline: float, report: dict[str, Any], out: Path) -> None:
    """Run a row in a process of its own, and keep each figure as it comes."""
    kept: dict[str, Any] = {"about": row.about, "figures": []}
    report["rows"][row.name] = kept
    command = [sys.executable, "-m", "tests.gpu.rows", row.name, *(["--toy"] if toy else [])]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
        env=os.environ | {"ROADMAP_QUIET": "1"},
    )
    tail: list[str] = []
    guard = threading.Timer(max(0.0, deadline + 60 - time.monotonic()), process.kill)  # a row that hangs ends with the time
    guard.start()
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("FIGURE "):
            kept["figures"].append(json.loads(line.removeprefix("FIGURE ")))
            write(report, out)
        else:
            tail = [*tail[-4:], line.strip()]
    guard.cancel()
    if process.wait():
        kept["error"] = " | ".join(tail)[-500:]


def write(report: dict[str, Any], out: Path) -> None:
    """Write beside, then replace, so that what is there is always whole."""
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_suffix(".part")
    part.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    part.replace(out)


if __name__ == "__main__":
    sys.exit(main())
