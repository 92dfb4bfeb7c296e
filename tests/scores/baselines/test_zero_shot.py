"""Zero-shot scores of a text-image model, on small models with random weights."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.baselines import IMAGES
from PIL import Image
from torch.nn.functional import normalize

import diffguard_pl
from diffguard_pl import Detector, DiffGuard, InputError
from diffguard_pl.datamodules.digits import digits
from diffguard_pl.scores.baselines.zero_shot import ZeroShot

CLASSES = ["zero", "one", "two", "three", "five", "six", "seven", "eight"]
WORDS = [f"word {i}" for i in range(40)]


@pytest.fixture(scope="module")
def small_clip(tmp_path_factory) -> str:
    """Register a small architecture with open_clip; returns its name."""
    open_clip = pytest.importorskip("open_clip")
    folder = tmp_path_factory.mktemp("open_clip")
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16}
        | {"patch_size": 8},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2}
        | {"layers": 2},
    }
    (folder / "small-clip.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    return "open_clip/small-clip"


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("words") / "words.txt"
    file.write_text("\n".join([*WORDS, "zero", "", "word_1"]))
    return file


def built(model: str, **settings) -> ZeroShot:
    torch.manual_seed(0)
    zero_shot = ZeroShot(model, "random", classes=CLASSES, **settings)
    zero_shot.use_classes(None, 8)
    return zero_shot


def embedded_images(network: torch.nn.Module) -> np.ndarray:
    """The embeddings of the images, prepared by Pillow."""
    prepared = []
    for image in IMAGES[:6]:
        array = (image.permute(1, 2, 0) * 255).round().byte().numpy()
        resized = Image.fromarray(array).resize((32, 32), Image.Resampling.BICUBIC)
        prepared.append(np.asarray(resized, np.float32) / 255)
    x = torch.from_numpy(np.stack(prepared)).permute(0, 3, 1, 2)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(1, 3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(1, 3, 1, 1)
    with torch.no_grad():
        return normalize(network.encode_image((x - mean) / std), dim=1).double().numpy()


def embedded_texts(network: torch.nn.Module, texts: list[str]) -> np.ndarray:
    import open_clip

    with torch.no_grad():
        found = network.encode_text(open_clip.get_tokenizer("ViT-B-32")(texts))
    return normalize(found, dim=1).double().numpy()


def test_mcm_is_the_largest_softmax_of_the_cosines(small_clip):
    zero_shot = built(small_clip)
    texts = embedded_texts(zero_shot.network, [f"a photo of a {name}." for name in CLASSES])
    cosines = embedded_images(zero_shot.network) @ texts.T
    expected = (np.exp(cosines) / np.exp(cosines).sum(axis=1, keepdims=True)).max(axis=1)
    assert zero_shot.names == ["mcm_clip"]
    found = zero_shot(IMAGES[:6])["mcm_clip"].numpy()
    # Pillow rounds the resized image to 8 bits.
    np.testing.assert_allclose(found, expected, atol=2e-4)


def test_neglabel_is_the_mass_of_the_classes_against_far_words(small_clip, words):
    zero_shot = built(
        small_clip, scores=["neglabel"], negatives=str(words), fraction=0.25, groups=4
    )
    own = embedded_texts(zero_shot.network, [f"The nice {name}." for name in CLASSES])
    others = embedded_texts(zero_shot.network, [f"The nice {word}." for word in WORDS])
    nearness = np.quantile(others @ own.T, 0.95, axis=1)
    far = others[np.sort(np.argsort(nearness)[:10])]  # 10 of the 40 words that are no class
    images = embedded_images(zero_shot.network)
    mass = np.exp(images @ own.T / 0.01).sum(axis=1)
    expected = np.mean(
        [mass / (mass + np.exp(images @ far[g::4].T / 0.01).sum(axis=1)) for g in range(4)], axis=0
    )
    found = zero_shot(IMAGES[:6])["neglabel_clip"].numpy()
    np.testing.assert_allclose(found, expected, atol=2e-2)
    alone = [zero_shot(image[None])["neglabel_clip"].item() for image in IMAGES[:6]]
    np.testing.assert_allclose(alone, found, atol=1e-5)


def test_it_stands_beside_the_baselines_and_in_a_detector(small_clip, tmp_path):
    def model() -> DiffGuard:
        base = diffguard_pl.load("digits_ldm", steps=2)
        torch.manual_seed(0)
        zero_shot = ZeroShot(small_clip, "random", classes=CLASSES)
        return DiffGuard(
            base.classifier, base.backbone, base.guidance, 2, ["l2"], zero_shot=zero_shot
        )

    whole = model()
    assert whole.score_names[-1] == "mcm_clip"
    assert whole(IMAGES[:2]).scores["mcm_clip"].isfinite().all()
    detector = Detector(whole, score="mcm_clip").calibrate([digits("val").images[:40]])
    again = Detector.load(detector.save(tmp_path / "d.json"), model())
    assert torch.equal(again.predict(IMAGES[:3]).scores, detector.predict(IMAGES[:3]).scores)


def test_a_transformers_model_from_a_folder(tmp_path):
    transformers = pytest.importorskip("transformers")
    vocabulary = {"<|startoftext|>": 0, "<|endoftext|>": 1}
    letters = "abcdefghijklmnopqrstuvwxyz."
    vocabulary |= {
        f"{c}{end}": 2 + 2 * i + k
        for i, c in enumerate(letters)
        for k, end in enumerate(("", "</w>"))
    }
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizerFast(
        str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt")
    )
    tokenizer.save_pretrained(tmp_path)
    transformers.CLIPImageProcessor().save_pretrained(tmp_path)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    small |= {"num_attention_heads": 2}
    config = transformers.CLIPConfig(
        text_config=small | {"vocab_size": len(vocabulary), "eos_token_id": 1},
        vision_config=small | {"image_size": 32, "patch_size": 8},
        projection_dim=8,
    )
    transformers.CLIPModel(config).save_pretrained(tmp_path)
    zero_shot = ZeroShot(f"transformers/{tmp_path}", classes=CLASSES)
    zero_shot.use_classes(None, 8)
    scores = zero_shot(IMAGES[:3])["mcm_clip"]
    assert scores.shape == (3,)
    assert ((scores > 1 / 8) & (scores < 1)).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "clip/ViT-B-32"}, "zero_shot.model: library 'clip'"),
        ({"scores": ["mcn"]}, "zero_shot.scores 'mcn'"),
        ({"scores": ["neglabel"]}, "neglabel needs a file of words"),
        ({"scores": ["neglabel"], "negatives": "/nowhere/w.txt"}, "negatives: /nowhere/w.txt"),
        ({"fraction": 0.0}, r"fraction=0.0, groups=100: must be"),
        ({"weights": None}, "open_clip needs the tag or the file of the weights"),
        ({"model": "open_clip/no-such-model"}, "open_clip/no-such-model cannot be loaded"),
    ],
)
def test_wrong_settings_are_refused(small_clip, settings, message):
    with pytest.raises(InputError, match=message):
        ZeroShot(**{"model": small_clip, "weights": "random"} | settings)


def test_there_must_be_a_name_for_each_class(small_clip):
    zero_shot = ZeroShot(small_clip, "random")
    with pytest.raises(InputError, match="must be 8 names, one for each class, not 0"):
        zero_shot.use_classes(None, 8)
    zero_shot.use_classes(CLASSES, 8)
    assert zero_shot.classes.shape == (8, 16)
