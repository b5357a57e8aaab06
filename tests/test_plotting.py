"""Figures: what is drawn, that Chinese is drawn, and that bad input is one sentence."""

import io
import warnings

import matplotlib

matplotlib.use("Agg")
from common import plotting
from common.errors import RoadmapError

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

ROWS = [{"step": 1, "loss": 2.0, "learning_rate": 0.1}, {"step": 2, "loss": 1.0}, {"step": 2, "eval_loss": 1.5, "accuracy": 0.7}]
TEXT = "张伟在深圳见到了朱镕基。"
SPANS = [(0, 2, "PER"), (3, 5, "LOC"), (8, 11, "PER")]


@pytest.fixture(autouse=True)
def every_figure_can_be_drawn():
    """Any warning (above all a missing glyph) while a figure is drawn fails the test."""
    plotting.use_style()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
        for number in plt.get_fignums():
            stored = io.BytesIO()
            plt.figure(number).savefig(stored, format="png")
            assert stored.tell() < 60_000
    plt.close("all")


def texts(ax):
    return [text.get_text() for text in ax.texts]


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_the_font_draws_the_chinese_of_the_course():
    assert plt.rcParams["font.family"] == ["Noto Sans SC", "DejaVu Sans"]
    font = matplotlib.font_manager.get_font(plotting.FONT)
    common = "".join(bytes([row, cell]).decode("gb2312") for row in range(0xB0, 0xD7) for cell in range(0xA1, 0xFF))
    missing = [
        char for char in common + "圳镕琪鑫，。！？：；、“”‘’《》（）【】…—￥ABCxyz0189~" if not font.get_char_index(ord(char))
    ]
    assert len(common) > 3600 and not missing


def test_a_missing_font_names_the_way_out(monkeypatch, tmp_path):
    monkeypatch.setattr(plotting, "FONT", tmp_path / "none.ttf")
    with pytest.raises(RoadmapError, match="git checkout -- assets/fonts"):
        plotting.use_style()


def test_curves_draws_each_key_against_its_own_steps():
    ax = plotting.curves(ROWS, ["loss", "eval_loss"], "accuracy", title="训练")
    assert [line.get_xydata().tolist() for line in ax.get_lines()] == [[[1, 2.0], [2, 1.0]], [[2, 1.5]]]
    assert legend(ax) == ["loss", "eval_loss", "accuracy"]
    assert len(ax.figure.axes) == 2 and ax.figure.axes[1].get_ylabel() == "accuracy"


def test_curves_takes_columns_and_several_runs():
    columns = {"step": [1, 2], "loss": [3.0, 2.0]}
    (line,) = plotting.curves(columns).get_lines()
    assert line.get_ydata().tolist() == [3.0, 2.0]
    ax = plotting.curves({"full": columns, "LoRA": ROWS})
    assert legend(ax) == ["full: loss", "LoRA: loss"] and len(ax.figure.axes) == 1
    assert len({line.get_color() for line in ax.get_lines()}) == 2


def test_curves_draws_into_the_axes_it_is_given():
    _, (left, right) = plt.subplots(1, 2)
    assert plotting.curves(ROWS, ax=right) is right and not left.get_lines()


@pytest.mark.parametrize(
    ("history", "known"), [(ROWS, "accuracy, eval_loss, learning_rate, loss"), ([], "nothing"), ({}, "nothing")]
)
def test_curves_names_the_keys_there_are(history, known):
    with pytest.raises(RoadmapError, match=f"holds no 'perplexity' by 'step'; it holds: {known}"):
        plotting.curves(history, "perplexity")


def test_bars_prints_values_and_the_baseline():
    ax = plotting.bars(["TF-IDF", "预训练"], [0.85, 0.9], baseline=0.52, baseline_name="majority class", ylabel="accuracy")
    assert [bar.get_height() for bar in ax.patches] == [0.85, 0.9]
    assert texts(ax) == ["0.85", "0.90"] and legend(ax) == ["majority class (0.52)"]
    assert ax.get_lines()[0].get_ydata()[0] == 0.52


def test_bars_of_one_series_have_no_legend():
    assert plotting.bars(["a", "b"], [1, 2]).get_legend() is None


def test_bars_draws_series_side_by_side():
    ax = plotting.bars(["a", "b"], {"f1": [0.1, 0.2], "em": [0.3, 0.4]}, errors={"f1": [0.01, 0.02]})
    assert len(ax.patches) == 4 and legend(ax) == ["f1", "em"]
    lefts = [bar.get_x() for bar in ax.patches]
    assert lefts[0] + ax.patches[0].get_width() <= lefts[2] < lefts[1]
    assert plotting.bars(["a"], [1.0], errors=[0.5]).containers


