"""Similarity under true and false labels in numbers."""

import numpy as np
import pytest

from diffguard_pl.metrics.label_effect import label_effect


def test_mean_standard_deviation_and_separation():
    effect = label_effect("complete", "l2", np.array([-1.0, -2.0]), np.array([-1.5, -4.5]))
    assert effect[:5] == ("complete", "l2", 2, -1.5, pytest.approx(0.5**0.5))
    assert effect[5:] == (-3.0, pytest.approx(4.5**0.5), 0.75)


def test_one_image_has_no_deviation():
    effect = label_effect("complete", "l2", np.array([-1.0]), np.array([-2.0]))
    assert (effect.true_std, effect.false_std, effect.auroc) == (0.0, 0.0, 1.0)
