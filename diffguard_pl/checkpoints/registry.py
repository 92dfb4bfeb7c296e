"""Checkpoints by name: a ``checkpoint`` setting -> file or folder, downloaded if needed.

Holds the published weights, their URLs and architectures. Imports neither torch nor diffusers.
"""

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from hashlib import sha256
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urldefrag, urlsplit

from ..errors import InputError, beginning
from ..runs.lock import locked
from .architectures import (
    Architecture,
    GuidedDiffusionArchitecture,
    LatentDiffusionArchitecture,
    NoisyClassifierArchitecture,
)
from .download import cache_folder, fetch, list_members, unzip

SHIPPED = Path(__file__).parents[1] / "weights"
"""Folder of the weights that come with the package."""
CHECKPOINT_SUFFIXES = (".ckpt", ".pt", ".pth", ".safetensors")
"""Endings of the file names that count as a checkpoint inside an archive."""
NOT_STATED = "not stated"
"""Licence of weights whose authors publish them without one."""
HUGGING_FACE_FILES = ["*.json", "*.txt", "*.model", "*.safetensors", "*.bin"]
"""Files of a Hugging Face repository that may be needed."""
HUGGING_FACE_FOLDERS_NOT_NEEDED = ["safety_checker", "feature_extractor", "image_encoder"]


@dataclass(frozen=True)
class PublishedCheckpoint:
    """Published weights and where to download them.

    Args:
        name: Name for the ``checkpoint`` setting.
        description: A few words on the model and its data.
        filename: Path of the download, relative to :func:`checkpoint_folder`.
        url: An ``http(s)://`` URL, or ``hf://owner/name`` for a Hugging Face repository, which
            becomes a folder.
        size: Size of the download in bytes, if known.
        sha256: Hash of the download, if known.
        architecture: Architecture of the weights; None for a folder that describes its own.
        licence: Licence under which the authors publish the weights.
    """

    name: str
    description: str
    filename: str
    url: str
    size: int | None = None
    sha256: str | None = None
    architecture: Architecture | None = None
    licence: str = NOT_STATED


# The LICENSE files of these repositories cover the code and do not mention weights. By its model
# card, guided-diffusion is for research purposes only and not to be deployed commercially.
CODE_IS_MIT = f"{NOT_STATED}; code: MIT"
RESEARCH_ONLY = f"{CODE_IS_MIT}; model card: for research only"
OPENAI = "https://openaipublic.blob.core.windows.net/diffusion"
OMMER = "https://ommer-lab.com/files/latent-diffusion"
PUBLISHED = {
    published.name: published
    for published in (
        PublishedCheckpoint(
            "gdm-imagenet256",
            "guided-diffusion, ImageNet 256, unconditional: the paper's GDM",
            "256x256_diffusion_uncond.pt",
            f"{OPENAI}/jul-2021/256x256_diffusion_uncond.pt",
            size=2211383297,
            sha256="a37c32fffd316cd494cf3f35b339936debdc1576dad13fe57c42399a5dbc78b1",
            architecture=GuidedDiffusionArchitecture(),
            licence=RESEARCH_ONLY,
        ),
        PublishedCheckpoint(
            "gdm-imagenet64-cond",
            "guided-diffusion, ImageNet 64, class-conditional",
            "64x64_diffusion.pt",
            f"{OPENAI}/jul-2021/64x64_diffusion.pt",
            architecture=GuidedDiffusionArchitecture(
                image_size=64,
                num_channels=192,
                channel_mult=(1, 2, 3, 4),
                num_res_blocks=3,
                use_new_attention_order=True,
                class_cond=True,
                noise_schedule="cosine",
            ),
            licence=RESEARCH_ONLY,
        ),
        PublishedCheckpoint(
            "gdm-imagenet128-cond",
            "guided-diffusion, ImageNet 128, class-conditional",
            "128x128_diffusion.pt",
            f"{OPENAI}/jul-2021/128x128_diffusion.pt",
            architecture=GuidedDiffusionArchitecture(
                image_size=128,
                channel_mult=(1, 1, 2, 3, 4),
                num_heads=4,
                num_head_channels=-1,
                class_cond=True,
            ),
            licence=RESEARCH_ONLY,
        ),
        # 512x512_diffusion.pt is missing: its first level has half of num_channels, which
        # UNet2DModel's time embedding does not support
        PublishedCheckpoint(
            "gdm-imagenet256-cond",
            "guided-diffusion, ImageNet 256, class-conditional",
            "256x256_diffusion.pt",
            f"{OPENAI}/jul-2021/256x256_diffusion.pt",
            architecture=GuidedDiffusionArchitecture(class_cond=True),
            licence=RESEARCH_ONLY,
        ),
        PublishedCheckpoint(
            "gdm-classifier256",
            "guided-diffusion, ImageNet 256, classifier of noisy images: for Fig. 2 of the paper",
            "256x256_classifier.pt",
            f"{OPENAI}/jul-2021/256x256_classifier.pt",
            architecture=NoisyClassifierArchitecture(),
            licence=RESEARCH_ONLY,
        ),
        PublishedCheckpoint(
            "gdm-cifar10",
            "improved-diffusion, CIFAR-10, unconditional",
            "cifar10_uncond_50M_500K.pt",
            f"{OPENAI}/march-2021/cifar10_uncond_50M_500K.pt",
            architecture=GuidedDiffusionArchitecture(
                image_size=32,
                num_channels=128,
                channel_mult=(1, 2, 2, 2),
                num_res_blocks=3,
                attention_resolutions=(16, 8),
                num_heads=4,
                num_head_channels=-1,
                resblock_updown=False,
                noise_schedule="cosine",
                diffusion_steps=4000,
                rescale_timesteps=True,
            ),
            licence=CODE_IS_MIT,
        ),
        PublishedCheckpoint(
            "ldm-cin256",
            "latent diffusion, ImageNet 256, class-conditional: the paper's LDM",
            "cin256-v2.ckpt",
            f"{OMMER}/nitro/cin/model.ckpt",
            architecture=LatentDiffusionArchitecture(),
            licence=CODE_IS_MIT,
        ),
        # cin.zip, which the original DiffGuard links, is missing: it is LDM-VQ-8, whose training
        # knew no "no class", so that classifier-free guidance has nothing to compare with
        PublishedCheckpoint(
            "dit-xl2-256",
            "DiT-XL/2, ImageNet 256, class-conditional",
            "DiT-XL-2-256",
            "hf://facebook/DiT-XL-2-256",
            licence="CC-BY-NC-4.0",
        ),
    )
}


