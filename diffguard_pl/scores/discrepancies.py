"""How alike two images are, by name. Every score is higher = more alike = more in-distribution.

Image distances are piq's; they see images in [0, 1]. ``logits``, ``features``, ``kl`` and ``maps`` are taken on what the
classifier sees (the last three follow arXiv 2409.10094).

One of your own is named by its import path, ``my_package.my_module.sharpness``: a function of two :class:`Seen`, or the class of a
module that is called with them, ``-> [N]``, higher = more alike. Its score is called by the last part, ``sharpness``.
"""

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from inspect import isclass, signature
from typing import Any, NamedTuple

import piq
import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, interpolate, kl_div, log_softmax

from ..dtypes import at_least_float32
from ..errors import InputError, choose


class Seen(NamedTuple):
    """Images and what the classifier makes of them.

    Attributes:
        images: [N, 3, H, W] in [0, 1].
        logits: [N, classes].
        features: [N, D].
        maps: feature maps [N, C, h, w].
    """

    images: Tensor
    logits: Tensor
    features: Tensor
    maps: Sequence[Tensor]


def l2(a: Seen, b: Seen) -> Tensor:
    """-||a - b||_2 of the pixels [N]."""
    return -(a.images - b.images).flatten(1).norm(dim=1)


def logits(a: Seen, b: Seen) -> Tensor:
    """-||logits(a) - logits(b)||_1 [N]."""
    return -(a.logits - b.logits).abs().sum(dim=1)


def features(a: Seen, b: Seen) -> Tensor:
    """Cosine of the penultimate features [N]."""
    return cosine_similarity(a.features, b.features, dim=1)


def kl(a: Seen, b: Seen) -> Tensor:
    """-KL(softmax(a) || softmax(b)) [N], in nats."""
    return -kl_div(
        log_softmax(b.logits, dim=1),
        log_softmax(a.logits, dim=1),
        reduction="none",
        log_target=True,
    ).sum(dim=1)


def maps(a: Seen, b: Seen) -> Tensor:
    """Cosine of the flattened feature maps, mean over layers [N]."""
    return torch.stack(
        [
            cosine_similarity(x.flatten(1), y.flatten(1), dim=1)
            for x, y in zip(a.maps, b.maps, strict=True)
        ]
    ).mean(0)


ON_CLASSIFIER: dict[str, Callable[[Seen, Seen], Tensor]] = {
    "logits": logits,
    "features": features,
    "kl": kl,
    "maps": maps,
}

PIQ: dict[str, tuple[Callable[..., nn.Module], float]] = {
    "dists": (piq.DISTS, 1.0),
    "lpips": (piq.LPIPS, 0.0),
    "ssim": (piq.SSIMLoss, 1.0),
    "fsim": (piq.FSIMLoss, 1.0),
    "vif": (piq.VIFLoss, 1.0),
    "mdsi": (piq.MDSILoss, 0.0),
    "gmsd": (piq.GMSDLoss, 0.0),
}
"""Name -> the loss, and what it is subtracted from to give the score."""

NAMES = [*PIQ, "l2", *ON_CLASSIFIER]
COLUMNS = (
    "dataset",
    "group",
    "index",
    "path",
    "label",
    "prediction",
    "reconstructed_as",
    "stop_index",
    "nfe",
    "seconds",
    "error",
)
"""Of the scores of a run, beside the scores: no discrepancy can be called so, nor as what is made of others."""
TAKEN = (*NAMES, *COLUMNS, "input_logits", "input_features", "reconstruction", "fusion", "cascade")


class PiqScore(nn.Module):
    """A piq loss as a score: ``offset - loss(a, b)`` [N]."""

    def __init__(self, name: str):
        super().__init__()
        loss, self.offset = PIQ[name]
        self.loss: Any
        self.name = name
        with _weights(name):
            self.loss = loss(reduction="none").requires_grad_(False)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Images [N, 3, H, W] -> [N]."""
        dtype = torch.float64 if a.dtype == b.dtype == torch.float64 else torch.float32
        try:
            distance = self.loss(a.to(dtype), b.to(dtype))
        except (ValueError, AssertionError, RuntimeError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise InputError(
                f"discrepancy {self.name} cannot take {a.shape[-1]} px images: {error}".replace(
                    "\n", " "
                )
            ) from error
        return self.offset - distance.reshape(len(a))


class FeatureScore(PiqScore):
    """DISTS or LPIPS in two parts, so that the features of an image that is compared many times are computed once."""

    def features(self, images: Tensor) -> list[Tensor]:
        """Of images [N, 3, H, W], at every layer [N, C, h, w]."""
        images = at_least_float32(images)
        self.loss.model.to(images)
        shorter = min(images.shape[-2:])
        if self.name == "dists" and shorter > 256:
            images = interpolate(
                images, scale_factor=256 / shorter, mode="bilinear", recompute_scale_factor=False
            )
        with torch.autocast(images.device.type, enabled=False):
            return self.loss.get_features(images)

    def distance(self, a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
        """Of features, [N]: what piq's loss is."""
        weighted = zip(self.loss.compute_distance(a, b), self.loss.weights, strict=True)
        loss = torch.cat(
            [(distance * weight.to(distance)).mean(dim=(2, 3)) for distance, weight in weighted],
            dim=1,
        ).sum(dim=1)
        return 1 - loss if self.name == "dists" else loss


