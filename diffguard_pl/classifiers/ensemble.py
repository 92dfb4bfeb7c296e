"""Deep ensemble: several classifiers of one architecture that act as one.

Lakshminarayanan et al., NeurIPS 2017. The ensemble is one network in which the layers of its
members stand side by side.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..dtypes import at_least_float32


class Ensemble(nn.Module):
    """Module from images to the logits of an ensemble [N, classes], see :func:`ensemble_logits`.

    Args:
        members: The M classifiers, modules from images to logits [N, classes].
    """

    def __init__(self, members: Sequence[nn.Module]):
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, images: Tensor) -> Tensor:
        logits = [at_least_float32(member(images)) for member in self.members]
        return ensemble_logits(torch.stack(logits, dim=1))


def ensemble_logits(logits: Tensor) -> Tensor:
    """Compute logits [N, classes] whose softmax is the members' mean probability.

        log(1/M sum_m softmax(z_m)) + 1/M sum_m log sum_k exp(z_m,k)

    The first term determines the probabilities; the second is the same for all classes and keeps
    the scale of the logits: their logsumexp, the energy score, is the mean of the members'.

    Args:
        logits: Logits of the members z [N, M, classes].
    """
    energy = logits.logsumexp(dim=2, keepdim=True)
    log_sum = (logits - energy).logsumexp(dim=1)
    return log_sum - math.log(logits.shape[1]) + energy.mean(dim=1)
