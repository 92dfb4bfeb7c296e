"""Zero-shot scores of a text-image model (CLIP): MCM and NegLabel.

They need the names of the classes, and no image to be fitted to.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize

from ...errors import InputError, beginning, choose
from .collection import without_tf32

SCORES = ("mcm", "neglabel")
LIBRARIES = {"open_clip": "open-clip-torch", "transformers": "transformers"}
"""What pip installs, by the name of the library."""
TEXTS_PER_PASS = 256
MCM_TEMPLATE = "a photo of a {}."
NEGLABEL_TEMPLATE = "The nice {}."
NEGLABEL_TEMPERATURE = 0.01
ROBUST_MINIMUM = 0.95
"""NegLabel's percentile: a word is as near to the classes as to the nearest twentieth of them."""


class TextImageModel(NamedTuple):
    """A model of texts and images, whose embeddings can be compared.

    Attributes:
        module: The networks.
        encode_images: Maps prepared images [N, 3, H, W] to embeddings [N, D].
        encode_texts: Maps texts to embeddings [n, D].
        input_size: Side of the images in pixels.
        mean: Mean of each channel, subtracted from images in [0, 1].
        std: Standard deviation of each channel.
    """

    module: nn.Module
    encode_images: Callable[[Tensor], Tensor]
    encode_texts: Callable[[Sequence[str]], Tensor]
    input_size: int
    mean: Sequence[float]
    std: Sequence[float]


