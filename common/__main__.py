"""The command line: ``python -m common VERB``. One line of help a verb, one sentence an error."""

from __future__ import annotations

import argparse
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from common.errors import RoadmapError
from common.paths import ROOT, home
from common.scale import SCALES, progress, scale


def main(arguments: list[str] | None = None) -> int:
    """Run one command.

    Returns:
        0 if it did what was asked, 1 if a lesson or a check failed, 2 if the request could not be carried out.
    """
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except RoadmapError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m common", description="LLM RoadMap: lessons, data, models, results.")
    verbs = parser.add_subparsers(title="verbs", required=True, metavar="VERB")

    def verb(name: str, function: object, text: str) -> argparse.ArgumentParser:
        made = verbs.add_parser(name, help=text, description=text)
        made.set_defaults(run=function)
        return made

    verb("doctor", _doctor, "what this machine has, what is missing, and the command that fixes it")
    verb("list", _list, "the lessons with their last result")
    run = verb("run", _run, "execute lessons without a browser")
    run.add_argument("target", nargs="+", help="a lesson, a chapter, a path of a notebook, 'demo' or 'all'")
    run.add_argument("--scale", choices=SCALES, help="tiny (default) or full; else ROADMAP_SCALE")
    run.add_argument("--jobs", type=_positive, default=1, metavar="N", help="lessons at a time (default 1)")
    run.add_argument("--store", action="store_true", help="store the outputs in the lessons themselves")
    copy = verb("copy", _copy, "make a folder that runs on its own from a lesson or a chapter")
    copy.add_argument("target", help="a lesson or a chapter")
    copy.add_argument("destination", type=Path, help="a new or empty folder")
    copy.add_argument("--force", action="store_true", help="write into a folder that holds files")
    results = verb("results", _results, "the table of results; --store rebuilds RESULTS.md from the last runs")
    results.add_argument("--store", action="store_true", help="make the last runs the results of record")
    results.add_argument("--check", action="store_true", help="compare the last runs with the results of record")
    data = verb("data", _data, "the data sets: source, licence, size")
    data.add_argument("name", nargs="?", help="show one, with its splits and an example")
    data.add_argument("--fetch", action="store_true", help="download and build what is not in the cache yet")
    data.add_argument("--check", action="store_true", help="verify the hashes of the archives in the cache")
    models = verb("models", _models, "the checkpoints: parameters, licence, how they were trained")
    models.add_argument("name", nargs="?", help="show one")
    models.add_argument("--check", action="store_true", help="verify the hashes of the shipped files")
    serve = verb("serve", _serve, "answer requests on this machine with a model: names, classes, pairs of sentences, chat")
    serve.add_argument("task", help="ner, classify, pairs or chat")
    serve.add_argument("--model", help="a folder or a Hub name (default: a checkpoint of the course)")
    serve.add_argument("--port", type=_positive, default=8000, metavar="N", help="on 127.0.0.1 (default 8000)")
    pretrain = verb("pretrain", _pretrain, "make a shipped tiny checkpoint anew from random weights")
    pretrain.add_argument("name", help="such as tiny-bert-zh")
    pretrain.add_argument("--steps", type=_positive, metavar="N", help="fewer steps than the recipe, for a trial")
    pretrain.add_argument("--out", type=Path, help="where to write it (default: its place in assets/models)")
    pretrain.add_argument("--force", action="store_true", help="replace a checkpoint that is there")
    pretrain.add_argument("--resume", action="store_true", help="continue an interrupted run")
    pretrain.add_argument(
        "--measure", action="store_true", help="instead, measure what pre-training gives and add it to the card"
    )
    return parser


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


# ------------------------------------------------------------------------------------------------ lessons


def _list(options: argparse.Namespace) -> int:
    from common.course.lessons import all_lessons
    from common.course.results import read_ledger, results_folder

    records = {
        (r.lesson, r.scale): r for folder in (None, results_folder()) for r in (read_ledger(folder) if folder else read_ledger())
    }
    rows = []
    for lesson in all_lessons():
        for size in SCALES:
            record = records.get((lesson.name, size))
            if record:
                rows.append(
                    [
                        lesson.name,
                        size,
                        f"{record.seconds:.0f} s",
                        f"{record.metric} {record.value:.3f} (baseline {record.baseline:.3f})",
                    ]
                )
            elif size == "tiny":
                rows.append([lesson.name, size, "-", "not run yet"])
    _table(["lesson", "scale", "time", "last result"], rows)
    return 0


