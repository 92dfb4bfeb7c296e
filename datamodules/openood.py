"""The benchmarks of OpenOOD, in the folders and lists of its download script.

    ROOT/benchmark_imglist/imagenet/test_ninco.txt    list of images, relative to the next folder
    ROOT/images_largescale/ninco/...                  ImageNet-sized images
    ROOT/images_classic/...                           small images, and Textures

https://github.com/Jingkang50/OpenOOD, ``scripts/download``.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from diffguard_pl.checkpoints.class_maps import CLASS_MAPS
from diffguard_pl.errors import InputError, choose

from .ood import OODDataModule
from .reading import Prepared, standard_transform
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
    "cifar10c": PublishedSet("170DU_ficWWmbh6O2wqELxK9jxRiGhlJH", "images_classic/cifar10c"),
    "imagenet_v2": PublishedSet(
        "1akg2IiE22HcbvTBpwXQoD7tgfPCdkoho", "images_largescale/imagenet_v2"
    ),
    "imagenet_c": PublishedSet("1JeXL9YH4BO8gCJ631c5BHbaSsl-lekHt", "images_largescale/imagenet_c"),
    "imagenet_r": PublishedSet("1EzjMN2gq-bVV7lg-MEAdeuBuz-7jbGYU", "images_largescale/imagenet_r"),
    "imagenet_es": PublishedSet(
        "1ATz11vKmPqyzfEaEDRaPTF9TXiC244sw", "images_largescale/imagenet_es"
    ),
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


OPENOOD_V1_5 = {
    "near": {
        "ssb_hard": ("test_ssb_hard.txt", "ssb_hard"),
        "ninco": ("test_ninco.txt", "ninco"),
    },
    "far": {
        "inaturalist": ("test_inaturalist.txt", "inaturalist"),
        "textures": ("test_textures.txt", "texture"),
        "openimage_o": ("test_openimage_o.txt", "openimage_o"),
    },
}
IMAGENET = {
    "diffguard": {
        "near": {
            "species": ("test_species.txt", "species_sub"),
            "inaturalist": ("test_inaturalist.txt", "inaturalist"),
            "openimage_o": ("test_openimage_o.txt", "openimage_o"),
            "imagenet_o": ("test_imagenet_o.txt", "imagenet_o"),
        }
    },
    "openood_v1.5": OPENOOD_V1_5,
    "imagenet200": OPENOOD_V1_5,
}
"""Benchmark -> group -> data set -> its list and its archive."""
IMAGENET_LISTS = {"diffguard": "imagenet", "openood_v1.5": "imagenet", "imagenet200": "imagenet200"}
"""Benchmark -> in-distribution dataset, whose name is also that of the folder of all lists."""

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

SHIFTED = {
    "imagenet": {
        "imagenet_v2": ("test_imagenet_v2.txt", "imagenet_v2"),
        "imagenet_c": ("test_imagenet_c.txt", "imagenet_c"),
        "imagenet_r": ("test_imagenet_r.txt", "imagenet_r"),
        "imagenet_es": ("test_imagenet_es.txt", "imagenet_es"),
    },
    "imagenet200": {
        "imagenet_v2": ("test_imagenet200_v2.txt", "imagenet_v2"),
        "imagenet_c": ("test_imagenet200_c.txt", "imagenet_c"),
        "imagenet_r": ("test_imagenet200_r.txt", "imagenet_r"),
    },
    "cifar10": {"cifar10c": ("test_cifar10c.txt", "cifar10c")},
}
"""In-distribution set -> its covariate-shifted sets, each with its list and its archive."""
ALREADY_CROPPED = "imagenet_c"
"""The only set whose images OpenOOD takes as they are: they are 224 px crops."""


class ImageNetOODDataModule(OODDataModule):
    """ImageNet-1k or ImageNet-200 validation images against the sets of the paper or of OpenOOD.

    Args:
        root: OpenOOD's data folder.
        benchmark: ``diffguard``, the paper's four sets (which the original counts as near);
            ``openood_v1.5``, two near and three far; or ``imagenet200``, the same five sets against
            OpenOOD's ImageNet-200, whose labels are 0 to 199.
        full_spectrum: whether to add the covariate-shifted sets that OpenOOD v1.5 counts as
            in-distribution: ImageNet-V2, -C and -R, and for ImageNet-1k also -ES.
        ind_list: the list of in-distribution images. Defaults to OpenOOD's ``test_imagenet.txt`` or
            ``test_imagenet200.txt``; ``val_*.txt`` has the rest of the validation images.
        calibration_list: the list of those to calibrate on. Defaults to ``val_*.txt``.
        train_list: the list of training images, for baselines that are fitted. Defaults to
            ``train_*.txt``.
        image_size: side of the images that the detector is given: 224 for the paper's GDM, 256 for
            its LDM.
        follow_links: allow links that lead out of the folders of images.
        settings: see :class:`OODDataModule`.
    """

    def __init__(
        self,
        root: str = "data",
        benchmark: str = "diffguard",
        full_spectrum: bool = False,
        ind_list: str | None = None,
        calibration_list: str | None = None,
        train_list: str | None = None,
        image_size: int = 224,
        follow_links: bool = False,
        **settings: Any,
    ):
        choose("data.benchmark", benchmark, list(IMAGENET))
        ind = IMAGENET_LISTS[benchmark]
        source, calibration = (
            PublishedList(root, ind, given or f"{part}_{ind}.txt", "imagenet_1k", follow_links)
            for part, given in (("test", ind_list), ("val", calibration_list))
        )
        train_file = train_list or f"train_{ind}.txt"
        train = PublishedList(
            root, ind, train_file, "imagenet_1k", follow_links, "https://image-net.org"
        )
        super().__init__(
            {ind: source},
            _published(root, ind, IMAGENET[benchmark], follow_links),
            image_size,
            train=train,
            calibration=calibration,
            shifted=_shifted(root, ind, full_spectrum, follow_links),
            **settings,
        )
        if ind == "imagenet200":
            self.class_names = _imagenet200_names()

    def prepared(self, source: Dataset, name: str, in_distribution: bool) -> Dataset:
        if name == ALREADY_CROPPED and self.preparation is not None:
            size, interpolation = self.preparation.image_size, self.preparation.interpolation
            whole = standard_transform(size, size, interpolation)
            return Prepared(source, whole, name, in_distribution)
        return super().prepared(source, name, in_distribution)


class CIFAROODDataModule(OODDataModule):
    """CIFAR-10 or CIFAR-100 test images against OpenOOD v1.5's near and far sets.

    Args:
        root: OpenOOD's data folder.
        benchmark: the in-distribution set, ``cifar10`` or ``cifar100``.
        full_spectrum: whether to add CIFAR-10-C, which OpenOOD counts as in-distribution. It has no
            such set for CIFAR-100.
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
        full_spectrum: bool = False,
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
            shifted=_shifted(root, benchmark, full_spectrum, follow_links),
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


def _shifted(root: str, ind: str, full_spectrum: bool, follow_links: bool) -> dict:
    """Return the covariate-shifted sets of an in-distribution set, or raise an `InputError`."""
    if not full_spectrum:
        return {}
    if ind not in SHIFTED:
        raise InputError(
            f"data.full_spectrum: OpenOOD has no covariate-shifted sets of {ind}; set it to false"
        )
    return _published(root, ind, {"": SHIFTED[ind]}, follow_links)[""]


def _imagenet200_names() -> list[str]:
    """Return the English names of ImageNet-200's classes."""
    from torchvision.models import ResNet50_Weights

    names = ResNet50_Weights.IMAGENET1K_V1.meta["categories"]
    return [names[i] for i in CLASS_MAPS["imagenet200"]]
