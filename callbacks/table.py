"""The result table."""

import csv
import math

import pytorch_lightning as pl
from rich.console import Console
from rich.table import Table

from diffguard_pl.metrics import Figures
from diffguard_pl.module import YARDSTICKS, DiffGuardModule


class MetricsTable(pl.Callback):
    """Prints the result table, writes it to ``metrics.csv`` in the run's folder, and says where everything lies."""

    def on_test_end(self, trainer: pl.Trainer, pl_module: DiffGuardModule) -> None:
        if not trainer.is_global_zero or trainer.sanity_checking:
            return
        folder = pl_module.run_folder
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "metrics.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["group", "dataset", "score", *Figures._fields])
            writer.writerows([row.group, row.dataset, row.score, *row.figures] for row in pl_module.rows)
        console = Console()
        console.print(self.table(pl_module))
        for name in ("scores.csv", "metrics.csv", "pictures.png"):
            if (folder / name).exists():
                console.print(f"{name.partition('.')[0]:>9}: {folder / name}", soft_wrap=True, highlight=False)

    @staticmethod
    def table(pl_module: DiffGuardModule) -> Table:
        """In percent; the headline score bold, the classifier's own yardsticks dim."""
        ind, sizes, left_out = pl_module.datasets[0], pl_module.metrics.sizes, pl_module.left_out
        known = f"Classifier accuracy {100 * pl_module.ind_accuracy:.2f} on " if not math.isnan(pl_module.ind_accuracy) else ""
        aside = f", {left_out[ind]} left out" if left_out[ind] else ""
        table = Table(
            title=f"Out-of-distribution detection against {ind}",
            caption=f"in percent; higher is better but for FPR@95. {known}{sizes[ind]} images of {ind}{aside}.",
        )
        for name in ("group", "OOD set", "score"):
            table.add_column(name)
        for name in ("AUROC", "FPR@95", "AUPR-in", "AUPR-out"):
            table.add_column(name, justify="right")
        last, about = None, iter([""])
        for row in pl_module.rows:
            here = (row.group, row.dataset)
            if last != here:
                if last:
                    table.add_section()
                about = iter(_about(row.dataset, sizes, left_out))
            style = "bold" if row.score == pl_module.score_names[0] else "dim" if row.score in YARDSTICKS else ""
            shown = [f"{100 * value:.2f}" for value in row.figures[:4]]
            table.add_row(row.group if last != here else "", next(about, ""), row.score, *shown, style=style)
            last = here
        return table


def _about(dataset: str, sizes: dict[str, int], left_out: dict[str, int]) -> list[str]:
    """What stands beside the first scores of a set: its name, how many images it has, how many could not be used."""
    if dataset not in sizes:
        return [dataset]
    aside = [f"{left_out[dataset]} left out"] if left_out[dataset] else []
    return [dataset, f"{sizes[dataset]} images", *aside]
