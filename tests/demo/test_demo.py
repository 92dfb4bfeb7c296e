"""The web demo: verdicts, refused uploads, the command, and the page in a browser."""

import base64
import io
import re
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from diffguard_pl import InputError
from diffguard_pl.commands import demo as command
from diffguard_pl.datamodules.base import spread
from diffguard_pl.datamodules.digits import digits
from diffguard_pl.demo.examples import KNOWN, UNKNOWN, takes_digits, write_examples
from diffguard_pl.demo.upload import read_upload
from diffguard_pl.demo.verdict import EMPTY, answer_html, histogram, verdict_html
from diffguard_pl.deploy.detector import Detector
from diffguard_pl.web.limits import Limits

SHOWN_IN = 20_000
"""Milliseconds, generous for a busy machine."""


@pytest.fixture(scope="module")
def detector() -> Detector:
    return Detector.load(command.SHIPPED, device="cpu")


@pytest.fixture(scope="module")
def examples(tmp_path_factory) -> dict[str, Path]:
    groups = write_examples(tmp_path_factory.mktemp("examples"))
    assert list(groups) == [KNOWN, UNKNOWN]
    return {file.stem: file for files in groups.values() for file in files}


def png_of(width: int, height: int) -> bytes:
    """A PNG file that says it is of this size, and has next to nothing in it."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content))
            + kind
            + content
            + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 99))
        + chunk(b"IEND", b"")
    )


def text_of(page: str) -> str:
    return " ".join(re.sub(r"<[^>]*>", " ", page).split())


def pictures_of(page: str) -> list[Image.Image]:
    found = re.findall(r"data:image/png;base64,([^\"]+)", page)
    return [Image.open(io.BytesIO(base64.b64decode(content))) for content in found]


# the shipped detector


def test_the_shipped_detector_is_what_the_validation_digits_make_of_the_shipped_weights(detector):
    images = torch.stack([item["image"] for item in spread(digits("val"), 24)])
    scores = (
        detector.features(images)[:, detector.score_names.index(detector.score)].double().numpy()
    )
    apart = np.abs(detector.calibration[:, None] - scores).min(axis=0)
    assert apart.max() < 1e-4, "each image's score is among those of the file"
    assert len(detector.calibration) == len(digits("val"))
    assert detector.threshold == detector.calibration[9], (
        "the tenth of 215 rejects 10 of 216 at most: below 5 %"
    )
    assert takes_digits(detector)


# verdicts


@pytest.mark.parametrize("name", ["a 2", "a 3", "a 5", "a 8"])
def test_a_known_digit_is_accepted_under_its_label(detector, examples, name):
    shown = answer_html(detector, examples[name], name)
    text = text_of(shown)
    assert text.startswith(f"Accepted The classifier predicts {name[-1]} .")
    assert "almost unchanged" in text
    assert "dg-accepted" in shown


@pytest.mark.parametrize("name", ["a 4", "a 9", "a letter", "a symbol", "a photo"])
def test_an_unknown_image_is_rejected(detector, examples, name):
    shown = answer_html(detector, examples[name], name)
    assert text_of(shown).startswith("Rejected The classifier predicts")
    assert "0 of 215 known images score no higher 0.0046" in text_of(shown)


def test_the_page_shows_input_reconstruction_and_difference(detector, examples):
    decisions = detector.predict(examples["a 4"])
    seen, made, difference = pictures_of(answer_html(detector, examples["a 4"], "a 4"))
    for picture, tensor in ((seen, decisions.images[0]), (made, decisions.reconstructions[0])):
        assert np.abs(np.asarray(picture) / 255 - tensor.permute(1, 2, 0).numpy()).max() < 0.003
    assert difference.size == (16, 16)
    assert f"{decisions.scores[0]:.4g}" in answer_html(detector, examples["a 4"], "a 4")


def test_dark_ink_on_a_light_page_is_accepted_with_inverted_colours(detector, examples, tmp_path):
    ImageOps.invert(Image.open(examples["a 3"])).save(tmp_path / "page.png")
    assert text_of(answer_html(detector, tmp_path / "page.png", "page.png")).startswith("Rejected")
    assert answer_html(detector, tmp_path / "page.png", "page.png", invert=True) == answer_html(
        detector, examples["a 3"], "a 3"
    )


def test_an_image_that_was_not_diffused_has_no_reconstruction(detector, examples):
    decisions = detector.predict(examples["a 3"])
    sure = replace(
        decisions,
        diffused=torch.tensor([False]),
        reconstructions=torch.full_like(decisions.reconstructions, torch.nan),
    )
    shown = verdict_html(sure, detector.calibration)
    assert "is sure that it knows such images, so the diffusion model was skipped" in text_of(shown)
    assert len(pictures_of(shown)) == 1


def test_an_unguided_reconstruction_is_shown_and_names_are_text(detector, examples):
    decisions = detector.predict(examples["a 3"])
    shown = verdict_html(
        replace(decisions, unguided=decisions.images, label_names=["<i>three</i>"]),
        detector.calibration,
    )
    assert len(pictures_of(shown)) == 4
    assert "<i>" not in shown
    assert "&lt;i&gt;three" in shown


@pytest.mark.parametrize(("score", "cut"), [(0.5, 0.92), (0.99, 0.92), (-1e6, 0.92), (0.95, 0.95)])
def test_every_mark_of_the_histogram_is_inside_it(score, cut):
    drawn = histogram(np.linspace(0.9, 0.99, 50), score, cut, "accepted")
    places = [float(place) for place in re.findall(r'(?:x|x1|x2|cx)="([-\d.]+)%"', drawn)]
    assert min(places) >= 0
    assert max(places) <= 100
    assert histogram(np.linspace(0.9, 0.99, 50), float("nan"), cut, "rejected") == ""
    assert histogram(
        np.append(-np.inf, np.linspace(0.9, 0.99, 50)), score, cut, "accepted"
    ).startswith("<figure")


# refused uploads


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            png_of(8000, 8000),
            "8000 x 8000 pixels (64 megapixels), more than the limit of 40 megapixels",
        ),
        (png_of(60000, 60000), "too many pixels"),
        (png_of(100, 100), "damaged or truncated"),
        (b"no image at all", "not an image in a supported format"),
        (
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
            "not an image in a supported format",
        ),
        (b"", "not an image in a supported format"),
        (bytes(11 * 2**20), "11.0 MB, more than the limit of 10 MB"),
    ],
)
def test_unreadable_and_too_large_uploads_are_refused_in_one_line(
    detector, tmp_path, content, said
):
    (tmp_path / "upload").write_bytes(content)
    shown = answer_html(detector, tmp_path / "upload", "my <b>.png")
    assert text_of(shown).startswith("Not processed my &lt;b&gt;.png: ")
    assert said in text_of(shown)
    assert "dg-problem" in shown


def test_images_above_the_limits_are_not_decoded(tmp_path, monkeypatch):
    Image.new("RGB", (300, 200)).save(tmp_path / "image.png")
    assert read_upload(tmp_path / "image.png", "image.png", limits=Limits(1, 0.06)).size == (
        300,
        200,
    )
    monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("was decoded"))
    with pytest.raises(InputError, match=r"image.png: 300 x 200 pixels"):
        read_upload(tmp_path / "image.png", "image.png", limits=Limits(1, 0.05))


def test_without_an_image_there_is_no_verdict(detector):
    assert answer_html(detector, None, "") == EMPTY


# the command


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["--detector", "nowhere.json"],
            "nowhere.json: no such file",
        ),
        (["--host", "no.such.host.invalid"], "--host no.such.host.invalid"),
        (["--max-mb", "0"], "--max-mb 0: must be more than 0"),
        (["--max-megapixels", "nan"], "--max-megapixels nan: must be more than 0"),
        (["--port", "70000"], "--port 70000"),
    ],
)
def test_invalid_options_are_refused_in_one_line(options, said):
    with pytest.raises(SystemExit) as stopped:
        command.main(options)
    assert str(stopped.value).startswith(f"error: {said}")
    assert "\n" not in str(stopped.value)


def test_without_gradio_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr("lightning_utilities.core.imports.RequirementCache", lambda _: False)
    with pytest.raises(SystemExit, match=r"^error: gradio is not installed; pip install gradio$"):
        command.main([])


# the page


def test_the_page_decides_uploads_and_contacts_no_other_server(browser, demo, examples, tmp_path):
    files = {
        "broken.png": b"no image",
        "bomb.png": png_of(60000, 60000),
        "large.png": bytes(11 * 2**20),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    page = browser.new_page(viewport={"width": 360, "height": 780})
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on(
        "console", lambda message: wrong.append(message.text) if message.type == "error" else None
    )
    page.on(
        "request",
        lambda asked: (
            None if asked.url.startswith((demo, "data:", "blob:")) else wrong.append(asked.url)
        ),
    )
    page.goto(demo)
    page.wait_for_selector(".dg-empty")
    for file, word, text in (
        (examples["a 3"], "Accepted", "The classifier predicts 3."),
        (examples["a 4"], "Rejected", "the image comes back as something else."),
        (
            tmp_path / "broken.png",
            "Not processed",
            "broken.png: not an image in a supported format",
        ),
        (tmp_path / "bomb.png", "Not processed", "bomb.png: too many pixels"),
        (examples["a 5"], "Accepted", "The classifier predicts 5."),
    ):
        page.set_input_files("#dg-input input[type=file]", file)
        page.wait_for_selector(
            f".dg-verdict:has-text('{word}'):has-text('{text}')", timeout=SHOWN_IN
        )
        page.click("#dg-input button[aria-label='Remove Image']")
        page.wait_for_selector(".dg-empty", timeout=SHOWN_IN)
    assert wrong == []
    page.set_input_files("#dg-input input[type=file]", tmp_path / "large.png")
    page.wait_for_selector(
        ".toast-body:has-text('exceed the maximum allowed size of 10')", timeout=SHOWN_IN
    )
    page.click("#dg-examples button:has(img[alt='a 9'])")
    page.wait_for_selector(".dg-rejected .dg-pictures img.dg-small", timeout=SHOWN_IN)
    assert (
        page.locator(".dg-pictures img").first.evaluate(
            "img => getComputedStyle(img).imageRendering"
        )
        == "pixelated"
    )
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert not [asked for asked in wrong if "://" in asked and demo not in asked]
    page.close()