def _run(options: argparse.Namespace) -> int:
    from common.course.lessons import Lesson, Run, execute, resolve
    from common.course.results import read_ledger, results_folder

    size = options.scale or scale()
    if options.store and size != "tiny":
        raise RoadmapError("Only tiny outputs are stored in the lessons; without --store the run is written to outputs/executed.")
    lessons = list(dict.fromkeys(lesson for target in options.target for lesson in resolve(target)))
    began = time.time()
    bar = progress(total=sum(c["cell_type"] == "code" for lesson in lessons for c in lesson.read()["cells"]), label="cells")

    def one(lesson: Lesson) -> Run:
        done = execute(lesson, scale=size, store=options.store, tick=bar.update)
        bar.write(f"{'FAILED' if done.error else 'ok':6} {lesson.name}  {done.seconds:.0f} s", file=sys.stdout)
        if done.error:
            bar.write(f"{done.error}\n", file=sys.stderr)
        return done

    with ThreadPoolExecutor(options.jobs) as pool:
        runs = list(pool.map(one, lessons))
    bar.close()
    records = {r.lesson: r for r in read_ledger(results_folder()) if r.scale == size}
    rows = []
    for done in runs:
        record = records.get(done.lesson.name)
        if done.error or record is None:
            rows.append([done.lesson.name, "FAILED" if done.error else "-", "", "", f"{done.seconds:.0f} s"])
        else:
            rows.append(
                [done.lesson.name, record.metric, f"{record.baseline:.3f}", f"{record.value:.3f}", f"{done.seconds:.0f} s"]
            )
    print()
    _table(["lesson", "metric", "baseline", "result", "time"], rows)
    failed = [done for done in runs if done.error]
    print(f"\n{len(runs) - len(failed)} of {len(runs)} lessons ran at {size} scale in {time.time() - began:.0f} s.")
    for done in failed:
        print(f"See {_near(done.written)}: its last cell with output is where it stopped.")
    if "demo" in options.target and not failed:
        print("Next: open README.md for the map of the course, `make lab` to read and run the lessons,")
        print("`python -m common copy LESSON FOLDER` to start from one with your own data.")
    return 1 if failed else 0


def _copy(options: argparse.Namespace) -> int:
    from common.course.lessons import copy

    copied = copy(options.target, options.destination, force=options.force)
    print(
        f"Copied {len(copied)} lesson(s) to {options.destination}; its README.md tells how to run them and which lines to edit."
    )
    return 0


def _results(options: argparse.Namespace) -> int:
    from common.course.results import compare, markdown, read_ledger, results_folder, store

    if options.check:
        moves = compare(read_ledger(), read_ledger(results_folder()))
        for move in moves:
            print(move)
        print(f"{len(moves)} figure(s) differ from the results of record.")
        return 1 if moves else 0
    if options.store:
        print(f"Stored {len(store())} result(s); RESULTS.md is rebuilt.")
    else:
        print(markdown(read_ledger()))
    return 0


# ------------------------------------------------------------------------------------------------ data and models


def _data(options: argparse.Namespace) -> int:
    from common.data import DATA, load_data
    from common.errors import unknown
    from common.packages import ARCHIVES, archive, is_cached

    if options.name and options.name not in DATA:
        raise unknown("data set", options.name, DATA)
    names = [options.name] if options.name else list(DATA)
    archives = sorted({a for name in names for a in DATA[name].archives})
    if options.check:
        cached = [a for a in archives if is_cached(a)]
        for a in cached:
            print(f"ok     {archive(a).name}")
        print(f"{len(cached)} of {len(archives)} archives are in {home() / 'archives'}, each with the pinned sha256.")
        return 0
    if options.fetch:
        for name in names:
            splits = load_data(name)
            print(f"{name}: {', '.join(f'{split} {len(rows):,}' for split, rows in splits.items())}")
        return 0
    if not options.name:
        rows = [[n, c.about, ", ".join(f"{ARCHIVES[a].requirement}" for a in c.archives), c.full[0]] for n, c in DATA.items()]
        _table(["name", "what", "tiny: archives", "full: Hub"], rows)
        print("\npython -m common data NAME shows licences, splits and an example.")
        return 0
    card = DATA[options.name]
    print(f"{options.name}: {card.about}")
    print(f"tiny     {card.tiny_source}\nlicence  {card.tiny_licence}")
    print(f"full     {card.full[0]} ({card.full_size})\nlicence  {card.full_licence}")
    splits = load_data(options.name)
    print(f"columns  {', '.join(f'{k} ({v})' for k, v in splits['train'].features.items())}")
    print(f"splits   {', '.join(f'{split} {len(rows):,}' for split, rows in splits.items())}")
    print(f"example  {str(splits['train'][0])[:300]}")
    return 0


def _models(options: argparse.Namespace) -> int:
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
    _table(["name", "what", "tiny", "full"], rows)
    return 0


def _pretrain(options: argparse.Namespace) -> int:
    from common.recipes.trials import make, measure

    if options.measure:
        print(f"Measured; see {_near(measure(options.name) / 'README.md')}")
    else:
        folder = make(options.name, steps=options.steps, out=options.out, force=options.force, resume=options.resume)
        print(f"Written to {_near(folder)}; its README.md is the card.")
    return 0


# ------------------------------------------------------------------------------------------------ the machine


def _serve(options: argparse.Namespace) -> int:
    from common.serve import serve

    serve(options.task, options.model, port=options.port)
    return 0


def _doctor(options: argparse.Namespace) -> int:
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


def _near(path: Path) -> str:
    """A path as short as can be from here."""
    return os.path.relpath(path) if ROOT in path.parents else str(path)


def _table(head: list[str], rows: list[list[str]]) -> None:
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    for row in [head, ["-" * w for w in widths], *rows]:
        print("  ".join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip())


if __name__ == "__main__":
    sys.exit(main())
