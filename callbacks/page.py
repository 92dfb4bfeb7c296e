"""The report page."""

import sys

import pytorch_lightning as pl

from diffguard_pl.errors import InputError
from diffguard_pl.evaluation.module import DiffGuardModule
from diffguard_pl.runs.store import part_files


class ReportPage(pl.Callback):
    """Draws ``pictures.png``, ``plots.png`` and ``report.html`` from the files of the run.

    Args:
        enabled: Whether to draw them. ``diffguard-pl report RUN_DIR`` does the same later.
    """

    def __init__(self, enabled: bool = True):
        self.enabled = enabled

    def on_test_end(self, trainer: pl.Trainer, pl_module: DiffGuardModule) -> None:
        folder = pl_module.run_folder
        if not (self.enabled and trainer.is_global_zero and part_files(folder)):
            return
        from diffguard_pl.report.build import build
        from diffguard_pl.report.results import read_results
        from diffguard_pl.report.tables import cascade_table, cost_table, terminal

        try:
            results = read_results(folder, pl_module.results)
            written = build(results)
            if results.costs:
                terminal().print(cost_table(results.costs))
            if results.cascade_curve:
                terminal().print(cascade_table(results.cascade_curve, results.budget))
        except (InputError, OSError) as error:
            print(
                f"report page: not written ({error}); "
                f"diffguard-pl report {folder} makes it from the scores",
                file=sys.stderr,
            )
            return
        names = {
            "pictures.png": "pictures",
            "cascade.png": "cascade",
            "costs.png": "costs",
            "plots.png": "plots",
            "report.html": "report",
        }
        for path in written:
            if path.name in names:
                print(f"{names[path.name]:>9}: {path}", flush=True)
