"""The command ``diffguard-pl analyze inversion``: similarity along the inversion (Fig. 4)."""

from pathlib import Path

HELP = """\
usage: diffguard-pl analyze inversion [-h] [-c CONFIG] [--SECTION.SETTING VALUE ...]

Measure how similar images stay to themselves on their way to noise (Fig. 4 of the paper): mean and
standard deviation for each dataset and step. Adaptive early stop is not applied; the picture shows
its thresholds.

options:
  -h, --help            show this help message and exit
  -c CONFIG, --config CONFIG
                        Path or name of a config; later ones override earlier ones.
  --analysis.similarities SIMILARITIES
                        psnr, dists and lpips as early stop computes them, or any discrepancy that
                        compares images alone. (default: [psnr, dists])

Settings of model, data and trainer are those of a test: diffguard-pl test --help
"""
"""Text of ``--help``. The parser's own would need torch, Lightning and every class of a setting."""


def main(args: list[str]) -> None:
    """Measure the similarity; write ``inversion.csv`` and ``inversion.png``, and print a table.

    Args:
        args: Arguments of the command.
    """
    if {"-h", "--help"} & set(args):
        print(HELP, end="")
        return
    # The help is printed without these, which import torch and Lightning.
    from ..evaluation.inversion import InversionModule
    from ..report.inversion import draw_inversion, inversion_table, write_inversion_csv
    from ..report.tables import terminal
    from .analyses import analyse
    from .cli import InversionCLI

    def write(module: InversionModule, folder: Path) -> None:
        table, picture = folder / "inversion.csv", folder / "inversion.png"
        write_inversion_csv(module.points, table)
        title = "Similarity to the input along the inversion; bands: one standard deviation"
        draw_inversion(module.points, module.thresholds, title, picture)
        terminal().print(inversion_table(module.points))
        print(f"table: {table}\n plot: {picture}")

    analyse(InversionCLI, args, "analyze inversion", InversionModule, write)
