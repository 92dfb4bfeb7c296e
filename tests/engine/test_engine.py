"""Continuous batching gives the results of the plain loops, in full batches and bounded memory."""

from typing import NamedTuple

import pytest
import torch
from helpers.golden import GDM_ARCHITECTURE, REFERENCE, gdm_golden, ldm_golden, squeezenet
from helpers.streams import changed, cheap_diffguard, streamed
from torch import Tensor

import diffguard_pl
from diffguard_pl import Classifier, DiffGuard
from diffguard_pl.backbones import PixelDiffusion
from diffguard_pl.datamodules.digits import digits, held_out, letters, photos
from diffguard_pl.diffusion.classifier_free_guidance import ClassifierFreeGuidance
from diffguard_pl.diffusion.classifier_guidance import ClassifierGuidance
from diffguard_pl.engine import engine, reference
from diffguard_pl.engine.trajectory import Request
from diffguard_pl.stages import Detection

# In float64: a row has the same result in any batch but for rounding, of which little is left.


@pytest.fixture(scope="module")
def some_digits() -> Tensor:
    datasets = (digits("test"), held_out(), photos(), letters())
    return torch.cat([data.images[:2] for data in datasets]).double()


@pytest.fixture(scope="module")
def digits_gdm() -> DiffGuard:
    return diffguard_pl.load("digits_gdm").double()


@pytest.fixture(scope="module")
def digits_ldm() -> DiffGuard:
    return diffguard_pl.load("digits_ldm").double()


# ------------------------------------------------------------- the same results as plain loops


class Plain(NamedTuple):
    """Result of the plain loops, and the network evaluations that they took."""

    detection: Detection
    nfe: int


def plain_loops(diffguard: DiffGuard, images: Tensor, labels: Tensor | None = None) -> Plain:
    before = diffguard.nfe
    detection = reference.detect(diffguard, images, labels)
    return Plain(detection, diffguard.nfe - before)


def assert_same_as_reference(
    diffguard: DiffGuard,
    images: Tensor,
    batch: int,
    defer_stop_check: bool,
    labels: Tensor | None = None,
    plain: Plain | None = None,
) -> None:
    """Compare stop indices, scores and the network evaluations of the two."""
    expected, plain_nfe = plain or plain_loops(diffguard, images, labels)
    before = diffguard.nfe
    found = streamed(diffguard, images, batch, defer_stop_check, labels)
    assert torch.equal(torch.cat([d.stop_index for d in found]), expected.stop_index)
    reconstructions = torch.cat([d.reconstructions for d in found])
    torch.testing.assert_close(reconstructions, expected.reconstructions, atol=1e-9, rtol=0)
    for name in diffguard.discrepancies.names:
        scores = torch.cat([d.scores[name] for d in found])
        torch.testing.assert_close(scores, expected.scores[name], atol=1e-9, rtol=0)

    if expected.path is not None:
        path = torch.cat([d.path.values for d in found])
        torch.testing.assert_close(path, expected.path.values, atol=1e-9, rtol=1e-9, equal_nan=True)

    # The NFE of each image add up, and shared steps only ever save some.
    nfe = sum(int(d.nfe.sum()) for d in found)
    assert nfe == diffguard.nfe - before
    assert nfe <= plain_nfe


@pytest.fixture(scope="module")
def gdm_plain(digits_gdm, some_digits) -> dict[int, Plain]:
    """Results of the plain loops on every, and on every fourth of the digits."""
    return {every: plain_loops(digits_gdm, some_digits[::every]) for every in (1, 4)}


@pytest.mark.parametrize(
    ("slots", "batch", "defer_stop_check"),
    [
        (1, 8, False),
        (3, 5, True),
        (64, 3, False),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in ((1, 8, True), (3, 5, False), (64, 3, True))
        ),
    ],
)
def test_gdm_with_early_stop(digits_gdm, gdm_plain, some_digits, slots, batch, defer_stop_check):
    every = 4 if slots == 1 else 1
    plain = gdm_plain[every]
    with changed(digits_gdm, slots=slots):
        images = some_digits[::every]
        assert_same_as_reference(digits_gdm, images, batch, defer_stop_check, plain=plain)


@pytest.mark.parametrize(("slots", "batch"), [(3, 4), pytest.param(64, 3, marks=pytest.mark.slow)])
def test_ldm(digits_ldm, some_digits, slots, batch):
    with changed(digits_ldm, slots=slots):
        assert_same_as_reference(digits_ldm, some_digits[::2], batch, defer_stop_check=False)


