"""Backbone of text-to-image models: Stable Diffusion 1.5, 2.1, XL and 3. Classes are prompts."""

import warnings
from collections.abc import Sequence
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoints.registry import resolve
from ..errors import InputError, beginning
from .diffusers_import import diffusers_class
from .load import image_side, load_diffusers, read_json
from .parametrised import Latents, ParametrisedBackbone, load_autoencoder
from .schedulers import (
    read_scheduler,
    scheduler_alpha_bar,
    scheduler_parametrisation,
    scheduler_schedule,
)

PIPELINES = {
    "StableDiffusionPipeline": "unet",
    "StableDiffusionXLPipeline": "unet",
    "StableDiffusion3Pipeline": "transformer",
}
"""Supported pipelines of diffusers, and the folder of the network of each."""
NETWORKS = ("UNet2DConditionModel", "SD3Transformer2DModel")
ENCODERS = ("CLIPTextModel", "CLIPTextModelWithProjection", "T5EncoderModel")
TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast", "T5Tokenizer", "T5TokenizerFast")
"""Classes of transformers that a folder may name."""
OPTIONS = ("requires_safety_checker", "force_zeros_for_empty_prompt", "add_watermarker")
"""Settings of a pipeline that are no parts of it."""
PROMPTS_PER_PASS = 32


class TextToImage(ParametrisedBackbone):
    """A text-to-image pipeline of diffusers whose labels are prompts.

    The embeddings of all prompts are computed once, by the pipeline's own code, and its text
    encoders are dropped. Needs the transformers library.

    Args:
        checkpoint: Folder of a pipeline's ``save_pretrained``, or a name or a URL of one (see
            :func:`diffguard_pl.checkpoints.registry.resolve`), with safetensors.
        class_names: Names of the classes. Defaults to those of the classifier.
        template: Prompt of a class, with ``{}`` in the place of its name; or several, whose
            embeddings are averaged.
        negative_prompt: Prompt of "no class".
        spacing: Distances of the steps: ``uniform`` in the training timesteps, ``karras``, or
            ``scheduler``, as the model's own scheduler has them.
        input_size: Side, in pixels, of the images under test. Defaults to the model's own size.
        process_method: How images get to the model's size: ``resize`` or ``pad``.
        antialias: Whether resizing is antialiased.

    Attributes:
        prompts: [C + 1, L, D] embeddings of the classes, and of "no class" behind them.
        pooled: [C + 1, P] embeddings of whole prompts; P is 0 for a model that takes none.
    """

    prompts: Tensor
    pooled: Tensor

    def __init__(
        self,
        checkpoint: str,
        class_names: Sequence[str] | None = None,
        template: str | Sequence[str] = "a photo of a {}",
        negative_prompt: str = "",
        spacing: str = "uniform",
        input_size: int | None = None,
        process_method: str = "resize",
        antialias: bool = True,
    ):
        templates = [template] if isinstance(template, str) else list(template or [])
        if not templates or not all(isinstance(t, str) and t.count("{}") == 1 for t in templates):
            raise InputError(
                f"template={template!r}: must have {{}} once, in the place of the class's name, "
                "such as 'a photo of a {}'"
            )
        folder = resolve(checkpoint)
        kind = _pipeline_class(folder)
        network = load_diffusers(NETWORKS, folder / PIPELINES[kind])
        autoencoder = load_autoencoder(folder / "vae", network.config.in_channels)
        latents, scheduler = Latents.of_config(autoencoder), read_scheduler(folder)
        alpha_bar = scheduler_alpha_bar(scheduler)
        super().__init__(
            image_side(network, folder),
            alpha_bar,
            scheduler_parametrisation(scheduler, None),
            latents,
            spacing,
            partial(scheduler_schedule, scheduler, alpha_bar),
            False,
            input_size,
            process_method,
            antialias,
        )
        self.network = network
        self.templates, self.negative_prompt = templates, negative_prompt
        self._text: Any = load_text_encoders(folder, kind, network)
        for name in ("prompts", "pooled"):
            self.register_buffer(name, torch.zeros(0), persistent=False)
        if class_names is not None:
            self._embed(class_names)

    @property
    def denoiser(self) -> nn.Module:
        return self.network

    def use_classes(self, names: Sequence[str] | None, count: int) -> None:
        if self._text is None:
            _check_same_classes(self.class_names or [], names)
            return
        if names is None:
            raise InputError(
                f"class_names: the classifier's {count} classes have no names here; set "
                "backbone.class_names to them"
            )
        self._embed([name.partition(",")[0] for name in names])

    def description(self) -> dict[str, Any]:
        # The text encoders, which are gone, by the mean of what they gave.
        mean = f"{self.prompts.double().abs().mean():.3g}" if len(self.prompts) else ""
        prompts = [self.templates, self.negative_prompt, self.class_names, mean]
        return super().description() | {"prompts": prompts}

    @torch.no_grad()
    def _embed(self, names: Sequence[str]) -> None:
        """Embed the prompts of all classes and of "no class", and drop the text encoders."""
        is_text = isinstance(names, str)
        if is_text or not names or not all(isinstance(n, str) and n.strip() for n in names):
            raise InputError("class_names: must be a list of one or more names; correct them")
        if len({_plain(name) for name in names}) < len(names):
            plain = [_plain(name) for name in names]
            twice = next(name for name in plain if plain.count(name) > 1)
            warnings.warn(
                f"class_names: {twice!r} is the name of two classes, whose prompts are equal; give "
                "them different names",
                stacklevel=2,
            )
        # The mean over the templates, added up one by one.
        prompts, pooled = self._text.embed([self.templates[0].replace("{}", n) for n in names])
        for template in self.templates[1:]:
            found = self._text.embed([template.replace("{}", name) for name in names])
            prompts, pooled = prompts + found[0], pooled + found[1]
        prompts, pooled = prompts / len(self.templates), pooled / len(self.templates)
        null_prompt, null_pooled = self._text.embed_negative(self.negative_prompt)
        device = self.levels.device
        self.prompts = torch.cat([prompts, null_prompt]).to(device)
        self.pooled = torch.cat([pooled, null_pooled]).to(device)
        if not (self.prompts.isfinite().all() and self.pooled.isfinite().all()):
            raise InputError("TextToImage: the text encoders give NaN; download them again")
        self.given_class_names = list(names)
        self.null_label = self.num_classes = len(names)
        self._text = None

    def predict(self, x: Tensor, times: Tensor, labels: Tensor) -> Tensor:
        prompts, pooled = self.prompts[labels].to(x.dtype), self.pooled[labels].to(x.dtype)
        if type(self.network).__name__ == "SD3Transformer2DModel":
            return self.network(
                x, encoder_hidden_states=prompts, pooled_projections=pooled, timestep=times
            ).sample
        condition: dict[str, Any] = {"encoder_hidden_states": prompts}
        if pooled.shape[1]:
            # Stable Diffusion XL also takes sizes: of the image, of its crop, of the result.
            side = self.image_size
            sizes = x.new_tensor([[side, side, 0, 0, side, side]]).expand(len(x), -1)
            condition["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": sizes}
        return self.network(x, times, **condition).sample


