"""Checkpoints by name: where published weights are fetched from, where their files lie, and which architecture they have."""

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urldefrag, urlsplit

from ..errors import InputError
from .architectures import Architecture, GuidedDiffusionArchitecture, LatentDiffusionArchitecture
from .download import cache_folder, fetch, locked, members, unzip

SHIPPED = Path(__file__).parents[1] / "weights"
"""Where the weights of the embedded benchmark lie."""
SUFFIXES = (".ckpt", ".pt", ".pth", ".safetensors")


@dataclass(frozen=True)
class Published:
    """Weights that somebody published.

    Args:
        name: theirs here.
        what: in a few words.
        filename: of the download.
        url: http(s), or ``hf://owner/name`` for a Hugging Face repository, which becomes a folder.
        size: bytes of the download, where known.
        sha256: of the download, where known.
        member: name of the checkpoint inside a .zip; none: the only one there is.
        architecture: that the weights have.
    """

    name: str
    what: str
    filename: str
    url: str
    size: int | None = None
    sha256: str | None = None
    member: str | None = None
    architecture: Architecture | None = None


OPENAI = "https://openaipublic.blob.core.windows.net/diffusion"
OMMER = "https://ommer-lab.com/files/latent-diffusion"
PUBLISHED = {
    published.name: published
    for published in (
        Published(
            "gdm-imagenet256",
            "guided-diffusion, ImageNet 256, unconditional: the paper's GDM",
            "256x256_diffusion_uncond.pt",
            f"{OPENAI}/jul-2021/256x256_diffusion_uncond.pt",
            size=2211383297,
            sha256="a37c32fffd316cd494cf3f35b339936debdc1576dad13fe57c42399a5dbc78b1",
            architecture=GuidedDiffusionArchitecture(),
        ),
        Published(
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
        ),
        Published(
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
        ),
        # that for 512 pixels is not here: its first level has half of num_channels, which UNet2DModel's time embedding cannot have
        Published(
            "gdm-imagenet256-cond",
            "guided-diffusion, ImageNet 256, class-conditional",
            "256x256_diffusion.pt",
            f"{OPENAI}/jul-2021/256x256_diffusion.pt",
            architecture=GuidedDiffusionArchitecture(class_cond=True),
        ),
        Published(
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
        ),
        Published(
            "ldm-cin256",
            "latent diffusion, ImageNet 256, class-conditional: the paper's LDM",
            "cin256-v2.ckpt",
            f"{OMMER}/nitro/cin/model.ckpt",
            architecture=LatentDiffusionArchitecture(),
        ),
        Published(
            "ldm-cin256-zip",
            "latent diffusion, ImageNet 256, class-conditional: the older one",
            "cin.zip",
            f"{OMMER}/cin.zip",
            member="model.ckpt",
            architecture=LatentDiffusionArchitecture(),
        ),
        Published(
            "dit-xl2-256",
            "DiT-XL/2, ImageNet 256, class-conditional",
            "DiT-XL-2-256",
            "hf://facebook/DiT-XL-2-256",
        ),
    )
}


# ------------------------------------------------------------------------------------------------------------------ files


def resolve(checkpoint: str | Path) -> Path:
    """The file or folder that a ``checkpoint`` setting names; fetched into the cache if it is not there yet.

    Args:
        checkpoint: a path; the name of shipped or of published weights; an ``http(s)://`` address, which may end in
            ``#sha256=...`` and may be that of a .zip with one checkpoint in it; or ``hf://owner/name``.

    Raises:
        InputError: nothing of the kind, or it cannot be fetched.
    """
    name = str(checkpoint)
    if name.startswith(("http://", "https://")):
        return _obtain(_at(name))
    if name.startswith("hf://"):
        return _snapshot(name)
    path = Path(name).expanduser()
    if path.exists():
        return path
    if name in shipped_names():
        return SHIPPED / name
    if name in PUBLISHED:
        return _obtain(PUBLISHED[name])
    raise InputError(
        f"checkpoint {name!r}: no such file or folder, and the weights that come with the package are: "
        f"{', '.join(shipped_names())}; those that can be fetched: {', '.join(PUBLISHED)}, a URL, hf://owner/name"
    )


