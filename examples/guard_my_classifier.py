"""Guard a classifier of your own with a diffusion model of your own: a timm model and a diffusers pipeline.

Both are trained here, on the 790 training digits without 4 and 9, in a minute on one CPU core, so that this runs anywhere. Then:
compose DiffGuard, calibrate it on validation digits, save, load, and see which share of known digits, of 4s and 9s, and of photos
is accepted. After so little training that is no detector to trust: of 150 images each it accepted 98.7 %, 24 % and 80 % (by the
classifier's softmax alone 99.3 %, 31 % and 91 %). What comes of an hour of training stands in the README.

For your own: leave out the first two cells; give `composed` your model, its preprocessing and your pipeline's folder, and `calibrate`
images that neither was trained on. The two have to know the same classes, by the same numbers.

    python examples/guard_my_classifier.py
"""

# %% Your classifier: any module from images to logits
import os
from pathlib import Path

import timm
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from safetensors.torch import save_model
from torch.nn.functional import cross_entropy, interpolate, mse_loss
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader

from diffguard_pl import Classifier, Detector, DiffGuard
from diffguard_pl.backbones import DiffusersPipeline
from diffguard_pl.datamodules.digits import CLASSES, digits, held_out, photos
from diffguard_pl.diffusion.classifier_free_guidance import ClassifierFreeGuidance
from diffguard_pl.scores.combination import Fusion

STEPS = int(os.environ.get("STEPS", "600"))  # of the diffusion model's training
OUT = Path(os.environ.get("OUT", "runs/guard_my_classifier"))
OUT.mkdir(parents=True, exist_ok=True)
torch.manual_seed(0)
train = digits("train")
images, labels = train.images, torch.tensor(train.labels)  # [790, 3, 16, 16] in [0, 1]

classifier = timm.create_model("resnet10t", pretrained=False, num_classes=len(CLASSES))
optimizer = torch.optim.AdamW(classifier.parameters())
rate = OneCycleLR(optimizer, 2e-3, min(STEPS, 100))
for _ in range(min(STEPS, 100)):
    rows = torch.randint(len(images), (64,))
    x = interpolate(images[rows], size=32, mode="bilinear") * 2 - 1
    loss = cross_entropy(classifier(x), labels[rows], label_smoothing=0.1)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    rate.step()
save_model(classifier, OUT / "classifier.safetensors")

# %% Your diffusion model: a diffusers pipeline of class labels, the last of which means "no class"
NO_CLASS = len(CLASSES)
SIZE = 8  # of the pictures that it is trained on; DiffGuard resizes to it and back
unet = UNet2DModel(
    sample_size=SIZE,
    num_class_embeds=NO_CLASS + 1,
    block_out_channels=(32, 64),
    layers_per_block=1,
    down_block_types=("DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    norm_num_groups=8,
)
scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2")
optimizer = torch.optim.AdamW(unet.parameters())
rate = OneCycleLR(optimizer, 3e-3, STEPS)
small = interpolate(images, size=SIZE, mode="area") * 2 - 1
for _ in range(STEPS):
    rows = torch.randint(len(images), (64,))
    x, noise, t = small[rows], torch.randn(64, 3, SIZE, SIZE), torch.randint(1000, (64,))
    told = labels[rows].masked_fill(torch.rand(64) < 0.15, NO_CLASS)
    loss = mse_loss(unet(scheduler.add_noise(x, noise, t), t, told).sample, noise)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    rate.step()
DDPMPipeline(unet, scheduler).save_pretrained(OUT / "diffusion")
print(f"diffusion model: loss {loss.item():.3f} after {STEPS} steps")


# %% Compose them
def composed() -> DiffGuard:
    """DiffGuard of the parts on disk."""
    model = timm.create_model("resnet10t", pretrained=False, num_classes=len(CLASSES))
    return DiffGuard(
        Classifier(
            model,
            str(OUT / "classifier.safetensors"),
            input_size=32,
            mean=(0.5,) * 3,
            std=(0.5,) * 3,
        ),
        DiffusersPipeline(str(OUT / "diffusion"), null_label=NO_CLASS, input_size=16),
        ClassifierFreeGuidance(scale=3.0),
        steps=10,
        discrepancies=["l2", "maps"],
    )


# %% Calibrate: the threshold that 95 % of known images are to pass, from images that nothing was trained on
fusion = Fusion(
    ["l2", "maps", "msp"]
)  # the pictures' distance, the classifier's view of them, and the classifier's own certainty
detector = Detector(
    composed(), tpr=0.95, fusion=fusion, class_names=[str(digit) for digit in CLASSES]
)
detector.calibrate(DataLoader(digits("val"), batch_size=64))
detector.save(OUT / "detector.json")
print(f"{detector.score} below {detector.threshold:.3f} is rejected")

# %% Decide: what is loaded has the parts from disk, and makes sure that their weights are those it was calibrated with
LIMIT = int(os.environ.get("LIMIT", "150"))  # images of each set
detector = Detector.load(OUT / "detector.json", model=composed())
sets = {"known digits": digits("test"), "4 and 9": held_out(), "photos": photos()}
features = {
    name: detector.features(data.images[:LIMIT]) for name, data in sets.items()
}  # all scores of each image
for name, of_set in features.items():
    print(
        f"{name}: {100 * detector.predict_features(of_set).accepted.float().mean():.1f} % of {len(of_set)} accepted"
    )

# %% Would one score alone have done?
validation = detector.features(digits("val").images)
for score in detector.score_names:
    alone = Detector(detector.model, score).calibrate_features(validation)
    accepted = {
        name: alone.predict_features(of_set).accepted.float().mean()
        for name, of_set in features.items()
    }
    print(
        f"by {score} alone: "
        + ", ".join(f"{100 * share:.1f} % of {name}" for name, share in accepted.items())
    )

# %% One by one
for decision in detector.predict(held_out().images[:4]):
    answer = "is a" if decision.accepted else "is none it knows; the classifier says"
    print(f"a 4 or 9 {answer} {decision.label_name} (p={decision.p_value:.3f})")
