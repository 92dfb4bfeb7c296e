"""TODO."""

from dataclasses import replace
from typing import Any, NamedTuple

from torch import Tensor

from ..stages import Detection, Prediction


class Finished(NamedTuple):
    """A batch that is done. ``test_step`` returns ``{"finished": [...]}``, in the order of the loaders: the batches that it has
    completed, which may be none, and earlier ones, since the diffusion model's batch is filled across their boundaries.

    Attributes:
        dataset: name of its data set.
        batch: ``image``, ``label``, ``index``, ``path`` and ``unreadable``, on the CPU.
        detection: on the CPU, without feature maps; None where no image could be read.
    """

    dataset: str
    batch: dict[str, Any]
    detection: Detection | None


def _on_cpu(
    batch: dict[str, Any], detection: Detection | None
) -> tuple[dict[str, Any], Detection | None]:
    """Copies on their way there, of all but feature maps."""

    def move(value: Any) -> Any:
        return value.to("cpu", non_blocking=True) if isinstance(value, Tensor) else value

    moved = {name: move(value) for name, value in batch.items()}
    if detection is None:
        return moved, None
    view, prediction = detection.prediction.view, detection.prediction
    predicted = Prediction(
        view._replace(logits=move(view.logits), features=move(view.features), maps=[]),
        move(prediction.predicted),
        move(prediction.labels),
        move(prediction.cam),
        {name: move(values) for name, values in prediction.baselines.items()},
    )
    scores = {name: move(values) for name, values in detection.scores.items()}
    arrived = replace(
        detection,
        labels=move(detection.labels),
        reconstructions=move(detection.reconstructions),
        scores=scores,
        prediction=predicted,
        unguided=move(detection.unguided),
    )
    return moved, arrived
