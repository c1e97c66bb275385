"""Figures and the page."""

import base64
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from navprune.errors import UserError
from navprune.reports.maps import episode_map
from navprune.reports.page import Picture, Report, write_report
from navprune.reports.plots import Curve, plot_learning_curves, read_curve, running_mean, widths_figure
from navprune.reports.tables import comparison_tables


class Outline(HTMLParser):
    """Collects tags that are open, text, and addresses."""

    def __init__(self, page):
        super().__init__()
        self.open, self.texts, self.addresses = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        if tag not in ("img", "meta"):
            self.open.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data.strip())


@pytest.fixture
def report(rows, comparisons, pruning, recording, tmp_path):
    episode_map(recording, 300).save(tmp_path / "map.png")
    frames = np.linspace(0, 1e6, 50)
    return Report(
        title="Encoders <compared>",
        rows=rows,
        lead="Half the work & the same way.",
        limits=["One seed."],
        comparisons=comparisons,
        commands=["navprune train", "navprune compare a b"],
        curves={"ResNet50": Curve(frames, frames / 400, frames / 1e6)},
        prunings={"ResNet50, pruned": pruning},
        episodes=[Picture(tmp_path / "map.png", "From room to room.")],
    )


def test_page_holds_everything_in_one_file(report, tmp_path):
    path = write_report(tmp_path / "out", report)
    outline = Outline(path.read_text())
    assert outline.open == []
    for row in (row for table in comparison_tables(report.rows, report.comparisons) for row in table.rows):
        assert all(cell in outline.texts for cell in row)
    for text in (report.title, report.lead, *report.limits, report.episodes[0].caption, "28.6 %"):
        assert text in outline.texts
    assert any("994 episodes of val" in text for text in outline.texts)
    assert "\n".join(report.commands) in outline.texts
    assert len(outline.addresses) == 6  # five figures and a map
    assert all(address.startswith("data:image/png;base64,") for address in outline.addresses)
    embedded = base64.b64decode(outline.addresses[-1].split(",", 1)[1])
    assert embedded == (tmp_path / "map.png").read_bytes()
    assert not re.search(r"(https?:)?//[a-z]", re.sub(r"base64,[^\"]*", "", path.read_text()))
    assert "| ResNet50, pruned | 0.600 |" in (path.parent / "table.md").read_text()


def test_figures_are_pictures_that_show_something(report, tmp_path):
    write_report(tmp_path / "out", report)
    figures = sorted((tmp_path / "out" / "figures").glob("*.png"))
    assert [figure.stem for figure in figures] == [
        "curves", "savings", "spl_latency", "spl_macs", "widths_ResNet50__pruned",
    ]  # fmt: skip
    for figure in figures:
        image = Image.open(figure)
        assert image.width >= 900 and len(image.convert("RGB").getcolors(1 << 20)) > 20


def test_empty_parts_are_left_out(rows, tmp_path):
    bare = [replace(row, cost=None, latency=(), statistics=None) for row in rows]
    page = write_report(tmp_path, Report("Bare", bare)).read_text()
    assert "<h2>" in page
    for heading in ("Runs, scenes", "Figures", "Episodes", "Latency", "Cost", "What limits", "How to repeat"):
        assert f"<h2>{heading}" not in page


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=30), st.integers(1, 8))
def test_running_mean_is_the_mean_of_the_last_ones(values, count):
    expected = [np.mean(values[max(0, i + 1 - count) : i + 1]) for i in range(len(values))]
    np.testing.assert_allclose(running_mean(np.array(values), count), expected, atol=1e-12)


def test_curves_come_back_from_tensorboard_files(tmp_path):
    with SummaryWriter(tmp_path) as writer:
        for step in range(5):
            writer.add_scalar("metrics/spl", step / 10, 128 * step, walltime=1000.0 + 2 * step)
    curve = read_curve(tmp_path, "metrics/spl")
    np.testing.assert_array_equal(curve.frames, 128 * np.arange(5))
    np.testing.assert_allclose(curve.seconds, 2 * np.arange(5))
    np.testing.assert_allclose(curve.values, np.arange(5) / 10, rtol=1e-6)
    plot_learning_curves(tmp_path / "curve.png", {"a": curve}, by="seconds")
    assert Image.open(tmp_path / "curve.png").size == (1024, 640)


def test_a_missing_curve_names_those_there_are(tmp_path):
    with SummaryWriter(tmp_path) as writer:
        writer.add_scalar("metrics/spl", 0.5, 1)
    with pytest.raises(UserError, match=r"no curve metrics/reward .* metrics/spl"):
        read_curve(tmp_path, "metrics/reward")


def test_widths_are_drawn_as_deep_as_the_network_is(pruning, tmp_path):
    shown = {**pruning, "reached": {"macs": 0.488, "latency": 0.7}}
    shown["widths"] = {f"layer{i}": [32 + i, (40, 0, 9)[i % 3]] for i in range(60)}  # grown, removed, cut
    widths_figure(tmp_path / "deep.png", shown)
    widths_figure(tmp_path / "flat.png", {**shown, "widths": {"stem": [3, 2]}})
    deep, flat = (Image.open(tmp_path / f"{name}.png") for name in ("deep", "flat"))
    assert deep.height == flat.height and deep.width > 2 * flat.width
    blue = np.array([31, 111, 139])
    coloured = (np.abs(np.asarray(deep.convert("RGB")).astype(int) - blue).max(2) < 3).any(0)
    assert coloured.mean() > 0.3  # a bar for two layers in three
