"""``python -m common models``: the checkpoints: parameters, licence, how they were trained."""

from __future__ import annotations

import argparse

from common.course.cli.output import table
from common.paths import ROOT

HELP = "the checkpoints: parameters, licence, how they were trained"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what can be said after the verb."""
    parser.add_argument("name", nargs="?", help="show one")
    parser.add_argument("--check", action="store_true", help="verify the hashes of the shipped files")


def run(options: argparse.Namespace) -> int:
    """Do it; the exit status."""
    from common.models import MODELS, read_card, verify

    if options.check:
        broken = {c.tiny: verify(key) for key, c in MODELS.items() if options.name in (None, key, c.tiny)}
        if not broken:
            read_card(options.name)  # says which names there are
        for name, files in broken.items():
            print(f"{name}: " + ("differs from its card: " + ", ".join(files) if files else "ok"))
        return 1 if any(broken.values()) else 0
    if options.name:
        card = read_card(options.name)
        print((ROOT / "assets/models" / card["name"] / "README.md").read_text(encoding="utf-8"))
        return 0
    rows = []
    for key, c in MODELS.items():
        size = (
            f"{read_card(key)['parameters'] / 1e6:.1f} M"
            if (ROOT / "assets/models" / c.tiny / "card.json").exists()
            else "missing"
        )
        rows.append([key, c.about, f"{c.tiny} ({size})", f"{c.full} ({c.full_parameters:.0f} M, {c.full_licence})"])
    table(["name", "what", "tiny", "full"], rows)
    return 0
