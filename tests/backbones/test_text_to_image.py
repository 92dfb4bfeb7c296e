"""Text-to-image models, compared with diffusers' own pipelines."""

import shutil
from pathlib import Path

import pytest
import torch
from helpers.small_models import assert_scores_do_not_depend_on_the_batch, edit_json

pytest.importorskip("transformers")

from helpers.text_to_image import stable_diffusion, stable_diffusion_3, stable_diffusion_xl

from diffguard_pl import Classifier, DiffGuard, InputError
from diffguard_pl.backbones import TextToImage
from diffguard_pl.classifiers.resnets import SmallResNet
from diffguard_pl.diffusion.classifier_free_guidance import ClassifierFreeGuidance
from diffguard_pl.diffusion.ddim import denoise
from diffguard_pl.diffusion.guidance import GuidanceInputs

NAMES = ["cat", "dog", "tree frog"]
MAKE = {
    "sd": stable_diffusion,
    "sdxl": stable_diffusion_xl,
    "sd3": stable_diffusion_3,
}


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory) -> dict:
    """The pipelines, and their folders."""
    found = {}
    for name, make in MAKE.items():
        folder = tmp_path_factory.mktemp(name)
        pipeline = make(folder / "tokens")
        pipeline.save_pretrained(folder / "saved")
        pipeline.set_progress_bar_config(disable=True)
        found[name] = pipeline, folder / "saved"
    return found


@pytest.mark.parametrize("name", MAKE)
def test_guided_denoising_is_the_pipelines(name: str, pipelines):
    """With the Euler method of the model's own scheduler, except Stable Diffusion 1's PNDM."""
    pipeline, folder = pipelines[name]
    steps, scale, labels = 4, 5.0, [0, 2]
    if name == "sd":
        from diffusers import EulerDiscreteScheduler

        pipeline.scheduler = EulerDiscreteScheduler.from_config(pipeline.scheduler.config)
        pipeline.scheduler.save_pretrained(folder / "scheduler")
    backbone = TextToImage(str(folder), NAMES, spacing="scheduler")
    assert (backbone.num_classes, backbone.null_label, backbone.image_size) == (3, 3, 16)
    assert backbone.class_names == NAMES
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    theirs = pipeline(
        prompt=[f"a photo of a {NAMES[label]}" for label in labels],
        guidance_scale=scale,
        num_inference_steps=steps,
        latents=noise,
        height=16,
        width=16,
        output_type="latent",
    ).images

    schedule = backbone.schedule(steps)
    wanted = GuidanceInputs(
        torch.full((2,), 3), torch.tensor(labels), torch.full((2, 1, 1, 1), scale)
    )

    def model(x, index, level, rows):
        guidance = ClassifierFreeGuidance(scale)
        t = schedule.timesteps[index]
        return guidance.predict_eps(backbone.eps, x, t, level, wanted, classifier=None).eps

    # the state that the pipeline begins with, at unit scale
    first = pipeline.scheduler.init_noise_sigma if name != "sd3" else 1.0
    signal = schedule.denoising_from[-1].sqrt().item() if name != "sd3" else 1.0
    with torch.no_grad():
        ours = denoise(model, first * signal * noise, schedule, torch.full((2,), steps - 1))
    # Stable Diffusion 3 begins at s = 1, where the signal level has a lower bound here
    limit = 2e-3 if name == "sd3" else 1e-5
    assert (ours - theirs).abs().max() < limit * theirs.abs().max()


@torch.no_grad()
def test_prompts_are_embedded_once_and_the_encoders_dropped(pipelines):
    pipeline, folder = pipelines["sd"]
    templates = ["a photo of a {}", "a drawing of a {}"]
    backbone = TextToImage(str(folder), NAMES, template=templates, negative_prompt="blurry")
    assert backbone._text is None
    assert not any("text" in name for name, _ in backbone.named_modules())

    def embedded(text: str):
        return pipeline.encode_prompt([text], torch.device("cpu"), 1, False)[0]

    expected = (embedded("a photo of a dog") + embedded("a drawing of a dog")) / 2
    torch.testing.assert_close(backbone.prompts[1:2], expected)
    torch.testing.assert_close(backbone.prompts[3:], embedded("blurry"))