def shipped_names() -> list[str]:
    """Of the weights that come with the package."""
    return sorted(
        folder.name
        for folder in SHIPPED.iterdir()
        if folder.is_dir() and folder.name.startswith("digits")
    )


def named(checkpoint: str | Path) -> Published | None:
    """The published weights of that name; none: there are none, or a file or folder of that name comes before them."""
    published = PUBLISHED.get(str(checkpoint))
    return published if published and not Path(published.name).exists() else None


def _at(address: str) -> Published:
    url, fragment = urldefrag(address)
    parts = urlsplit(url)
    filename = PurePosixPath(unquote(parts.path)).name
    if filename in ("", ".."):
        raise InputError(f"checkpoint {address!r}: the address names no file")
    if fragment and not fragment.startswith("sha256="):
        raise InputError(f"checkpoint {address!r}: expected nothing or #sha256=... at its end")
    # a folder for each address, as many a checkpoint is called model.ckpt
    folder = f"{parts.hostname}-{sha256(url.encode()).hexdigest()[:8]}"
    return Published(
        address, "", f"{folder}/{filename}", url, sha256=fragment.removeprefix("sha256=") or None
    )


def _obtain(published: Published) -> Path:
    if published.url.startswith("hf://"):
        return _snapshot(published.url)
    path = _download_path(published)
    fetch(published.url, path.parent, path.name, published.size, published.sha256)
    return _unpacked(path, published.member) if path.suffix == ".zip" else path


def cached(published: Published) -> Path | None:
    """The file or folder of published weights if it is here; never asks the network."""
    if published.url.startswith("hf://"):
        try:
            return _snapshot(published.url, local_files_only=True)
        except InputError:
            return None
    path = _download_path(published)
    if path.suffix == ".zip" and path.is_file():
        path = path.with_suffix("") / _member(path, published.member)
    return path if path.is_file() else None


def checkpoint_folder() -> Path:
    """Where fetched checkpoints lie, and the converted copies of those with a name."""
    return cache_folder() / "checkpoints"


def _download_path(published: Published) -> Path:
    return checkpoint_folder() / published.filename


def _unpacked(archive: Path, member: str | None) -> Path:
    folder, name = archive.with_suffix(""), _member(archive, member)
    path = folder / name
    if not path.is_file():
        with locked(folder):
            if not path.is_file():  # it may be, after the wait
                unzip(archive, folder, [name])
    return path


def _member(archive: Path, basename: str | None) -> str:
    """The checkpoint in an archive: that of the name, or the only one."""
    names = members(archive)
    found = [
        n
        for n in names
        if (PurePosixPath(n).name == basename if basename else n.endswith(SUFFIXES))
    ]
    if len(found) != 1:
        wanted = basename or " or ".join(SUFFIXES)
        raise InputError(
            f"archive {archive}: expected one {wanted}, it holds: {', '.join(names[:20]) or 'nothing'}; unpack it by hand"
        )
    return found[0]


def _snapshot(url: str, local_files_only: bool = False) -> Path:
    """The folder of a Hugging Face repository, in that library's own cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    name = url.removeprefix("hf://")
    patterns = ["*.json", "*.safetensors", "*.bin"]
    try:
        return Path(
            snapshot_download(name, allow_patterns=patterns, local_files_only=local_files_only)
        )
    except (HFValidationError, RepositoryNotFoundError) as error:
        raise InputError(
            f"checkpoint {url}: Hugging Face has no public repository of that name; expected hf://owner/name"
        ) from error
    except (
        Exception
    ) as error:  # of whatever HTTP library it uses; that changes between its versions
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"checkpoint {url} could not be downloaded ({reason}): check the network, or get its files in another way "
            "and give their folder as the checkpoint"
        ) from error
