"""A decision on one image as a piece of HTML: the verdict in words, the pictures that it rests on, where its score stands."""

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
from .upload import USUAL, Limits, read_upload

SMALL = 128
"""Pictures of fewer pixels a side are shown with square pixels."""
BINS = 24

EMPTY = '<div class="dg-verdict dg-empty"><p>The verdict appears here.</p></div>'


def answer(
    detector: Detector, file: Path | None, name: str, invert: bool = False, limits: Limits = USUAL
) -> str:
    """What the page shows for an uploaded file: the verdict on it, or why there is none."""
    if file is None:
        return EMPTY
    try:
        decisions = detector.predict(read_upload(file, name, invert, limits))
    except InputError as error:
        return f'<div class="dg-verdict dg-problem"><p class="dg-word">Not looked at</p><p>{html.escape(str(error))}</p></div>'
    return verdict(decisions, detector.calibration)


def verdict(decisions: Decisions, calibration: np.ndarray) -> str:
    """The first of the decisions.

    Args:
        decisions: on images, with their reconstructions.
        calibration: scores of the in-distribution images that set the threshold.
    """
    decision = next(iter(decisions))
    kind, word = ("accepted", "Accepted") if decision.accepted else ("rejected", "Rejected")
    label = html.escape(decision.label_name)
    lower = int((calibration <= decision.score).sum())
    facts = {
        f"Score <small>{html.escape(decisions.score_name)}, higher is more alike</small>": f"{decision.score:.4g}",
        "Threshold <small>below it an image is rejected</small>": f"{decisions.threshold:.4g}",
        f"p-value <small>{lower} of {len(calibration)} known images score no higher</small>": f"{decision.p_value:.2g}",
    }
    rows = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts.items())
    return (
        f'<div class="dg-verdict dg-{kind}"><p class="dg-word">{word}</p><p>{_in_words(decision, label)}</p>'
        f'<div class="dg-pictures">{_pictures(decisions, label)}</div><dl>{rows}</dl>'
        f"{histogram(calibration, decision.score, decisions.threshold, kind)}</div>"
    )


def _in_words(decision: Decision, label: str) -> str:
    says = f"The classifier says <b>{label}</b>"
    if not decision.diffused:
        sure = "it knows such images" if decision.accepted else "it has never seen such an image"
        return f"{says}, and is sure that {sure}: the diffusion model was not asked."
    back = "as it was" if decision.accepted else "as something else"
    return f"{says}. Reconstructed under that label, the image comes back {back}."


def _pictures(decisions: Decisions, label: str) -> str:
    assert decisions.images is not None
    panels = {"input": to_image(decisions.images[0].cpu())}
    if decisions.reconstructions is not None and decisions.diffused[0]:
        if decisions.unguided is not None:
            panels["without a label"] = to_image(decisions.unguided[0].cpu())
        panels[f"under label <b>{label}</b>"] = to_image(decisions.reconstructions[0].cpu())
        panels["difference"] = difference(*list(panels.values())[-2:])
    return "".join(
        f"<figure>{_tag(panel)}<figcaption>{name}</figcaption></figure>"
        for name, panel in panels.items()
    )


def _tag(image: Image.Image) -> str:
    content = io.BytesIO()
    image.save(content, format="png")
    data = base64.b64encode(content.getvalue()).decode()
    return f'<img {"class=dg-small " if image.width < SMALL else ""}src="data:image/png;base64,{data}" alt="">'


def histogram(calibration: np.ndarray, score: float, threshold: float, kind: str) -> str:
    """Scores of the calibration images, the threshold and this image's score, as an SVG of any width.

    Args:
        calibration: scores.
        score: of this image.
        threshold: below it an image is rejected.
        kind: ``accepted`` or ``rejected``: the colour of the mark.
    """
    if not np.isfinite(score):
        return ""
    counts, edges = np.histogram(calibration[np.isfinite(calibration)], bins=BINS)
    low, high = min(edges[0], score, threshold), max(edges[-1], score, threshold)
    margin = 0.03 * (high - low or 1)

    def x(value: float) -> float:
        return 100 * (value - low + margin) / (high - low + 2 * margin)

    def text(value: float, y: int, said: str, of: str) -> str:
        place = x(value)
        anchor, shift = ("start", 6) if place < 50 else ("end", -6)
        return f'<text class="{of}" x="{place:.2f}%" dx="{shift}" y="{y}" text-anchor="{anchor}">{said}</text>'

    heights = 72 * counts / counts.max()
    bars = "".join(
        f'<rect x="{x(left):.2f}%" width="{max(x(right) - x(left) - 0.15, 0.3):.2f}%" y="{112 - tall:.1f}" height="{tall:.1f}"/>'
        for left, right, tall in zip(edges[:-1], edges[1:], heights, strict=True)
        if tall
    )
    at, cut = x(score), x(threshold)
    said = f"Score {score:.4g}, threshold {threshold:.4g}, among the scores of {len(calibration)} known images"
    return (
        f'<figure class="dg-histogram"><svg width="100%" height="134" role="img" aria-label="{said}">'
        f'<rect class="dg-zone" x="0" width="{cut:.2f}%" y="22" height="90"/><g class="dg-bars">{bars}</g>'
        f'<line class="dg-axis" x1="0" x2="100%" y1="112" y2="112"/>'
        f'<line class="dg-cut" x1="{cut:.2f}%" x2="{cut:.2f}%" y1="22" y2="118"/>'
        f'<line class="dg-{kind}" x1="{at:.2f}%" x2="{at:.2f}%" y1="6" y2="112"/>'
        f'<circle class="dg-{kind}" cx="{at:.2f}%" cy="10" r="4"/>'
        f"{text(threshold, 130, 'threshold', 'dg-cut')}{text(score, 14, 'this image', f'dg-{kind}')}</svg>"
        f"<figcaption>Scores of the {len(calibration)} known images that set the threshold</figcaption></figure>"
    )
