"""The result table."""

import pytorch_lightning as pl

from diffguard_pl.evaluation.module import DiffGuardModule
from diffguard_pl.report.tables import result_table, terminal, write_metrics_csv


class MetricsTable(pl.Callback):
    """Prints the result table and writes it to ``metrics.csv`` in the run folder.

    Loggers get the results from the module.
    """

    def on_test_end(self, trainer: pl.Trainer, pl_module: DiffGuardModule) -> None:
        if not trainer.is_global_zero:
            return
        folder = pl_module.run_folder
        folder.mkdir(parents=True, exist_ok=True)
        table = result_table(
            pl_module.results,
            pl_module.primary_score,
            pl_module.datasets,
            pl_module.metrics.sizes,
            pl_module.left_out,
            pl_module.ind_accuracy,
            full_spectrum_accuracy=pl_module.full_spectrum_accuracy,
        )
        console = terminal()
        try:
            write_metrics_csv(pl_module.results, folder / "metrics.csv")
        finally:
            console.print(table)  # the results are seen even where they cannot be written
        for name in ("scores", "metrics.csv"):
            if (folder / name).exists():
                console.print(f"{name.partition('.')[0]:>9}: {folder / name}", soft_wrap=True)