@pytest.mark.parametrize(
    "run",
    [
        "early_stop",
        "no_x0hat",
        *(
            pytest.param(run, marks=pytest.mark.slow)
            for run in ("plain", "smooth", "smooth_early_stop", "no_cutouts")
        ),
    ],
)
def test_the_golden_gdm_runs(run):
    golden = gdm_golden(run, torch.float64)
    with changed(golden.diffguard, slots=4):
        assert_same_as_reference(golden.diffguard, golden.images, 2, True, golden.labels)


@pytest.mark.parametrize(
    ("run", "compare_to"),
    [
        ("masked", "unguided"),
        ("guided_inversion", "input"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ("masked", "input"),
                ("guided_inversion", "unguided"),
                ("inverse_mask", "input"),
                ("inverse_mask", "unguided"),
                ("unmasked", "input"),
                ("unmasked", "unguided"),
            )
        ),
    ],
)
def test_the_golden_ldm_runs(run, compare_to):
    golden = ldm_golden(run, torch.float64)
    with changed(golden.diffguard, slots=5, compare_to=compare_to):
        assert_same_as_reference(golden.diffguard, golden.images, 2, False, golden.labels)


@pytest.mark.parametrize("family", ["gdm", "ldm"])
def test_the_statistics_of_the_path(family, some_digits, digits_gdm, digits_ldm):
    diffguard = digits_gdm if family == "gdm" else digits_ldm
    with changed(diffguard, slots=7, compare_to="unguided", path_steps=5, pull_steps=[1, 4]):
        assert_same_as_reference(diffguard, some_digits[::3], 2, defer_stop_check=True)


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_the_pull_is_measured_in_a_conditional_inversion_too(scale, some_digits, digits_ldm):
    guidance = ClassifierFreeGuidance(1.0, inversion_label=True, inversion_scale=scale)
    with changed(digits_ldm, guidance, slots=3, path_steps=5, pull_steps=[0, 2]):
        assert_same_as_reference(digits_ldm, some_digits[::4], 2, defer_stop_check=False)


def test_at_scale_one_the_network_is_conditional_and_not_guided(some_digits, digits_ldm):
    guidance = ClassifierFreeGuidance(1.0, inversion_label=True)
    with changed(digits_ldm, guidance, slots=7, compare_to="unguided"):
        assert_same_as_reference(digits_ldm, some_digits[::3], 4, defer_stop_check=False)


@pytest.mark.parametrize(
    "interval",
    [(0.0, 0.4), (0.3, 0.7), pytest.param((0.6, 1.0), marks=pytest.mark.slow), (1.0, 1.0)],
)
@pytest.mark.parametrize("family", ["gdm", "ldm"])
def test_guidance_in_an_interval_of_timesteps(
    family, interval, some_digits, digits_gdm, digits_ldm
):
    diffguard, above = (digits_gdm, 15) if family == "gdm" else (digits_ldm, 0)
    with changed(diffguard, slots=7, compare_to="unguided", forback_skip_diff=above):
        try:
            diffguard.guidance.interval = interval
            assert_same_as_reference(diffguard, some_digits[::6], 4, defer_stop_check=True)
            detection = diffguard(some_digits[:2])
        finally:
            diffguard.guidance.interval = (0.0, 1.0)
    is_unguided = torch.equal(detection.reconstructions, detection.unguided)
    if interval[1] < 0.5:
        assert not is_unguided
    if interval[0] == 1.0:
        assert is_unguided


def test_a_score_depends_neither_on_the_batch_nor_on_the_order(digits_gdm, some_digits):
    order = torch.randperm(len(some_digits), generator=torch.Generator().manual_seed(0))
    one = torch.cat([d.scores["kl"] for d in streamed(digits_gdm, some_digits, 8)])
    other = torch.cat([d.scores["kl"] for d in streamed(digits_gdm, some_digits[order], 13, True)])
    torch.testing.assert_close(other, one[order], atol=1e-9, rtol=0)


# ---------------------------------------------------------------------- network evaluations


def test_steps_before_guidance_begins_serve_both_reconstructions(digits_ldm, some_digits):
    images = some_digits[:4]
    with changed(digits_ldm, compare_to="unguided"):
        try:
            digits_ldm.guidance.interval = (0.0, 0.35)  # 1, 101, 201 and 301 of 1000
            before = digits_ldm.nfe
            digits_ldm(images)
        finally:
            digits_ldm.guidance.interval = (0.0, 1.0)
    # 10 inversion steps, and 6 denoising steps for both reconstructions. The first guided step
    # (2 NFE) serves both as well; 3 more take 2 NFE with guidance and 1 without.
    assert digits_ldm.nfe - before == 4 * (10 + 6 + 2 + 3 * 3)