# ---- files


def resolve(checkpoint: str | Path) -> Path:
    """Return the file or folder of a ``checkpoint`` setting; download it into the cache if needed.

    Args:
        checkpoint: A path; the name of shipped or published weights; an ``http(s)://`` URL, which
            may end in ``#sha256=...`` and may point to a .zip with one checkpoint in it; or
            ``hf://owner/name``.

    Raises:
        InputError: The checkpoint is unknown or cannot be downloaded.
    """
    name = str(checkpoint)
    if name.startswith(("http://", "https://")):
        return _download(_from_url(name))
    if name.startswith("hf://"):
        return _hugging_face_snapshot(name)

    # a file or folder takes precedence over a name
    path = Path(name).expanduser()
    if path.exists():
        return path
    if name in shipped_names():
        return SHIPPED / name
    if name in PUBLISHED:
        return _download(PUBLISHED[name])
    raise InputError(
        f"checkpoint {name!r}: file not found; choose from: {', '.join(shipped_names())} "
        f"(shipped), {', '.join(PUBLISHED)} (downloaded), a URL, hf://owner/name"
    )


def shipped_names() -> list[str]:
    """Return the names of the weights that come with the package."""
    files = SHIPPED.glob("*/**/*.safetensors")
    return sorted({file.relative_to(SHIPPED).parts[0] for file in files})


def find_published(checkpoint: str | Path) -> PublishedCheckpoint | None:
    """Return the published weights of a name; None if unknown or if a file of that name exists."""
    published = PUBLISHED.get(str(checkpoint))
    if published is None or Path(published.name).exists():
        return None
    return published


def cached_path(published: PublishedCheckpoint) -> Path | None:
    """Return the file or folder of published weights in the cache, if any; works offline."""
    if published.url.startswith("hf://"):
        try:
            return _hugging_face_snapshot(published.url, local_files_only=True)
        except InputError:
            return None
    path = checkpoint_folder() / published.filename
    return path if path.is_file() else None


def checkpoint_folder() -> Path:
    """Return the cache folder of downloaded checkpoints and of converted copies of named ones."""
    return cache_folder() / "checkpoints"