def test_names_are_the_classifiers(pipelines):
    _, folder = pipelines["sdxl"]
    torch.manual_seed(4)
    classifier = Classifier(SmallResNet(3), input_size=16)
    guidance = ClassifierFreeGuidance(2.0)
    with pytest.raises(InputError, match=r"class_names: the classifier's 3 classes have no names"):
        DiffGuard(classifier, TextToImage(str(folder)), guidance, 3, ["l2"])
    classifier.class_names = ["cat, Felis catus", "dog", "tree frog"]
    diffguard = DiffGuard(classifier, TextToImage(str(folder)), guidance, 3, ["l2"], slots=4)
    assert diffguard.backbone.class_names == NAMES
    assert_scores_do_not_depend_on_the_batch(diffguard, 16)


def test_what_does_not_fit_is_named(pipelines, tmp_path: Path):
    folder = shutil.copytree(pipelines["sd"][1], tmp_path / "copy")
    with pytest.raises(InputError, match=r"template='a photo': must have \{\} once"):
        TextToImage(str(folder), NAMES, template="a photo")
    with pytest.raises(InputError, match="class_names: must be a list of one or more names"):
        TextToImage(str(folder), ["cat", " "])
    shutil.rmtree(folder / "text_encoder")
    with pytest.raises(InputError, match=r"text_encoder: cannot be loaded .*download"):
        TextToImage(str(folder), NAMES)
    edit_json(folder / "model_index.json", _class_name="FluxPipeline")
    with pytest.raises(InputError, match=r"StableDiffusion3Pipeline, not FluxPipeline"):
        TextToImage(str(folder), NAMES)


def test_text_encoders_are_checked_and_no_other_class_is_built(pipelines, tmp_path: Path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(pipelines["sd"][1], tmp_path / "copy")
    file = folder / "text_encoder" / "model.safetensors"
    state = load_file(file)

    def refused(match: str) -> None:
        with pytest.raises(InputError, match=match) as error:
            TextToImage(str(folder), NAMES)
        assert "\n" not in str(error.value)

    few = dict(list(state.items())[4:])
    save_file(few, file, {"format": "pt"})
    refused(r"text_encoder: does not fit, .* is missing or has another shape")
    save_file({key: tensor * float("nan") for key, tensor in state.items()}, file, {"format": "pt"})
    refused("the text encoders give NaN")
    file.write_bytes(file.read_bytes()[:100])
    refused(r"text_encoder: cannot be loaded")

    save_file(state, file, {"format": "pt"})
    (folder / "tokenizer" / "evil.py").write_text("open('ran', 'w')\nclass Evil: pass\n")
    for named in (["evil", "Evil"], ["os", "system"], 5, ["transformers", "AutoModel"]):
        edit_json(folder / "model_index.json", tokenizer=named)
        refused(r"tokenizer of model_index\.json must be one of CLIPTokenizer")
    edit_json(folder / "model_index.json", tokenizer=[None, None])
    refused("has no text_encoder or no tokenizer|cannot be loaded")


def test_templates_and_names_are_plain_text(pipelines):
    _, folder = pipelines["sd"]
    for template in ("a {} in {}", "a photo of a {{}} {}", None, [1]):
        with pytest.raises(InputError, match="template="):
            TextToImage(str(folder), NAMES, template=template)
    backbone = TextToImage(str(folder), NAMES, template="{} {place}")
    assert (backbone.prompts[0] - backbone.prompts[1]).abs().max() > 1e-3
    with pytest.raises(InputError, match="must be a list"):
        TextToImage(str(folder), "cat")
    with pytest.warns(UserWarning, match="'cat' is the name of two classes"):
        TextToImage(str(folder), ["cat", "Cat"])
    with pytest.warns(UserWarning, match="class 1 is 'dog' in the prompts, and 'car'"):
        backbone.use_classes(["cat", "car", "tree frog"], 3)