class ZeroShot(nn.Module):
    """Scores of a text-image model that knows the names of the classes.

    - ``mcm``: maximum softmax of the cosines of an image and the classes (Ming et al., NeurIPS
      2022), at temperature 1.
    - ``neglabel``: softmax mass of the classes among these and negative words (Jiang et al., ICLR
      2024), at temperature 0.01, mean over groups of the words. The words are those of a list that
      are the farthest from all classes.

    Args:
        model: ``open_clip/NAME`` with ``weights``, or ``transformers/FOLDER_OR_NAME``.
        weights: For open_clip: tag or file of the weights, or ``random``.
        scores: Names of the scores. Defaults to ``mcm``.
        classes: Names of the classes. Defaults to those of the classifier.
        negatives: File of words, one on a line, for ``neglabel``; the paper takes the nouns and
            adjectives of WordNet.
        fraction: Fraction of the words that are taken, the farthest first. Defaults to 0.15.
        groups: Number of groups of the words. Defaults to the paper's 100.
        suffix: End of the names of the scores. Defaults to ``clip``.

    Raises:
        InputError: The model or a file is missing, or a score needs what is not given.
    """

    classes: Tensor
    negatives: Tensor

    def __init__(
        self,
        model: str,
        weights: str | None = None,
        scores: Sequence[str] = ("mcm",),
        classes: Sequence[str] | None = None,
        negatives: str | None = None,
        fraction: float = 0.15,
        groups: int = 100,
        suffix: str = "clip",
    ):
        super().__init__()
        for name in scores:
            choose("zero_shot.scores", name, list(SCORES))
        if "neglabel" in scores and negatives is None:
            raise InputError("zero_shot.negatives: neglabel needs a file of words; set it")
        if not 0 < fraction <= 1 or groups < 1:
            raise InputError(
                f"zero_shot: fraction={fraction}, groups={groups}: must be above 0 and at most 1, "
                "and at least 1"
            )
        self.scores, self.suffix, self.groups = list(scores), suffix, groups
        self.names = [f"{name}_{suffix}" for name in scores]
        self.fraction, self.given_classes = fraction, classes
        self.words = _read_words(negatives) if negatives else []
        self._model = load_text_image_model(model, weights)
        self.network = self._model.module.eval().requires_grad_(False)
        self.register_buffer("classes", torch.zeros(0), persistent=False)
        self.register_buffer("negatives", torch.zeros(0), persistent=False)

    @torch.no_grad()
    def use_classes(self, names: Sequence[str] | None, count: int) -> None:
        """Embed the names of the classes, and choose the negative words.

        Args:
            names: Names that the classifier knows, if any; ``classes`` goes before.
            count: Number of classes.

        Raises:
            InputError: The names are unknown, or not one for each class.
        """
        found = list(self.given_classes or names or [])
        if len(found) != count:
            raise InputError(
                f"zero_shot.classes: must be {count} names, one for each class, not {len(found)}"
            )
        self.classes = self._embed(MCM_TEMPLATE, found)
        if "neglabel" in self.scores:
            own = self._embed(NEGLABEL_TEMPLATE, found)
            words = [word for word in self.words if word.lower() not in {n.lower() for n in found}]
            self.negatives = torch.cat([own, self._farthest(own, words)])

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Compute the scores [N] by name of images [N, 3, H, W] in [0, 1]."""
        with torch.no_grad():
            size = (self._model.input_size,) * 2
            resized = interpolate(images.float(), size, mode="bicubic", antialias=True).clamp(0, 1)
            mean, std = (
                torch.tensor(values, device=images.device).view(1, 3, 1, 1)
                for values in (self._model.mean, self._model.std)
            )
            dtype = next(self.network.parameters()).dtype
            embedded = self._model.encode_images(((resized - mean) / std).to(dtype))
        # The arithmetic of a score is in float32, whatever the precision of the network.
        found = {"mcm": self._mcm, "neglabel": self._neglabel}
        with torch.autocast(images.device.type, enabled=False), without_tf32():
            unit = normalize(embedded.float(), dim=1)
            return {f"{name}_{self.suffix}": found[name](unit) for name in self.scores}

    @property
    def fits(self) -> dict[str, bool]:
        """Whether each score is fitted to training images, by name: none is."""
        return dict.fromkeys(self.names, False)

    def description(self) -> dict[str, Any]:
        """Return what the scores depend on besides the weights."""
        embeddings = torch.cat([self.classes.flatten(), self.negatives.flatten()])
        return {
            "scores": self.scores,
            "groups": self.groups,
            "input_size": self._model.input_size,
            # The names of the classes and the words, by their embeddings.
            "embeddings": [len(self.classes), len(self.negatives), f"{embeddings.sum():.4g}"],
        }

    def _mcm(self, embedded: Tensor) -> Tensor:
        return (embedded @ self.classes.T).softmax(dim=1).amax(dim=1)

    def _neglabel(self, embedded: Tensor) -> Tensor:
        cosines = embedded @ self.negatives.T / NEGLABEL_TEMPERATURE
        count = len(self.classes)
        own, others = cosines[:, :count].logsumexp(dim=1), cosines[:, count:]
        # The mass of the classes against each group of words, mean over groups.
        masses = []
        for group in range(min(self.groups, others.shape[1])):
            of_group = others[:, group :: self.groups].logsumexp(dim=1)
            masses.append((own - of_group).sigmoid())
        return torch.stack(masses).mean(dim=0)

    def _embed(self, template: str, names: Sequence[str]) -> Tensor:
        """Return the normalised embeddings [n, D] of names in a template."""
        texts = [template.format(name.partition(",")[0]) for name in names]
        parts = [
            self._model.encode_texts(texts[i : i + TEXTS_PER_PASS])
            for i in range(0, len(texts), TEXTS_PER_PASS)
        ]
        return normalize(torch.cat(parts).float(), dim=1)

    def _farthest(self, classes: Tensor, words: Sequence[str]) -> Tensor:
        """Return the embeddings of the words that are the farthest from the classes [C, D]."""
        if not words:
            raise InputError("zero_shot.negatives: has no word that is not a class; give others")
        embedded = self._embed(NEGLABEL_TEMPLATE, words)
        nearness = (embedded @ classes.T).quantile(ROBUST_MINIMUM, dim=1)
        kept = nearness.argsort(stable=True)[: max(1, round(self.fraction * len(words)))]
        return embedded[kept.sort().values]


def load_text_image_model(name: str, weights: str | None) -> TextImageModel:
    """Load a model by ``open_clip/NAME`` or ``transformers/FOLDER_OR_NAME``.

    Raises:
        InputError: The library is not installed, or the model is unknown.
    """
    library, _, of_library = name.partition("/")
    choose("zero_shot.model: library", library, ["open_clip", "transformers"])
    try:
        load = {"open_clip": _open_clip, "transformers": _transformers}[library]
        return load(of_library, weights)
    except ImportError as error:
        raise InputError(
            f"zero_shot.model: {library} is not installed; pip install {LIBRARIES[library]}"
        ) from error
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        reason = beginning(str(error), 200)
        raise InputError(f"zero_shot.model: {name} cannot be loaded ({reason})") from error


def _open_clip(name: str, weights: str | None) -> TextImageModel:
    import open_clip

    if weights is None:
        raise InputError(
            "zero_shot.weights: open_clip needs the tag or the file of the weights, such as "
            "openai; or random"
        )
    pretrained = None if weights == "random" else weights
    model: Any = open_clip.create_model(name, pretrained=pretrained)
    tokenizer = open_clip.get_tokenizer(name)

    def encode_texts(texts: Sequence[str]) -> Tensor:
        device = next(model.parameters()).device
        return model.encode_text(tokenizer(list(texts)).to(device))

    visual = model.visual
    size = visual.image_size[0] if isinstance(visual.image_size, tuple) else visual.image_size
    mean = getattr(visual, "image_mean", None) or open_clip.OPENAI_DATASET_MEAN
    std = getattr(visual, "image_std", None) or open_clip.OPENAI_DATASET_STD
    return TextImageModel(model, model.encode_image, encode_texts, size, mean, std)


def _transformers(name: str, weights: str | None) -> TextImageModel:
    from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

    model: Any = CLIPModel.from_pretrained(name)
    tokenizer: Any = AutoTokenizer.from_pretrained(name)
    preparation: Any = CLIPImageProcessor.from_pretrained(name)

    def encode_texts(texts: Sequence[str]) -> Tensor:
        device = next(model.parameters()).device
        tokens = tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        return _projected(model.get_text_features(**tokens.to(device)))

    def encode_images(images: Tensor) -> Tensor:
        return _projected(model.get_image_features(pixel_values=images))

    size = model.config.vision_config.image_size
    mean, std = preparation.image_mean, preparation.image_std
    return TextImageModel(model, encode_images, encode_texts, size, mean, std)


def _projected(found: Any) -> Tensor:
    """Return the projected embeddings, which transformers 5 wraps in an output."""
    return found if isinstance(found, Tensor) else found.pooler_output


def _read_words(file: str) -> list[str]:
    try:
        text = Path(file).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"zero_shot.negatives: {file} cannot be read ({error})") from error
    words = [re.sub(r"[_\s]+", " ", line).strip() for line in text.splitlines()]
    words = list(dict.fromkeys(word for word in words if word))
    if not words:
        raise InputError(f"zero_shot.negatives: {file} has no words; give one on each line")
    return words
