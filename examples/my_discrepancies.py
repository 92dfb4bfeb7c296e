"""Two discrepancies for `add_discrepancy.py`: how far the ink of two images overlaps."""

from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from diffguard_pl.scores.discrepancies import Seen


def overlap(a: Seen, b: Seen) -> Tensor:
    """Compute sum of min(a, b) / sum of max(a, b) over the pixels [N], in [0, 1] (Ruzicka)."""
    smaller, larger = a.images.minimum(b.images), a.images.maximum(b.images)
    return smaller.sum(dim=(1, 2, 3)) / larger.sum(dim=(1, 2, 3)).clamp(min=1e-6)


class BlurredOverlap(nn.Module):
    """:func:`overlap` of images blurred over 5 x 5 pixels: a shifted stroke counts little."""

    def forward(self, a: Seen, b: Seen) -> Tensor:
        return overlap(blurred(a), blurred(b))


def blurred(seen: Seen) -> Seen:
    return seen._replace(images=avg_pool2d(seen.images, 5, stride=1, padding=2))
