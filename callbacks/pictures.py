"""Pictures on disk."""

from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from diffguard_pl.errors import InputError
from diffguard_pl.evaluation.module import DiffGuardModule
from diffguard_pl.names import CALIBRATION
from diffguard_pl.report.gallery import (
    Candidate,
    KeptPicture,
    candidate_for,
    choose_candidates,
    picture_path,
    picture_paths,
    read_picture,
    write_picture,
)
from diffguard_pl.stages import Detection


class PictureWriter(pl.Callback):
    """Keeps ``pictures/SET/INDEX.png`` (see :mod:`diffguard_pl.report.gallery`): for each set the most and the least mismatched
    images by the headline score, and random ones. Which they are does not depend on batches, devices or interruptions.

    Args:
        count: images of each kind; 0: no pictures.
    """

    def __init__(self, count: int = 24):
        if count < 0:
            raise InputError(f"pictures.count={count}: expected at least 0")
        self.count = count
        self.kept: dict[str, list[Candidate]] = {}

    def on_test_start(self, trainer: pl.Trainer, pl_module: DiffGuardModule) -> None:
        """After an interruption: those of images that have results. The others' are made again."""
        self.kept = {}
        if pl_module.earlier is None or not trainer.is_global_zero:
            return
        headline = pl_module.earlier.loc[
            pl_module.earlier["error"].isna(), ["dataset", "index", pl_module.score_names[0]]
        ]
        scores = {
            (dataset, index): score for dataset, index, score in headline.itertuples(index=False)
        }
        for path in picture_paths(pl_module.run_folder):
            try:
                found = read_picture(path)
                score = scores[found.dataset, found.index]
            except (OSError, KeyError, ValueError):
                path.unlink(missing_ok=True)
                continue
            self.kept.setdefault(found.dataset, []).append(
                candidate_for(found.dataset, found.index, score)
            )

    def on_test_batch_end(
        self, trainer: pl.Trainer, pl_module: DiffGuardModule, outputs: Any, *_: Any
    ) -> None:
        for dataset, batch, detection in outputs["finished"]:
            if self.count > 0 and detection is not None and dataset != CALIBRATION:
                self._take(pl_module, dataset, batch, detection)

    def _take(
        self, pl_module: DiffGuardModule, dataset: str, batch: dict[str, Any], detection: Detection
    ) -> None:
        """Keep what is better than what is kept."""
        scores = detection.scores[pl_module.score_names[0]].tolist()
        new = [
            candidate_for(dataset, index, score)
            for index, score in zip(batch["index"].tolist(), scores, strict=True)
        ]
        places = {chosen: i for i, chosen in enumerate(new) if detection.stop_index[i] >= 0}
        new = list(places)  # the others were not diffused
        before = self.kept.get(dataset, [])
        self.kept[dataset] = choose_candidates([*before, *new], self.count)
        made = [chosen for chosen in self.kept[dataset] if chosen in places]
        if made:
            panels = _panels(
                pl_module, batch["image"], detection, [places[chosen] for chosen in made]
            )
            for i, chosen in enumerate(made):
                write_picture(
                    pl_module.run_folder,
                    KeptPicture(
                        dataset, chosen.index, {name: part[i] for name, part in panels.items()}
                    ),
                )
        self._remove(pl_module, dataset, set(before) - set(self.kept[dataset]))

    def on_test_end(self, trainer: pl.Trainer, pl_module: DiffGuardModule) -> None:
        """The best of all ranks."""
        if self.count == 0 or trainer.world_size == 1:
            return
        gathered: list[Any] = [None] * trainer.world_size
        torch.distributed.all_gather_object(gathered, self.kept)
        for dataset in pl_module.datasets if trainer.is_global_zero else ():
            of_all = [chosen for kept in gathered for chosen in kept.get(dataset, [])]
            self.kept[dataset] = choose_candidates(of_all, self.count)
            self._remove(pl_module, dataset, set(of_all) - set(self.kept[dataset]))

    @staticmethod
    def _remove(pl_module: DiffGuardModule, dataset: str, dropped: set[Candidate]) -> None:
        for chosen in dropped:
            picture_path(pl_module.run_folder, dataset, chosen.index).unlink(missing_ok=True)


def _panels(
    pl_module: DiffGuardModule, images: Tensor, detection: Detection, places: list[int]
) -> dict[str, list[Image.Image]]:
    """The pictures of the chosen rows, by the name of the panel."""
    mask = pl_module.diffguard.mask(detection.prediction)
    parts = {
        "input": images,
        "unguided": detection.unguided,
        "reconstruction": detection.reconstructions,
        "mask": mask,
    }
    panels = {}
    for name, part in parts.items():
        if part is None:
            continue
        rows = part[torch.tensor(places, device=part.device)].float()
        if name == "mask":
            rows = interpolate(rows, images.shape[-2:]).expand(-1, 3, -1, -1)
        pixels: np.ndarray = (rows * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        panels[name] = [Image.fromarray(row) for row in pixels]
    return panels
