"""A decision as HTML: the verdict in words, the images it rests on, and its score in context."""

import base64
import html
import io
from pathlib import Path

import numpy as np
from PIL import Image

from ..deploy.decisions import Decision, Decisions
from ..deploy.detector import Detector
from ..errors import InputError
from ..report.pictures import difference, to_image
from ..web.limits import DEFAULT_LIMITS, Limits
from .upload import read_upload

SMALL = 128
"""Images narrower than this, in pixels, are magnified without smoothing."""
BINS = 24

EMPTY = '<div class="dg-verdict dg-empty"><p>The verdict appears here.</p></div>'


def answer_html(
    detector: Detector,
    file: Path | None,
    name: str,
    invert: bool = False,
    limits: Limits = DEFAULT_LIMITS,
) -> str:
    """Return what the page shows for an upload: its verdict, or why there is none.

    Args:
        detector: Calibrated detector.
        file: Path of the upload; None without one.
        name: Name of the file on its owner's machine.
        invert: Whether to invert the colours. Defaults to False.
        limits: Limits on the upload.
    """
    if file is None:
        return EMPTY
    try:
        decisions = detector.predict(read_upload(file, name, invert, limits))
    except InputError as error:
        return (
            '<div class="dg-verdict dg-problem"><p class="dg-word">Not processed</p>'
            f"<p>{html.escape(str(error))}</p></div>"
        )
    return verdict_html(decisions, detector.calibration)


def verdict_html(decisions: Decisions, calibration: np.ndarray) -> str:
    """Return the verdict on the first image.

    Args:
        decisions: Decisions on images, with their reconstructions.
        calibration: Scores of the in-distribution images that set the threshold.
    """
    decision = next(iter(decisions))
    kind, word = ("accepted", "Accepted") if decision.accepted else ("rejected", "Rejected")
    label = html.escape(decision.label_name)
    return (
        f'<div class="dg-verdict dg-{kind}"><p class="dg-word">{word}</p>'
        f"<p>{_explanation(decision, label)}</p>"
        f'<div class="dg-pictures">{_panels(decisions, label)}</div>'
        f"{_facts(decision, decisions, calibration)}"
        f"{histogram(calibration, decision.score, decisions.threshold, kind)}</div>"
    )


def _explanation(decision: Decision, label: str) -> str:
    if not decision.diffused:
        sure = "it knows such images" if decision.accepted else "it has never seen such an image"
        return (
            f"The classifier predicts <b>{label}</b> and is sure that {sure}, so the diffusion "
            "model was skipped."
        )
    back = "almost unchanged" if decision.accepted else "as something else"
    return (
        f"The classifier predicts <b>{label}</b>. Reconstructed under that label, the image comes "
        f"back {back}."
    )


def _panels(decisions: Decisions, label: str) -> str:
    """Return the input, its reconstructions and their difference as figures."""
    assert decisions.images is not None
    panels = {"input": to_image(decisions.images[0])}
    if decisions.reconstructions is not None and decisions.diffused[0]:
        compared = "input"
        if decisions.unguided is not None:
            compared = "unguided"
            panels[compared] = to_image(decisions.unguided[0])
        reconstruction = to_image(decisions.reconstructions[0])
        panels[f"reconstructed as <b>{label}</b>"] = reconstruction
        panels["difference"] = difference(panels[compared], reconstruction)
    return "".join(
        f"<figure>{_img(image)}<figcaption>{caption}</figcaption></figure>"
        for caption, image in panels.items()
    )


def _img(image: Image.Image) -> str:
    """Return an image as an HTML element that contains its data."""
    content = io.BytesIO()
    image.save(content, format="png")
    data = base64.b64encode(content.getvalue()).decode()
    small = "class=dg-small " if image.width < SMALL else ""
    return f'<img {small}src="data:image/png;base64,{data}" alt="">'


def _facts(decision: Decision, decisions: Decisions, calibration: np.ndarray) -> str:
    """Return score, threshold and p-value as a list."""
    lower = int((calibration <= decision.score).sum())
    score_name = html.escape(decisions.score_name)
    facts = [
        ("Score", f"{score_name}, higher = more similar", f"{decision.score:.4g}"),
        ("Threshold", "images below it are rejected", f"{decisions.threshold:.4g}"),
        (
            "p-value",
            f"{lower} of {len(calibration)} known images score no higher",
            f"{decision.p_value:.2g}",
        ),
    ]
    rows = "".join(
        f"<div><dt>{name} <small>{remark}</small></dt><dd>{value}</dd></div>"
        for name, remark, value in facts
    )
    return f"<dl>{rows}</dl>"


def histogram(calibration: np.ndarray, score: float, threshold: float, kind: str) -> str:
    """Return the calibration scores, the threshold and an image's score as an SVG of any width.

    Args:
        calibration: Scores of the in-distribution images that set the threshold.
        score: Score of the image.
        threshold: Images whose score is below it are rejected.
        kind: ``accepted`` or ``rejected``, which sets the colour of the image's mark.

    Returns:
        HTML; empty if the score is not finite.
    """
    if not np.isfinite(score):
        return ""
    counts, edges = np.histogram(calibration[np.isfinite(calibration)], bins=BINS)

    # the axis, in percent of the width, has room for every mark
    low, high = min(edges[0], score, threshold), max(edges[-1], score, threshold)
    margin = 0.03 * (high - low or 1)

    def x(value: float) -> float:
        return 100 * (value - low + margin) / (high - low + 2 * margin)

    def text(value: float, y: int, content: str, style: str) -> str:
        # on the side of the mark that has more room
        anchor, shift = ("start", 6) if x(value) < 50 else ("end", -6)
        return (
            f'<text class="{style}" x="{x(value):.2f}%" dx="{shift}" y="{y}" '
            f'text-anchor="{anchor}">{content}</text>'
        )

    bars = ""
    heights = 72 * counts / counts.max()
    for left, right, height in zip(edges[:-1], edges[1:], heights, strict=True):
        if height:
            width = max(x(right) - x(left) - 0.15, 0.3)
            bars += (
                f'<rect x="{x(left):.2f}%" width="{width:.2f}%" y="{112 - height:.1f}" '
                f'height="{height:.1f}"/>'
            )

    at, cut = x(score), x(threshold)
    description = (
        f"Score {score:.4g}, threshold {threshold:.4g}, among the scores of {len(calibration)} "
        "known images"
    )
    return (
        '<figure class="dg-histogram">'
        f'<svg width="100%" height="134" role="img" aria-label="{description}">'
        f'<rect class="dg-zone" x="0" width="{cut:.2f}%" y="22" height="90"/>'
        f'<g class="dg-bars">{bars}</g>'
        '<line class="dg-axis" x1="0" x2="100%" y1="112" y2="112"/>'
        f'<line class="dg-cut" x1="{cut:.2f}%" x2="{cut:.2f}%" y1="22" y2="118"/>'
        f'<line class="dg-{kind}" x1="{at:.2f}%" x2="{at:.2f}%" y1="6" y2="112"/>'
        f'<circle class="dg-{kind}" cx="{at:.2f}%" cy="10" r="4"/>'
        f"{text(threshold, 130, 'threshold', 'dg-cut')}"
        f"{text(score, 14, 'this image', f'dg-{kind}')}</svg>"
        f"<figcaption>Scores of the {len(calibration)} known images that set the threshold"
        "</figcaption></figure>"
    )
