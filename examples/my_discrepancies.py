"""Two discrepancies of one's own, for `add_discrepancy.py`: how much of the ink of two pictures lies on the same pixels."""

from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from diffguard_pl.scores.discrepancies import Seen


def overlap(a: Seen, b: Seen) -> Tensor:
    """sum of min(a, b) over sum of max(a, b) of the pixels [N], in [0, 1] (Ruzicka)."""
    smaller, larger = a.images.minimum(b.images), a.images.maximum(b.images)
    return smaller.sum(dim=(1, 2, 3)) / larger.sum(dim=(1, 2, 3)).clamp(min=1e-6)


class BlurredOverlap(nn.Module):
    """As :func:`overlap`, of pictures blurred over 5 x 5 pixels, so that a shifted stroke counts for little."""

    def forward(self, a: Seen, b: Seen) -> Tensor:
        return overlap(
            *(
                seen._replace(images=avg_pool2d(seen.images, 5, stride=1, padding=2))
                for seen in (a, b)
            )
        )
