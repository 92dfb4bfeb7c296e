"""Discrepancies: how alike two images are, by name. Higher = more alike = more in-distribution.

Image distances are piq's and see images in [0, 1]. ``logits``, ``features``, ``kl`` and ``maps``
compare what the classifier makes of the images (the last three follow arXiv 2409.10094).
``latents`` compares what the diffusion model itself diffuses.

To add one, write a function of two :class:`Seen` here, under :func:`discrepancy`. One outside this
package is named by its import path, ``my_package.my_module.sharpness``: a function of two
:class:`Seen`, or the class of a module that is called with them, which returns [N], higher = more
alike. Its score is called by the last part, ``sharpness``.
"""

from collections.abc import Callable, Sequence
from inspect import isclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, kl_div, log_softmax

from ..errors import InputError, choose
from ..names import RESERVED
from .import_path import accepts, import_object
from .piq_scores import PIQ, PiqScore, SharedVGG16

if TYPE_CHECKING:
    from ..classifiers.classifier import View


class Seen(NamedTuple):
    """Images, what the classifier makes of them, and what the diffusion model diffuses.

    Attributes:
        images: [N, 3, H, W] in [0, 1].
        logits: [N, classes].
        features: [N, D].
        maps: Feature maps [N, C, h, w] of each map layer.
        latents: [N, C, h, w] encoded images, or the end of denoising; of a model in pixel space the
            pixels in [-1, 1]. None where no discrepancy needs them.
    """

    images: Tensor
    logits: Tensor
    features: Tensor
    maps: Sequence[Tensor]
    latents: Tensor | None = None

    @classmethod
    def of(cls, images: Tensor, view: "View", latents: Tensor | None = None) -> "Seen":
        """Put images [N, 3, H, W] in [0, 1], the classifier's view and their latents together."""
        return cls(images, view.logits, view.features, view.maps, latents)


Compare = Callable[[Seen, Seen], Tensor]


class Definition(NamedTuple):
    """A discrepancy.

    Attributes:
        needs: Field of :class:`Seen` that it looks at.
        compare: Function of two :class:`Seen` to [N]; None for a loss of piq.
    """

    needs: str
    compare: Compare | None


DISCREPANCIES = {name: Definition("images", None) for name in PIQ}
"""All discrepancies by name."""


def discrepancy(needs: str) -> Callable[[Compare], Compare]:
    """Register a function under its name; ``needs`` is the field of :class:`Seen` it looks at."""

    def register(compare: Compare) -> Compare:
        DISCREPANCIES[compare.__name__] = Definition(needs, compare)
        return compare

    return register


@discrepancy(needs="images")
def l2(a: Seen, b: Seen) -> Tensor:
    """Compute -||a - b||_2 of the pixels [N]."""
    return -(a.images - b.images).flatten(1).norm(dim=1)


@discrepancy(needs="logits")
def logits(a: Seen, b: Seen) -> Tensor:
    """Compute -||logits(a) - logits(b)||_1 [N]."""
    return -(a.logits - b.logits).abs().sum(dim=1)


@discrepancy(needs="features")
def features(a: Seen, b: Seen) -> Tensor:
    """Compute the cosine of the penultimate features [N]."""
    return cosine_similarity(a.features, b.features, dim=1)


@discrepancy(needs="logits")
def kl(a: Seen, b: Seen) -> Tensor:
    """Compute -KL(softmax(a) || softmax(b)) [N], in nats."""
    log_p, log_q = log_softmax(a.logits, dim=1), log_softmax(b.logits, dim=1)
    return -kl_div(log_q, log_p, reduction="none", log_target=True).sum(dim=1)


@discrepancy(needs="maps")
def maps(a: Seen, b: Seen) -> Tensor:
    """Compute the cosine of the flattened feature maps, mean over layers [N]."""
    cosines = []
    for x, y in zip(a.maps, b.maps, strict=True):
        cosines.append(cosine_similarity(x.flatten(1), y.flatten(1), dim=1))
    return torch.stack(cosines).mean(0)


@discrepancy(needs="latents")
def latents(a: Seen, b: Seen) -> Tensor:
    """Compute -||a - b||_2 of the latents [N], before they are quantised or decoded."""
    assert a.latents is not None
    assert b.latents is not None
    return -(a.latents - b.latents).flatten(1).norm(dim=1)


