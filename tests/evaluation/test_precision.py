"""Networks in lower precision, arithmetic in float32; compiled networks."""

import pytest
import torch
import yaml
from helpers.golden import gdm_golden, ldm_golden
from helpers.results import scores_of
from pytorch_lightning.plugins.precision import MixedPrecision

import diffguard_pl
from diffguard_pl import DiffGuard
from diffguard_pl.backbones.base import compilable_blocks
from diffguard_pl.commands.evaluate import main
from diffguard_pl.datamodules.digits import digits, photos
from diffguard_pl.engine import reference
from diffguard_pl.scores.discrepancies import Seen

SMALL = [
    "--data.limit",
    "3",
    "--pictures.count",
    "0",
    "--page.enabled",
    "false",
    "--trainer.default_root_dir",
]
HALF = [torch.bfloat16, torch.float16]


def images() -> torch.Tensor:
    return torch.cat([digits("test").images[:4], photos().images[:4]])


@pytest.fixture(scope="module")
def exact(tmp_path_factory) -> dict[str, list[dict]]:
    folder = tmp_path_factory.mktemp("exact")
    for name in ("digits_gdm", "digits_ldm"):
        main(["--config", name, *SMALL, str(folder / name)])
    return {name: scores_of(folder / name) for name in ("digits_gdm", "digits_ldm")}


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("digits_gdm", "bf16-mixed"),
        ("digits_ldm", "bf16-true"),
        pytest.param("digits_gdm", "bf16-true", marks=pytest.mark.slow),
        pytest.param("digits_ldm", "bf16-mixed", marks=pytest.mark.slow),
    ],
)
def test_the_command_in_every_precision(name, precision, exact, tmp_path):
    main(["--config", name, *SMALL, str(tmp_path / "run"), "--trainer.precision", precision])
    found = scores_of(tmp_path / "run")
    assert (
        yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["trainer"]["precision"]
        == precision
    )
    score = "kl" if name == "digits_gdm" else "maps"
    drift = [abs(row[score] - other[score]) for row, other in zip(found, exact[name], strict=True)]
    assert 0 < sorted(drift)[len(drift) // 2] < 0.05  # it is another precision, and near
    assert [row["prediction"] for row in found] == [row["prediction"] for row in exact[name]]


def test_half_precision_of_lightnings_own_plugin_on_a_cpu(exact, tmp_path):
    """``16-mixed`` on a CPU, where Lightning takes bf16 if asked by name."""
    rows = exact["digits_ldm"][:3]
    indices = [row["index"] for row in rows]
    module = MixedPrecision("16-mixed", "cpu")
    with module.forward_context():
        detector = diffguard_pl.load("digits_ldm")
        scores = detector(digits("test").images[indices]).scores["maps"]
    expected = [row["maps"] for row in rows]
    assert 0 < (scores - torch.tensor(expected)).abs().max() < 1e-2


@pytest.mark.parametrize(
    ("family", "mixed"),
    [
        ("ldm", True),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (("ldm", False), ("gdm", True), ("gdm", False))
        ),
    ],
)
def test_states_levels_and_scores_are_float32(family, mixed):
    dtype = torch.bfloat16
    golden = gdm_golden("smooth_early_stop") if family == "gdm" else ldm_golden("masked")
    detector, steps = golden.diffguard, []
    # half precision is slow on a CPU
    images, labels = golden.images[:1], golden.labels[:1]
    if not mixed:
        detector.networks_to(dtype)
        assert (
            {p.dtype for p in detector.backbone.parameters()}
            == {p.dtype for p in detector.classifier.parameters()}
            == {dtype}
        )
    with torch.autocast("cpu", dtype, enabled=mixed):
        detection = reference.detect(
            detector,
            images,
            labels,
            {"inversion": steps.append, "denoising": steps.append},
        )
        engine = detector(images, labels)
    assert {part.dtype for step in steps for part in (step.x, step.eps)} == {torch.float32}
    assert {scores.dtype for scores in (detection.scores | engine.scores).values()} == {
        torch.float32
    }
    assert {d.reconstructions.dtype for d in (detection, engine)} == {torch.float32}
    expected = (golden.tensors["recon"][:1] + 1) / 2
    if family == "gdm":
        expected = expected[:, 0]
    error = detection.reconstructions - expected.clamp(0, 1).view_as(detection.reconstructions)
    assert error.abs().median() < 0.05


def test_an_image_reaches_a_classifier_in_half_precision_unrounded():
    detector = diffguard_pl.load("digits_gdm")
    classifier, seen = detector.classifier, []
    detector.networks_to(torch.bfloat16)
    classifier.model.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    classifier(images())
    assert torch.equal(seen[0], ((images() - 0.5) / 0.5).bfloat16())
    assert classifier.mean.dtype == torch.float32


@pytest.mark.parametrize("dtype", HALF)
def test_discrepancies_do_not_feel_autocast(dtype):
    detector = diffguard_pl.load("digits_gdm")
    views = [Seen.of(part, detector.classifier.view(part)) for part in images().split(4)]
    expected = detector.discrepancies(*views)
    with torch.autocast("cpu", dtype):
        found = detector.discrepancies(*views)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


# ----------------------------------------------------------------------------------------- compiled


@pytest.fixture
def eager_backend(monkeypatch) -> None:
    """All of torch.compile but for the code that it generates, which takes a minute."""
    original = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module,
        "compile",
        lambda self, **settings: original(self, backend="eager", **settings),
    )


@pytest.mark.parametrize("name", [pytest.param("digits_gdm", marks=pytest.mark.slow), "digits_ldm"])
def test_compiled_blocks_give_the_same_scores_and_compile_once(name, eager_backend):
    torch._dynamo.reset()
    plain, compiled = (diffguard_pl.load(name, slots=16, compile=c) for c in (False, True))
    found = compilable_blocks(compiled.backbone.denoiser)
    inside = sum(p.numel() for block in found for p in block.parameters())
    assert len(found) > 10
    assert inside > 0.9 * sum(p.numel() for p in compiled.backbone.denoiser.parameters())
    with torch.no_grad():
        compiled(images())
        torch._dynamo.config.error_on_recompile = True
        try:
            again = compiled(images()[:5])  # batches of another size
            reference.detect(compiled, images()[:3])
        finally:
            torch._dynamo.config.error_on_recompile = False
    for score, values in plain(images()[:5]).scores.items():
        torch.testing.assert_close(again.scores[score], values, atol=1e-4, rtol=1e-4)
    torch._dynamo.reset()


def test_a_network_without_such_blocks_is_compiled_as_a_whole():
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1))
    assert compilable_blocks(network) == [network]


def test_slots_and_compilation_may_change_when_a_run_goes_on(tmp_path):
    main([*SMALL, str(tmp_path / "run"), "--model.steps", "5"])
    before = scores_of(tmp_path / "run")
    for part in list((tmp_path / "run" / "scores").glob("part-*"))[:1]:
        part.unlink()
    main(["--resume", str(tmp_path / "run"), "--model.slots", "7"])
    after = scores_of(tmp_path / "run")
    assert [row["maps"] for row in after] == pytest.approx(
        [row["maps"] for row in before], abs=1e-5
    )


def test_load_gives_a_detector_in_float32(digits_ldm):
    assert isinstance(digits_ldm, DiffGuard)
    assert {p.dtype for p in digits_ldm.parameters()} == {torch.float32}
