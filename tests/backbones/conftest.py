"""DiT in miniature, as diffusers saves it."""

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DiTPipeline
from helpers.small_models import autoencoder, ddim, dit, edit_json


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Networks this small are faster on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def pipeline() -> DiTPipeline:
    """DiT in miniature."""
    return DiTPipeline(dit(), autoencoder(), ddim())


@pytest.fixture(scope="module")
def folder(pipeline, tmp_path_factory) -> Path:
    """A folder with the layout of the repository facebook/DiT-XL-2-256."""
    folder = tmp_path_factory.mktemp("dit")
    pipeline.save_pretrained(folder)
    edit_json(folder / "model_index.json", id2label={"0": "tench, Tinca tinca", "1": "goldfish"})
    return folder


@pytest.fixture
def copy(folder, tmp_path) -> Path:
    """A copy of the folder, to change."""
    return shutil.copytree(folder, tmp_path / "copy")
