"""Images from another library's loaders, as a detector takes them."""

from collections.abc import Sequence

from torch import Tensor

from ..errors import InputError
from .detector import Detector

TOLERANCE = 0.02
"""How far denormalised values may lie outside [0, 1]: half precision rounds."""


def images_for(
    detector: Detector,
    images: Tensor,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Tensor:
    """Return images in [0, 1] and of the detector's input size.

    Args:
        detector: Detector whose preparation applies to images of another size.
        images: Images [N, 3, h, w], normalised or in [0, 1].
        mean, std: Mean and standard deviation per channel that the images were normalised by.
            Default to None: they are in [0, 1].

    Raises:
        InputError: Only one of ``mean`` and ``std`` is given, or the images were not normalised by
            them.
    """
    images = denormalised(images, mean, std)
    size = detector.model.input_size
    if len(images) == 0 or images.shape[-2:] == (size, size):
        return images
    return detector.prepare(images)


def denormalised(
    images: Tensor, mean: Sequence[float] | None, std: Sequence[float] | None
) -> Tensor:
    """Undo the normalisation of images [N, 3, H, W]; the result is in [0, 1]."""
    if mean is None and std is None:
        return images
    if mean is None or std is None:
        raise InputError("mean, std: must be given together, or neither; add the other one")
    if min(std) <= 0:
        raise InputError(f"std={list(std)}: must be above 0")
    shift, scale = (images.new_tensor(values).view(1, -1, 1, 1) for values in (mean, std))
    images = images * scale + shift
    if len(images):
        low, high = images.min(), images.max()
        in_range = low > -TOLERANCE and high < 1 + TOLERANCE  # False for NaN
        if not in_range:
            raise InputError(
                f"mean, std: denormalised images range from {low:.3g} to {high:.3g}, must be in "
                "[0, 1]; use the mean and std of the loader, or none"
            )
    return images.clamp(0, 1)