# ------------------------------------------------------------ full batches and bounded memory


@pytest.mark.parametrize("defer_stop_check", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_batches_are_full_and_memory_is_bounded_by_the_slots(defer_stop_check):
    diffguard = cheap_diffguard(
        compare_to="unguided", early_stop={"psnr": 55.0}, forback_skip_diff=2
    )
    images = torch.cat([data.images for data in (digits("test"), held_out())])[:500]
    stream, stops, in_flight, pending = diffguard.stream(), [], [], []
    stream.engine.defer_stop_check = defer_stop_check

    def look():
        in_flight.append(len({(id(t.request), t.image) for t in stream.engine.active}))
        pending.append(sum(len(request.x) for request in stream.engine.requests))

    stream.engine.before_pass = look
    for batch in images.split(50):
        stops += [d.stop_index for _, d in stream.push(batch)]
    stops = torch.cat([*stops, *(d.stop_index for _, d in stream.drain())])
    assert len(stops) == 500
    assert len(set(stops.tolist())) >= 4  # else there is nothing to fill up

    # Inversion, and two reconstructions that share their first step.
    batch_sizes = diffguard.backbone.batch_sizes
    assert stream.engine.nfe == sum(batch_sizes)
    assert stream.engine.nfe == (stops + 1).sum() + 2 * (stops + 2).sum() - 500
    assert stream.engine.utilisation > 0.95
    assert set(batch_sizes[: stream.engine.passes // 2]) == {64}

    assert max(in_flight) <= 2 * 64 + 1
    assert max(pending) <= 4 * 64 + 2 * 50
    assert stream.engine.states.size <= 4 * 64 + 2


def test_results_do_not_pile_up_behind_an_image_that_takes_long():
    """One image takes all of 100 steps, the others stop at once."""
    diffguard = cheap_diffguard(steps=100, early_stop={"psnr": 70.0}, forback_skip_diff=2, slots=4)
    images = digits("test").images[:120].clone()
    images[0] = 0.5  # without contrast this network sees no noise in it
    stream, found, pending = diffguard.stream(), [], []
    for i, batch in enumerate(images.split(4)):
        found += stream.push(batch, tag=i)
        pending.append(sum(len(request.x) for request in stream.engine.requests))
    found += stream.drain()
    assert [tag for tag, _ in found] == list(range(30))
    stops = torch.cat([d.stop_index for _, d in found])
    assert stops[0] > 6 * stops[1:].max()
    assert max(pending) <= (engine.MAX_PENDING_PER_SLOT + 1) * 4


# ------------------------------------------------------------------------------ no device sync


class NeverRead(engine.AsyncFlags):
    """Flags on a device that must not be read; about every eighth image stops."""

    def wait(self) -> list[bool]:
        return [i % 8 == 0 for i in range(len(self.flags))]


@pytest.mark.parametrize("family", ["gdm", "ldm"])
def test_no_pass_waits_for_the_device(family, monkeypatch):
    """On the meta device every look at a value is an error."""
    monkeypatch.setattr(engine, "AsyncFlags", NeverRead)
    if family == "gdm":
        backbone = PixelDiffusion(str(REFERENCE / "gdm_unet.pt"), GDM_ARCHITECTURE, input_size=28)
        guidance = ClassifierGuidance(cutouts=2, cutout_size=24)
        settings = {"early_stop": {"psnr": 48.0}, "forback_skip_diff": 2, "compare_to": "unguided"}
    else:
        backbone = ldm_golden("masked").diffguard.backbone
        guidance, settings = ClassifierFreeGuidance(cam_cut=0.3), {}
    classifier = Classifier(squeezenet(), input_size=backbone.input_size)
    diffguard = DiffGuard(classifier, backbone, guidance, 8, ["l2"], slots=4, **settings).to("meta")
    classifier.logits_at_any_size(
        torch.rand(1, 3, backbone.image_size, backbone.image_size, device="meta")
    )

    size = backbone.input_size
    x = backbone.encode(torch.empty(6, 3, size, size, device="meta"))
    mask = None
    if family == "ldm":
        mask = torch.empty(6, 1, *x.shape[-2:], dtype=torch.bool, device="meta")
    request = Request(x, torch.empty(6, dtype=torch.long, device="meta"), mask)
    running = engine.Engine(diffguard.sampler(), diffguard.slots)
    running.submit(request)
    with torch.no_grad():
        assert running.run(drain=True) == [request]
    assert running.passes > 8
