"""A classifier under protection: preprocessing, logits, features and Grad-CAM, all from one pass."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad

from ..dtypes import at_least_float32
from ..errors import InputError, choose
from .layers import _check_layer, _heads, _map_layers, feature_maps
from .zoo import INTERPOLATIONS, find, load_weights


class View(NamedTuple):
    """What the classifier makes of images.

    Attributes:
        logits: [N, classes].
        features: [N, D], the input of the linear layer that gives the logits, of both side by side in a distilled ViT (where there
            is none: the mean of the Grad-CAM layer over space).
        maps: feature maps [N, C, h, w] of the map layers.
    """

    logits: Tensor
    features: Tensor
    maps: list[Tensor]


class Classifier(nn.Module):
    """A frozen classifier with its own preprocessing.

    Images of side ``input_size`` go in as they are. Others are resized so that ``input_size`` is the share ``crop`` of their
    shorter side, and cropped at the centre.

    Args:
        model: any module from images to logits, or a name: torchvision's, such as ``resnet50``, or timm's, such as
            ``timm/vit_base_patch16_224.augreg_in21k_ft_in1k``.
        checkpoint: its weights: a file, a folder with ``model.safetensors``, or the name of shipped weights. None: those that the
            module has; for a model by name see ``weights``.
        weights: of a model by name: which of those that torchvision or timm has to download, None for the default ones; or
            ``random``, for a dry run. With a checkpoint they only decide the preprocessing.
        input_size: side of the images that it takes. None, here and in the next four: the model's own; for a module that has no
            attribute ``preprocessing`` 224 pixels, all of the picture, bilinear, and ImageNet's mean and std.
        mean: of each channel, subtracted from images in [0, 1].
        std: of each channel, divided by.
        crop: share of the picture's side that it sees, above 0 and up to 1. None: the model's own, but 1 where input_size is given.
        interpolation: bilinear or bicubic.
        cam_layer: name of the layer for Grad-CAM, as in ``model.named_modules()``; none: the last one whose output is a feature
            map; in a vision transformer the norm before the last attention.
        map_layers: names of the layers for the ``maps`` discrepancy; none: the model's outermost ones that output feature maps;
            for a vision transformer that norm.

    Attributes:
        class_names: of each logit, in English; None where nobody knows.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: nn.Module | str,
        checkpoint: str | None = None,
        weights: str | None = None,
        input_size: int | None = None,
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
        crop: float | None = None,
        interpolation: str | None = None,
        cam_layer: str | None = None,
        map_layers: list[str] | None = None,
    ):
        super().__init__()
        entry = find(model, weights, load=not checkpoint)
        self.model, self.class_names = entry.model.eval(), entry.class_names
        if checkpoint:
            load_weights(self.model, checkpoint)
        self.requires_grad_(False)
        own = entry.preprocessing
        if input_size is not None and input_size < 1:
            raise InputError(f"classifier: input_size={input_size}; expected at least 1 pixel")
        self.input_size = input_size or own.input_size
        self.crop = crop if crop is not None else 1.0 if input_size else own.crop
        self.interpolation = interpolation or own.interpolation
        if not 0 < self.crop <= 1:
            raise InputError(
                f"classifier: crop={crop}; expected a share of the picture's side, above 0 and up to 1"
            )
        choose("classifier.interpolation", self.interpolation, INTERPOLATIONS)
        self.register_buffer(
            "mean", torch.tensor(mean or own.mean).view(1, 3, 1, 1), persistent=False
        )
        self.register_buffer("std", torch.tensor(std or own.std).view(1, 3, 1, 1), persistent=False)
        self._takes: dict[torch.Size, bool] = {}
        self._look_inside(cam_layer, map_layers)

    def networks_to(self, dtype: torch.dtype) -> None:
        """Weights of the model in another precision; images, and the mean and std that they are normalised by, stay in float32."""
        self.model.to(dtype)

    def forward(self, images: Tensor) -> Tensor:
        """Images [N, 3, H, W] in [0, 1] -> logits [N, classes], differentiable."""
        return self.logits(self.fit(images))

    def logits(self, images: Tensor) -> Tensor:
        """As :meth:`forward`, of images that go in at the size that they have."""
        dtype = next(
            (weights.dtype for weights in self.model.parameters() if weights.is_floating_point()),
            torch.float32,
        )
        return self.model(((images - self.mean) / self.std).to(dtype))

    def whole(self, images: Tensor) -> Tensor:
        """As :meth:`logits` where the model takes images of that size, as convolutional ones do; else as :meth:`forward`."""
        size = images.shape[-2:]
        if size not in self._takes:
            try:
                with torch.no_grad():
                    self.logits(images.detach()[:1])
                self._takes[size] = True
            except (RuntimeError, ValueError, AssertionError) as error:
                if isinstance(error, torch.OutOfMemoryError):
                    raise
                self._takes[size] = False
        return self.logits(images) if self._takes[size] else self(images)

    def fit(self, images: Tensor) -> Tensor:
        """Images [N, 3, H, W] resized and cropped to [N, 3, input_size, input_size]; as they are where they have this size."""
        size = self.input_size
        if images.shape[-2:] == (size, size):
            return images
        height, width = self._resized(images)
        images = interpolate(images, (height, width), mode=self.interpolation, antialias=True)
        top, left = round((height - size) / 2), round((width - size) / 2)
        return images[:, :, top : top + size, left : left + size]

    @torch.no_grad()
    def view(self, images: Tensor) -> View:
        """Logits, features and feature maps of images [N, 3, H, W] in [0, 1]."""
        with self._captured() as (outputs, inputs):
            logits = self(images)
        return self._view(logits, outputs, inputs)

    def view_with_cam(self, images: Tensor, labels: Tensor | None = None) -> tuple[View, Tensor]:
        """As :meth:`view`, and Grad-CAM from the same pass (Selvaraju et al. 2017, eq. 1-2).

        Only what comes after the CAM layer is differentiated.

        Args:
            images: [N, 3, H, W] in [0, 1].
            labels: [N] the classes to look for; those below 0, and all where None, stand for the predicted one.

        Returns:
            The view, and the activation [N, 1, H, W] scaled to [0, 1] in each image, 0 where the classifier's crop does not reach.
        """
        if self.cam_layer is None:
            raise InputError(
                "classifier: found no layer with feature maps for Grad-CAM; set classifier.cam_layer"
            )
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            self._captured(leaf=self.cam_layer) as (outputs, inputs),
        ):
            logits = self(images.clone())
            predicted = logits.argmax(dim=1)
            labels = predicted if labels is None else torch.where(labels < 0, predicted, labels)
            (gradient,) = torch.autograd.grad(
                logits.gather(1, labels[:, None]).sum(), outputs[self.cam_layer]
            )
        with torch.no_grad():
            weights = feature_maps(gradient).mean(dim=(2, 3), keepdim=True)
            cam = (weights * feature_maps(outputs[self.cam_layer])).sum(dim=1, keepdim=True).relu()
            view = self._view(logits, outputs, inputs)
            return view, self._on_picture(at_least_float32(cam), images)

    def linear_head(self) -> tuple[Tensor, Tensor] | None:
        """Weight [classes, D] and bias [classes] that give the logits of features [N, D], in float32; None where no layer does.

        Of the two heads of a distilled ViT the logits are the mean. What a model does between features and logits besides is not
        looked at.
        """
        modules: dict[str, Any] = dict(self.model.named_modules())
        heads = [modules[name] for name in self.heads]
        if not heads:
            return None
        weights = [head.weight.detach().float().flatten(1) for head in heads]
        biases = [
            weights[0].new_zeros(len(weights[0]))
            if head.bias is None
            else head.bias.detach().float()
            for head in heads
        ]
        return torch.cat(weights, dim=1) / len(heads), torch.stack(biases).mean(dim=0)

    def _resized(self, images: Tensor) -> tuple[int, int]:
        """Height and width that images are brought to before the crop."""
        height, width = images.shape[-2:]
        if height == width == self.input_size:
            return height, width
        side, shorter = round(self.input_size / self.crop), min(height, width)
        return side * height // shorter, side * width // shorter

    def _on_picture(self, cam: Tensor, images: Tensor) -> Tensor:
        """A map [N, 1, h, w] of what the classifier saw -> [N, 1, H, W], in [0, 1], 0 around it."""
        sides = list(zip(images.shape[-2:], self._resized(images), strict=True))
        height, width = (round(side * self.input_size / resized) for side, resized in sides)
        cam = min_max(interpolate(cam, (height, width), mode="bilinear", align_corners=False))
        top, left = (images.shape[-2] - height) // 2, (images.shape[-1] - width) // 2
        return pad(
            cam, (left, images.shape[-1] - width - left, top, images.shape[-2] - height - top)
        )

    def _view(self, logits: Tensor, outputs: dict[str, Tensor], inputs: dict[str, Tensor]) -> View:
        outputs = {
            name: at_least_float32(feature_maps(output.detach()))
            for name, output in outputs.items()
        }
        if self.heads:
            features = torch.cat(
                [at_least_float32(inputs[name].detach().flatten(1)) for name in self.heads], dim=1
            )
        else:
            features = outputs[self.cam_layer or ""].mean(dim=(2, 3))
        return View(
            at_least_float32(logits.detach()), features, [outputs[name] for name in self.map_layers]
        )

    @contextmanager
    def _captured(
        self, leaf: str | None = None
    ) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
        """Outputs of the CAM and map layers, and inputs of the heads, of the pass inside; ``leaf`` starts the graph."""
        outputs: dict[str, Tensor] = {}
        inputs: dict[str, Tensor] = {}

        def keep(name: str) -> Callable[..., Tensor]:
            def hook(_: nn.Module, __: tuple, output: Tensor) -> Tensor:
                outputs[name] = output.detach().requires_grad_() if name == leaf else output
                return outputs[name].clone()  # what comes after may work in place

            return hook

        def keep_input(name: str) -> Callable[..., None]:
            def hook(_: nn.Module, given: tuple[Tensor, ...]) -> None:
                inputs[name] = given[0]

            return hook

        modules = dict(self.model.named_modules())
        wanted = {*self.map_layers, *([self.cam_layer] if self.cam_layer else [])}
        hooks = [modules[name].register_forward_hook(keep(name)) for name in wanted]
        hooks += [modules[name].register_forward_pre_hook(keep_input(name)) for name in self.heads]
        try:
            yield outputs, inputs
        finally:
            for hook in hooks:
                hook.remove()

    def _look_inside(self, cam_layer: str | None, map_layers: list[str] | None) -> None:
        """Find the layers by running one grey image through the model."""
        modules = dict(self.model.named_modules())
        outputs, logits = self._outputs(modules)
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            raise InputError("classifier: the model does not return logits [N, classes]")
        for name in [*([cam_layer] if cam_layer else []), *(map_layers or [])]:
            _check_layer(name, modules, outputs)
        self.num_classes = logits.shape[1]
        self.heads = _heads(modules, outputs, logits)
        own = _map_layers(modules, outputs)
        self.cam_layer = cam_layer or (own[-1] if own else None)
        self.map_layers = map_layers or own
        if not self.heads and self.cam_layer is None:
            raise InputError(
                "classifier: found neither a linear layer nor feature maps to take features from; set classifier.cam_layer"
            )

    def _outputs(self, modules: dict[str, nn.Module]) -> tuple[dict[str, Tensor], object]:
        """Of each layer in the order in which they end, without their numbers but for vectors; and of the model."""
        outputs: dict[str, Tensor] = {}

        def note(name: str) -> Callable[..., None]:
            def hook(_: nn.Module, __: tuple, output: object) -> None:
                outputs.pop(name, None)
                if isinstance(output, Tensor) and output.ndim > 1:
                    outputs[name] = (
                        output if output.numel() == output.shape[1] else output.to("meta")
                    )

            return hook

        hooks = [
            module.register_forward_hook(note(name)) for name, module in modules.items() if name
        ]
        size = self.input_size
        try:
            with torch.no_grad():
                return outputs, self(torch.full((1, 3, size, size), 0.5))
        except (RuntimeError, ValueError, AssertionError) as error:
            reason = " ".join(str(error).split())
            raise InputError(
                f"classifier: the model cannot take a {size}x{size} image ({reason}); set classifier.input_size"
            ) from error
        finally:
            for hook in hooks:
                hook.remove()


def min_max(maps: Tensor) -> Tensor:
    """Each of [N, 1, H, W] brought to [0, 1] (0 where it is constant)."""
    low = maps.amin(dim=(1, 2, 3), keepdim=True)
    high = maps.amax(dim=(1, 2, 3), keepdim=True)
    return (maps - low) / (high - low + 1e-7)