class Discrepancies(nn.Module):
    """Any number of scores of one comparison.

    Args:
        names: see ``NAMES``; those with a dot are import paths of your own.

    Attributes:
        names: of the scores; of an import path the last part.
        needs_classifier: whether any is taken on what the classifier sees; your own are.
        needs_maps: whether any looks at feature maps; your own may.
    """

    def __init__(self, names: Sequence[str]):
        super().__init__()
        for name in names:
            if "." not in name:
                choose("discrepancy", name, NAMES)
        self.names = [name.rpartition(".")[2] for name in names]
        if len(set(self.names)) < len(names) or not names:
            raise InputError(f"discrepancies {list(names)}: expected one or more, each once")
        self.piq = nn.ModuleDict({name: PiqScore(name) for name in names if name in PIQ})
        own = [_Own(path) for path in names if "." in path]
        self.own = nn.ModuleList(own)
        self._own = {score.name: score for score in own}
        self.needs_classifier = bool(own) or any(name in ON_CLASSIFIER for name in names)
        self.needs_maps = bool(own) or "maps" in names

    @torch.no_grad()
    def forward(self, a: Seen, b: Seen) -> dict[str, Tensor]:
        """The scores [N] by name, in float32 at least, whatever the precision of the networks."""
        with torch.autocast(a.images.device.type, enabled=False):
            return {name: self._score(name, a, b) for name in self.names}

    def _score(self, name: str, a: Seen, b: Seen) -> Tensor:
        if name in PIQ:
            return self.piq[name](a.images, b.images)
        if name in self._own:
            return self._own[name](a, b)
        return l2(a, b) if name == "l2" else ON_CLASSIFIER[name](a, b)


class _Own(nn.Module):
    """A discrepancy by its import path."""

    def __init__(self, path: str):
        super().__init__()
        self.path, self.name = path, path.rpartition(".")[2]
        if self.name in TAKEN:
            raise InputError(
                f"discrepancy {path}: the name {self.name!r} is taken; call yours something else"
            )
        found: Any = _imported(path)
        if isclass(found) and not issubclass(found, nn.Module):
            raise InputError(
                f"discrepancy {path}: a class has to be a torch.nn.Module; or give a function of two Seen"
            )
        if isclass(found) and not _takes(found, 0):
            raise InputError(
                f"discrepancy {path}: its constructor needs arguments; give a class that needs none"
            )
        made: Any = found() if isclass(found) else found
        self.score = made.eval().requires_grad_(False) if isinstance(made, nn.Module) else made
        if not _takes(self.score.forward if isinstance(self.score, nn.Module) else self.score, 2):
            raise InputError(
                f"discrepancy {path}: cannot be called with two arguments, the two Seen that are compared"
            )

    def forward(self, a: Seen, b: Seen) -> Tensor:
        """-> [N], float32."""
        found = self.score(a, b)
        if not isinstance(found, Tensor) or found.shape != (len(a.images),) or found.is_complex():
            what = (
                f"a tensor {list(found.shape)}, {found.dtype}"
                if isinstance(found, Tensor)
                else type(found).__name__
            )
            raise InputError(
                f"discrepancy {self.path}: gave {what} for {len(a.images)} pairs of images; expected a number for each, [N]"
            )
        return found.to(a.images.device, torch.float32)


def _imported(path: str) -> Any:
    where, _, name = path.rpartition(".")
    try:
        module = import_module(where)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{where}.".startswith(f"{error.name}."):
            raise InputError(
                f"discrepancy {path}: no module {error.name!r}; install it, or start `python -m` from the folder that it lies in"
            ) from error
        raise InputError(f"discrepancy {path}: {where} cannot be imported ({error})") from error
    except Exception as error:  # whatever runs when it is imported
        reason = " ".join(str(error).split())
        raise InputError(
            f"discrepancy {path}: {where} cannot be imported ({type(error).__name__}: {reason})"
        ) from error
    if not hasattr(module, name):
        own = [
            n
            for n, value in vars(module).items()
            if callable(value) and getattr(value, "__module__", None) == module.__name__
        ]
        raise InputError(
            f"discrepancy {path}: no {name!r} in {where}; there are: {', '.join(own) or 'no functions'}"
        )
    found: Any = getattr(module, name)
    if not callable(found):
        raise InputError(
            f"discrepancy {path}: is of type {type(found).__name__}; expected a function, or the class of a module"
        )
    return found


def _takes(function: Callable[..., Any], count: int) -> bool:
    """Whether it can be called with so many arguments."""
    try:
        signature(function).bind(*range(count))
    except TypeError:
        return False
    except ValueError:  # nobody knows of a builtin
        return True
    return True


@contextmanager
def _weights(name: str) -> Iterator[None]:
    """DISTS and LPIPS fetch their weights: as tensors only, and with a word on what to do without a network."""
    before = os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*'pretrained'.*|.*weight enum.*")  # piq's own
            yield
    except OSError as error:
        files = {
            "dists": "vgg16-397923af.pth and dists_weights.pt",
            "lpips": "vgg16-397923af.pth and lpips_weights.pt",
        }
        raise InputError(
            f"discrepancy {name} needs {files.get(name, 'weights')}, which could not be downloaded ({error}); "
            f"put them into {torch.hub.get_dir()}/checkpoints, or choose other discrepancies"
        ) from error
    finally:
        if before is None:
            del os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"]
        else:
            os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = before
