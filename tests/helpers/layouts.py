"""Miniatures of the layouts that data come in, from real photographs."""

import random
from functools import cache
from pathlib import Path

import skimage.data
from PIL import Image, ImageDraw
from sklearn.datasets import load_sample_images

from diffguard_pl.datamodules.openood import CIFAR, IMAGENET, PUBLISHED


@cache
def photographs() -> list[Image.Image]:
    """Six photographs, 300 to 640 pixels wide: a temple, a flower, an astronaut, coffee, a cat, a rocket."""
    of_skimage = (
        skimage.data.astronaut(),
        skimage.data.coffee(),
        skimage.data.chelsea(),
        skimage.data.rocket(),
    )
    return [Image.fromarray(picture) for picture in (*load_sample_images().images, *of_skimage)]


def save(folder: Path, names: list[str], side: int = 280) -> None:
    """Images under these names, a different one for every name: a digit where digits belong, else a crop of a photograph."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.startswith(("mnist/", "svhn/")):
            digit(name).save(path)
            continue
        chosen = random.Random(name)
        picture = chosen.choice(photographs())
        x, y = chosen.randrange(picture.width - 200), chosen.randrange(picture.height - 200)
        picture.crop((x, y, x + 200, y + 200)).resize((side, round(side * 1.2))).save(path)


def digit(name: str) -> Image.Image:
    """A drawn digit, grey and 28 pixels wide, as MNIST's are."""
    chosen = random.Random(name)
    canvas = Image.new("L", (28, 28))
    ImageDraw.Draw(canvas).text(
        (6 + chosen.random() * 4, 1), str(chosen.randrange(10)), fill=255, font_size=22
    )
    return canvas


def names_of(archive: str, n: int) -> list[str]:
    """File names as OpenOOD's archives have them."""
    patterns = {
        "imagenet_1k": "val/ILSVRC2012_val_{:08}.JPEG",
        "species_sub": "protists/{:05} (copy).jpg",
        "inaturalist": "images/{:032x}.jpg",
        "openimage_o": "images/{:016x}.jpg",
        "imagenet_o": "n01443537/{}.JPEG",
        "ssb_hard": "n00470682/n00470682_{}.JPEG",
        "ninco": "Araneus gemma/{}.jpg",
        "texture": "banded/banded_{:04}.jpg",
        "tin": "test/n01443537/val_{}.JPEG",
    }
    return [f"{archive}/" + patterns.get(archive, "test/{:04}.png").format(i) for i in range(n)]


def openood(root: Path, benchmark: str, groups: dict, ind: tuple[str, str], n: int) -> None:
    """``n`` images of each set of a benchmark, with its lists."""
    lists = root / "benchmark_imglist" / benchmark
    lists.mkdir(parents=True, exist_ok=True)
    entries = {"ind": ind} | {
        name: entry for sets in groups.values() for name, entry in sets.items()
    }
    for name, (file, archive) in entries.items():
        paths = names_of(archive, 2 * n if name == "ind" else n)
        images = root / PUBLISHED[archive].folder.partition("/")[0]
        save(images, [path for path in paths if not (images / path).exists()])
        lines = [f"{path} {label % n if name == 'ind' else -1}" for label, path in enumerate(paths)]
        for part in (
            ("test", "val", "train") if name == "ind" else ("test",)
        ):  # the second half to calibrate and to fit on
            (lists / file.replace("test", part)).write_text(
                "\n".join(lines[:n] if part == "test" else lines[n:]) + "\n"
            )


def imagenet(root: Path, n: int = 4) -> Path:
    """Both ImageNet benchmarks, as OpenOOD's download script leaves them."""
    for groups in IMAGENET.values():
        openood(root, "imagenet", groups, ("test_imagenet.txt", "imagenet_1k"), n)
    return root


def cifar(root: Path, n: int = 4) -> Path:
    """Both CIFAR benchmarks."""
    for name, groups in CIFAR.items():
        openood(root, name, groups, (f"test_{name}.txt", name), n)
    return root
