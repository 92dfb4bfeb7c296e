"""Baselines of the logits z [N, classes] alone; p = softmax(z)."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..hyperparameters import choice, count, positive
from .base import Baseline, Inputs


class MSP(Baseline):
    """Maximum softmax probability: max_k p_k (Hendrycks & Gimpel, ICLR 2017)."""

    name = "msp"
    needs = frozenset({"logits"})

    def score(self, inputs: Inputs, fitted: Mapping[str, Tensor]) -> Tensor:
        return inputs.logits.softmax(dim=1).amax(dim=1)


class MaxLogit(Baseline):
    """Maximum logit: max_k z_k (Hendrycks et al., ICML 2022)."""

    name = "max_logit"
    needs = frozenset({"logits"})

    def score(self, inputs: Inputs, fitted: Mapping[str, Tensor]) -> Tensor:
        return inputs.logits.amax(dim=1)


@dataclass(frozen=True)
class Energy(Baseline):
    """Negative energy: T log sum_k exp(z_k / T) (Liu et al., NeurIPS 2020).

    Args:
        temperature: T, above 0. Defaults to 1.
    """

    name = "energy"
    needs = frozenset({"logits"})
    temperature: float = positive(1.0)

    def score(self, inputs: Inputs, fitted: Mapping[str, Tensor]) -> Tensor:
        return self.temperature * (inputs.logits / self.temperature).logsumexp(dim=1)


class Entropy(Baseline):
    """Negative entropy: sum_k p_k log p_k, in nats (Chan et al., ICCV 2021).

    pytorch-ood's clips p at 1e-7; OpenOOD has none.
    """

    name = "entropy"
    needs = frozenset({"logits"})

    def score(self, inputs: Inputs, fitted: Mapping[str, Tensor]) -> Tensor:
        # entr(p) = -p log p, and 0 at p = 0.
        return -torch.special.entr(inputs.logits.softmax(dim=1)).sum(dim=1)


@dataclass(frozen=True)
class GEN(Baseline):
    """Generalised entropy: -sum of p_k^gamma (1 - p_k)^gamma over the M largest p_k.

    Liu et al., CVPR 2023. pytorch-ood's clips p at 1e-7 and takes the mean over k.

    Args:
        gamma: Exponent, above 0. Defaults to 0.1.
        M: Number of classes. Defaults to 100; all classes if they are fewer.
    """

    name = "gen"
    needs = frozenset({"logits"})
    gamma: float = positive(0.1)
    M: int = count(100)

    def score(self, inputs: Inputs, fitted: Mapping[str, Tensor]) -> Tensor:
        # Ascending order: the M largest come last.
        p = inputs.logits.softmax(dim=1).sort(dim=1).values[:, -self.M :]
        return -(p**self.gamma * (1 - p) ** self.gamma).sum(dim=1)


@dataclass(frozen=True)
class DeepEnsemble(Baseline):
    """Confidence of a deep ensemble: max_k of 1/M sum_m softmax(z_m)_k.

    Lakshminarayanan et al., NeurIPS 2017. It equals ``msp`` of the ensemble.

    Args:
        average: What is averaged over the M members: ``probabilities``, as in that paper, or
            ``logits``, as in OpenOOD: max_k softmax(1/M sum_m z_m)_k. Defaults to probabilities.
    """

    name = "ensemble"
    needs = frozenset({"ensemble"})
    average: str = choice("probabilities", ["probabilities", "logits"])

    def score(self, inputs: Inputs, fitted: Mapping[str, Tensor]) -> Tensor:
        logits = inputs.member_logits
        assert logits is not None, "checked by Baselines"
        if self.average == "logits":
            p = logits.mean(dim=1).softmax(dim=1)
        else:
            p = logits.softmax(dim=2).mean(dim=1)
        return p.amax(dim=1)
