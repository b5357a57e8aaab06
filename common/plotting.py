"""The figures of the lessons: one style, colours that colour-blind readers can tell apart, Chinese that is drawn.

Importing this module registers the font of ``assets/fonts`` and sets the style. Every function draws one figure,
or draws into the ``ax`` it is given, and returns the Axes; a notebook shows the figure at the end of the cell.
Tokens and labels are drawn as they are: a ``$`` is a dollar and no formula, a character that no font has is a □.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from common.errors import RoadmapError
from common.paths import ASSETS

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.ft2font import FT2Font, LoadFlags
from matplotlib.patches import FancyBboxPatch

FONT = ASSETS / "fonts" / "NotoSansSC-subset.ttf"
FAMILY = ["Noto Sans SC", "DejaVu Sans"]  # in this order: the other way round gives empty boxes beside formulas
# M. Okabe and K. Ito, "Color Universal Design" (2008); yellow last, because it is faint on white
PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#444444", "#F0E442"]
MARKERS = "osD^vPX*"  # a second way to tell classes apart, beside the colour
GREY = "#767676"
WIDTH = 7.0  # inches: the width of a notebook's text column
DPI = 110

Span = tuple[int, int, str]


def use_style() -> None:
    """Register the Chinese font and set the house style; done on import, repeat it after ``plt.rcdefaults()``.

    Raises:
        RoadmapError: If the font file is missing from ``assets/fonts``.
    """
    if not FONT.exists():
        raise RoadmapError(f"The font {FONT.name} is missing from {FONT.parent}; restore it with: git checkout -- assets/fonts")
    font_manager.fontManager.addfont(FONT)
    mpl.rcParams.update(
        {
            "font.family": FAMILY,
            "font.size": 9,
            "axes.titlesize": 10,
            "axes.prop_cycle": plt.cycler(color=PALETTE),
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": "#E6E6E6",
            "legend.frameon": False,
            "lines.linewidth": 1.6,
            "figure.figsize": (WIDTH, 3.0),
            "figure.dpi": DPI,
            "savefig.dpi": DPI,
            "figure.facecolor": "white",
        }
    )


def curves(
    history: Any,
    left: str | Sequence[str] = "loss",
    right: str | Sequence[str] = (),
    *,
    x: str = "step",
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Training curves: losses on the left axis and, if asked for, a metric or the learning rate on the right one.

    Args:
        history: Rows such as ``trainer.state.log_history`` (a list of dicts; a row may lack a key), columns (a dict of
            lists), or several runs to compare (a dict from the run's name to either).
        left: Key or keys on the left axis.
        right: Key or keys on the right axis, dashed.
        x: Key on the horizontal axis.
        title: Above the figure.
        ax: Where to draw; by default a new figure.

    Raises:
        RoadmapError: If a key is in no row.
    """
    runs = _runs(history)
    ax = _axes(ax)
    twin = ax.twinx() if right else ax
    colors = iter(PALETTE * 4)
    for axis, keys, dash in ((ax, left, "-"), (twin, right, "--")):
        keys = [keys] if isinstance(keys, str) else list(keys)
        for name, rows in runs.items():
            for key in keys:
                pairs = [(row[x], row[key]) for row in rows if x in row and key in row]
                if not pairs:
                    known = ", ".join(sorted({k for row in rows for k in row if x in row and k != x})) or "nothing"
                    raise RoadmapError(f"The history holds no {key!r} by {x!r}; it holds: {known}.")
                mark = "o" if len(pairs) < 20 else ""
                label = f"{name}: {key}" if name else key
                axis.plot(*zip(*pairs, strict=True), dash, label=label, color=next(colors), marker=mark, markersize=4)
        if keys:
            axis.set_ylabel(", ".join(keys))
    ax.set_xlabel(x)
    ax.set_title(title)
    lines = ax.get_lines()
    if twin is not ax:
        twin.grid(False)
        twin.spines["right"].set_visible(True)
        lines = [*lines, *twin.get_lines()]
    _legend(ax, "below" if twin is not ax else "inside", handles=lines)
    return ax


