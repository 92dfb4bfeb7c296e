"""Pictures of a run's images on disk."""

from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from diffguard_pl.errors import InputError
from diffguard_pl.evaluation.module import DiffGuardModule
from diffguard_pl.evaluation.ranks import gather
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
    """Keeps pictures of some images in ``pictures/DATASET/INDEX.png``.

    Of each dataset these are the most and the least mismatched images by the primary score, and
    random ones. The choice does not depend on batches, devices or interruptions. For the panels
    see :mod:`diffguard_pl.report.gallery`.

    Args:
        count: Number of images of each kind. 0 for no pictures.
    """

    def __init__(self, count: int = 24):
        if count < 0:
            raise InputError(f"pictures.count={count}: must be at least 0")
        self.count = count
        self.kept: dict[str, list[Candidate]] = {}

    def on_test_start(self, trainer: pl.Trainer, pl_module: DiffGuardModule) -> None:
        """Find the pictures of an interrupted run."""
        self.kept = {}
        if pl_module.earlier is None or not trainer.is_global_zero:
            return
        primary = pl_module.score_names[0]
        scored = pl_module.earlier[pl_module.earlier["error"].isna()]
        rows = scored[["dataset", "index", primary]].itertuples(index=False)
        scores = {(dataset, index): score for dataset, index, score in rows}
        for path in picture_paths(pl_module.run_folder):
            found = read_picture(path)
            if found is None or (found.dataset, found.index) not in scores:
                # damaged, or of an image without a score: it is drawn again with its score
                path.unlink(missing_ok=True)
                continue
            score = scores[found.dataset, found.index]
            candidate = candidate_for(found.dataset, found.index, score)
            self.kept.setdefault(found.dataset, []).append(candidate)

    def on_test_batch_end(
        self, trainer: pl.Trainer, pl_module: DiffGuardModule, outputs: Any, *_: Any
    ) -> None:
        for dataset, batch, detection in outputs["finished"]:
            if self.count == 0 or detection is None or detection.reconstructions is None:
                continue
            if dataset != CALIBRATION:
                self._update(pl_module, dataset, batch, detection)

    def on_test_end(self, trainer: pl.Trainer, pl_module: DiffGuardModule) -> None:
        """Keep the choice among the images of all ranks."""
        if self.count == 0 or trainer.world_size == 1:
            return
        gathered = gather(self.kept, trainer.world_size)
        if not trainer.is_global_zero:
            return
        for dataset in pl_module.datasets:
            candidates = [one for kept in gathered for one in kept.get(dataset, [])]
            self.kept[dataset] = choose_candidates(candidates, self.count)
            self._remove(pl_module, dataset, set(candidates) - set(self.kept[dataset]))

    def _update(
        self, pl_module: DiffGuardModule, dataset: str, batch: dict[str, Any], detection: Detection
    ) -> None:
        """Let the images of a batch compete with the kept ones."""
        scores = detection.scores[pl_module.score_names[0]].tolist()
        rows = {}
        for row, index in enumerate(batch["index"].tolist()):
            # an image that a cascade has skipped has no reconstruction
            if detection.stop_index[row] >= 0:
                rows[candidate_for(dataset, index, scores[row])] = row
        before = self.kept.get(dataset, [])
        self.kept[dataset] = choose_candidates([*before, *rows], self.count)
        chosen = [one for one in self.kept[dataset] if one in rows]
        if chosen:
            panels = _panels(pl_module, batch["image"], detection, [rows[one] for one in chosen])
            for i, one in enumerate(chosen):
                of_image = {name: images[i] for name, images in panels.items()}
                write_picture(pl_module.run_folder, KeptPicture(dataset, one.index, of_image))
        self._remove(pl_module, dataset, set(before) - set(self.kept[dataset]))

    @staticmethod
    def _remove(pl_module: DiffGuardModule, dataset: str, dropped: set[Candidate]) -> None:
        for one in dropped:
            picture_path(pl_module.run_folder, dataset, one.index).unlink(missing_ok=True)


def _panels(
    pl_module: DiffGuardModule, images: Tensor, detection: Detection, rows: list[int]
) -> dict[str, list[Image.Image]]:
    """Return the panels of some images of a batch, by name."""
    parts = {
        "input": images,
        "unguided": detection.unguided,
        "reconstruction": detection.reconstructions,
        "mask": pl_module.diffguard.mask(detection.prediction),
    }
    panels = {}
    for name, part in parts.items():
        if part is None:
            continue
        chosen = part[torch.tensor(rows, device=part.device)].float()
        if name == "mask":
            # as an image: of the input's size, with three equal channels
            chosen = interpolate(chosen, images.shape[-2:]).expand(-1, 3, -1, -1)
        in_bytes = (chosen * 255).round().to(torch.uint8)
        pixels: np.ndarray = in_bytes.permute(0, 2, 3, 1).cpu().numpy()
        panels[name] = [Image.fromarray(image) for image in pixels]
    return panels