@pytest.mark.parametrize("extra", [{"values": [1, 2, 3]}, {"values": [1, 2], "errors": [0.1]}, {"values": {"f1": [1]}}])
def test_bars_refuses_lengths_that_differ(extra):
    with pytest.raises(RoadmapError, match="bars has 2 names, but"):
        plotting.bars(["a", "b"], **extra)


def test_confusion_shows_counts_and_shares_of_the_row():
    ax = plotting.confusion([[30, 10], [0, 5]], ["消极", "积极"])
    assert texts(ax) == ["75%\n30", "25%\n10", "100%\n5"]
    assert ax.images[0].get_array().tolist() == [[0.75, 0.25], [0.0, 1.0]]


def test_confusion_of_many_classes_stays_readable():
    matrix = np.ones((8, 8)) + np.diag([9] * 8)
    ax = plotting.confusion(torch.tensor(matrix), ["a long class name"] * 8)
    assert texts(ax)[:2] == ["59%\n10", "1"] and ax.get_xticklabels()[0].get_rotation() == 35
    assert np.isfinite(plotting.confusion(np.zeros((2, 2)), ["a", "b"]).images[0].get_array()).all()


@pytest.mark.parametrize("matrix", [[[1, 2]], [[1, 2], [3, -1]], [], [[1, 2, 3]] * 3])
def test_confusion_refuses_what_is_no_matrix_of_counts(matrix):
    with pytest.raises(RoadmapError, match="2 labels is 2 x 2 counts"):
        plotting.confusion(matrix, ["a", "b"])


def test_attention_map_of_one_head():
    weights = torch.rand(4, 4, requires_grad=True).to(torch.bfloat16)
    ax = plotting.attention_map(weights, ["[CLS]", "北", "$5$", "\n"], title="layer 0")
    assert [label.get_text() for label in ax.get_yticklabels()] == ["[CLS]", "北", "$5$", "↵"]
    assert np.allclose(ax.images[0].get_array(), weights.detach().float().numpy())
    assert [label.get_rotation() for label in ax.get_xticklabels()] == [90, 0, 90, 0]


def test_attention_map_of_several_heads_shares_its_colours():
    weights = np.random.default_rng(0).random((6, 3, 5))
    axes = plotting.attention_map(weights, list("北京市"), keys=list("Peking"[:5]))
    assert len(axes) == 6 and {ax.images[0].get_clim() for ax in axes} == {(0, weights.max())}
    assert axes[5].get_title() == "head 5" and len(axes[0].figure.axes) == 8


def test_attention_map_thins_out_labels_that_would_overlap():
    ax = plotting.attention_map(np.eye(90), list("中" * 90), vmax=2)
    assert len(ax.get_xticks()) == 30 and ax.images[0].get_clim() == (0, 2)


@pytest.mark.parametrize("shape", [(3,), (2, 3), (1, 2, 3, 3), (0, 3, 3)])
def test_attention_map_refuses_shapes_that_do_not_fit(shape):
    with pytest.raises(RoadmapError, match=r"3 tokens and 3 keys has shape \(3, 3\)"):
        plotting.attention_map(np.zeros(shape), list("abc"))


def test_highlight_draws_the_text_with_a_box_and_a_label_for_each_span():
    ax = plotting.highlight(TEXT, SPANS, title="实体")
    drawn = texts(ax)
    assert drawn[0] == "实体" and "".join(t for t in drawn[1:] if t not in ("PER", "LOC")) == TEXT
    assert drawn.count("PER") == 2 and drawn.count("LOC") == 1 and len(ax.patches) == 3


def test_highlight_boxes_surround_their_characters():
    ax = plotting.highlight("价格 price: $5 和 $6 深圳", [(4, 9, "W"), (18, 20, "LOC")])
    figure = ax.figure
    figure.canvas.draw()
    inside = {text.get_text(): text.get_window_extent() for text in ax.texts}
    for name, box in zip(("rice:", "深圳"), ax.patches, strict=True):
        drawn, edge = inside[name], box.get_window_extent()
        assert edge.x0 <= drawn.x0 + 1 and drawn.x1 <= edge.x1 + 1 and edge.y0 < drawn.y0 + 3 and drawn.y1 <= edge.y1 + 1


