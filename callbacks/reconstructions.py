"""What a run leaves with the experiment trackers: figures, plots, scores, and a sample of its reconstructions.

W&B (:class:`~diffguard_pl.callbacks.WandbRun`, or Lightning's own logger) and TensorBoard are known. All is read from the folder of
the run, by the first rank, when its scores and pictures are complete.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytorch_lightning as pl
from PIL import Image
from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger

from diffguard_pl.errors import InputError
from diffguard_pl.evaluation.module import DiffGuardModule
from diffguard_pl.metrics.table import ScoreTable
from diffguard_pl.report.curves import roc
from diffguard_pl.report.gallery import (
    KeptPicture,
    picture_path,
    picture_paths,
    random_key,
    read_picture,
)
from diffguard_pl.report.pictures import difference
from diffguard_pl.runs import store

from .wandb_run import WandbRun

FILES = ("config.yaml", "run.json", "metrics.csv", "cascade.csv")
"""Of a run's folder, besides the scores, in the artifact."""
BINS, SIDE = 60, 64
"""Of a histogram; pixels of a picture at least."""


class ReconstructionLogger(pl.Callback):
    """Logs a sample of the kept pictures with their scores: the table ``reconstructions`` of W&B, images of TensorBoard.

    Half of the sample are the most and the least mismatched by the headline score, half are random; it is the same each time.

    Args:
        count: images of each set; 0: none.
    """

    def __init__(self, count: int = 16):
        if count < 0:
            raise InputError(f"reconstructions.count={count}: expected at least 0")
        self.count = count

    def on_test_end(self, trainer: pl.Trainer, pl_module: DiffGuardModule) -> None:
        known = _loggers(trainer)
        if self.count == 0 or not known:
            return
        names = pl_module.class_names()
        sample = [
            _examined(row, names, kept)
            for row, kept in _sample(pl_module.run_folder, pl_module.score_names[0], self.count)
        ]
        for logger in known if sample else ():
            log = _table if isinstance(logger, WandbLogger) else _strips
            _guarded(logger, lambda logger=logger, log=log: log(logger, sample, pl_module))  # type: ignore[misc]


class RunLogger(pl.Callback):
    """Logs headline figures under short names (``near/auroc``), ROC curves, histograms, and the scores as an artifact.

    The figures of every score and set are logged by the module itself.
    """

    def on_test_end(self, trainer: pl.Trainer, pl_module: DiffGuardModule) -> None:
        for logger in _loggers(trainer):
            log = _log_wandb if isinstance(logger, WandbLogger) else _log_tensorboard
            _guarded(logger, lambda logger=logger, log=log: log(logger, pl_module))  # type: ignore[misc]


class Examined(NamedTuple):
    """An image, what became of it, and its scores.

    Attributes:
        row: its line of the scores.
        panels: input, unguided, reconstruction, difference and mask, as far as there are.
        words: label, prediction and what it was reconstructed as; empty where not known.
    """

    row: pd.Series
    panels: dict[str, Image.Image]
    words: dict[str, str]


def headline_figures(pl_module: DiffGuardModule) -> dict[str, float]:
    """DetectionMetrics of the headline score by set and by group, their mean over all sets, and how many images there were."""
    found: dict[str, float] = {}
    rows = [row for row in pl_module.results if row.score == pl_module.primary_score]
    sets = [row for row in rows if row.dataset != "mean"]
    for row in rows:
        single = [other.group for other in sets].count(row.group) == 1  # then it is its own mean
        for of in [row.group] if row.dataset == "mean" else [row.dataset, row.group][: 1 + single]:
            for figure in ("auroc", "fpr95"):
                found[f"{of}/{figure}"] = getattr(row.metrics, figure)
                if interval := row.intervals.get(figure):
                    found |= {
                        f"{of}/{figure}_{end}": value for end, value in interval._asdict().items()
                    }
    for figure in ("auroc", "fpr95"):
        found[f"mean/{figure}"] = sum(getattr(row.metrics, figure) for row in sets) / len(sets)
    found |= {f"images/{name}": count for name, count in pl_module.metrics.sizes.items()}
    found |= {f"left_out/{name}": count for name, count in pl_module.left_out.items()}
    return found | {"classifier/accuracy": pl_module.ind_accuracy}


def _loggers(trainer: pl.Trainer) -> list[Logger]:
    """Those that there is something for, on the first rank."""
    return (
        [one for one in trainer.loggers if isinstance(one, WandbLogger | TensorBoardLogger)]
        if trainer.is_global_zero
        else []
    )


