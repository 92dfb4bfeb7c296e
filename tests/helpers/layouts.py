"""Miniatures of the layouts that data come in, from real photographs."""

import random
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image, ImageDraw
from sklearn.datasets import load_sample_images
from torch.utils.data import Dataset

from diffguard_pl.datamodules.openood import CIFAR, IMAGENET, IMAGENET_LISTS, PUBLISHED, SHIFTED
from diffguard_pl.datamodules.reading import Prepared, standard_transform


@cache
def photographs() -> list[Image.Image]:
    """Return six photographs: a temple, a flower, an astronaut, coffee, a cat, a rocket."""
    of_skimage = (
        skimage.data.astronaut(),
        skimage.data.coffee(),
        skimage.data.chelsea(),
        skimage.data.rocket(),
    )
    return [Image.fromarray(picture) for picture in (*load_sample_images().images, *of_skimage)]


def save(folder: Path, names: list[str], side: int = 280) -> None:
    """Write a different image under each name: a digit for MNIST and SVHN, else a photograph."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.startswith("imagenet_c/"):  # these are crops of 224 px
            photographs()[2].crop((100, 50, 324, 274)).save(path)
            continue
        if name.startswith(("mnist/", "svhn/")):
            digit(name).save(path)
            continue
        chosen = random.Random(name)
        picture = chosen.choice(photographs())
        x, y = chosen.randrange(picture.width - 200), chosen.randrange(picture.height - 200)
        picture.crop((x, y, x + 200, y + 200)).resize((side, round(side * 1.2))).save(path)


def digit(name: str) -> Image.Image:
    """Return a drawn digit, grey and 28 pixels wide like those of MNIST."""
    chosen = random.Random(name)
    canvas = Image.new("L", (28, 28))
    ImageDraw.Draw(canvas).text(
        (6 + chosen.random() * 4, 1), str(chosen.randrange(10)), fill=255, font_size=22
    )
    return canvas


def names_of(archive: str, n: int) -> list[str]:
    """Return file names as in OpenOOD's archives."""
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
        "imagenet_v2": "483/{:040x}.jpeg",
        "imagenet_c": "zoom_blur/4/ILSVRC2012_val_{:08}.JPEG",
        "imagenet_r": "n02607072/misc_{}.jpg",
    }
    return [f"{archive}/" + patterns.get(archive, "test/{:04}.png").format(i) for i in range(n)]


def openood(root: Path, benchmark: str, groups: dict, ind: tuple[str, str], n: int) -> None:
    """Write ``n`` images of each dataset of a benchmark, and its lists.

    Covariate-shifted datasets have the labels of the in-distribution one.
    """
    shifted = SHIFTED.get(benchmark, {})
    lists = root / "benchmark_imglist" / benchmark
    lists.mkdir(parents=True, exist_ok=True)
    entries = {"ind": ind} | {
        name: entry for sets in (shifted, *groups.values()) for name, entry in sets.items()
    }
    for name, (file, archive) in entries.items():
        paths = names_of(archive, 2 * n if name == "ind" else n)
        images = root / PUBLISHED[archive].folder.partition("/")[0]
        save(images, [path for path in paths if not (images / path).exists()])
        has_classes = name == "ind" or name in shifted
        lines = [f"{path} {label % n if has_classes else -1}" for label, path in enumerate(paths)]
        for part in (
            ("test", "val", "train") if name == "ind" else ("test",)
        ):  # the second half to calibrate and to fit on
            (lists / file.replace("test", part)).write_text(
                "\n".join(lines[:n] if part == "test" else lines[n:]) + "\n"
            )


def imagenet(root: Path, n: int = 4) -> Path:
    """Write the ImageNet benchmarks as OpenOOD's download script does."""
    for name, groups in IMAGENET.items():
        ind = IMAGENET_LISTS[name]
        openood(root, ind, groups, (f"test_{ind}.txt", "imagenet_1k"), n)
    return root


def cifar(root: Path, n: int = 4) -> Path:
    """Write both CIFAR benchmarks."""
    for name, groups in CIFAR.items():
        openood(root, name, groups, (f"test_{name}.txt", name), n)
    return root


def encoded(picture: Image.Image, format_: str, **options: object) -> bytes:
    """Return an image as the content of a file."""
    buffer = BytesIO()
    picture.save(buffer, format_, **options)
    return buffer.getvalue()


def unreadable_files(folder: Path) -> dict[str, str]:
    """Write files that are not images, and return a pattern of the error of each."""
    picture = photographs()[3]
    bomb = b"P6 30000 30000 255\n" + bytes(100)
    floats = BytesIO()
    np.save(floats, np.zeros(3))
    contents = {
        "truncated.jpg": (encoded(picture, "JPEG")[:9000], "truncated"),
        "truncated.png": (encoded(picture, "PNG")[:9000], "truncated|broken|Truncated"),
        "text.jpg": (b"<html>404</html>", "not an image that Pillow can read"),
        "empty.png": (b"", "not an image that Pillow can read"),
        "bomb.ppm": (bomb, "too many pixels: .*900000000"),
        "array.png": (floats.getvalue(), "not an image that Pillow can read"),
    }
    for name, (content, _) in contents.items():
        (folder / name).write_bytes(content)
    return {name: said for name, (_, said) in contents.items()}


def prepared(source: Dataset, in_distribution: bool = True) -> Prepared:
    """Return a source as 32 px images."""
    return Prepared(source, standard_transform(36, 32), "mine", in_distribution)


MIXED = """
base: digits_ldm
model:
  steps: 2
  discrepancies: [l2]
data:
  class_path: OODDataModule
  init_args:
    image_size: 16
    resize: null
    batch_size: 4
    num_workers: 2
    ind:
      mine: {class_path: ImageList, init_args: {file: FOLDER/list.txt, root: FOLDER}}
    ood:
      near:
        folder: {class_path: ImageDirectory, init_args: {root: FOLDER}}
      strange:
        noise:
          class_path: torchvision.datasets.FakeData
          init_args: {size: 5, image_size: [3, 20, 20]}
        broken: {class_path: ImageDirectory, init_args: {root: FOLDER/broken}}
"""


def mixed(folder: Path) -> Path:
    """Return a config of four sources with 13 unreadable images of 30.

    Args:
        folder: Folder to write the config and the images to.
    """
    images = folder / "images"
    save(images, [f"{i}.jpg" for i in range(6)])
    (images / "broken").mkdir()
    unreadable_files(images / "broken")
    lines = [f"{i}.jpg {i}\n" for i in range(6)] + ["gone.jpg 1\n"]
    (images / "list.txt").write_text("".join(lines))
    (folder / "mine.yaml").write_text(MIXED.replace("FOLDER", str(images)))
    return folder / "mine.yaml"
