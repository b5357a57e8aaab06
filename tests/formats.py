"""The page of formats, made from the example files: ``python -m tests.formats`` writes ``common/data/readers/FORMATS.md``."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

from common.data import DATA, load_data
from common.data.readers import READERS
from common.data.readers.encodings import read_text
from common.paths import ROOT

PAGE = ROOT / "common" / "data" / "readers" / "FORMATS.md"
FOLDER = ROOT / "tests" / "own_data"
LINES, WIDTH = 3, 150  # of an example that are shown
TOKENS = (".conll", ".bmes", ".bioes")  # one token on each line
EXAMPLES: dict[str, list[tuple[str, str]]] = {  # task: example file, what is said beside it
    "sentiment": [
        ("reviews.csv", ""),
        ("reviews_utf16.csv", ""),
        ("reviews_gb18030.csv", ""),
        ("reviews_semicolon.csv", ""),
        ("reviews.tsv", ""),
        ("reviews_no_header.tsv", "header=False"),
        ("five_classes.txt", 'text="document"'),
        ("reviews.json", ""),
        ("reviews_nested.json", ""),
        ("reviews.jsonl", ""),
        ("reviews.parquet", ""),
        ("reviews_doccano.jsonl", ""),
    ],
    "corpus": [("lines.txt", "")],
    "ner": [
        ("names.conll", ""),
        ("names_four_columns.conll", ""),
        ("names.bmes", ""),
        ("names.bioes", ""),
        ("names_iob1.txt", ""),
        ("names_doccano_old.jsonl", ""),
        ("names_doccano_new.jsonl", ""),
        ("names_doccano_relations.jsonl", ""),
        ("names_label_studio.json", ""),
        ("names_label_studio_min.json", ""),
        ("names_cluener.jsonl", ""),
        ("names_rows.jsonl", ""),
    ],
    "mrc": [
        ("questions_squad.json", ""),
        ("questions_squad_v2.json", ""),
        ("questions_cmrc2018.json", ""),
        ("questions_rows.csv", ""),
        ("questions_rows.jsonl", ""),
    ],
    "multiple_choice": [
        ("choices_c3.json", ""),
        ("choices_number.jsonl", ""),
        ("choices_letter.csv", ""),
        ("choices_text.jsonl", ""),
    ],
    "pairs": [("pairs.tsv", ""), ("pairs_no_header.tsv", "header=False"), ("pairs.csv", ""), ("pairs_afqmc.json", "")],
    "faq": [("faq.csv", ""), ("faq_chinese_names.json", "")],
    "instructions": [
        ("chats_messages.jsonl", ""),
        ("chats_sharegpt.json", ""),
        ("chats_alpaca.json", ""),
        ("chats_prompt_response.jsonl", ""),
    ],
    "headlines": [("summaries.csv", ""), ("summaries.jsonl", "")],
    "image_text": [("pictures", ""), ("pictures_llava_captions.json", "")],
    "scenes": [("pictures_llava.json", ""), ("pictures_table.csv", "")],
}
HEAD = """# Formats of your own data

Made by `python -m tests.formats` from the files in `tests/own_data`; a test checks that it is up to date.

`load_data(TASK, file="my.csv")` reads your file and gives the columns of the registered data set of that task.
See what is in a file first: `python -m common data --file my.csv --as TASK`.

- **Encodings:** UTF-8, UTF-16 and GB18030. Another one is refused; save the file as UTF-8.
- **Columns with other names:** name them, such as `text="review", label="stars"`. Numbers count columns from 0.
- **No line with names:** `header=False`.
- **Rows that cannot be used** stop the loading with their lines. `faults="drop"` leaves them out and counts them.
- **Splits:** 80/10/10 within each label. Rows that share a text, a picture or a conversation stay in one split.
- **Splits of your own:** `file={"train": "a.csv", "validation": "b.csv", "test": "c.csv"}`, or a folder that holds them.
"""


def page() -> str:
    """The page as Markdown."""
    parts = [HEAD]
    for task, examples in EXAMPLES.items():
        others = [f"`{name}`" for name, reader in READERS.items() if reader is READERS[task] and name != task]
        parts.append(f"## {task}\n")
        parts.append(f"{DATA[task].about}." + (f" The same for {', '.join(others)}." if others else "") + "\n")
        parts.append("".join(f"- {line}\n" for line in READERS[task].formats))
        if fields := READERS[task].fields:
            parts.append(f"Columns that can be named: {', '.join(f'`{field}`' for field in fields)}.\n")
        parts += [example(task, name, said) for name, said in examples]
    return "\n".join(parts)


def example(task: str, name: str, said: str) -> str:
    """One file: how it is loaded, how it begins, and what is printed."""
    options = {key: value for key, value in (pair.split("=") for pair in [said] if pair)}
    loaded = {key: False if value == "False" else value.strip('"') for key, value in options.items()}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        splits = load_data(task, file=FOLDER / name, **loaded)
    row = {key: value for key, value in splits["train"][0].items() if key != "image"}
    fence = [f"load_data({json.dumps(task)}, file={json.dumps(name)}{f', {said}' if said else ''})"]
    fence += [f"# {line}" for line in printed.getvalue().splitlines()]
    first = f"# {json.dumps(row, ensure_ascii=False)}"
    fence.append(first if len(first) <= WIDTH else first[:WIDTH] + " ...")
    return f"### {name}\n\n```\n{start(FOLDER / name)}\n```\n\n```python\n" + "\n".join(fence) + "\n```\n"


def start(path: Path) -> str:
    """The first lines of an example, cut."""
    if path.is_dir():
        table = path / "metadata.jsonl"
        return f"{table.name} and {len(list(path.glob('*.png')))} pictures\n{start(table)}"
    if path.suffix == ".parquet":
        return "(a Parquet file with the columns text and label)"
    with contextlib.redirect_stdout(io.StringIO()):
        lines = read_text(path).splitlines()
    if path.suffix == ".json":  # one value on many lines: its beginning on one
        lines = ["".join(line.strip() for line in lines)]
    shown = [
        line if len(line) <= WIDTH else line[:WIDTH] + " ..." for line in lines[: 3 * LINES if path.suffix in TOKENS else LINES]
    ]
    return "\n".join(shown)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE.relative_to(ROOT))
