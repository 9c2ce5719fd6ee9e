"""Figures for a page with a light and a dark face: curves as inline SVG, matrices as shaded cells."""

from __future__ import annotations

import dataclasses
import io
import re
from collections.abc import Sequence

import matplotlib
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Curves are drawn in stand-in colours that become CSS variables in the SVG: a plot follows the page's theme.
MUTED, LINE, ACCENT = "#010101", "#020202", "#030303"
_CSS = {MUTED: "var(--muted)", LINE: "var(--line)", ACCENT: "rgb(var(--accent))"}

_MAX_POINTS = 2000  # more than a screen can show; keeps the page small after a very long run


def smooth(values: np.ndarray) -> np.ndarray:
    """A centred Hann-weighted mean over about an eighth of the curve; NaN and infinities carry no weight.

    The window is cut at both ends (not padded), so a constant stays constant: `[2, 2, 2] -> [2, 2, 2]`.
    """
    reach = len(values) // 16
    window = np.hanning(2 * reach + 3)[1:-1]
    finite = np.isfinite(values)
    total = np.convolve(np.where(finite, values, 0.0), window)[reach : reach + len(values)]
    weight = np.convolve(finite.astype(float), window)[reach : reach + len(values)]
    return np.divide(total, weight, out=np.full(len(values), np.nan), where=weight > 0)


def curves(steps: np.ndarray, loss: np.ndarray, learning_rate: np.ndarray | None, name: str) -> Markup:
    """One stage as inline SVG: logged loss (thin), its smoothed line, and the learning rate as a strip below.

    Args:
      steps, loss, learning_rate: float arrays of one length; NaN where a step did not log the value.
      name: told to screen readers, and keeps the ids inside the SVG apart from those of other plots.
    """
    every = -(-len(steps) // _MAX_POINTS)
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.size": 8.5}):
        figure = Figure(figsize=(4.4, 2.9), layout="constrained")
        heights = [3.2] if learning_rate is None else [3.2, 1]
        axes = figure.subplots(len(heights), sharex=True, squeeze=False, height_ratios=heights)[:, 0]
        for axis in axes:
            _plain(axis)
        dots = "o" if len(steps) < 8 else None  # one logged step makes no line
        raw = dict(color=ACCENT, alpha=0.5, linewidth=0.8, marker=dots, markersize=3)
        axes[0].plot(steps[::every], loss[::every], **raw)
        axes[0].plot(steps[::every], smooth(loss)[::every], color=ACCENT, linewidth=1.8)
        axes[0].set_ylabel("loss", color=MUTED)
        if learning_rate is not None:
            _learning_rate_strip(axes[1], steps[::every], learning_rate[::every])
        axes[-1].set_xlabel("step", color=MUTED)
        figure.align_ylabels()
        axes[-1].xaxis.set_major_locator(MaxNLocator(5, integer=True))
        return _inline_svg(figure, f"Loss and learning rate of the stage {name}")


def _plain(axis: Axes) -> None:
    """Leaves the data, a faint grid and muted numbers."""
    axis.spines[:].set_visible(False)
    axis.grid(color=LINE, linewidth=0.7)
    axis.set_axisbelow(True)
    axis.tick_params(length=0, labelcolor=MUTED)
    axis.margins(x=0.01)


def _learning_rate_strip(axis: Axes, steps: np.ndarray, rate: np.ndarray) -> None:
    """A filled strip from zero whose only labels are zero and the peak: the two numbers one looks for."""
    axis.fill_between(steps, rate, color=MUTED, alpha=0.18, linewidth=0)
    axis.plot(steps, rate, color=MUTED, linewidth=1.0)
    peak = np.max(rate[np.isfinite(rate)], initial=0.0)
    axis.set_ylim(0, peak * 1.15 or 1.0)
    ticks = sorted({0.0, float(peak)})
    axis.set_yticks(ticks, [f"{tick:.2g}" for tick in ticks])
    axis.set_ylabel("lr", color=MUTED)


def _inline_svg(figure: Figure, label: str) -> Markup:
    """The figure as an `<svg>` element for HTML: theme colours, no XML prologue, no namespaces."""
    out = io.StringIO()
    no_metadata = dict.fromkeys(["Creator", "Date", "Format", "Type"])
    figure.savefig(out, format="svg", transparent=True, metadata=no_metadata)
    width, height = figure.get_size_inches() * 72
    opening = f'<svg role="img" aria-label="{escape(label)}" viewBox="0 0 {width:g} {height:g}">'
    svg = re.sub(r".*?<svg[^>]*>", lambda _: opening, out.getvalue(), count=1, flags=re.DOTALL)
    # A style inside the SVG would hold for the whole page.
    svg = re.sub(r"<!--.*?-->|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # "axes_1" would stand on the page once per plot
    for stand_in, variable in _CSS.items():
        svg = svg.replace(stand_in, variable)
    return Markup(svg)


@dataclasses.dataclass(frozen=True)
class Cell:
    """One shaded cell: `strength` in [0, 1] is the opacity of the accent colour behind `text`."""

    strength: float
    text: str
    title: str


@dataclasses.dataclass(frozen=True)
class HeatMap:
    """A matrix ready to be written as a table; `scale` says in words what the shades mean."""

    row_labels: Sequence[str]
    column_labels: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    scale: str


def similarity_map(values: np.ndarray, texts: Sequence[str]) -> HeatMap:
    """Images (rows, named by their own caption) against texts (columns), shaded by their similarity."""
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    rows = [
        [
            Cell((value - low) / (high - low or 1.0), "", f"image {i + 1}, text {j + 1}: {value:.2f}")
            for j, value in enumerate(row)
        ]
        for i, row in enumerate(values)
    ]
    scale = f"Similarity from {low:.2f} (no colour) to {high:.2f} (full colour)."
    return HeatMap(texts, [str(j + 1) for j in range(len(texts))], rows, scale)


def confusion_map(counts: np.ndarray, classes: Sequence[str]) -> HeatMap:
    """True classes (rows) against predictions (columns): counts, shaded by their share of the row."""
    rows = [
        [
            Cell(n / max(row.sum(), 1), f"{n:g}" if n else "", f"{classes[i]} taken for {classes[j]}: {n:g}")
            for j, n in enumerate(row)
        ]
        for i, row in enumerate(counts)
    ]
    return HeatMap(classes, classes, rows, "Counts, coloured by their share of the row.")
