"""The benchmarks of OpenOOD, in the folders and lists of its download script.

    ROOT/benchmark_imglist/imagenet/test_ninco.txt    list of images, relative to the next folder
    ROOT/images_largescale/ninco/...                  ImageNet-sized images
    ROOT/images_classic/...                           small images, and Textures

https://github.com/Jingkang50/OpenOOD, ``scripts/download``.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffguard_pl.errors import choose

from .ood import OODDataModule
from .sources import ImageList


@dataclass(frozen=True)
class PublishedSet:
    """An archive of images as OpenOOD publishes it.

    Attributes:
        drive: its id on Google Drive.
        folder: where it is unpacked to, below the root.
    """

    drive: str
    folder: str


IMAGE_LISTS = PublishedSet("1lI1j0_fDDvjIt9JlWAw09X8ks-yrR_H1", ".")
"""The archive of all image lists; its content is the folder ``benchmark_imglist``."""

PUBLISHED = {
    "imagenet_1k": PublishedSet(
        "1i1ipLDFARR-JZ9argXd2-0a6DXwVhXEj", "images_largescale/imagenet_1k"
    ),
    "species_sub": PublishedSet(
        "1-JCxDx__iFMExkYRMylnGJYTPvyuX6aq", "images_largescale/species_sub"
    ),
    "inaturalist": PublishedSet(
        "1zfLfMvoUD0CUlKNnkk7LgxZZBnTBipdj", "images_largescale/inaturalist"
    ),
    "openimage_o": PublishedSet(
        "1VUFXnB_z70uHfdgJG2E_pjYOcEgqM7tE", "images_largescale/openimage_o"
    ),
    "imagenet_o": PublishedSet("1S9cFV7fGvJCcka220-pIO9JPZL1p1V8w", "images_largescale/imagenet_o"),
    "ssb_hard": PublishedSet("1PzkA-WGG8Z18h0ooL_pDdz9cO-DCIouE", "images_largescale/ssb_hard"),
    "ninco": PublishedSet("1Z82cmvIB0eghTehxOGP5VTdLt7OD3nk6", "images_largescale/ninco"),
    "texture": PublishedSet("1OSz1m3hHfVWbRdmMwKbUzoU8Hg9UKcam", "images_classic/texture"),
    "cifar10": PublishedSet("1Co32RiiWe16lTaiOU6JMMnyUYS41IlO1", "images_classic/cifar10"),
    "cifar100": PublishedSet("1PGKheHUsf29leJPPGuXqzLBMwl8qMF8_", "images_classic/cifar100"),
    "tin": PublishedSet("1PZ-ixyx52U989IKsMA2OT-24fToTrelC", "images_classic/tin"),
    "mnist": PublishedSet("1CCHAGWqA1KJTFFswuF9cbhmB-j98Y1Sb", "images_classic/mnist"),
    "svhn": PublishedSet("1DQfc11HOtB1nEwqS4pWUFp8vtQ3DczvI", "images_classic/svhn"),
    "places365": PublishedSet("1Ec-LRSTf6u5vEctKX9vRp9OA6tqnJ0Ay", "images_classic/places365"),
}
"""By the name of the archive, which is that of the folder too."""


class PublishedList(ImageList):
    """An image list of OpenOOD's, with what to download where its images are missing.

    Args:
        root: OpenOOD's data folder.
        benchmark: folder of the list, below ``benchmark_imglist``.
        file: name of the list.
        archive: name in ``PUBLISHED``.
        follow_links: allow links that lead out of the root.
        elsewhere: where to get the images if the archive, in whose folder they belong, does not
            have them.
    """

    def __init__(
        self,
        root: str,
        benchmark: str,
        file: str,
        archive: str,
        follow_links: bool = False,
        elsewhere: str = "",
    ):
        self.data_root, self.archive, self.elsewhere = Path(root).expanduser(), archive, elsewhere
        images = self.data_root / PUBLISHED[archive].folder.partition("/")[0]
        # DiffGuard's own instructions put ImageNet beside the folders of images, not into one
        beside = not (images / archive).exists() and (self.data_root / archive).exists()
        images = self.data_root if beside else images
        super().__init__(
            str(self.data_root / "benchmark_imglist" / benchmark / file),
            str(images),
            follow_links=follow_links,
        )


IMAGENET = {
    "diffguard": {
        "near": {
            "species": ("test_species.txt", "species_sub"),
            "inaturalist": ("test_inaturalist.txt", "inaturalist"),
            "openimage_o": ("test_openimage_o.txt", "openimage_o"),
            "imagenet_o": ("test_imagenet_o.txt", "imagenet_o"),
        }
    },
    "openood_v1.5": {
        "near": {
            "ssb_hard": ("test_ssb_hard.txt", "ssb_hard"),
            "ninco": ("test_ninco.txt", "ninco"),
        },
        "far": {
            "inaturalist": ("test_inaturalist.txt", "inaturalist"),
            "textures": ("test_textures.txt", "texture"),
            "openimage_o": ("test_openimage_o.txt", "openimage_o"),
        },
    },
}
"""Benchmark -> group -> data set -> its list and its archive."""

CIFAR_FAR = {name: (f"test_{name}.txt", name) for name in ("mnist", "svhn", "texture", "places365")}
CIFAR = {
    "cifar10": {
        "near": {"cifar100": ("test_cifar100.txt", "cifar100"), "tin": ("test_tin.txt", "tin")},
        "far": CIFAR_FAR,
    },
    "cifar100": {
        "near": {"cifar10": ("test_cifar10.txt", "cifar10"), "tin": ("test_tin.txt", "tin")},
        "far": CIFAR_FAR,
    },
}
"""In-distribution set -> group -> data set -> its list and its archive."""


class ImageNetOODDataModule(OODDataModule):
    """ImageNet-1k validation images against the sets of the paper, or of OpenOOD v1.5.

    Args:
        root: OpenOOD's data folder.
        benchmark: ``diffguard``, the paper's four sets (which the original counts as near), or
            ``openood_v1.5``, two near and three far.
        ind_list: the list of in-distribution images; OpenOOD's ``val_imagenet.txt`` has the rest of
            the validation images.
        calibration_list: the list of those to calibrate on.
        train_list: the list of training images, for baselines that are fitted.
        image_size: side of the images that the detector is given: 224 for the paper's GDM, 256 for
            its LDM.
        follow_links: allow links that lead out of the folders of images.
        settings: see :class:`OODDataModule`.
    """

    def __init__(
        self,
        root: str = "data",
        benchmark: str = "diffguard",
        ind_list: str = "test_imagenet.txt",
        calibration_list: str = "val_imagenet.txt",
        train_list: str = "train_imagenet.txt",
        image_size: int = 224,
        follow_links: bool = False,
        **settings: Any,
    ):
        choose("data.benchmark", benchmark, list(IMAGENET))
        source = PublishedList(root, "imagenet", ind_list, "imagenet_1k", follow_links)
        ood = _published(root, "imagenet", IMAGENET[benchmark], follow_links)
        train = PublishedList(
            root, "imagenet", train_list, "imagenet_1k", follow_links, "https://image-net.org"
        )
        calibration = PublishedList(root, "imagenet", calibration_list, "imagenet_1k", follow_links)
        super().__init__(
            {"imagenet": source}, ood, image_size, train=train, calibration=calibration, **settings
        )


class CIFAROODDataModule(OODDataModule):
    """CIFAR-10 or CIFAR-100 test images against OpenOOD v1.5's near and far sets.

    Args:
        root: OpenOOD's data folder.
        benchmark: the in-distribution set, ``cifar10`` or ``cifar100``.
        image_size: side of the images that the detector is given.
        resize: length of the short side before ``image_size`` is cropped from the centre; none:
            ``image_size``.
        batch_size: images a batch.
        follow_links: allow links that lead out of the folder of images.
        settings: see :class:`OODDataModule`.
    """

    def __init__(
        self,
        root: str = "data",
        benchmark: str = "cifar10",
        image_size: int = 32,
        resize: int | None = None,
        batch_size: int = 128,
        follow_links: bool = False,
        **settings: Any,
    ):
        choose("data.benchmark", benchmark, list(CIFAR))
        source = PublishedList(root, benchmark, f"test_{benchmark}.txt", benchmark, follow_links)
        ood = _published(root, benchmark, CIFAR[benchmark], follow_links)
        train, calibration = (
            PublishedList(root, benchmark, f"{part}_{benchmark}.txt", benchmark, follow_links)
            for part in ("train", "val")
        )
        super().__init__(
            {benchmark: source},
            ood,
            image_size,
            resize,
            batch_size=batch_size,
            train=train,
            calibration=calibration,
            **settings,
        )
        if benchmark == "cifar10":
            self.class_names = [
                "airplane",
                "automobile",
                "bird",
                "cat",
                "deer",
                "dog",
                "frog",
                "horse",
                "ship",
                "truck",
            ]


def _published(root: str, benchmark: str, groups: dict, follow_links: bool) -> dict:
    return {
        group: {
            name: PublishedList(root, benchmark, file, archive, follow_links)
            for name, (file, archive) in sets.items()
        }
        for group, sets in groups.items()
    }
