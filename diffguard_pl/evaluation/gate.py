"""The gates of a cascade: images that it is sure of skip the diffusion model, or a part of it."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ..datamodules.base import OODData
from ..diffguard import DiffGuard
from ..errors import InputError
from ..scores.combination import Cascade
from ..stages import Gates


def gates(
    cascade: Cascade | None, diffguard: DiffGuard, data: OODData, device: torch.device
) -> Gates | None:
    """Return the gates of a cascade that skips images; None for all others.

    Every rank computes them by itself, from all calibration images, so that all ranks have the same
    ones.

    Args:
        cascade: The cascade, if any.
        diffguard: Method that scores the calibration images.
        data: Data module that provides them.
        device: Device of the method.

    Raises:
        InputError: No calibration image is usable.
    """
    if cascade is None or not cascade.skip:
        return None

    def images() -> Iterator[Tensor]:
        for batch in data.calibration_dataloader():
            if len(batch["image"]):
                yield batch["image"].to(device)

    scores = [diffguard.classify(batch).baselines[cascade.baseline].cpu() for batch in images()]
    if not scores:
        raise InputError("data.calibration: has no usable image to calibrate the cascade on")
    reference = {cascade.baseline: torch.cat(scores).numpy()}
    if cascade.middle is not None:
        found = diffguard.early_scores(cascade.middle, images())
        reference[cascade.middle] = found.cpu().numpy().astype(np.float64)
    return diffguard.gates(cascade, reference)