class TextEncoders:
    """The text encoders of a pipeline.

    Args:
        pipeline: Pipeline of diffusers without its other networks.
    """

    def __init__(self, pipeline: Any):
        self.pipeline = pipeline

    def embed(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return embeddings [n, L, D] of the tokens of n prompts, and of whole prompts [n, P]."""
        found = [
            self._encode(prompt=list(texts[i : i + PROMPTS_PER_PASS]))
            for i in range(0, len(texts), PROMPTS_PER_PASS)
        ]
        tokens, pooled = zip(*((part[0], part[2]) for part in found), strict=True)
        return torch.cat(tokens), torch.cat(pooled)

    def embed_negative(self, text: str) -> tuple[Tensor, Tensor]:
        """Return embeddings [1, L, D] and [1, P] of the prompt of "no class"."""
        # Without a text, Stable Diffusion XL takes zeros.
        found = self._encode(prompt=[""], negative_prompt=[text] if text else None)
        return found[1], found[3]

    def _encode(self, **prompts: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return tokens of prompt and negative prompt, and both pooled ones, in float32."""
        settings: dict[str, Any] = {
            "device": torch.device("cpu"),
            "num_images_per_prompt": 1,
            "do_classifier_free_guidance": True,
        }
        if type(self.pipeline).__name__ == "StableDiffusion3Pipeline":
            settings |= {"prompt_2": None, "prompt_3": None}
        found = self.pipeline.encode_prompt(**settings, **prompts)
        tokens, negative = (part.float() for part in found[:2])
        if len(found) == 2:
            return tokens, negative, tokens.new_zeros(len(tokens), 0), negative.new_zeros(1, 0)
        pooled, negative_pooled = (part.float() for part in found[2:])
        return tokens, negative, pooled, negative_pooled


def load_text_encoders(folder: Path, kind: str, network: nn.Module) -> TextEncoders:
    """Load the text encoders of a pipeline's folder.

    Only classes of :data:`ENCODERS` and :data:`TOKENIZERS` are built, whatever the folder names.

    Args:
        folder: The folder.
        kind: Class of the pipeline.
        network: Its diffusion model, whose config the pipeline looks at.

    Raises:
        InputError: The transformers library is not installed, or a part is missing, damaged or of
            another class.
    """
    try:
        import transformers
    except ImportError as error:
        raise InputError(
            "TextToImage: the transformers library is not installed; pip install transformers"
        ) from error
    pipeline_class = diffusers_class(kind)
    index = read_json(folder / "model_index.json")
    names = list(signature(pipeline_class.__init__).parameters)[1:]
    parts: dict[str, Any] = dict.fromkeys(name for name in names if name not in OPTIONS)
    for name in parts:
        if name.startswith(("text_encoder", "tokenizer")):
            parts[name] = _load_part(transformers, folder / name, index.get(name), name)
    if parts["text_encoder"] is None or parts["tokenizer"] is None:
        raise InputError(f"checkpoint {folder}: has no text_encoder or no tokenizer; it needs both")
    return TextEncoders(pipeline_class(**parts | {PIPELINES[kind]: network}))


def _load_part(transformers: Any, folder: Path, named: Any, part: str) -> Any:
    """Load a text encoder or a tokenizer; None where the pipeline has none."""
    if named is None or (isinstance(named, list) and named[:1] == [None]):
        return None
    known = ENCODERS if part.startswith("text_encoder") else TOKENIZERS
    if not isinstance(named, list) or len(named) != 2 or named[1] not in known:
        raise InputError(
            f"checkpoint {folder.parent}: {part} of model_index.json must be one of "
            f"{', '.join(known)}, not {str(named)[:60]}"
        )
    bar = transformers.utils.logging
    shown = bar.is_progress_bar_enabled()
    settings: dict[str, Any] = {"local_files_only": True}
    if known is ENCODERS:
        settings |= {"use_safetensors": True, "output_loading_info": True}
        if not list(folder.glob("model*.safetensors")) or all(
            ".fp16." in file.name for file in folder.glob("model*.safetensors")
        ):
            settings["variant"] = "fp16"
    try:
        bar.disable_progress_bar()
        loaded = getattr(transformers, named[1]).from_pretrained(folder, **settings)
    except Exception as error:  # transformers does not check what it reads
        reason = beginning(f"{type(error).__name__}: {error}", 200)
        raise InputError(
            f"checkpoint {folder}: cannot be loaded ({reason}); download it again"
        ) from error
    finally:
        if shown:
            bar.enable_progress_bar()
    if known is TOKENIZERS:
        return loaded
    encoder, report = loaded
    problems = [key for name in ("missing_keys", "mismatched_keys") for key in report[name]]
    if problems:
        raise InputError(
            f"checkpoint {folder}: does not fit, {str(problems[0])[:80]} is missing or has another "
            "shape; download it again"
        )
    return encoder.float().eval()


def _pipeline_class(folder: Path) -> str:
    """Return the class of the pipeline that model_index.json names."""
    index = folder / "model_index.json"
    name = str(read_json(index).get("_class_name")) if index.is_file() else "none"
    if name not in PIPELINES:
        raise InputError(
            f"checkpoint {folder}: must be the folder of a pipeline, {', '.join(PIPELINES)}, not "
            f"{name}"
        )
    return name


def _check_same_classes(given: Sequence[str], names: Sequence[str] | None) -> None:
    """Warn where the classifier's names are others than those that the prompts were made of."""
    pairs = zip(given, names or [], strict=False)
    for number, (own, other) in enumerate(pairs):
        if _plain(own) != _plain(other.partition(",")[0]):
            warnings.warn(
                f"class_names: class {number} is {own!r} in the prompts, and {other!r} by the "
                "classifier; if they differ, correct backbone.class_names",
                stacklevel=3,
            )
            return


def _plain(name: str) -> str:
    return " ".join(name.lower().split())
