"""Finished batches on their way from the device to the CPU."""

from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from ..stages import Detection, Prediction


class Finished(NamedTuple):
    """A finished batch.

    ``test_step`` returns ``{"finished": [...]}``, in the order of the loaders. These may be no
    batches, or earlier ones: the diffusion model's batch holds images of several batches of a
    loader.

    Attributes:
        dataset: Name of its dataset.
        batch: ``image``, ``label``, ``index``, ``path`` and ``unreadable``, on the CPU.
        detection: Results of its images, on the CPU, without feature maps; None if no image was
            readable.
    """

    dataset: str
    batch: dict[str, Any]
    detection: Detection | None


class TransferQueue:
    """Finished batches in order, until their copies have arrived on the CPU.

    A GPU does not wait for a copy.

    Args:
        device: Device that they come from.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.pending: deque[tuple[Finished, torch.cuda.Event | None]] = deque()

    def put(self, dataset: str, batch: dict[str, Any], detection: Detection | None) -> None:
        """Begin to copy a batch and its results."""
        copy = Finished(dataset, to_cpu(batch), None if detection is None else on_cpu(detection))
        event = None
        if self.device.type == "cuda":
            # the event happens when all copies before it have arrived
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(self.device))
        self.pending.append((copy, event))

    def arrived(self, wait: bool) -> Iterator[Finished]:
        """Yield the batches that have arrived and remove them.

        Args:
            wait: Wait for all.
        """
        while self.pending:
            copy, event = self.pending[0]
            if event is not None and not event.query():
                if not wait:
                    return
                event.synchronize()
            self.pending.popleft()
            yield copy


def on_cpu(detection: Detection) -> Detection:
    """Return a detection without feature maps, whose tensors are being copied to the CPU."""
    prediction = detection.prediction
    # feature maps are large (16 MB an image for a ResNet-50), and nothing after stage 4 needs them
    view = prediction.view._replace(maps=[])
    # apply_to_collection cannot set the fields of frozen dataclasses, so these go as dicts
    fields = to_cpu(vars(detection) | {"prediction": vars(prediction) | {"view": view}})
    return Detection(**fields | {"prediction": Prediction(**fields["prediction"])})


def to_cpu(collection: dict[str, Any]) -> dict[str, Any]:
    """Return a collection whose tensors are being copied to the CPU."""
    return apply_to_collection(
        collection, Tensor, lambda x: x.to("cpu", non_blocking=True), allow_frozen=True
    )
