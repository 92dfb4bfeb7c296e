"""Table and CSV of reconstructions under true and false labels (paper, Fig. 6).

:mod:`diffguard_pl.evaluation.label_effect` computes them.
"""

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from ..metrics.label_effect import LabelEffect
from ..runs.csv_files import write_csv


def label_effect_table(effects: Sequence[LabelEffect]) -> Table:
    """Build the table of the first score; the CSV has all of them."""
    primary = effects[0].score
    table = Table(
        title=Text(f"{primary} under the true and under a false label", "table.title"),
        caption=Text(
            f"mean and standard deviation over {effects[0].images} in-distribution images, higher "
            "= more alike; AUROC of true against false labels in percent",
            "table.caption",
        ),
    )
    table.add_column("guidance")
    for name in ("true label", "false label", "AUROC"):
        table.add_column(name, justify="right")
    for effect in effects:
        if effect.score == primary:
            true = f"{effect.true_mean:.4g} ± {effect.true_std:.2g}"
            false = f"{effect.false_mean:.4g} ± {effect.false_std:.2g}"
            table.add_row(Text(effect.guidance), true, false, f"{100 * effect.auroc:.2f}")
    return table


def write_label_effects(effects: Sequence[LabelEffect], path: Path) -> None:
    """Write one line per guidance and score as CSV.

    Raises:
        InputError: The file could not be written.
    """
    write_csv(LabelEffect._fields, effects, path)
