"""Guard a classifier of your own with a diffusion model of your own: timm and diffusers.

Both are trained here, on the 790 training digits without 4 and 9, in a minute on one CPU core, so
that this runs anywhere. Then: compose DiffGuard, calibrate it on validation digits, save, load, and
print the fraction of known digits, of 4s and 9s, and of photos that is accepted. After so little
training it is no detector to trust: of 150 images each it accepted 98.7 %, 24 % and 80 % (by the
classifier's softmax alone 99.3 %, 31 % and 91 %). The README has the results of longer training.

For your own: leave out the first two cells; give `composed` your model, its preprocessing and your
pipeline's folder, and `calibrate` images on which neither was trained. Both must use the same class
numbers.

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

from diffguard_pl import Classifier, Detector, DiffGuard
from diffguard_pl.backbones import DiffusersPipeline
from diffguard_pl.datamodules.digits import CLASSES, digits, held_out, photos
from diffguard_pl.diffusion.classifier_free_guidance import ClassifierFreeGuidance
from diffguard_pl.scores.combination import Fusion

STEPS = int(os.environ.get("STEPS", "600"))  # training steps of the diffusion model
OUT = Path(os.environ.get("OUT", "runs/guard_my_classifier"))
HALF = (0.5, 0.5, 0.5)
OUT.mkdir(parents=True, exist_ok=True)
torch.manual_seed(0)
train = digits("train")
images, labels = train.images, torch.tensor(train.labels)  # [790, 3, 16, 16] in [0, 1]

classifier = timm.create_model("resnet10t", pretrained=False, num_classes=len(CLASSES))
optimizer = torch.optim.AdamW(classifier.parameters())
rate = OneCycleLR(optimizer, 2e-3, min(STEPS, 100))
for _ in range(min(STEPS, 100)):
    batch = torch.randint(len(images), (64,))
    x = interpolate(images[batch], size=32, mode="bilinear") * 2 - 1
    loss = cross_entropy(classifier(x), labels[batch], label_smoothing=0.1)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    rate.step()
save_model(classifier, OUT / "classifier.safetensors")

# %% Your diffusion model: a diffusers pipeline with class labels, the last meaning "no class"
NO_CLASS = len(CLASSES)
SIZE = 8  # side of its images; DiffGuard resizes to it and back
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
    batch = torch.randint(len(images), (64,))
    x, noise, t = small[batch], torch.randn(64, 3, SIZE, SIZE), torch.randint(1000, (64,))
    condition = labels[batch].masked_fill(torch.rand(64) < 0.15, NO_CLASS)
    loss = mse_loss(unet(scheduler.add_noise(x, noise, t), t, condition).sample, noise)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    rate.step()
DDPMPipeline(unet, scheduler).save_pretrained(OUT / "diffusion")
print(f"diffusion model: loss {loss.item():.3f} after {STEPS} steps")


# %% Compose them
def composed() -> DiffGuard:
    """Compose DiffGuard from the parts on disk."""
    model = timm.create_model("resnet10t", pretrained=False, num_classes=len(CLASSES))
    return DiffGuard(
        Classifier(model, str(OUT / "classifier.safetensors"), input_size=32, mean=HALF, std=HALF),
        DiffusersPipeline(str(OUT / "diffusion"), null_label=NO_CLASS, input_size=16),
        ClassifierFreeGuidance(scale=3.0),
        steps=10,
        discrepancies=["l2", "maps"],
    )


# %% Calibrate: set the threshold to accept 95 % of known images, on images not used for training
# The distance of the images, of what the classifier makes of them, and the classifier's certainty.
fusion = Fusion(["l2", "maps", "msp"])
detector = Detector(
    composed(), tpr=0.95, fusion=fusion, class_names=[str(digit) for digit in CLASSES]
)
# In one call: detector.calibrate(DataLoader(digits("val"), batch_size=64)). Here the features are
# computed once, for this threshold and for those below.
validation = detector.features(digits("val").images)
detector.calibrate_features(validation)
detector.save(OUT / "detector.json")
print(f"{detector.score} below {detector.threshold:.3f} is rejected")

# %% Decide: loading checks that the weights are those of the calibration
LIMIT = int(os.environ.get("LIMIT", "150"))  # images of each dataset
detector = Detector.load(OUT / "detector.json", model=composed())
datasets = {"known digits": digits("test"), "4 and 9": held_out(), "photos": photos()}
features = {name: detector.features(data.images[:LIMIT]) for name, data in datasets.items()}
for name, of_dataset in features.items():
    accepted = detector.predict_features(of_dataset).accepted.float().mean()
    print(f"{name}: {100 * accepted:.1f} % of {len(of_dataset)} accepted")

# %% Would one score alone have done?
for score in detector.score_names:
    alone = Detector(detector.model, score).calibrate_features(validation)
    fractions = []
    for name, of_dataset in features.items():
        accepted = alone.predict_features(of_dataset).accepted.float().mean()
        fractions.append(f"{100 * accepted:.1f} % of {name}")
    print(f"by {score} alone: {', '.join(fractions)}")

# %% One by one
for decision in detector.predict(held_out().images[:4]):
    answer = "accepted as" if decision.accepted else "rejected; the classifier says"
    print(f"a 4 or 9 is {answer} {decision.label_name} (p={decision.p_value:.3f})")
