"""The gate of a cascade: images that the classifier is sure of skip the diffusion model."""

import torch

from ..datamodules.base import OODData
from ..diffguard import DiffGuard
from ..errors import InputError
from ..scores.combination import Cascade
from ..stages import Gate


def gate(
    cascade: Cascade | None, diffguard: DiffGuard, data: OODData, device: torch.device
) -> Gate | None:
    """Return the gate of a cascade that skips images; None for all others.

    Every rank computes it by itself, from all calibration images, so that all ranks have the same
    one.

    Args:
        cascade: The cascade, if any.
        diffguard: Method whose classifier scores the calibration images.
        data: Data module that provides them.
        device: Device of the classifier.

    Raises:
        InputError: No calibration image is usable.
    """
    if cascade is None or not cascade.skip:
        return None
    scores = []
    for batch in data.calibration_dataloader():
        if len(batch["image"]):
            prediction = diffguard.classify(batch["image"].to(device))
            scores.append(prediction.baselines[cascade.baseline].cpu())
    if not scores:
        raise InputError("data.calibration: has no usable image to calibrate the cascade on")
    return cascade.gate(torch.cat(scores).numpy())