def bars(
    names: Sequence[str],
    values: Sequence[float] | Mapping[str, Sequence[float]],
    *,
    errors: Sequence[float] | Mapping[str, Sequence[float]] | None = None,
    baseline: float | None = None,
    baseline_name: str = "baseline",
    ylabel: str = "",
    title: str = "",
    digits: int = 2,
    ax: Axes | None = None,
) -> Axes:
    """A comparison: one bar a name (or one a name and series), its value on top, and the baseline as a line.

    Args:
        names: What is compared.
        values: One value a name, or series by their name in the legend.
        errors: Half the height of the error bars, in the form of ``values``.
        baseline: Where to draw the dashed line.
        baseline_name: What that line is.
        ylabel: The metric.
        title: Above the figure.
        digits: Decimals of the printed values.
        ax: Where to draw; by default a new figure.

    Raises:
        RoadmapError: If a series does not have one value (or error) a name.
    """
    series = dict(values) if isinstance(values, Mapping) else {"": values}
    spread = dict(errors) if isinstance(errors, Mapping) else {"": errors} if errors is not None else {}
    for label, column in [*series.items(), *spread.items()]:
        if len(column) != len(names):
            raise RoadmapError(
                f"bars has {len(names)} names, but {label or 'the series'} has {len(column)} values; give one a name."
            )
    ax = _axes(ax)
    width = 0.8 / len(series) if len(series) > 1 else 0.55
    for i, (label, column) in enumerate(series.items()):
        x = np.arange(len(names)) + (i - (len(series) - 1) / 2) * width
        drawn = ax.bar(x, column, 0.92 * width, label=_drawable(label), yerr=spread.get(label), capsize=3, ecolor=GREY)
        ax.bar_label(drawn, fmt=f"%.{digits}f", padding=2, fontsize=8)
    ax.margins(y=0.15)
    if baseline is not None:
        ax.axhline(baseline, color=GREY, linestyle="--", linewidth=1.2, label=f"{baseline_name} ({baseline:.{digits}f})")
    ax.set_xticks(range(len(names)), [_drawable(name) for name in names], parse_math=False)
    ax.grid(False, axis="x")
    ax.set_ylabel(ylabel)
    ax.set_title(title)
    _legend(ax, "right")
    return ax


def confusion(matrix: Any, labels: Sequence[str], *, title: str = "", ax: Axes | None = None) -> Axes:
    """A confusion matrix: counts, and as colour and percentage the share of the row (what became of a true class).

    Args:
        matrix: Counts of shape (classes, classes); rows are true, columns predicted.
        labels: The classes' names, in that order.
        title: Above the figure.
        ax: Where to draw; by default a new figure.

    Raises:
        RoadmapError: If the matrix is not square, does not fit the labels, or has negative entries.
    """
    counts = _array(matrix)
    n = len(labels)
    if counts.shape != (n, n) or (counts < 0).any():
        raise RoadmapError(
            f"A confusion matrix of {n} labels is {n} x {n} counts >= 0, not {' x '.join(map(str, counts.shape))} "
            f"from {counts.min() if counts.size else 'nothing'} up."
        )
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = min(WIDTH, 1.9 + 0.37 * n)
    ax = _axes(ax, width=side + 0.9, height=side)
    ax.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(n, n):
        if counts[row, column]:
            text = f"{counts[row, column]:g}"
            if n <= 6 or row == column:  # in a larger one the percentages of single mistakes are clutter
                text = f"{share[row, column]:.0%}\n{text}"
            color = "white" if share[row, column] > 0.55 else "black"
            ax.text(column, row, text, ha="center", va="center", color=color, fontsize=8 if n <= 6 else 6.5)
    names = [_drawable(label) for label in labels]
    tilt: dict[str, Any] = {"rotation": 35, "ha": "right"} if max(map(_ems, names)) > 5 else {}
    ax.set_xticks(range(n), names, parse_math=False, **tilt)
    ax.set_yticks(range(n), names, parse_math=False)
    ax.set(xlabel="predicted", ylabel="true", title=title)
    ax.grid(False)
    return ax