class Discrepancies(nn.Module):
    """Any number of scores of one comparison.

    Args:
        names: Names of :data:`DISCREPANCIES`, or import paths, which contain a dot.
        vgg16: Network of DISTS and LPIPS. Defaults to a new one.

    Attributes:
        names: Names of the scores; of an import path the last part.
        needs_classifier: Whether any compares what the classifier makes of the images. Those named
            by import path do.
        needs_maps: Whether any looks at feature maps. Those named by import path may.
        needs_latents: Whether any looks at latents. Those named by import path may.

    Raises:
        InputError: A name is unknown, or a path does not lead to a discrepancy.
    """

    def __init__(self, names: Sequence[str], vgg16: SharedVGG16 | None = None):
        super().__init__()
        for name in names:
            if "." not in name:
                choose("discrepancy", name, list(DISCREPANCIES))
        self.names = [name.rpartition(".")[2] for name in names]
        if len(set(self.names)) < len(names):
            raise InputError(f"discrepancies: {list(names)} must be different names")

        # Modules in two containers: their names are part of the hash of a detector's weights.
        vgg16 = vgg16 or SharedVGG16()
        self.piq = nn.ModuleDict({name: PiqScore(name, vgg16) for name in names if name in PIQ})
        imported = [_Imported(path) for path in names if "." in path]
        self.own = nn.ModuleList(imported)
        self._compare: dict[str, Compare] = {score.name: score for score in imported}
        for name in names:
            definition = DISCREPANCIES.get(name)
            if definition is not None and definition.compare is not None:
                self._compare[name] = definition.compare

        needs = {DISCREPANCIES[name].needs for name in names if "." not in name}
        self.needs_classifier = bool(imported) or bool(needs - {"images", "latents"})
        self.needs_maps = bool(imported) or "maps" in needs
        self.needs_latents = bool(imported) or "latents" in needs

    @torch.no_grad()
    def forward(self, a: Seen, b: Seen) -> dict[str, Tensor]:
        """Compute the scores [N] by name, in float32 or, of float64 inputs, float64."""
        with torch.autocast(a.images.device.type, enabled=False):
            return {name: self._score(name, a, b) for name in self.names}

    def _score(self, name: str, a: Seen, b: Seen) -> Tensor:
        if name in PIQ:
            return self.piq[name](a.images, b.images)
        return self._compare[name](a, b)


class _Imported(nn.Module):
    """A discrepancy named by its import path."""

    def __init__(self, path: str):
        super().__init__()
        self.path, self.name = path, path.rpartition(".")[2]
        if self.name in (*DISCREPANCIES, *RESERVED):
            raise InputError(
                f"discrepancies: {path}: the name {self.name!r} is reserved; rename it"
            )
        found: Any = import_object("discrepancies", path)
        if isclass(found):
            if not issubclass(found, nn.Module):
                raise InputError(
                    f"discrepancies: {path}: a class must be a torch.nn.Module; or use a "
                    "function of two Seen"
                )
            if not accepts(found, 0):
                raise InputError(
                    f"discrepancies: {path}: its constructor must not require arguments; give them "
                    "defaults"
                )
            found = found()
        if isinstance(found, nn.Module):
            found = found.eval().requires_grad_(False)
        self.score = found
        if not accepts(found.forward if isinstance(found, nn.Module) else found, 2):
            raise InputError(
                f"discrepancies: {path} must accept two arguments, the two Seen that are compared"
            )

    def forward(self, a: Seen, b: Seen) -> Tensor:
        """Compute the score [N], float32.

        Raises:
            InputError: It is not a real tensor [N].
        """
        found = self.score(a, b)
        if not isinstance(found, Tensor) or found.shape != (len(a.images),) or found.is_complex():
            what = type(found).__name__
            if isinstance(found, Tensor):
                what = f"a tensor {list(found.shape)}, {found.dtype}"
            raise InputError(
                f"discrepancies: {self.path} returned {what} for {len(a.images)} pairs of images; "
                "must be one number for each, [N]"
            )
        return found.to(a.images.device, torch.float32)
