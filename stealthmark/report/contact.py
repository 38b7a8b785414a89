"""The contact sheet: what a dataset's test cases look like, with their masks, and with a trigger."""

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from stealthmark.dataset import Arrays
from stealthmark.report import style
from stealthmark.report.drawing import Drawing

if TYPE_CHECKING:
    from stealthmark.triggers import Trigger

#: How many test cases a sheet has.
CASES = 6
ORANGE = "#e69f00"


def contact_sheet(name: str, arrays: Arrays, trigger: "Trigger | None" = None) -> Drawing:
    """Test cases of the prepared dataset `name`, from small to large foreground: each with its mask's outline, and below it
    with the trigger (where none is given the text, which a person can see and which is the same for every key)."""
    import torch  # takes seconds, which the rest of the report does without

    from stealthmark.triggers import Trigger

    trigger = trigger or Trigger(kind="text")
    cases = pick(arrays)
    images = torch.from_numpy(cases.images).float() / 255
    triggered = (trigger(images) * 255).round().to(torch.uint8).numpy()
    figure = Figure(figsize=(1.65 * len(images) + 0.9, 4.1))
    axes = figure.subplots(2, len(images), squeeze=False)
    figure.subplots_adjust(left=0.9 / figure.get_figwidth(), right=0.995, top=0.9, bottom=0.01, wspace=0.04, hspace=0.04)
    for line, pictures, title in zip(
        axes, (cases.images, triggered), ("with mask", f"with trigger\n({trigger.kind})"), strict=True
    ):
        line[0].set_ylabel(title, fontsize=11)
        for ax, picture in zip(line, pictures, strict=True):
            style.picture(ax, picture)
    style.bare(axes)
    for ax, mask, share in zip(axes[0], cases.masks, cases.cases["foreground"], strict=True):
        if mask.any() and not mask.all():
            outline = ax.contour(mask, levels=[0.5], colors=ORANGE, linewidths=1.4)
            outline.set(path_effects=[withStroke(linewidth=2.4, foreground="black")])
        ax.set_title(f"{100 * share:.1f} %" if mask.any() else "empty", fontsize=11, fontweight="normal")
    manifest, total = arrays.manifest, (arrays.cases["share"] == "test").sum()
    caption = (
        f"{len(images)} of the {total} test cases of {manifest['title']} at {images.shape[-1]} px, at even steps from the "
        f"smallest to the largest foreground ({manifest['foreground']}; above each its share of the picture), outlined. Below, "
        f"the same cases with the trigger {trigger.kind!r}."
    )
    return Drawing(f"contact-{name}", f"{manifest['title']}: test cases", figure, caption)


def pick(arrays: Arrays, count: int = CASES) -> Arrays:
    """`count` test cases (all, where there are fewer) at even steps of their order by foreground, in memory."""
    test = np.flatnonzero(arrays.cases["share"] == "test")
    order = test[np.argsort(arrays.cases["foreground"].to_numpy()[test], kind="stable")]
    count = min(count, len(order))
    return arrays.at(order[((np.arange(count) + 0.5) * len(order) / count).astype(int)])