def attention_map(
    weights: Any,
    tokens: Sequence[str],
    *,
    keys: Sequence[str] | None = None,
    title: str = "",
    vmax: float | None = None,
    ax: Axes | None = None,
) -> Axes | np.ndarray:
    """Attention weights as a picture: row i shows where token i looks.

    Args:
        weights: Shape (queries, keys) for one head, or (heads, queries, keys) for a grid of small ones.
        tokens: The queries' tokens; of the keys too, unless ``keys`` is given (cross-attention).
        keys: The keys' tokens.
        title: Above the figure; the heads of a grid are numbered below it.
        vmax: The weight drawn darkest; by default the largest.
        ax: Where to draw a single head; by default a new figure.

    Returns:
        The Axes, or for several heads the array of them, shape (heads,).

    Raises:
        RoadmapError: If the weights' shape does not fit the tokens.
    """
    grid = _array(weights)
    columns = list(tokens if keys is None else keys)
    if grid.ndim not in (2, 3) or grid.shape[-2:] != (len(tokens), len(columns)) or not grid.size:
        raise RoadmapError(
            f"Attention over {len(tokens)} tokens and {len(columns)} keys has shape ({len(tokens)}, {len(columns)}), with the "
            f"heads in front if there are several; it is {grid.shape}. Choose one layer and one text of the batch first."
        )
    top = float(grid.max()) if vmax is None else vmax
    if grid.ndim == 2:
        ax = _axes(ax, width=5.0, height=4.4)
        _heat(ax, grid, tokens, columns, top, size=8, room=30)
        ax.set_title(title)
        return ax
    across = min(4, len(grid))
    down = math.ceil(len(grid) / across)
    figure, axes = plt.subplots(
        down, across, figsize=(WIDTH, 0.3 + 1.95 * down * 4 / across), layout="constrained", squeeze=False
    )
    figure.suptitle(title, fontsize=10)
    for i, cell in enumerate(axes.flat):
        if i < len(grid):
            _heat(cell, grid[i], tokens, columns, top, size=6, room=15)
            cell.set_title(f"head {i}", fontsize=8)
        else:
            cell.set_axis_off()
    return axes.flat[: len(grid)]


def highlight(
    text: str | Sequence[str],
    spans: Sequence[Span],
    *,
    labels: Sequence[str] | None = None,
    title: str = "",
    fontsize: float = 11,
) -> Axes:
    """A text with its entities (or any spans) on coloured ground, each with its label above.

    It is a picture, because GitHub removes the colours from HTML outputs; :func:`highlight_html` gives text that can
    be selected.

    Args:
        text: The text, or its tokens (joined without spaces, as Chinese is).
        spans: (start, end, label) with the end exclusive, in characters of a text or in tokens of a list.
        labels: All labels there are, so that each keeps its colour from figure to figure.
        title: Above the text.
        fontsize: In points.

    Raises:
        RoadmapError: If a span is empty, out of range, overlaps another, or has a label not in ``labels``.
    """
    colors = _colors([label for _, _, label in spans], labels)
    wide, line, pad = WIDTH * 72 / fontsize, 2.2, 0.6  # all in ems: then glyph widths need no scaling
    runs: list[tuple[float, int, str, str]] = []  # x, line number, characters, label
    x, row = pad, 0
    for piece, label in _pieces(text, spans):
        x += 0.15 if label else 0
        current, start = "", x
        for char in _drawable(piece, keep="\n"):
            step = 0.0 if char == "\n" else _ems(char)
            if char == "\n" or x + step > wide - pad:
                runs.append((start, row, current, label))
                current, start, x, row = "", pad, pad, row + 1
            if char != "\n":
                current, x = current + char, x + step
        runs.append((start, row, current, label))
        x += 0.15 if label else 0
    high = (row + 1) * line + 0.4 + (1.6 if title else 0)
    figure = plt.figure(figsize=(WIDTH, high * fontsize / 72))
    ax = figure.add_axes((0, 0, 1, 1), xlim=(0, wide), ylim=(-high, 0))
    ax.set_axis_off()
    if title:
        ax.text(pad, -0.9, title, va="center", fontsize=10)
    for start, row, characters, label in runs:
        base = -(row + 0.95) * line - (1.6 if title else 0)
        if label and characters:
            size = sum(map(_ems, characters))
            box = FancyBboxPatch((start - 0.1, base - 0.25), size + 0.2, 1.15, boxstyle="round,pad=0,rounding_size=0.2")
            box.set(facecolor=_tint(colors[label]), edgecolor=colors[label], linewidth=0.8)
            ax.add_patch(box)
            ax.text(
                start + size / 2, base + 1.08, label, ha="center", fontsize=0.58 * fontsize, color=colors[label], parse_math=False
            )
        ax.text(start, base, characters, fontsize=fontsize, parse_math=False)
    return ax


