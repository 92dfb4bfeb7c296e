"""A classifier under protection: normalisation, logits, features and Grad-CAM, all from one pass."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from .backbones.convert import load_tensors, resolve
from .errors import InputError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class View(NamedTuple):
    """What the classifier makes of images.

    Attributes:
        logits: [N, classes].
        features: [N, D], the input of the last linear layer (where there is none: the mean of the Grad-CAM layer over space).
        maps: feature maps [N, C, h, w] of the map layers.
    """

    logits: Tensor
    features: Tensor
    maps: list[Tensor]


class Classifier(nn.Module):
    """A frozen classifier with its own normalisation.

    Args:
        model: any module from images to logits, or the name of a torchvision model.
        checkpoint: its weights: a file, a folder with ``model.safetensors``, or the name of shipped weights. None: those that the
            module has; torchvision's default ones (downloaded) for a model by name.
        input_size: side of the images that it takes.
        mean: of each channel, subtracted from images in [0, 1].
        std: of each channel, divided by.
        cam_layer: name of the layer for Grad-CAM, as in ``model.named_modules()``; none: the last one whose output is a feature
            map.
        map_layers: names of the layers for the ``maps`` discrepancy; none: the model's direct children that output feature maps.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: nn.Module | str,
        checkpoint: str | None = None,
        input_size: int = 224,
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
        cam_layer: str | None = None,
        map_layers: list[str] | None = None,
    ):
        super().__init__()
        self.model = (_torchvision(model, checkpoint) if isinstance(model, str) else model).eval()
        if checkpoint:
            _load(self.model, checkpoint)
        self.requires_grad_(False)
        self.input_size = input_size
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self._look_inside(cam_layer, map_layers)

    def forward(self, images: Tensor) -> Tensor:
        """Images [N, 3, H, W] in [0, 1] -> logits [N, classes], differentiable."""
        return self.model((images - self.mean) / self.std)

    @torch.no_grad()
    def view(self, images: Tensor) -> View:
        """Logits, features and feature maps of images [N, 3, H, W] in [0, 1]."""
        with self._captured() as (maps, features):
            logits = self(images)
        return View(logits.float(), self._features(features, maps), [maps[name].float() for name in self.map_layers])

    def view_with_cam(self, images: Tensor, labels: Tensor | None = None) -> tuple[View, Tensor]:
        """As :meth:`view`, and Grad-CAM from the same pass (Selvaraju et al. 2017, eq. 1-2).

        Only what comes after the CAM layer is differentiated.

        Args:
            images: [N, 3, H, W] in [0, 1].
            labels: [N] the classes to look for; those below 0, and all where None, stand for the predicted one.

        Returns:
            The view, and the activation [N, 1, H, W] scaled to [0, 1] in each image.
        """
        if self.cam_layer is None:
            raise InputError("classifier: found no layer with feature maps for Grad-CAM; set classifier.cam_layer")
        with torch.inference_mode(False), torch.enable_grad(), self._captured(leaf=self.cam_layer) as (maps, features):
            logits = self(images.clone())
            predicted = logits.argmax(dim=1)
            labels = predicted if labels is None else torch.where(labels < 0, predicted, labels)
            activation = maps[self.cam_layer]
            (gradient,) = torch.autograd.grad(logits.gather(1, labels[:, None]).sum(), activation)
        with torch.no_grad():
            cam = (gradient.mean(dim=(2, 3), keepdim=True) * activation).sum(dim=1, keepdim=True).relu()
            cam = interpolate(cam.float(), images.shape[-2:], mode="bilinear", align_corners=False)
            maps = {name: tensor.detach() for name, tensor in maps.items()}
            view = View(
                logits.detach().float(),
                self._features([feature.detach() for feature in features], maps),
                [maps[name].float() for name in self.map_layers],
            )
        return view, min_max(cam)

    def _features(self, captured: list[Tensor], maps: dict[str, Tensor]) -> Tensor:
        return captured[-1].flatten(1).float() if captured else maps[self.cam_layer or ""].float().mean(dim=(2, 3))

    @contextmanager
    def _captured(self, leaf: str | None = None) -> Iterator[tuple[dict[str, Tensor], list[Tensor]]]:
        """Feature maps by layer name, and the input of the last linear layer, of the passes inside; ``leaf`` starts the graph."""
        maps: dict[str, Tensor] = {}
        features: list[Tensor] = []

        def keep(name: str) -> Callable[..., Tensor]:
            def hook(_: nn.Module, __: tuple, output: Tensor) -> Tensor:
                maps[name] = output.detach().requires_grad_() if name == leaf else output
                return maps[name]

            return hook

        def keep_input(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            features.append(inputs[0])

        modules = dict(self.model.named_modules())
        wanted = {*self.map_layers, *([self.cam_layer] if self.cam_layer else [])}
        hooks = [modules[name].register_forward_hook(keep(name)) for name in wanted]
        if self.last_linear is not None:
            hooks.append(modules[self.last_linear].register_forward_pre_hook(keep_input))
        try:
            yield maps, features
        finally:
            for hook in hooks:
                hook.remove()

    def _look_inside(self, cam_layer: str | None, map_layers: list[str] | None) -> None:
        """Find the layers by running one grey image through the model."""
        names = dict(self.model.named_modules())
        for name in [cam_layer, *(map_layers or [])]:
            if name is not None and name not in names:
                near = [known for known in names if known and known.count(".") <= 1]
                raise InputError(f"classifier: the model has no layer {name!r}; it has: {', '.join(near)}")
        shapes: dict[str, torch.Size] = {}
        order: list[nn.Module] = []

        def note(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, _: tuple, output: object) -> None:
                order.append(module)
                if isinstance(output, Tensor):
                    shapes[name] = output.shape

            return hook

        hooks = [module.register_forward_hook(note(name)) for name, module in names.items() if name]
        try:
            with torch.no_grad():
                logits = self(torch.full((1, 3, self.input_size, self.input_size), 0.5))
        except (RuntimeError, ValueError, AssertionError) as error:
            size = self.input_size
            raise InputError(
                f"classifier: the model cannot take a {size}x{size} image ({error}); set classifier.input_size"
            ) from error
        finally:
            for hook in hooks:
                hook.remove()
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            raise InputError("classifier: the model does not return logits [N, classes]")
        self.num_classes = logits.shape[1]
        linear = [name for name, module in names.items() if isinstance(module, nn.Linear) and module in order]
        self.last_linear = max(linear, key=lambda name: order.index(names[name])) if linear else None
        outputs = {name: shape for name, shape in shapes.items() if "." not in name and len(shape) == 4}
        feature_maps = [name for name, shape in outputs.items() if shape[-1] > 1] or list(outputs)[:1]
        self.map_layers = map_layers or feature_maps
        self.cam_layer = cam_layer or (feature_maps[-1] if feature_maps else None)
        if self.last_linear is None and self.cam_layer is None:
            raise InputError(
                "classifier: found neither a linear layer nor feature maps to take features from; set classifier.cam_layer"
            )


def min_max(maps: Tensor) -> Tensor:
    """Each of [N, 1, H, W] brought to [0, 1] (0 where it is constant)."""
    low = maps.amin(dim=(1, 2, 3), keepdim=True)
    high = maps.amax(dim=(1, 2, 3), keepdim=True)
    return (maps - low) / (high - low + 1e-7)


def yardsticks(logits: Tensor) -> dict[str, Tensor]:
    """What the classifier alone says, each [N], higher = more in-distribution.

    ``msp``: maximum softmax probability (Hendrycks & Gimpel 2017); ``max_logit`` (Hendrycks et al. 2022); ``energy``: log-sum-exp
    (Liu et al. 2020).
    """
    return {"msp": logits.softmax(dim=1).amax(dim=1), "max_logit": logits.amax(dim=1), "energy": logits.logsumexp(dim=1)}


def _torchvision(name: str, checkpoint: str | None) -> nn.Module:
    from torchvision.models import get_model, list_models

    if name not in list_models():
        near = ", ".join(known for known in list_models() if known[:3] == name[:3]) or "see torchvision.models.list_models()"
        raise InputError(f"classifier: torchvision has no model {name!r}; near it: {near}")
    try:
        return get_model(name, weights=None if checkpoint else "DEFAULT")
    except OSError as error:
        folder = torch.hub.get_dir() + "/checkpoints"
        raise InputError(
            f"classifier: {name} could not be downloaded ({error}); put its file into {folder} or set classifier.checkpoint"
        ) from error


def _load(model: nn.Module, checkpoint: str) -> None:
    path = resolve(checkpoint)
    state = load_tensors(path / "model.safetensors" if path.is_dir() else path)
    expected = model.state_dict()
    missing = [key for key in expected if key not in state]
    wrong = [key for key in expected if key in state and state[key].shape != expected[key].shape]
    extra = [key for key in state if key not in expected]
    for keys, what in ((missing, "is missing"), (wrong, "has another shape"), (extra, "is not in the model")):
        if keys:
            raise InputError(
                f"classifier checkpoint {path} does not fit {type(model).__name__}: {keys[0]} {what}; look at classifier.model"
            )
    model.load_state_dict(state)
