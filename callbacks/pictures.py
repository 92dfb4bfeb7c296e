"""Pictures on disk."""

import random
from typing import Any

import pytorch_lightning as pl
import torch.distributed

from diffguard_pl.errors import InputError
from diffguard_pl.module import DiffGuardModule
from diffguard_pl.report.pictures import Picture, draw_grid, to_uint8


def class_names(trainer: pl.Trainer, pl_module: DiffGuardModule) -> list[str] | None:
    """What the labels are called, by the data module or the classifier; None where neither knows."""
    of_data = getattr(getattr(trainer, "datamodule", None), "class_names", None)
    return of_data or getattr(pl_module.detector.classifier, "class_names", None)


class PictureGrid(pl.Callback):
    """Draws ``pictures.png``: for each set the most and the least mismatched and some random images.

    Args:
        count: images of each kind; 0: no pictures.
    """

    def __init__(self, count: int = 6):
        if count < 0:
            raise InputError(f"pictures.count={count}: expected at least 0")
        self.count = count
        self.kept: dict[str, list[Picture]] = {}
        self.seen: dict[str, int] = {}

    def on_test_batch_end(self, trainer: pl.Trainer, pl_module: DiffGuardModule, outputs: Any, *_: Any) -> None:
        dataset, detection, batch = outputs["dataset"], outputs["detection"], outputs["batch"]
        if self.count == 0 or detection is None:
            return
        scores = detection.scores[pl_module.score_names[0]].tolist()
        shown = [batch["image"], detection.unguided, detection.reconstructions]
        images = [to_uint8(part) for part in shown if part is not None]
        names = class_names(trainer, pl_module)
        for i, (label, score) in enumerate(zip(detection.labels.tolist(), scores, strict=True)):
            name = names[label].partition(",")[0][:24] if names else str(label)
            chance = random.Random(f"{dataset}/{int(batch['index'][i])}").random()
            caption = f"{name}   {round(score, 3) + 0.0:.3f}" if abs(score) < 100 else f"{name}   {score:.0f}"
            self.kept.setdefault(dataset, []).append(Picture([part[i] for part in images], caption, score, chance))
        self.seen[dataset] = self.seen.get(dataset, 0) + len(scores)
        self.kept[dataset] = list({id(picture): picture for strip in self._strips(dataset).values() for picture in strip}.values())

    def on_test_end(self, trainer: pl.Trainer, pl_module: DiffGuardModule) -> None:
        if self.count == 0:
            return
        if trainer.world_size > 1:
            gathered: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(gathered, (self.kept, self.seen))
            self.kept = {name: [p for kept, _ in gathered for p in kept.get(name, [])] for name in pl_module.datasets}
            self.seen = {name: sum(seen.get(name, 0) for _, seen in gathered) for name in pl_module.datasets}
        if trainer.is_global_zero:
            groups = pl_module.metrics.groups
            sets = {
                f"{name} ({groups.get(name, 'in-distribution')}), {self.seen[name]} images": self._strips(name)
                for name in pl_module.datasets
                if self.kept.get(name)
            }
            title = f"{pl_module.run_folder.parent.name}: {pl_module.score_names[0]}"
            draw_grid(sets, title, pl_module.run_folder / "pictures.png")

    def _strips(self, dataset: str) -> dict[str, list[Picture]]:
        by_score = sorted(self.kept[dataset], key=lambda picture: picture.score)
        by_chance = sorted(self.kept[dataset], key=lambda picture: picture.chance)
        return {
            "most mismatched": by_score[: self.count],
            "random": by_chance[: self.count],
            "least mismatched": by_score[-self.count :][::-1],
        }
