"""Detectors on the Hugging Face Hub: a detector file, its fitted tensors, and a model card."""

import csv
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

from ..errors import InputError, beginning
from .detector_file import (
    CHECKSUM,
    checksum,
    local_checkpoints,
    shipped_detector,
    with_checkpoints_beside,
)

SCHEME = "hf://"
DETECTOR_FILE = "detector.json"
CARD_ROWS = 40
"""Number of rows of a run's results in a model card."""


class Calibrated(Protocol):
    """A calibrated :class:`~diffguard_pl.Detector`."""

    settings: dict[str, Any] | None

    def save(self, file: str | Path) -> Path: ...


def push(
    detector: Calibrated,
    repo: str,
    *,
    with_weights: bool = False,
    run: str | Path | None = None,
    data: str = "",
    licence: str = "other",
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    message: str = "Upload a diffguard-pl detector",
) -> str:
    """Upload a calibrated detector; see :meth:`.Detector.push_to_hub`."""
    from huggingface_hub import HfApi

    _check_name(repo)
    if detector.settings is None:
        raise InputError(
            "push_to_hub: the detector was not made from a config, so that nobody could build its "
            "model from the file; calibrate it with diffguard-pl calibrate, or from load(config)"
        )
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_folder(detector, folder, repo, with_weights, run, data, licence)
        api = HfApi(token=token)
        try:
            api.create_repo(repo, private=private, exist_ok=True)
            done = api.upload_folder(
                repo_id=repo, folder_path=folder, revision=revision, commit_message=message
            )
        # huggingface_hub's HTTP library, and so its exceptions, change between versions
        except Exception as error:
            raise InputError(
                f"push_to_hub: {repo} cannot be written ({beginning(str(error), 200)}); log in "
                "with `hf auth login`, or check the name and the network"
            ) from error
    return str(done.commit_url)


def write_folder(
    detector: Calibrated,
    folder: Path,
    repo: str,
    with_weights: bool = False,
    run: str | Path | None = None,
    data: str = "",
    licence: str = "other",
) -> None:
    """Write what is uploaded into an empty folder; see :meth:`.Detector.push_to_hub`."""
    file = detector.save(folder / DETECTOR_FILE)
    files = local_checkpoints(detector.settings)
    if files and not with_weights:
        raise InputError(
            f"push_to_hub: {files[0]} is a file of this machine; use with_weights=True to upload "
            "it with the detector, or make the detector from weights that have an address"
        )
    if len({path.name for path in files}) < len(files):
        raise InputError("push_to_hub: two checkpoints have the same name; rename one")
    for path in files:
        if path.is_dir():
            shutil.copytree(path, folder / path.name)
        else:
            shutil.copyfile(path, folder / path.name)

    # Paths of this machine are nobody else's business.
    content = json.loads(file.read_text(encoding="utf-8"))
    content["model"] = with_checkpoints_beside(content["model"])
    content[CHECKSUM] = checksum(content)
    file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    card = model_card(content, repo, data, licence, None if run is None else Path(run))
    (folder / "README.md").write_text(card, encoding="utf-8")


def find_detector_file(file: str | Path) -> Path:
    """Return the path of a detector file by its path, name in the package, or address.

    Raises:
        InputError: It is an address, and cannot be downloaded.
    """
    if str(file).startswith(SCHEME):
        return download(str(file))
    return shipped_detector(file) or Path(file)


