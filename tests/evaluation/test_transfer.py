"""Finished batches reach the CPU whole and in order."""

import torch

from diffguard_pl.classifiers.classifier import View
from diffguard_pl.evaluation.transfer import TransferQueue, on_cpu
from diffguard_pl.stages import Detection, Prediction


def detection(device: str = "cpu", **changes) -> Detection:
    def values(*shape: int) -> torch.Tensor:
        return torch.zeros(*shape, device=device)

    prediction = Prediction(
        view=View(values(2, 8), values(2, 4), [values(2, 4, 2, 2)]),
        predicted=values(2),
        labels=values(2),
        cam=values(2, 1, 4, 4),
        baselines={"msp": values(2)},
    )
    parts = {
        "labels": values(2),
        "reconstructions": values(2, 3, 4, 4),
        "scores": {"l2": values(2)},
        "prediction": prediction,
        "stop_index": torch.zeros(2),
        "unguided": None,
        "nfe": torch.zeros(2),
    }
    return Detection(**parts | changes)


def test_every_tensor_of_a_detection_is_copied_but_feature_maps(monkeypatch):
    # without a GPU: tensors of the meta device, which have no values, count as those of a device
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *_, **__: torch.ones(self.shape))
    found = on_cpu(detection("meta"))
    view, prediction = found.prediction.view, found.prediction
    assert view.maps == []
    assert found.unguided is None
    tensors = [
        found.labels,
        found.reconstructions,
        found.scores["l2"],
        view.logits,
        view.features,
        prediction.predicted,
        prediction.labels,
        prediction.cam,
        prediction.baselines["msp"],
    ]
    assert all(tensor.device.type == "cpu" and bool((tensor == 1).all()) for tensor in tensors)


def test_batches_arrive_in_order_with_their_names():
    queue = TransferQueue(torch.device("cpu"))
    batch = {"image": torch.rand(2, 3, 4, 4), "path": ["a", "b"], "unreadable": [{"index": 3}]}
    queue.put("ind", batch, detection())
    queue.put("ood", batch | {"image": torch.zeros(0)}, None)
    first, second = queue.arrived(wait=False)
    assert (first.dataset, second.dataset) == ("ind", "ood")
    assert torch.equal(first.batch["image"], batch["image"])
    assert (first.batch["path"], first.batch["unreadable"]) == (["a", "b"], [{"index": 3}])
    assert second.detection is None
    assert list(queue.arrived(wait=True)) == []
