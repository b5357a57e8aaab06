"""Train and measure a text matcher: ``python train.py --arch dssm --loss infonce``; ``--help`` lists everything.

A flag that would have no effect with the chosen architecture is refused, not ignored.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from common import RoadmapError, checkpoint, outputs, pick
from common.hardware import machine
from common.packages import sha256

from matching import data
from matching.models import ARCHITECTURES, LOSSES, POOLINGS, UNSUPERVISED, Spec
from matching.training import Trained, baselines, train

LESSON = "02-NLP_tasks/15-text_matching"
# what an architecture is trained with unless a flag says otherwise; chosen on the validation split
DEFAULTS: dict[str, dict[str, Any]] = {
    "pointwise": {"epochs": 3, "lr": pick(tiny=1e-3, full=2e-5), "batch_size": 16},
    "dssm": {"epochs": pick(tiny=1, full=3), "lr": pick(tiny=1e-3, full=2e-5), "batch_size": 16, "loss": "infonce"},
    "sbert": {"epochs": pick(tiny=1, full=3), "lr": pick(tiny=1e-3, full=2e-5), "batch_size": 16},
    "simcse": {"epochs": 1, "lr": pick(tiny=3e-4, full=1e-5), "batch_size": 64, "dropout": 0.1},
    "esimcse": {"epochs": 1, "lr": pick(tiny=3e-4, full=1e-5), "batch_size": 64, "dropout": 0.1},
}
# flags that only some architectures use: flag -> who uses it, as a test and in words
USED_BY = {
    "loss": (lambda o: o.arch == "dssm", "--arch dssm"),
    "margin": (lambda o: o.arch == "dssm" and o.loss == "contrastive", "--arch dssm --loss contrastive"),
    "temperature": (
        lambda o: o.arch in UNSUPERVISED or (o.arch == "dssm" and o.loss in ("infonce", "cosent")),
        "the losses infonce and cosent",
    ),
    "queue": (lambda o: o.arch == "esimcse", "--arch esimcse"),
    "momentum": (lambda o: o.arch == "esimcse", "--arch esimcse"),
    "duplicate_rate": (lambda o: o.arch == "esimcse", "--arch esimcse"),
    "sentences": (lambda o: o.arch in UNSUPERVISED, "--arch simcse and esimcse"),
    "text1": (lambda o: o.train != "pairs", "--train FILE"),
    "text2": (lambda o: o.train != "pairs", "--train FILE"),
    "label": (lambda o: o.train != "pairs", "--train FILE"),
}
# the rows of the table that `--arch all` makes
TABLE: dict[str, dict[str, Any]] = {
    "random encoder as it is": {"arch": "dssm", "epochs": 0, "init": "random"},
    "encoder as it is": {"arch": "dssm", "epochs": 0},
    "simcse": {"arch": "simcse"},
    "esimcse": {"arch": "esimcse"},
    "dssm, cosine-mse": {"arch": "dssm", "loss": "cosine-mse"},
    "dssm, contrastive": {"arch": "dssm", "loss": "contrastive"},
    "dssm, cosent": {"arch": "dssm", "loss": "cosent"},
    "dssm, infonce": {"arch": "dssm", "loss": "infonce"},
    "dssm, infonce, random start": {"arch": "dssm", "loss": "infonce", "init": "random"},
    "sbert": {"arch": "sbert"},
    "pointwise": {"arch": "pointwise"},
}


def parser() -> argparse.ArgumentParser:
    """All flags. Those that default to None get their value from the architecture, or are refused where they mean nothing."""
    made = argparse.ArgumentParser(prog="train.py", description="Train and measure a text matcher.")
    made.add_argument("--arch", choices=[*ARCHITECTURES, "all"], default="dssm", help="'all' makes every row of the table")
    made.add_argument("--loss", choices=LOSSES, help="of --arch dssm (default infonce)")
    made.add_argument("--model", default=checkpoint("bert"), help="encoder: a folder or a Hub name")
    made.add_argument("--init", choices=["pretrained", "random"], default="pretrained", help="weights to start from")
    made.add_argument("--pooling", choices=POOLINGS, default="mean", help="token vectors to one vector")
    data_ = made.add_argument_group("data")
    data_.add_argument("--train", default="pairs", metavar="FILE", help="a .csv, .tsv, .json, .jsonl or .parquet of pairs")
    data_.add_argument("--text1", help="its column of first texts (default sentence1)")
    data_.add_argument("--text2", help="its column of second texts (default sentence2)")
    data_.add_argument("--label", help="its column of labels, 1 or 0 (default label)")
    data_.add_argument("--sentences", metavar="FILE", help="unlabelled texts, one a line, for simcse and esimcse")
    data_.add_argument("--limit", type=_whole, metavar="N", help="use only N training items")
    data_.add_argument("--max-length", type=_whole, default=48, help="tokens a text is cut to")
    run = made.add_argument_group("training")
    run.add_argument("--epochs", type=_count, help="0 measures the encoder as it is")
    run.add_argument("--batch-size", type=_whole)
    run.add_argument("--lr", type=float)
    run.add_argument("--weight-decay", type=float, default=0.01)
    run.add_argument("--warmup", type=float, default=0.1, help="part of the steps over which the rate rises")
    run.add_argument("--dropout", type=_share, help="in the encoder (simcse, esimcse: 0.1; else as its configuration says)")
    run.add_argument("--margin", type=float, help="of the contrastive loss (default 0.5)")
    run.add_argument("--temperature", type=float, help="of infonce and cosent (default 0.05)")
    run.add_argument("--duplicate-rate", type=_share, help="of esimcse: most of a sentence's tokens to repeat (default 0.32)")
    run.add_argument("--queue", type=_whole, help="of esimcse: earlier sentences kept as negatives (default 160)")
    run.add_argument("--momentum", type=_share, help="of esimcse: how slowly the queue's encoder follows (default 0.995)")
    run.add_argument("--precision", choices=["no", "bf16", "fp16"], default="no", help="autocast, for GPUs")
    run.add_argument("--seed", type=_count, default=0)
    out = made.add_argument_group("results")
    out.add_argument("--test", action="store_true", help="measure the test split too: once, at the very end")
    out.add_argument("--seeds", type=_whole, default=1, metavar="N", help="repeat with N seeds, counted from --seed")
    out.add_argument("--report", type=Path, metavar="FILE", help="add the figures of the test split to this .json")
    out.add_argument("--output", type=Path, help="folder for the matcher of the first seed (default outputs/...)")
    return made


def settle(options: argparse.Namespace) -> argparse.Namespace:
    """Fill in the architecture's defaults; refuse flags that it would ignore.

    Raises:
        RoadmapError: A flag that has no effect here.
    """
    settled = argparse.Namespace(**vars(options))
    for name, value in DEFAULTS[settled.arch].items():
        if getattr(settled, name) is None:
            setattr(settled, name, value)
    for name, (uses, who) in USED_BY.items():
        if getattr(settled, name) is not None and not uses(settled):
            raise RoadmapError(f"--{name.replace('_', '-')} has no effect here; it belongs to {who}.")
    return settled


def one(options: argparse.Namespace, splits: dict[str, list[data.Row]], seed: int) -> Trained:
    """One run with one seed."""
    given = {name: getattr(options, name) for name in ("loss", "margin", "temperature", "queue", "momentum")}
    given = {name: value for name, value in given.items() if value is not None}
    spec = Spec(options.arch, pooling=options.pooling, max_length=options.max_length, dropout=options.dropout, **given)
    repeat = {} if options.duplicate_rate is None else {"duplicate_rate": options.duplicate_rate}
    return train(
        spec,
        splits,
        options.model,
        epochs=options.epochs,
        lr=options.lr,
        batch_size=options.batch_size,
        weight_decay=options.weight_decay,
        warmup=options.warmup,
        random_start=options.init == "random",
        limit=options.limit,
        sentences=data.read_lines(options.sentences) if options.sentences else (),
        precision=options.precision,
        seed=seed,
        **repeat,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 0 is success, 1 an error that the user can put right (one sentence), 2 a wrong flag."""
    try:
        options = parser().parse_args(arguments)
        if options.arch == "all" and options.output:
            raise RoadmapError("--output is one matcher's folder; with --arch all leave it out.")
        rows = {name: _with(options, row) for name, row in TABLE.items()} if options.arch == "all" else {_name(options): options}
        settled = {name: settle(row) for name, row in rows.items()}
        columns = {name: value for name in ("text1", "text2", "label") if (value := getattr(options, name)) is not None}
        splits = data.load_pairs(options.train, **columns)
        if options.report:
            for name, figures in baselines(splits).items():
                _add(options.report, options, name, [figures])
        for name, row in settled.items():
            _run(name, row, splits)
    except RoadmapError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _run(name: str, options: argparse.Namespace, splits: dict[str, list[data.Row]]) -> None:
    figures = []
    seeds = options.seeds if options.epochs or options.init == "random" else 1  # there is one encoder as it is
    for seed in range(options.seed, options.seed + seeds):
        began = time.process_time()
        trained = one(options, splits, seed)
        cpu = time.process_time() - began
        print(f"{name}, seed {seed}: {cpu:.0f} s of CPU time")
        print(f"  validation  {_line(trained.validation)}")
        if options.test or options.report:
            found = trained.test(splits)
            print(f"  test        {_line(found)}", flush=True)
            figures.append(found | {"cpu_seconds": cpu})
        if seed == options.seed and not (options.report and options.output is None):
            folder = options.output or outputs(f"{LESSON}/{options.arch}")
            trained.save(folder)
            print(f"  saved to {folder}")
    if options.report:
        _add(options.report, options, name, figures)