def download(address: str, token: str | None = None) -> Path:
    """Return the detector file of ``hf://owner/name`` or ``hf://owner/name@revision``.

    Raises:
        InputError: The repository, the revision or the file does not exist, or there is no network
            and no copy in the cache.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    name, _, revision = address.removeprefix(SCHEME).partition("@")
    _check_name(name)
    try:
        folder = Path(snapshot_download(name, revision=revision or None, token=token))
    except RevisionNotFoundError as error:
        raise InputError(f"{address}: has no revision {revision!r}; check it") from error
    except (HFValidationError, RepositoryNotFoundError) as error:
        raise InputError(
            f"{address}: not found on Hugging Face; check the name, or log in with `hf auth login` "
            "if it is private"
        ) from error
    except Exception as error:
        raise InputError(
            f"{address}: cannot be downloaded ({beginning(str(error), 200)}); check the network"
        ) from error
    file = folder / DETECTOR_FILE
    if not file.is_file():
        raise InputError(f"{address}: has no {DETECTOR_FILE}; it is no repository of a detector")
    return file


def model_card(
    content: Mapping[str, Any], repo: str, data: str, licence: str, run: Path | None
) -> str:
    """Return the model card of a detector, in Markdown.

    Args:
        content: Content of the detector file.
        repo: Name of the repository.
        data: Sentence on the in-distribution images.
        licence: Identifier of a licence on the Hub.
        run: Folder of a run whose results are shown.
    """
    threshold, about = content["threshold"], content["about"]
    rejected = [100 * threshold[name] for name in ("rejects_low", "rejects_high")]
    classes = ", ".join(content["class_names"][:20])
    if len(content["class_names"]) > 20:
        classes += f", ... ({len(content['class_names'])} in all)"
    header = {
        "license": licence,
        "library_name": "diffguard-pl",
        "pipeline_tag": "image-classification",
        "tags": ["out-of-distribution-detection", "diffusion"],
    }
    lines = [
        "---",
        *(f"{name}: {json.dumps(value)}" for name, value in header.items()),
        "---",
        "",
        f"# {repo.partition('/')[2]}",
        "",
        "An out-of-distribution detector for an image classifier, by diffguard-pl (DiffGuard, ICCV "
        "2023). It accepts images of the classifier's classes and rejects others.",
        "",
        "```python",
        "from diffguard_pl import Detector",
        "",
        f'detector = Detector.from_pretrained("{repo}")',
        'print(detector.predict(["image.png"]).accepted)',
        "```",
        "",
        "| | |",
        "|---|---|",
        f"| score | `{content['score']}` |",
        f"| accepted in-distribution images | {100 * threshold['tpr']:g} % |",
        f"| threshold | {threshold['value']:.6g} |",
        f"| validation images | {threshold['images']} |",
        f"| such images rejected, 95 % interval | {rejected[0]:.1f} to {rejected[1]:.1f} % |",
        f"| image size | {content['preparation']['image_size']} px |",
        f"| classes | {classes or 'not named'} |",
        f"| data | {data or _data_of(about)} |",
        f"| made | {about.get('made', 'unknown')} |",
    ]
    if run is not None:
        lines += ["", "## Results", "", *_results(run)]
    lines += [
        "",
        "## Limits",
        "",
        "The threshold promises how many in-distribution images are rejected, on average over "
        "calibrations, and only for images like those of the validation. It promises nothing of "
        "images of other classes: a detector can accept them, and can be fooled on purpose.",
    ]
    return "\n".join(lines) + "\n"


def _data_of(about: Mapping[str, Any]) -> str:
    data = about.get("data")
    return "not stated" if not data else re.sub(r"\s+", " ", json.dumps(data))[:300]


def _results(run: Path) -> list[str]:
    """Return the rows of a run's metrics.csv as a table."""
    try:
        with (run / "metrics.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        lines = ["| group | dataset | score | AUROC (%) | FPR@95 (%) |", "|---|---|---|---:|---:|"]
        for row in rows[:CARD_ROWS]:
            auroc, fpr = (100 * float(row[name]) for name in ("auroc", "fpr95"))
            lines.append(
                f"| {row['group']} | {row['dataset']} | {row['score']} | {auroc:.2f} | {fpr:.2f} |"
            )
    except (OSError, KeyError, ValueError, csv.Error) as error:
        raise InputError(
            f"{run}: has no readable metrics.csv; give the folder of a run, or rebuild it with "
            "diffguard-pl report"
        ) from error
    return lines


def _check_name(repo: str) -> None:
    if not re.fullmatch(r"\w[\w.-]{0,95}/\w[\w.-]{0,95}", repo):
        raise InputError(f"{repo!r}: must be owner/name of a repository on Hugging Face")
