"""Kept pictures of a run."""

import math
import re
import struct
import zlib

import numpy as np
import pytest
from helpers.report_runs import card_images, make_plain_run, make_run
from PIL import Image

from diffguard_pl.commands.report import main
from diffguard_pl.report.build import build
from diffguard_pl.report.gallery import (
    KeptPicture,
    candidate_for,
    choose_candidates,
    folder_name,
    kept_pictures,
    picture_path,
    read_picture,
    write_picture,
)
from diffguard_pl.report.results import read_results


def test_a_kept_picture_is_read_as_it_was_written(tmp_path):
    colours = {"input": (9, 8, 7), "reconstruction": (1, 2, 3), "mask": (255, 255, 255)}
    panels = {name: Image.new("RGB", (4, 4), colour) for name, colour in colours.items()}
    write_picture(tmp_path, KeptPicture("ünlike/names", 12, panels))
    assert list(kept_pictures(tmp_path)) == [("ünlike/names", 12)]
    found = read_picture(picture_path(tmp_path, "ünlike/names", 12))
    assert (found.dataset, found.index) == ("ünlike/names", 12)
    assert {name: panel.getpixel((3, 3)) for name, panel in found.panels.items()} == colours


def test_an_image_has_the_same_random_key_in_every_run():
    assert candidate_for("digits", 3, 0.5).random_key == 0.2516429992129213
    keys = {candidate_for("digits", index, 0.0).random_key for index in range(100)}
    assert len(keys) == 100
    assert 0 <= min(keys) < 0.1 < 0.9 < max(keys) < 1


def test_the_extreme_and_some_random_images_are_kept():
    candidates = [candidate_for("digits", i, score) for i, score in enumerate(range(100))]
    chosen = {candidate.index for candidate in choose_candidates(candidates, 3)}
    assert {0, 1, 2, 97, 98, 99} <= chosen
    assert 6 < len(chosen) <= 9
    assert choose_candidates(candidates, 0) == []


def test_an_image_without_a_score_is_kept_only_as_a_random_one():
    unscored = [candidate_for("digits", i, math.nan) for i in range(50)]
    candidates = [*unscored, *(candidate_for("digits", i, 0.0) for i in range(50, 60))]
    kept = [c for c in choose_candidates(candidates, 5) if math.isnan(c.score)]
    first = sorted(candidates, key=lambda candidate: candidate.random_key)[:5]
    assert kept == [candidate for candidate in first if math.isnan(candidate.score)]


def test_the_choice_does_not_depend_on_how_images_were_divided():
    scores = np.random.default_rng(0).normal(size=60).round(1)
    candidates = [candidate_for("digits", i, score) for i, score in enumerate(scores)]
    at_once = set(choose_candidates(candidates, 4))
    parts = [candidates[50:], candidates[20:50], candidates[:20]]
    kept = []
    for part in parts:
        kept = choose_candidates([*kept, *part], 4)
    assert set(kept) == at_once


def test_damaged_and_foreign_pictures_are_skipped(tmp_path):
    folder = make_run(tmp_path / "run", pictures=2)
    (folder / "pictures" / "digits" / "0.png").write_bytes(b"no picture")
    Image.new("RGB", (8, 8)).save(folder / "pictures" / "digits" / "mine.png")
    cut = folder / "pictures" / "letters" / "1.png"
    cut.write_bytes(cut.read_bytes()[:-400])
    intact = {("digits", 1), ("letters", 0), ("photos", 0), ("photos", 1)}
    intact |= {("maps <b>&", 0), ("maps <b>&", 1)}
    assert card_images(build(read_results(folder))[-1]) == intact


def png(width: int, height: int, **metadata: str) -> bytes:
    """Return a PNG that claims a size and lacks most of its pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        crc = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    texts = [f"{key}\0{value}".encode() for key, value in metadata.items()]
    pixels = chunk(b"IDAT", zlib.compress(bytes(1000)))
    chunks = [chunk(b"IHDR", header), *(chunk(b"tEXt", text) for text in texts), pixels]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "size", [(60_000, 30_000), (20_000, 10_000), (60_000, 1), (4, 4)], ids=lambda size: str(size[0])
)
def test_a_picture_with_more_pixels_than_its_panels_is_left_out(tmp_path, size, capsys):
    folder = make_run(tmp_path / "run", pictures=1)
    about = {"dataset": "digits", "index": "0", "panels": "input,reconstruction"}
    picture_path(folder, "digits", 0).write_bytes(png(*size, **about))
    main([str(folder)])
    assert ("digits", 0) not in card_images(folder / "report.html")
    assert re.search(r"pictures: 1 files .*digits/0.png; remove", capsys.readouterr().err)


def test_datasets_with_similar_names_have_separate_folders(tmp_path):
    names = ["a_b", "a/b", "a b", "..", "."]
    assert folder_name("a_b") == "a_b"
    assert len({folder_name(name) for name in names}) == 5
    assert all(re.fullmatch(r"[\w.-]+-[0-9a-f]{8}", folder_name(name)) for name in names[1:])

    folder = make_plain_run(tmp_path / "run", dict.fromkeys(names, "near"), count=3, pictures=2)
    assert {path.parent.parent for path in folder.glob("**/*.png")} == {folder / "pictures"}
    expected = {(name, i) for name in ["ind", *names] for i in range(2)}
    assert card_images(build(read_results(folder))[-1]) == expected


def test_pictures_are_identified_by_their_content_not_their_folder(tmp_path):
    folder = make_plain_run(tmp_path / "run", {"a/b": "near"}, count=3, pictures=2)
    picture_path(folder, "a/b", 0).parent.rename(folder / "pictures" / "older_name")
    assert {("a/b", 0), ("a/b", 1)} <= set(kept_pictures(folder))