def _line(figures: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.3f}" for name, value in figures.items())


def _name(options: argparse.Namespace) -> str:
    """The row of the table that these flags are, or the architecture with its loss."""
    row = settle(options)
    if row.epochs == 0:
        return "random encoder as it is" if row.init == "random" else "encoder as it is"
    name = f"dssm, {row.loss}" if row.arch == "dssm" else row.arch
    return f"{name}, random start" if row.init == "random" else name


def _with(options: argparse.Namespace, row: dict[str, Any]) -> argparse.Namespace:
    return argparse.Namespace(**vars(options) | row)


def _add(path: Path, options: argparse.Namespace, name: str, figures: list[dict[str, float]]) -> None:
    """Put one row into the report: for every figure a list with one value a seed. Other rows stay."""
    report = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    weights = Path(options.model) / "model.safetensors"
    report |= {
        "lesson": LESSON,
        "data": Path(options.train).name,
        "model": Path(options.model).name,
        "model_sha256": sha256(weights) if weights.exists() else None,
        "machine": machine(),
        "versions": {"python": platform.python_version()} | {p: version(p) for p in ("torch", "transformers", "scikit-learn")},
        "date": datetime.now(UTC).date().isoformat(),
    }
    values = {key: [round(float(row[key]), 5) for row in figures] for key in figures[0]}
    found, order = report.get("rows", {}) | {name: values}, ["all positive", "TF-IDF", *TABLE]
    report["rows"] = {key: found[key] for key in sorted(found, key=lambda key: order.index(key) if key in order else len(order))}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    part.replace(path)


def _whole(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _count(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value


if __name__ == "__main__":
    sys.exit(main())