@dataclass(frozen=True)
class Highlighted:
    """A text with labelled spans: coloured where HTML is shown, ``[北京 LOC]`` where it is not."""

    pieces: tuple[tuple[str, str], ...]
    colors: Mapping[str, str]

    def __repr__(self) -> str:
        return "".join(f"[{text} {label}]" if label else text for text, label in self.pieces)

    def _repr_html_(self) -> str:
        return "".join(self._html(text, label) for text, label in self.pieces)

    def _html(self, text: str, label: str) -> str:
        text = html.escape(text).replace("\n", "<br>")
        if not label:
            return text
        ground, color = _tint(self.colors[label]), self.colors[label]
        style = f"background:{ground};color:#000;border-radius:3px;padding:1px 3px"
        return f'<mark style="{style}">{text}<sub style="color:{color}"> {html.escape(label)}</sub></mark>'


def highlight_html(text: str | Sequence[str], spans: Sequence[Span], *, labels: Sequence[str] | None = None) -> Highlighted:
    """As :func:`highlight`, but as HTML with a readable plain-text form.

    >>> highlight_html("我爱北京", [(2, 4, "LOC")])
    我爱[北京 LOC]
    """
    return Highlighted(tuple(_pieces(text, spans)), _colors([label for _, _, label in spans], labels))


