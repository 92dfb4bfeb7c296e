"""The command `diffguard-pl checkpoints`: list, fetch, convert."""

import re

import pytest
import torch
from helpers.files import leftovers
from helpers.originals import GDM_FILE

from diffguard_pl.checkpoints import registry
from diffguard_pl.checkpoints.registry import PUBLISHED
from diffguard_pl.commands import checkpoints

pytestmark = pytest.mark.usefixtures("checkpoint_cache")


def exit_line(args: list[str], capsys) -> str:
    with pytest.raises(SystemExit) as end:
        checkpoints.main(args)
    assert isinstance(end.value.code, str), "the interpreter prints a string and exits with 1"
    assert "\n" not in end.value.code
    return end.value.code


def test_a_conversion_that_fails_leaves_nothing_and_touches_no_folder_of_others(tmp_path, capsys):
    path = tmp_path / "model.pt"
    path.write_bytes(GDM_FILE.read_bytes())
    assert exit_line(["convert", str(path)], capsys).startswith(
        f"error: checkpoint {path}: does not fit"
    )
    assert leftovers(tmp_path) == ["model.pt"]
    # a conversion that was killed
    (tmp_path / "model-diffusers.part").mkdir()
    exit_line(["convert", str(path)], capsys)
    assert leftovers(tmp_path) == ["model.pt"]
    (tmp_path / "mine").mkdir()
    assert "not a converted checkpoint" in exit_line(
        ["convert", str(path), str(tmp_path / "mine")], capsys
    )
    torch.save({"a": torch.ones(1)}, path)
    assert "first keys: a" in exit_line(["convert", str(path)], capsys)
    assert "is a folder" in exit_line(["convert", "digits_gdm"], capsys)
    path.write_bytes(GDM_FILE.read_bytes())
    (tmp_path / "a.yaml").write_text("image_sise: 32")
    assert "image_sise" in exit_line(
        ["convert", str(path), "--architecture", str(tmp_path / "a.yaml")], capsys
    )


def test_list_shows_the_checkpoints_and_those_that_are_present(published, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    checkpoints.main(["list"])
    before = capsys.readouterr().out
    assert all(name in before for name in PUBLISHED)
    assert re.search(r"gdm-imagenet256 .*MIT; model card: for research only.*2\.2 GB", before)
    assert re.search(r"dit-xl2-256 .*CC-BY-NC-4\.0", before)
    assert "Apache-2.0" in before
    checkpoints.main(["fetch", "tiny"])
    checkpoints.main(["convert", "tiny"])
    capsys.readouterr()
    checkpoints.main(["list"])
    (row,) = [line for line in capsys.readouterr().out.splitlines() if " tiny " in line]
    assert "yes" not in before
    assert row.count("yes") == 2


def test_fetch_prints_the_path_and_an_unknown_name_ends_it_in_one_line(
    published, checkpoint_cache, capsys
):
    checkpoints.main(["fetch", "tiny", "digits_gdm"])
    assert capsys.readouterr().out.splitlines() == [
        str(checkpoint_cache / "tiny_uncond.pt"),
        str(registry.SHIPPED / "digits_gdm"),
    ]
    assert "file not found" in exit_line(["fetch", "nothing"], capsys)


def test_names_are_complete_in_a_narrow_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    checkpoints.main(["list"])
    printed = capsys.readouterr().out
    assert all(name in printed for name in PUBLISHED)


def test_a_classifier_of_noisy_images_needs_no_conversion(capsys, checkpoint_cache):
    assert "is a classifier" in exit_line(["convert", "gdm-classifier256"], capsys)
    assert not checkpoint_cache.exists()