def _guarded(logger: Logger, log: Callable[[], None]) -> None:
    """What goes wrong with a tracker is said; the run has its results all the same."""
    try:
        if isinstance(logger, WandbRun):
            logger.go_on()
        log()
    except Exception as error:  # of many kinds: the network, the server's settings, a full disk
        print(
            f"{type(logger).__name__}: not all was logged: {' '.join(str(error).split())[:200]}",
            file=sys.stderr,
        )


def _sample(run: Path, headline: str, count: int) -> Iterator[tuple[pd.Series, KeptPicture]]:
    """The images to show, set by set: their scores and pictures."""
    paths = set(picture_paths(run))
    frame, _ = store.read_scores(run)
    for dataset, of_set in frame[frame["error"].isna()].groupby("dataset", sort=False):
        kept = of_set[
            [picture_path(run, str(dataset), index) in paths for index in of_set["index"]]
        ]
        indices = kept.sort_values([headline, "index"])["index"].tolist()
        ends = dict.fromkeys(
            index for pair in zip(indices, reversed(indices), strict=True) for index in pair
        )
        by_chance = sorted(indices, key=lambda index: random_key(str(dataset), index))
        for index in list(dict.fromkeys([*list(ends)[: count // 2], *by_chance]))[:count]:
            pictures = read_picture(picture_path(run, str(dataset), index))
            if pictures.dataset == dataset:
                yield kept[kept["index"] == index].iloc[0], pictures


def _examined(row: pd.Series, names: list[str] | None, kept: KeptPicture) -> Examined:
    panels = dict(kept.panels)
    mask = panels.pop("mask", None)
    panels["difference"] = difference(*list(panels.values())[-2:])
    if mask is not None:
        panels["mask"] = mask
    labels = {
        name: int(row[name])
        for name in ("label", "prediction", "reconstructed_as")
        if not pd.isna(row[name])
    }
    words = {
        name: names[i] if names and 0 <= i < len(names) else str(i) if i >= 0 else ""
        for name, i in labels.items()
    }
    return Examined(row, {name: _enlarged(panel) for name, panel in panels.items()}, words)


def _enlarged(panel: Image.Image) -> Image.Image:
    times = -(-SIDE // panel.height)
    return panel.resize((panel.width * times, panel.height * times), Image.Resampling.NEAREST)


def _table(logger: WandbLogger, sample: list[Examined], pl_module: DiffGuardModule) -> None:
    import wandb

    first = ["dataset", "group", "index", "path"]
    panels = [
        name
        for name in ("input", "reconstruction", "unguided", "difference", "mask")
        if any(name in image.panels for image in sample)
    ]
    table = wandb.Table(
        columns=[*first, *panels, "label", "prediction", "reconstructed_as", *pl_module.score_names]
    )
    with _staging(logger):
        for row, pictures, words in sample:
            known = [str(row["dataset"]), str(row["group"]), int(row["index"]), str(row["path"])]
            images = [_wandb_image(name, pictures) for name in panels]
            named = [words.get(name, "") for name in ("label", "prediction", "reconstructed_as")]
            table.add_data(
                *known, *images, *named, *[float(row[name]) for name in pl_module.score_names]
            )
        logger.experiment.log({"reconstructions": table})


def _wandb_image(name: str, panels: dict[str, Image.Image]) -> Any:
    """A panel; for the mask, the input with the mask over it."""
    import wandb

    if name not in panels:
        return None
    if name != "mask":
        return wandb.Image(panels[name])
    mask = (np.asarray(panels["mask"].convert("L")) >= 128).astype(np.uint8)
    return wandb.Image(
        panels["input"],
        masks={"guidance": {"mask_data": mask, "class_labels": {0: "free", 1: "guided"}}},
    )


def _strips(logger: TensorBoardLogger, sample: list[Examined], pl_module: DiffGuardModule) -> None:
    for row, panels, words in sample:
        tag = f"{row['dataset']}/{row['index']}"
        strip = np.concatenate(
            [np.asarray(panel.convert("RGB")) for panel in panels.values()], axis=1
        )
        logger.experiment.add_image(tag, strip, dataformats="HWC")
        figures = ", ".join(f"{name} {row[name]:.4g}" for name in pl_module.score_names)
        about = ", ".join(
            f"{name.replace('_', ' ')} {word}" for name, word in words.items() if word
        )
        logger.experiment.add_text(tag, f"{', '.join(panels)}; {about}; {figures}; {row['path']}")


def _log_wandb(logger: WandbLogger, pl_module: DiffGuardModule) -> None:
    import wandb

    run, folder, table = logger.experiment, pl_module.run_folder, pl_module.metrics.table
    run.summary.update(headline_figures(pl_module))
    assert table is not None
    run.log({name: wandb.Plotly(figure) for name, figure in plots(table).items()})
    with _staging(logger):
        trajectories = [wandb.Image(str(path), caption=path.stem) for path in _trajectories(folder)]
        if trajectories:
            run.log({"trajectories": trajectories})
    artifact = wandb.Artifact(
        f"scores-{run.id}",
        type="scores",
        metadata={"datasets": table.datasets, "scores": table.scores},
    )
    with _staging(logger):
        if store.part_files(folder):
            artifact.add_dir(
                str(folder / store.SCORES_FOLDER), name=store.SCORES_FOLDER, policy="immutable"
            )  # not copied: they may be large
        for name in FILES:
            if (folder / name).exists():
                artifact.add_file(str(folder / name))
        run.log_artifact(artifact)


def _log_tensorboard(logger: TensorBoardLogger, pl_module: DiffGuardModule) -> None:
    logger.log_metrics(headline_figures(pl_module), step=0)
    table = pl_module.metrics.table
    assert table is not None
    for k, score in enumerate(table.scores):
        for d, dataset in enumerate(table.datasets):
            values = table.of(d)[:, k]
            if np.isfinite(values).any():
                logger.experiment.add_histogram(
                    f"scores_{score}/{dataset}", values[np.isfinite(values)]
                )
    pictures = {f"trajectories/{path.stem}": path for path in _trajectories(pl_module.run_folder)}
    for tag, path in ({"plots": pl_module.run_folder / "plots.png"} | pictures).items():
        if path.exists():
            with Image.open(path) as picture:
                logger.experiment.add_image(
                    tag, np.asarray(picture.convert("RGB")), dataformats="HWC"
                )


def _trajectories(run: Path) -> list[Path]:
    """The strips that ``TrajectoryLogger`` has drawn."""
    return sorted((run / "trajectories").glob("*.png"))


def plots(table: ScoreTable) -> dict[str, Any]:
    """Plotly figures by name: a ROC plot for each out-of-distribution set, a histogram for each score."""
    from plotly import graph_objects as go

    found = {}
    for d, dataset in enumerate(table.datasets[1:], 1):
        curves = {
            score: roc(table.of(0)[:, k], table.of(d)[:, k]) for k, score in enumerate(table.scores)
        }
        figure = go.Figure(
            [go.Scatter(x=x, y=y, name=score, mode="lines") for score, (x, y) in curves.items()]
        )
        found[f"roc/{dataset}"] = figure.update_layout(
            title=f"{table.datasets[0]} against {dataset}",
            xaxis_title=f"share of {dataset} accepted",
            yaxis_title=f"share of {table.datasets[0]} accepted",
        )
    for k, score in enumerate(table.scores):
        values = {dataset: table.of(d)[:, k] for d, dataset in enumerate(table.datasets)}
        values = {dataset: of_set[np.isfinite(of_set)] for dataset, of_set in values.items()}
        edges = np.histogram_bin_edges(np.concatenate(list(values.values())), BINS)
        bars = [
            go.Bar(
                x=(edges[1:] + edges[:-1]) / 2,
                y=np.histogram(of_set, edges)[0] / len(of_set),
                name=dataset,
                opacity=0.5,
            )
            for dataset, of_set in values.items()
            if len(of_set)
        ]
        found[f"histogram/{score}"] = go.Figure(bars).update_layout(
            barmode="overlay",
            bargap=0,
            xaxis_title=f"{score} (higher = more in-distribution)",
            yaxis_title="share of the set",
        )
    return found


@contextmanager
def _staging(logger: WandbLogger) -> Iterator[None]:
    """W&B copies what it is to upload: into the folder of the run, not the home folder, so that another machine can upload it."""
    if "WANDB_DATA_DIR" in os.environ:
        yield
        return
    os.environ["WANDB_DATA_DIR"] = str(
        Path(logger.save_dir or ".").absolute() / "wandb" / "staging"
    )
    try:
        yield
    finally:
        del os.environ["WANDB_DATA_DIR"]