def _from_url(address: str) -> PublishedCheckpoint:
    """Describe the checkpoint at a URL, which may end in ``#sha256=...``."""
    url, fragment = urldefrag(address)
    parts = urlsplit(url)
    filename = PurePosixPath(unquote(parts.path)).name
    if filename in ("", ".."):
        raise InputError(f"checkpoint {address!r}: the URL must end in a file name")
    if fragment and not fragment.startswith("sha256="):
        raise InputError(f"checkpoint {address!r}: the part after # must be sha256=...")
    # one folder per URL, because many checkpoints are called model.ckpt
    folder = f"{parts.hostname}-{sha256(url.encode()).hexdigest()[:8]}"
    return PublishedCheckpoint(
        name=address,
        description="",
        filename=f"{folder}/{filename}",
        url=url,
        sha256=fragment.removeprefix("sha256=") or None,
    )


def _download(published: PublishedCheckpoint) -> Path:
    """Return the file or folder of published weights; download and unpack it if needed."""
    if published.url.startswith("hf://"):
        return _hugging_face_snapshot(published.url)
    path = checkpoint_folder() / published.filename
    fetch(published.url, path.parent, path.name, published.size, published.sha256)
    return _unpack(path) if path.suffix == ".zip" else path


def _unpack(archive: Path) -> Path:
    """Unpack the checkpoint of an archive into a folder beside it, once."""
    folder, name = archive.with_suffix(""), _find_member(archive)
    path = folder / name
    if not path.is_file():
        with locked(folder):
            # another process may have unpacked it while this one waited
            if not path.is_file():
                unzip(archive, folder, [name])
    return path


def _find_member(archive: Path) -> str:
    """Return the name of the only checkpoint in an archive."""
    names = list_members(archive)
    found = [name for name in names if name.endswith(CHECKPOINT_SUFFIXES)]
    if len(found) != 1:
        raise InputError(
            f"archive {archive}: must hold exactly one {' or '.join(CHECKPOINT_SUFFIXES)}, holds: "
            f"{', '.join(names[:20]) or 'nothing'}; unpack it and set checkpoint to the file"
        )
    return found[0]


def _hugging_face_snapshot(url: str, local_files_only: bool = False) -> Path:
    """Return the folder of a Hugging Face repository in huggingface_hub's own cache."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    name = url.removeprefix("hf://")
    try:
        patterns = HUGGING_FACE_FILES
        if not local_files_only:
            # Offline, what is in the cache was chosen before.
            # huggingface_hub's HTTP library, and so its exceptions, change between versions.
            with suppress(Exception):
                siblings = HfApi().model_info(name, revision="main").siblings or []
                patterns = needed_files([file.rfilename for file in siblings]) or patterns
        folder = snapshot_download(name, allow_patterns=patterns, local_files_only=local_files_only)
    except (HFValidationError, RepositoryNotFoundError) as error:
        raise InputError(
            f"checkpoint {url}: public repository not found on Hugging Face; "
            "expected hf://owner/name"
        ) from error
    # huggingface_hub's HTTP library, and so its exceptions, change between versions
    except Exception as error:
        reason = beginning(str(error), 200)
        raise InputError(
            f"checkpoint {url}: cannot be downloaded ({reason}); check the network, or set "
            "checkpoint to a folder with the repository's files"
        ) from error
    return Path(folder)


def needed_files(files: Sequence[str]) -> list[str]:
    """Return the files of a Hugging Face repository that a backbone reads.

    Repositories hold the same weights several times. Of each folder these are taken once:
    safetensors before pickles, and full precision before half precision. Beside a pipeline's
    model_index.json, single-file copies of it and its safety checker are left out.

    Args:
        files: Paths of all files.
    """
    by_folder: dict[str, list[str]] = {}
    for file in files:
        if any(fnmatch(file, pattern) for pattern in HUGGING_FACE_FILES):
            by_folder.setdefault(file.rpartition("/")[0], []).append(file)
    is_pipeline = "model_index.json" in files
    needed: list[str] = []
    for folder, names in by_folder.items():
        if is_pipeline and folder in HUGGING_FACE_FOLDERS_NOT_NEEDED:
            continue
        weights = [name for name in names if name.endswith((".safetensors", ".bin"))]
        needed += [name for name in names if name not in weights]
        if is_pipeline and not folder and "config.json" not in names:
            continue
        needed += _preferred(weights)
    return sorted(needed)


def _preferred(weights: Sequence[str]) -> list[str]:
    """Return the files of the preferred format and precision of a folder's weights."""
    usual = [name for name in weights if not re.search(r"non_ema|openvino|flax|onnx", name)]
    for suffix in (".safetensors", ".bin"):
        of_suffix = [name for name in usual if name.endswith(suffix)]
        for is_half in (False, True):
            if found := [name for name in of_suffix if (".fp16" in name) == is_half]:
                return found
    return []
