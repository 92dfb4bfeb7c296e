"""TODO."""

import torch
from torch import Tensor

from ..errors import InputError
from .ddim import Level
from .guidance import Guidance, GuidanceInputs, Network, Protected, _clipped, _interval


class ClassifierFreeGuidance(Guidance):
    """Classifier-free guidance, where the classifier looks at if wanted (Ho & Salimans 2022, eq. 6; DiffGuard, section 3.5).

    Args:
        scale: w in eps_null + w (eps_label - eps_null).
        cam_cut: distinct semantic guidance: guide only where the classifier's activation, scaled to 0..1 in each image, is above
            this; a negative value: where it is below its absolute value. None: guide everywhere.
        inversion_label: invert under the label; if false, under no class.
        inversion_scale: guidance scale of inversion under the label.
        interval: guide only at these time steps, as shares of the training schedule, 0 (clean) to 1 (noise); elsewhere a step takes
            one row in place of two (Kynkaanniemi et al. 2024).
    """

    needs_null_label = True
    rows = 2

    def __init__(
        self,
        scale: float = 10.0,
        cam_cut: float | None = None,
        inversion_label: bool = False,
        inversion_scale: float = 1.0,
        interval: tuple[float, float] = (0.0, 1.0),
    ):
        if cam_cut is not None and not -1 <= cam_cut <= 1:
            raise InputError(
                f"guidance: cam_cut={cam_cut}; expected a share of the highest activation, -1 to 1, or null"
            )
        self.scale, self.cam_cut, self.interval = scale, cam_cut, _interval(interval)
        self.inversion_scale = inversion_scale if inversion_label else 0.0

    def tells(self, scale: Tensor, masked: bool) -> Tensor:
        return (scale == 1) & (not masked)

    def noise(
        self,
        network: Network,
        x: Tensor,
        t: Tensor,
        level: Level,
        rows: GuidanceInputs,
        classifier: Protected,
    ) -> Tensor:
        n, g = len(t), len(rows.labels)
        asked = torch.cat([rows.asked, rows.labels])
        eps, towards = network(torch.cat([x[:n], x[:g]]), torch.cat([t, t[:g]]), asked).split(
            [n, g]
        )
        steered = eps[:g] + rows.scale * (towards - eps[:g])
        if rows.mask is not None:
            steered = torch.where(rows.mask, steered, eps[:g])
        return _clipped(x, torch.cat([steered, eps[g:], eps[: rows.twins]]), level, rows.clip)