def test_highlight_breaks_long_lines_and_keeps_line_breaks():
    long = "深圳市" * 60 + "\n" + "北京"
    ax = plotting.highlight(long, [(0, 150, "LOC")])
    figure = ax.figure
    figure.canvas.draw()
    pieces = [text for text in ax.texts if text.get_text() != "LOC"]
    assert "".join(piece.get_text() for piece in pieces) == long.replace("\n", "")
    assert len({piece.get_position()[1] for piece in pieces}) == 6
    assert all(0 <= text.get_window_extent().x0 and text.get_window_extent().x1 <= figure.bbox.width for text in pieces)
    assert all(0 <= text.get_window_extent().y0 and text.get_window_extent().y1 <= figure.bbox.height for text in ax.texts)


def test_highlight_takes_tokens_and_keeps_the_colour_of_a_label():
    kinds = ["PER", "LOC", "ORG"]
    first = plotting.highlight(["在", "北京", "🙂"], [(1, 2, "LOC")], labels=kinds)
    second = plotting.highlight("张伟", [(0, 2, "PER")], labels=kinds)
    assert texts(first)[0] == "在" and "北京" in texts(first) and "□" in texts(first)
    assert first.patches[0].get_edgecolor() != second.patches[0].get_edgecolor()


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ([(2, 2, "PER")], "empty or outside"),
        ([(-1, 2, "PER")], "empty or outside"),
        ([(0, 99, "PER")], "empty or outside the text of length 12"),
        ([(0, 3, "PER"), (2, 4, "LOC")], r"\(2, 4, 'LOC'\) overlaps"),
        ([(0, 2, "DATE")], "label 'DATE', which is not among"),
    ],
)
@pytest.mark.parametrize("draw", [plotting.highlight, plotting.highlight_html])
def test_spans_that_do_not_fit_are_refused(draw, spans, message):
    with pytest.raises(RoadmapError, match=message):
        draw(TEXT, spans, labels=["PER", "LOC"])


def test_highlight_html_reads_well_as_text_and_escapes_html():
    marked = plotting.highlight_html("<b>在深圳&\n", [(4, 6, "<LOC>")])
    assert repr(marked) == "<b>在[深圳 <LOC>]&\n"
    page = marked._repr_html_()
    assert "&lt;b&gt;在<mark style=" in page and "深圳<sub" in page and "&lt;LOC&gt;" in page and page.endswith("&amp;<br>")


def test_memory_bar_stacks_and_sums():
    ax = plotting.memory_bar({"weights": 1.0, "梯度": 3.0}, limit=3.5)
    assert [(bar.get_x(), bar.get_width()) for bar in ax.patches] == [(0.0, 1.0), (1.0, 3.0)]
    assert texts(ax) == ["1", "3", "4 GB"] and legend(ax) == ["limit (3.5 GB)", "weights", "梯度"]


def test_memory_bar_compares_methods():
    ax = plotting.memory_bar({"full": {"weights": 4, "adam": 8}, "QLoRA 四位": {"weights": 1, "quant": 0.001}}, unit="MB")
    assert legend(ax) == ["weights", "adam", "quant"] and texts(ax)[-1] == "1 MB"
    assert [label.get_text() for label in ax.get_yticklabels()] == ["full", "QLoRA 四位"]
    assert plotting.memory_bar({"nothing": 0.0}).get_xlim() == (0, 1)


@pytest.mark.parametrize("parts", [{}, {"a": -1.0}, {"a": float("nan")}, {"full": {}}])
def test_memory_bar_refuses_what_cannot_be_stacked(parts):
    with pytest.raises(RoadmapError, match="at least one part"):
        plotting.memory_bar(parts)


def test_points_gives_each_label_its_own_marker():
    ax = plotting.points(np.arange(8).reshape(4, 2), ["刑法", "民法", "刑法", "_x"], names=list("甲乙丙丁"), title="map")
    assert [len(each.get_offsets()) for each in ax.collections] == [2, 1, 1]
    assert legend(ax)[:2] == ["刑法", "民法"] and texts(ax) == list("甲乙丙丁")
    assert plotting.points([[0, 1]]).get_legend() is None


@pytest.mark.parametrize(("xy", "labels"), [([1, 2], None), ([[1, 2, 3]], None), ([[1, 2]], ["a", "b"])])
def test_points_refuses_shapes_that_do_not_fit(xy, labels):
    with pytest.raises(RoadmapError, match=r"\(n, 2\) coordinates"):
        plotting.points(xy, labels)
