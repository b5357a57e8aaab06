"""``python -m common run``: execute lessons without a browser."""

from __future__ import annotations

import argparse
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from common.course.cli.output import near, positive, table
from common.errors import RoadmapError
from common.scale import SCALES, progress, scale

HELP = "execute lessons without a browser"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what can be said after the verb."""
    parser.add_argument("target", nargs="+", help="a lesson, a chapter, a path of a notebook, 'demo' or 'all'")
    parser.add_argument("--scale", choices=SCALES, help="tiny (default) or full; else ROADMAP_SCALE")
    parser.add_argument("--jobs", type=positive, default=1, metavar="N", help="lessons at a time (default 1)")
    parser.add_argument("--store", action="store_true", help="store the outputs in the lessons themselves")


def run(options: argparse.Namespace) -> int:
    """Do it; the exit status."""
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
        if done.claims:
            cells = ", ".join(map(str, done.claims))
            bar.write(f"       what the course claims of its own data does not hold here: cells {cells}", file=sys.stdout)
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
    table(["lesson", "metric", "baseline", "result", "time"], rows)
    failed = [done for done in runs if done.error]
    print(f"\n{len(runs) - len(failed)} of {len(runs)} lessons ran at {size} scale in {time.time() - began:.0f} s.")
    for done in failed:
        print(f"See {near(done.written)}: its last cell with output is where it stopped.")
    if "demo" in options.target and not failed:
        print("Next: open README.md for the map of the course, `make lab` to read and run the lessons,")
        print("`python -m common copy LESSON FOLDER` to start from one with your own data.")
    return 1 if failed else 0
