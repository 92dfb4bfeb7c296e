"""What experiment trackers receive from a run: metrics, plots, scores, reconstructions.

Supported trackers are W&B (:class:`~diffguard_pl.callbacks.WandbRun`, or Lightning's own logger)
and TensorBoard. The first rank logs at the end of the test: metrics and plots from the module,
scores and pictures from the run folder.
"""

import itertools
import math
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
from PIL import Image
from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger

from diffguard_pl.errors import InputError
from diffguard_pl.evaluation.module import DiffGuardModule
from diffguard_pl.metrics.table import ScoreTable
from diffguard_pl.names import AVERAGE
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

if TYPE_CHECKING:
    import pandas as pd

FILES = ("config.yaml", "run.json", "metrics.csv", "cascade.csv")
"""Files of the run folder in the artifact, besides the scores."""
BINS = 60
"""Number of bins of a histogram."""
MIN_SIDE = 64
"""Minimum side of a logged picture in pixels; smaller ones are enlarged."""
LABELS = ("label", "prediction", "reconstructed_as")
MAX_ERROR = 200
"""Maximum number of characters of a tracker's error message."""


class ReconstructionLogger(pl.Callback):
    """Logs a sample of the kept pictures with their scores.

    W&B gets a table ``reconstructions``, TensorBoard gets images. Half of the sample is the most
    and the least mismatched images by the primary score, the rest is random but the same every
    time.

    Args:
        count: Number of images of each dataset. 0 for none.
    """

    def __init__(self, count: int = 16):
        if count < 0:
            raise InputError(f"reconstructions.count={count}: must be at least 0")
        self.count = count

    def on_test_end(self, trainer: pl.Trainer, pl_module: DiffGuardModule) -> None:
        loggers = _supported_loggers(trainer)
        if self.count == 0 or not loggers:
            return
        names = pl_module.class_names()
        chosen = _sample(pl_module.run_folder, pl_module.score_names[0], self.count)
        sample = [_examined(row, names, kept) for row, kept in chosen]
        if not sample:
            return
        for logger in loggers:
            log = _table if isinstance(logger, WandbLogger) else _strips
            _log_or_warn(log, logger, sample, pl_module)


class RunLogger(pl.Callback):
    """Logs primary metrics (``near/auroc``), histograms and trajectories. W&B also receives ROC
    curves and the scores as an artifact; TensorBoard receives ``plots.png``.

    The module itself logs the metrics of every score and dataset.
    """

    def on_test_end(self, trainer: pl.Trainer, pl_module: DiffGuardModule) -> None:
        for logger in _supported_loggers(trainer):
            log = _log_wandb if isinstance(logger, WandbLogger) else _log_tensorboard
            _log_or_warn(log, logger, pl_module)


class Examined(NamedTuple):
    """An image with its reconstruction and scores.

    Attributes:
        row: Row of the scores.
        panels: Those of input, unguided, reconstruction, difference and mask that exist.
        words: Names of its label, prediction and reconstructed class; empty if unknown.
    """

    row: "pd.Series"
    panels: dict[str, Image.Image]
    words: dict[str, str]


def primary_metrics(pl_module: DiffGuardModule) -> dict[str, float]:
    """Return the primary score's AUROC and FPR@95, counts of images, and accuracy, by tag."""
    # The average is mean/METRIC below, which a run on a single dataset has as well.
    results = [row for row in pl_module.results if row.dataset != AVERAGE]
    rows = [row for row in results if row.score == pl_module.primary_score]
    of_datasets = [row for row in rows if not row.is_mean]
    group_sizes = Counter(row.group for row in of_datasets)
    values: dict[str, float] = {}
    for row in rows:
        names = [row.tag]
        if not row.is_mean and group_sizes[row.group] == 1:
            names.append(row.group)  # the dataset is the mean of its group
        for name, metric in itertools.product(names, ("auroc", "fpr95")):
            values[f"{name}/{metric}"] = getattr(row.metrics, metric)
            if interval := row.intervals.get(metric):
                for end, value in interval._asdict().items():
                    values[f"{name}/{metric}_{end}"] = value
    plain = [row for row in of_datasets if not row.is_full_spectrum]
    for metric in ("auroc", "fpr95"):
        total = sum(getattr(row.metrics, metric) for row in plain)
        values[f"mean/{metric}"] = total / len(plain)
    values |= {f"images/{name}": count for name, count in pl_module.metrics.sizes.items()}
    values |= {f"left_out/{name}": count for name, count in pl_module.left_out.items()}
    if not math.isnan(pl_module.full_spectrum_accuracy):
        values["classifier/fsood_accuracy"] = pl_module.full_spectrum_accuracy
    return values | {"classifier/accuracy": pl_module.ind_accuracy}


