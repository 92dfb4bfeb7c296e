"""The command ``diffguard-pl analyze labels``: guidance under true and false labels (Fig. 6)."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..evaluation.label_effect import LabelEffectModule
    from ..report.pictures import Frame

HELP = """\
usage: diffguard-pl analyze labels [-h] [-c CONFIG] [--SECTION.SETTING VALUE ...]

Reconstruct in-distribution images under their true and under a false label, with each part of the
guidance left out (Fig. 6 of the paper), and compare.

options:
  -h, --help            show this help message and exit
  -c CONFIG, --config CONFIG
                        Path or name of a config; later ones override earlier ones.
  --analysis.images IMAGES
                        Number of images, evenly spaced. (default: 64)
  --analysis.pictures PICTURES
                        Number of them to draw, the first ones. (default: 4)

Settings of model, data and trainer are those of a test: diffguard-pl test --help
"""
"""Text of ``--help``. The parser's own would need torch, Lightning and every class of a setting."""

CELL = 128
"""Side of an image in the picture, in pixels, so that the names of the guidance have room."""
LONGEST_NAME = 12
"""Characters of a class name that have room beside the images."""


def main(args: list[str]) -> None:
    """Compare; write ``labels.csv`` and ``labels.png``, and print a table.

    Args:
        args: Arguments of the command.
    """
    if {"-h", "--help"} & set(args):
        print(HELP, end="")
        return
    # The help is printed without these, which import torch and Lightning.
    from ..evaluation.label_effect import LabelEffectModule
    from ..report.label_effect import label_effect_table, write_label_effects
    from ..report.pictures import draw_strips
    from ..report.tables import terminal
    from .analyses import analyse
    from .cli import LabelCLI

    def write(module: LabelEffectModule, folder: Path) -> None:
        table, picture = folder / "labels.csv", folder / "labels.png"
        write_label_effects(module.effects, table)
        primary = module.scores[0]
        title = f"Reconstructed under true and false labels, and {primary} (higher = more alike)"
        draw_strips(strips(module), title, picture, CELL)
        terminal().print(label_effect_table(module.effects))
        print(f"table: {table}\n plot: {picture}")

    analyse(LabelCLI, args, "analyze labels", LabelEffectModule, write)


def strips(module: "LabelEffectModule") -> dict[str, list["Frame"]]:
    """Return two strips of each image to draw, under its true and under its false label."""
    from ..report.pictures import Frame, to_image

    names = module.data.class_names or module.diffguard.classifier.class_names or []
    found = {}
    for drawn in module.drawn:
        for side, label in enumerate(drawn.labels):
            kind = ("true", "false")[side]
            name = names[label].partition(",")[0][:LONGEST_NAME] if label < len(names) else label
            frames = [Frame(f"image {drawn.index}", to_image(drawn.image))]
            if drawn.unguided is not None:
                frames.append(Frame("no guidance", to_image(drawn.unguided)))
            for left_out, reconstructions in drawn.guided.items():
                image, score = reconstructions[side]
                frames.append(Frame(f"{left_out}: {score:.2g}", to_image(image)))
            found[f"{drawn.index}, {kind}: {name}"] = frames
    return found
