"""What all plots share: colours that colour-blind readers can distinguish, on light and on dark backgrounds."""

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
"""Blue, vermilion, green and pink (Okabe & Ito, 2008): a contrast of three to one with white and with near black."""

STYLES = ("-", "--", ":", "-.")
"""Line styles; neighbours in a list differ in style too, so that both of two equal lines are visible."""

GREY = "#808080"


def axes_or_new(ax: Any) -> Any:
    """The given axes, or those of a new figure."""
    return plt.subplots(figsize=(6.4, 4), layout="constrained")[1] if ax is None else ax


def name_layers(ax: Any, names: Sequence[str], axis: str = "x") -> None:
    """Ticks with the names of layers, as many as there is room for; numbers where there are more than a dozen."""
    count = len(names)
    set_ticks = ax.set_xticks if axis == "x" else ax.set_yticks
    if count <= 12:
        rotation = {"rotation": 35, "ha": "right"} if axis == "x" else {}
        set_ticks(range(count), [name.removeprefix("params/") for name in names], fontsize=8, **rotation)
        return
    step = -(-count // 10)
    set_ticks(range(0, count, step), [str(i + 1) for i in range(0, count, step)])
    (ax.set_xlabel if axis == "x" else ax.set_ylabel)("layer")