def _supported_loggers(trainer: pl.Trainer) -> list[Logger]:
    """Return the loggers that get more than metrics; none on ranks other than the first."""
    if not trainer.is_global_zero:
        return []
    return [one for one in trainer.loggers if isinstance(one, WandbLogger | TensorBoardLogger)]


def _log_or_warn(log: Callable[..., None], logger: Logger, *args: Any) -> None:
    """Call a function that logs; only print its error, as the results are already on disk."""
    try:
        if isinstance(logger, WandbRun):
            logger.continue_offline_if_unreachable()
        log(logger, *args)
    except Exception as error:  # of many kinds: the network, the server's settings, a full disk
        message = " ".join(str(error).split())[:MAX_ERROR]
        print(f"{type(logger).__name__}: not everything was logged: {message}", file=sys.stderr)


def _sample(run: Path, primary: str, count: int) -> Iterator[tuple["pd.Series", KeptPicture]]:
    """Yield the rows and pictures of the images to show, dataset by dataset."""
    paths = set(picture_paths(run))
    frame, _ = store.read_scores(run)
    scored = frame[frame["error"].isna()]
    for dataset, rows in scored.groupby("dataset", sort=False):
        name = str(dataset)
        has_picture = [picture_path(run, name, index) in paths for index in rows["index"]]
        kept = rows[has_picture].sort_values([primary, "index"])
        indices = kept["index"].tolist()
        # from both ends inwards: the lowest, the highest, the second lowest, ...
        pairs = zip(indices, reversed(indices), strict=True)
        from_ends = list(dict.fromkeys(itertools.chain.from_iterable(pairs)))
        at_random = sorted(indices, key=lambda index: random_key(name, index))
        for index in list(dict.fromkeys([*from_ends[: count // 2], *at_random]))[:count]:
            picture = read_picture(picture_path(run, name, index))
            if picture is not None and picture.dataset == name:
                yield kept[kept["index"] == index].iloc[0], picture


def _examined(row: "pd.Series", names: list[str] | None, kept: KeptPicture) -> Examined:
    """Return an image with the difference that its score is about, and the names of its classes."""
    import pandas as pd

    panels = dict(kept.panels)
    mask = panels.pop("mask", None)
    # of input and reconstruction, or of both reconstructions where there are two
    panels["difference"] = difference(*list(panels.values())[-2:])
    if mask is not None:
        panels["mask"] = mask
    words = {}
    for column in LABELS:
        if not pd.isna(row[column]):
            words[column] = _class_name(int(row[column]), names)
    return Examined(row, {name: _enlarged(panel) for name, panel in panels.items()}, words)


def _class_name(label: int, names: list[str] | None) -> str:
    if label < 0:
        return ""
    return names[label] if names and label < len(names) else str(label)


def _enlarged(panel: Image.Image) -> Image.Image:
    times = math.ceil(MIN_SIDE / panel.height)
    return panel.resize((panel.width * times, panel.height * times), Image.Resampling.NEAREST)


def _table(logger: WandbLogger, sample: list[Examined], pl_module: DiffGuardModule) -> None:
    import wandb

    first = ["dataset", "group", "index", "path"]
    panels = [
        name
        for name in ("input", "reconstruction", "unguided", "difference", "mask")
        if any(name in image.panels for image in sample)
    ]
    table = wandb.Table(columns=[*first, *panels, *LABELS, *pl_module.score_names])
    with _staging_in_run_folder(logger):
        for row, pictures, words in sample:
            source = [str(row["dataset"]), str(row["group"]), int(row["index"]), str(row["path"])]
            images = [_wandb_image(name, pictures) for name in panels]
            classes = [words.get(name, "") for name in LABELS]
            scores = [float(row[name]) for name in pl_module.score_names]
            table.add_data(*source, *images, *classes, *scores)
        logger.experiment.log({"reconstructions": table})


def _wandb_image(name: str, panels: dict[str, Image.Image]) -> Any:
    """Return a panel; for the mask, the input with the mask over it."""
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
        scores = ", ".join(f"{name} {row[name]:.4g}" for name in pl_module.score_names)
        classes = [f"{name.replace('_', ' ')} {word}" for name, word in words.items() if word]
        text = f"{', '.join(panels)}; {', '.join(classes)}; {scores}; {row['path']}"
        logger.experiment.add_text(tag, text)


def _log_wandb(logger: WandbLogger, pl_module: DiffGuardModule) -> None:
    import wandb

    run, folder, table = logger.experiment, pl_module.run_folder, pl_module.metrics.table
    run.summary.update(primary_metrics(pl_module))
    assert table is not None
    run.log({name: wandb.Plotly(figure) for name, figure in plots(table).items()})
    with _staging_in_run_folder(logger):
        trajectories = [wandb.Image(str(path), caption=path.stem) for path in _trajectories(folder)]
        if trajectories:
            run.log({"trajectories": trajectories})
    artifact = wandb.Artifact(
        f"scores-{run.id}",
        type="scores",
        metadata={"datasets": table.datasets, "scores": table.scores},
    )
    with _staging_in_run_folder(logger):
        if store.part_files(folder):
            # immutable files are not copied; scores may be large
            scores = str(folder / store.SCORES_FOLDER)
            artifact.add_dir(scores, name=store.SCORES_FOLDER, policy="immutable")
        for name in FILES:
            if (folder / name).exists():
                artifact.add_file(str(folder / name))
        run.log_artifact(artifact)


def _log_tensorboard(logger: TensorBoardLogger, pl_module: DiffGuardModule) -> None:
    logger.log_metrics(primary_metrics(pl_module), step=0)
    table = pl_module.metrics.table
    assert table is not None
    for k, score in enumerate(table.scores):
        for d, dataset in enumerate(table.datasets):
            values = table.of(d)[:, k]
            finite = values[np.isfinite(values)]
            if len(finite):
                logger.experiment.add_histogram(f"scores_{score}/{dataset}", finite)
    drawings = {"plots": pl_module.run_folder / "plots.png"}
    for path in _trajectories(pl_module.run_folder):
        drawings[f"trajectories/{path.stem}"] = path
    for tag, path in drawings.items():
        if path.exists():
            with Image.open(path) as drawing:
                pixels = np.asarray(drawing.convert("RGB"))
            logger.experiment.add_image(tag, pixels, dataformats="HWC")


def _trajectories(run: Path) -> list[Path]:
    """Return the strips that ``TrajectoryLogger`` has drawn."""
    return sorted((run / "trajectories").glob("*.png"))


def plots(table: ScoreTable) -> dict[str, Any]:
    """Return Plotly figures by name.

    These are a ROC plot for each out-of-distribution dataset and a histogram for each score.
    """
    found = {}
    for d in table.ood:
        found[f"roc/{table.datasets[d]}"] = _roc_plot(table, d)
    for k, score in enumerate(table.scores):
        found[f"histogram/{score}"] = _histogram(table, k)
    return found


def _roc_plot(table: ScoreTable, d: int) -> Any:
    """Return the ROC curves of all scores for one out-of-distribution dataset."""
    from plotly import graph_objects as go

    figure = go.Figure()
    for k, score in enumerate(table.scores):
        x, y = roc(table.of(0)[:, k], table.of(d)[:, k])
        figure.add_trace(go.Scatter(x=x, y=y, name=score, mode="lines"))
    ind, ood = table.datasets[0], table.datasets[d]
    return figure.update_layout(
        title=f"{ind} against {ood}",
        xaxis_title=f"fraction of {ood} accepted",
        yaxis_title=f"fraction of {ind} accepted",
    )


def _histogram(table: ScoreTable, k: int) -> Any:
    """Return the histograms of one score for all datasets, on common bins."""
    from plotly import graph_objects as go

    values = {}
    for d, dataset in enumerate(table.datasets):
        of_dataset = table.of(d)[:, k]
        values[dataset] = of_dataset[np.isfinite(of_dataset)]
    edges = np.histogram_bin_edges(np.concatenate(list(values.values())), BINS)
    centres = (edges[1:] + edges[:-1]) / 2
    figure = go.Figure()
    for dataset, finite in values.items():
        if len(finite):
            fractions = np.histogram(finite, edges)[0] / len(finite)
            figure.add_trace(go.Bar(x=centres, y=fractions, name=dataset, opacity=0.5))
    return figure.update_layout(
        barmode="overlay",
        bargap=0,
        xaxis_title=f"{table.scores[k]} (higher = more in-distribution)",
        yaxis_title="fraction of the dataset",
    )


@contextmanager
def _staging_in_run_folder(logger: WandbLogger) -> Iterator[None]:
    """Make W&B stage uploads in the run folder rather than the home folder, so that another machine
    can upload them.
    """
    if "WANDB_DATA_DIR" in os.environ:
        yield
        return
    staging = Path(logger.save_dir or ".").absolute() / "wandb" / "staging"
    os.environ["WANDB_DATA_DIR"] = str(staging)
    try:
        yield
    finally:
        del os.environ["WANDB_DATA_DIR"]