def memory_bar(
    parts: Mapping[str, float] | Mapping[str, Mapping[str, float]],
    *,
    unit: str = "GB",
    limit: float | None = None,
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Where the memory goes: one stacked bar, or one a method to compare them.

    Args:
        parts: Size by part (weights, gradients, optimizer ...), or such sizes by method.
        unit: What the sizes are in.
        limit: The memory there is; drawn as a line.
        title: Above the figure.
        ax: Where to draw; by default a new figure.

    Raises:
        RoadmapError: If there is nothing to draw or a size is negative.
    """
    rows: dict[str, Any] = {name: sizes for name, sizes in parts.items() if isinstance(sizes, Mapping)} or {"": parts}
    kinds = list(dict.fromkeys(kind for sizes in rows.values() for kind in sizes))
    if not kinds or any(not size >= 0 for sizes in rows.values() for size in sizes.values()):  # "not >=" refuses NaN too
        raise RoadmapError("memory_bar needs at least one part, and sizes that are not negative.")
    ax = _axes(ax, height=1.3 + 0.42 * len(rows))
    totals = {name: sum(sizes.values()) for name, sizes in rows.items()}
    reach = max([*totals.values(), limit or 0.0])
    for y, (name, sizes) in enumerate(rows.items()):
        left = 0.0
        for kind, color in zip(kinds, PALETTE * len(kinds), strict=False):
            size = sizes.get(kind, 0.0)
            ax.barh(y, size, 0.6, left=left, color=color, edgecolor="white", label=_drawable(kind) if y == 0 else None)
            if size > 0.07 * reach:
                ax.text(left + size / 2, y, f"{size:.3g}", ha="center", va="center", color=_ink(color), fontsize=8)
            left += size
        ax.text(left + 0.01 * reach, y, f"{totals[name]:.3g} {unit}", va="center", fontsize=8)
    if limit is not None:
        ax.axvline(limit, color="#B00020", linestyle="--", linewidth=1.2, label=f"limit ({limit:.3g} {unit})")
    ax.set_yticks(range(len(rows)), [_drawable(name) for name in rows], parse_math=False)
    ax.tick_params(axis="y", length=0)
    ax.invert_yaxis()
    ax.grid(False, axis="y")
    ax.set_xlim(0, 1.14 * reach or 1)
    ax.set_xlabel(unit)
    ax.set_title(title)
    _legend(ax, "right")
    return ax


def points(
    xy: Any, labels: Sequence[str] | None = None, *, names: Sequence[str] | None = None, title: str = "", ax: Axes | None = None
) -> Axes:
    """A map of embeddings: one point a text, one colour and marker a label.

    Args:
        xy: Shape (n, 2), such as the first two principal components.
        labels: n labels, or None.
        names: n words to print beside the points, for small maps.
        title: Above the figure.
        ax: Where to draw; by default a new figure.

    Raises:
        RoadmapError: If the shapes do not fit.
    """
    places = _array(xy)
    if places.ndim != 2 or places.shape[1] != 2 or any(len(each) != len(places) for each in (labels, names) if each is not None):
        raise RoadmapError(f"points needs (n, 2) coordinates with n labels and n names, not coordinates of shape {places.shape}.")
    ax = _axes(ax, height=3.8)
    kinds = np.array([""] * len(places) if labels is None else [str(label) for label in labels])
    for i, kind in enumerate(dict.fromkeys(kinds)):
        chosen = places[kinds == kind]
        marker = MARKERS[i % len(MARKERS)]
        ax.scatter(
            chosen[:, 0],
            chosen[:, 1],
            s=16,
            alpha=0.75,
            color=PALETTE[i % len(PALETTE)],
            marker=marker,
            linewidths=0.3,
            edgecolors=GREY,
            label=_drawable(kind),
        )
    for place, name in zip(places, names or (), strict=False):
        ax.annotate(_drawable(name), place, xytext=(4, 2), textcoords="offset points", fontsize=8, parse_math=False)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.set_title(title)
    _legend(ax, "right")
    return ax


def _axes(ax: Axes | None, *, width: float = WIDTH, height: float = 3.0) -> Axes:
    return ax if ax is not None else plt.subplots(figsize=(width, height), layout="constrained")[1]


def _legend(ax: Axes, where: str, *, handles: Sequence[Any] | None = None) -> None:
    handles = ax.get_legend_handles_labels()[0] if handles is None else handles
    named = [handle for handle in handles if handle.get_label() and not str(handle.get_label()).startswith("_")]
    places: dict[str, dict[str, Any]] = {
        "inside": {},
        "right": {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)},
        "below": {"loc": "upper center", "bbox_to_anchor": (0.5, -0.17), "ncols": 4},  # a second axis' lines may be anywhere
    }
    if named:
        for text in ax.legend(handles=named, fontsize=8, **places[where]).get_texts():
            text.set_parse_math(False)


def _heat(
    ax: Axes, weights: np.ndarray, tokens: Sequence[str], keys: Sequence[str], top: float, *, size: float, room: int
) -> None:
    ax.imshow(weights, cmap="Blues", vmin=0, vmax=top, aspect="auto")
    ax.grid(False)
    ax.tick_params(length=0, labelsize=size)
    for axis, names in ((ax.xaxis, keys), (ax.yaxis, tokens)):
        shown = range(0, len(names), max(1, math.ceil(len(names) / room)))  # every label, or as many as do not overlap
        axis.set_ticks(shown, [_drawable(names[i]) for i in shown], parse_math=False)
    for text in ax.get_xticklabels():
        text.set_rotation(90 if _ems(text.get_text()) > 1.5 else 0)


def _runs(history: Any) -> dict[str, list[dict[str, Any]]]:
    """Any history as rows by run; the only run of a plain history has no name."""
    if isinstance(history, Mapping) and history:
        first = next(iter(history.values()))
        if isinstance(first, Mapping) or (isinstance(first, Sequence) and first and isinstance(first[0], Mapping)):
            return {str(name): _runs(rows)[""] for name, rows in history.items()}
        return {"": [dict(zip(history, row, strict=True)) for row in zip(*history.values(), strict=False)]}
    return {"": [dict(row) for row in history]}


def _array(values: Any) -> np.ndarray:
    """A NumPy array of lists, arrays or tensors, also those that need a gradient or are in bfloat16."""
    return values.detach().cpu().double().numpy() if hasattr(values, "detach") else np.asarray(values, dtype=float)


def _pieces(text: str | Sequence[str], spans: Sequence[Span]) -> list[tuple[str, str]]:
    """The text cut into (piece, label), with an empty label outside the spans."""
    pieces, at = [], 0
    for start, end, label in sorted(spans):
        if not 0 <= start < end <= len(text):
            raise RoadmapError(f"The span ({start}, {end}, {label!r}) is empty or outside the text of length {len(text)}.")
        if start < at:
            raise RoadmapError(f"The span ({start}, {end}, {label!r}) overlaps the one before it, which ends at {at}.")
        pieces += [("".join(text[at:start]), ""), ("".join(text[start:end]), label)]
        at = end
    pieces.append(("".join(text[at:]), ""))
    return [piece for piece in pieces if piece[0]]


def _colors(used: Sequence[str], labels: Sequence[str] | None) -> dict[str, str]:
    every = sorted(set(used)) if labels is None else list(labels)
    if strange := sorted(set(used) - set(every)):
        raise RoadmapError(f"A span has the label {strange[0]!r}, which is not among labels={every}.")
    return {label: PALETTE[i % len(PALETTE)] for i, label in enumerate(every)}


def _tint(color: str) -> str:
    """The colour at a fifth of its strength on white."""
    red, green, blue = mpl.colors.to_rgb(color)
    return mpl.colors.to_hex((0.8 + 0.2 * red, 0.8 + 0.2 * green, 0.8 + 0.2 * blue))


def _ink(color: str) -> str:
    """Black or white, whichever reads better on the colour (relative luminance, Rec. 709)."""
    red, green, blue = mpl.colors.to_rgb(color)
    return "white" if 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.5 else "black"


@cache
def _fonts() -> list[FT2Font]:
    return [font_manager.get_font(path) for path in (FONT, font_manager.findfont(FAMILY[1]))]


@cache
def _ems(text: str) -> float:
    """Width of a text in ems, from the fonts themselves."""
    width = 0.0
    for char in text:
        font = next((font for font in _fonts() if font.get_char_index(ord(char))), _fonts()[0])
        glyph = font.load_char(ord(char), LoadFlags.NO_SCALE)
        width += glyph.horiAdvance / font.units_per_EM
    return width


def _drawable(text: object, *, keep: str = "") -> str:
    """The text with a return for a line break and □ for what no font can draw."""
    shown = (c if c in keep else {"\n": "↵", "\t": " "}.get(c, c) for c in str(text))
    return "".join(c if c in keep or any(font.get_char_index(ord(c)) for font in _fonts()) else "□" for c in shown)


use_style()
