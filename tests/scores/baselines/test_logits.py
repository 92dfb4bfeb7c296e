"""Baselines of the logits equal their definitions in float64 NumPy, and pytorch-ood's."""

import numpy as np
import pytest
import torch
from helpers.baselines import IMAGES, assert_close
from pytorch_ood.detector import EnergyBased, MaxLogit, MaxSoftmax
from scipy.special import logsumexp, softmax

from diffguard_pl.classifiers.classifier import View
from diffguard_pl.scores.baselines.collection import Baselines


def gen(logits: np.ndarray) -> np.ndarray:
    p = np.sort(softmax(logits, axis=1), axis=1)[:, -100:]
    return -(p**0.1 * (1 - p) ** 0.1).sum(1)


def negative_entropy(logits: np.ndarray) -> np.ndarray:
    p = softmax(logits, axis=1)
    return (p * np.log(p)).sum(1)


DEFINITIONS = {
    "msp": lambda logits: softmax(logits, axis=1).max(1),
    "max_logit": lambda logits: logits.max(1),
    "energy": lambda logits: logsumexp(logits, axis=1),
    "entropy": negative_entropy,
    "gen": gen,
}


@pytest.mark.parametrize("name", DEFINITIONS)
def test_score_equals_its_definition(name: str, fitted: Baselines, view: View):
    assert_close(fitted(view, IMAGES)[name], DEFINITIONS[name](view.logits.double().numpy()))


def test_scores_are_pytorch_oods_to_the_bit(fitted: Baselines, view: View):
    scores = fitted(view, IMAGES)
    assert torch.equal(scores["msp"], -MaxSoftmax.score(view.logits))
    assert torch.equal(scores["max_logit"], -MaxLogit.score(view.logits))
    assert torch.equal(scores["energy"], -EnergyBased.score(view.logits))
