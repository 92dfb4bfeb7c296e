"""Classifier-free guidance is its definition, whatever shares the batch (paper, section 3.2.2)."""

import pytest
import torch
from torch import Tensor

from diffguard_pl import InputError
from diffguard_pl.diffusion.classifier_free_guidance import ClassifierFreeGuidance
from diffguard_pl.diffusion.ddim import Level
from diffguard_pl.diffusion.guidance import GuidanceInputs, GuidingClassifier

NULL = 10


def network(x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    return (x + labels.view(-1, 1, 1, 1)).sin() * t.view(-1, 1, 1, 1)


def test_guided_noise_is_its_definition():
    x, t = torch.randn(4, 3, 8, 8), torch.tensor([5, 300, 700])
    x[3] = x[0]
    mask = torch.rand(2, 1, 8, 8) > 0.5
    # Two guided rows, a conditional one, and an unguided copy of the first.
    inputs = GuidanceInputs(
        network_labels=torch.tensor([NULL, NULL, 4]),
        labels=torch.tensor([3, 1]),
        scale=torch.tensor([10.0, 2.0]).view(2, 1, 1, 1),
        mask=mask,
        unguided_copies=1,
    )
    level = Level.of(torch.full((4,), 0.5, dtype=torch.float64), x)
    calls = []

    def counted(x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        calls.append(len(x))
        return network(x, t, labels)

    eps = (
        ClassifierFreeGuidance()
        .predict_eps(counted, x, t, level, inputs, GuidingClassifier(network, 8))
        .eps
    )
    assert calls == [5]
    for i, (label, w) in enumerate(((3, 10.0), (1, 2.0))):
        row = slice(i, i + 1)
        null = network(x[row], t[row], torch.tensor([NULL]))
        conditional = network(x[row], t[row], torch.tensor([label]))
        guided = torch.where(mask[row], null + w * (conditional - null), null)
        torch.testing.assert_close(eps[row], guided)
    torch.testing.assert_close(eps[2:3], network(x[2:3], t[2:3], torch.tensor([4])))
    torch.testing.assert_close(eps[3:4], network(x[:1], t[:1], torch.tensor([NULL])))


def test_scale_one_needs_a_single_call_unless_there_is_a_mask():
    guidance, scale = ClassifierFreeGuidance(), torch.tensor([0.0, 1.0, 2.0])
    assert guidance.needs_single_call(scale, masked=False).tolist() == [False, True, False]
    assert guidance.is_guided(scale, masked=False).tolist() == [False, False, True]
    assert guidance.is_guided(scale, masked=True).tolist() == [False, True, True]


def test_inversion_is_under_no_class_unless_inversion_label_is_set():
    assert ClassifierFreeGuidance(inversion_scale=3.0).inversion_scale == 0
    assert ClassifierFreeGuidance(inversion_label=True, inversion_scale=3.0).inversion_scale == 3


def test_a_cut_that_is_not_a_fraction_is_rejected():
    with pytest.raises(InputError, match=r"guidance.cam_cut=3: must be a fraction"):
        ClassifierFreeGuidance(cam_cut=3)
