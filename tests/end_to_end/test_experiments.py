"""Every shipped experiment runs, with small data and diffusion models and the real classifier."""

import csv
import math
from pathlib import Path

import pytest
import torch
import yaml
from diffusers import DiTPipeline
from helpers import ROOT
from helpers.golden import REFERENCE
from PIL import Image

from diffguard_pl.backbones import DDPMArchitecture
from diffguard_pl.checkpoints.converted import architecture_record, parse_architecture
from diffguard_pl.checkpoints.registry import PUBLISHED
from diffguard_pl.commands import analyze
from diffguard_pl.config import config_names, find_config, load_data, with_bases
from diffguard_pl.errors import InputError
from diffguard_pl.evaluation.noise_accuracy import VARIANTS
from diffguard_pl.metrics.noise_accuracy import VOTES

EXPERIMENTS = [name for name in config_names() if not name.startswith("sweeps/")]
ELSEWHERE = ("analysis/", "backbones/", "fast/", "small/", "wandb", "openood/")
IMAGENET = [
    name
    for name in EXPERIMENTS
    if not name.startswith(ELSEWHERE)
    and not name.removeprefix("combine/").startswith(("digits", "fashion"))
    and "cifar10" not in name
]

EXAMPLES = ("gdm", "ldm", "combine/ldm", "oracle/ldm")
"""Of these, the others differ in few settings, all of which other tests try or compare."""
OF_TABLE_2 = {
    "combine/gdm_knn": ("knn", "{knn: {K: 2}}"),
    "combine/gdm_vim": ("vim", "{vim: {dim: 1}}"),
    "combine/gdm_max_logit": ("max_logit", "[max_logit]"),
    "combine/ldm_vim": ("vim", "{vim: {dim: 1}}"),
    "combine/ldm_max_logit": ("max_logit", "[max_logit]"),
}
"""The paper's combinations: their baseline, with settings for two training images."""


def small(name: str) -> str:
    """The override that scales an experiment to this machine."""
    return "small/gdm" if "gdm" in name or name.startswith("early_stop/") else "small/ldm"


@pytest.mark.parametrize(
    "name",
    [
        name if name in EXAMPLES else pytest.param(name, marks=pytest.mark.slow)
        for name in IMAGENET
        if name not in ("dit", *OF_TABLE_2) and not name.startswith("early_stop/")
    ],
)
def test_an_experiment_runs_two_batches_of_each_set(name, run):
    datasets = ["imagenet", "species", "inaturalist", "openimage_o", "imagenet_o"]
    # Apart from these, experiments differ from gdm and ldm in the model alone.
    few = name != "ldm"
    only = ["--data.only", "[species]"] if few else []
    datasets = datasets[:2] if few else datasets
    quick = ["--data.batch_size", "1", "--model.steps", "3"]
    rows = run("--config", name, "--config", small(name), *quick, *only)
    if name.startswith("combine"):
        datasets.insert(1, "calibration")
        assert all(math.isfinite(row["scale"]) for row in rows)
    assert [row["dataset"] for row in rows] == [dataset for dataset in datasets for _ in range(2)]
    assert all(math.isfinite(float(row["dists"])) and row["error"] is None for row in rows)
    if name.startswith("oracle"):
        assert [row["reconstructed_as"] for row in rows[:2]] == [0, 1]
        assert len({row["reconstructed_as"] for row in rows}) == 4  # of others, random ones


def test_a_config_of_table_4_stops_by_its_thresholds_alone(run, tmp_path):
    """``early_stop`` replaces that of ``gdm``, whose thresholds would stop images, too.

    The other configs of Table 4 differ in the thresholds alone.
    """
    few = ["--data.batch_size", "1", "--data.only", "[species]", "--model.guidance.cutouts", "1"]
    rows = run("--config", "early_stop/dists_0_39", "--config", "small/gdm", *few)
    assert [row["dataset"] for row in rows] == ["imagenet"] * 2 + ["species"] * 2
    assert all(math.isfinite(row[score]) for row in rows for score in ("dists", "gmsd", "l2"))
    (saved,) = tmp_path.glob("runs/**/config.yaml")
    model = yaml.safe_load(saved.read_text())["model"]
    assert model["early_stop"] == {"dists": 0.39}
    assert model["discrepancies"] == ["dists", "gmsd", "l2"]


def test_images_become_smaller_as_in_the_paper_s_environment():
    """Its torchvision resizes tensors without antialiasing."""
    backbones = [resolved(name)["backbone"]["init_args"] for name in IMAGENET]
    pixel = [settings for settings in backbones if settings["checkpoint"] == "gdm-imagenet256"]
    assert len(pixel) > 5
    assert {settings.get("antialias") for settings in pixel} == {False}
    # LDM's images have the model's size.
    assert resolved("ldm")["classifier"]["input_size"] == 256
    assert "input_size" not in resolved("ldm")["backbone"]["init_args"]


@pytest.mark.parametrize("name", OF_TABLE_2)
def test_a_combination_of_the_paper_is_a_cascade_of_gdm_or_ldm(name):
    baseline, _ = OF_TABLE_2[name]
    settings = resolved(name)
    assert settings["cascade"] == {"baseline": baseline, "budget": 0.5, "then": "dists"}
    assert {"energy", "max_logit", baseline} == set(settings["baselines"])
    base = resolved(name.removeprefix("combine/").partition("_")[0])
    assert {key: settings[key] for key in base} == base  # all else is GDM's or LDM's


@pytest.mark.parametrize(
    "name",
    [
        name if name == "combine/ldm_vim" else pytest.param(name, marks=pytest.mark.slow)
        for name in OF_TABLE_2
    ],
)
def test_a_combination_of_the_paper_runs_two_batches_of_each_set(name, run, tmp_path):
    baseline, small_baseline = OF_TABLE_2[name]
    rows = run(
        "--config", name, "--config", small(name), "--model.baselines", small_baseline,
        "--model.discrepancies", "[dists]", "--data.batch_size", "1",
        "--data.only", "[species, imagenet_o]", "--page.enabled", "false",
        "--data.calibration_list", "calibrated.txt", "--data.train_list", "fitted.txt",
    )  # fmt: skip
    datasets = ["imagenet", "calibration", "species", "imagenet_o"]
    assert [row["dataset"] for row in rows] == [dataset for dataset in datasets for _ in range(2)]
    assert all(math.isfinite(row[baseline]) and math.isfinite(row["dists"]) for row in rows)
    (table,) = tmp_path.glob("runs/**/metrics.csv")
    lines = {(line["dataset"], line["score"]): line for line in csv.DictReader(table.open())}
    each = [float(lines[dataset, "cascade"]["auroc"]) for dataset in datasets[2:]]
    assert float(lines["average", "cascade"]["auroc"]) == pytest.approx(sum(each) / 2)


def test_the_settings_are_those_of_the_original(monkeypatch, torch_home):
    """The rows of the original's experiments, by what they change."""
    settings = {name: resolved(name) for name in IMAGENET}
    gdm, ldm = settings["gdm"], settings["ldm"]
    assert (gdm["steps"], gdm["early_stop_steps"], gdm["forback_skip_diff"]) == (100, 10, 3)
    assert gdm["early_stop"] == {"psnr": 48.5, "dists": 0.38}
    assert gdm["compare_to"] == "unguided"
    assert gdm["guidance"]["init_args"] == {"scale": 3.0, "cutouts": 8, "cutout_size": 224}
    assert ldm["steps"] == 25
    assert ldm["guidance"]["init_args"] == {"scale": 10.0, "cam_cut": 0.3}
    assert ldm["classifier"]["input_size"] == 256
    assert gdm["classifier"]["weights"] == ldm["classifier"]["weights"] == "IMAGENET1K_V1"
    changes = {
        "oracle/gdm": {"oracle": "all"},
        "oracle/ldm": {"oracle": "all", "guidance": {"cam_cut": None}},
        "speed/gdm": {
            "early_stop_steps": 40,
            "early_stop": None,
            "compare_to": "input",
            "discrepancies": ["dists"],
        },
        "speed/ldm_5": {"steps": 5, "discrepancies": ["dists"]},
        "speed/ldm_25": {"discrepancies": ["dists"]},
        "ablation/gdm_no_x0hat_no_cutouts": {"guidance": {"x0hat": False, "cutouts": 0}},
        "ablation/gdm_cutouts_only": {"guidance": {"x0hat": False}},
        "ablation/gdm_x0hat_only": {"guidance": {"cutouts": 0}},
    }
    # Table 4: 5.89 and 6.39 dB of images in [0, 1] are 48.0 and 48.5 dB with a peak of 255.
    table_4 = {
        "early_stop/psnr_5_89": {"psnr": 48.0},
        "early_stop/psnr_6_39": {"psnr": 48.5},
        "early_stop/dists_0_39": {"dists": 0.39},
        "early_stop/dists_0_37": {"dists": 0.37},
        "early_stop/psnr_6_39_dists_0_37": {"psnr": 48.5, "dists": 0.37},
    }
    for name, thresholds in table_4.items():
        changes[name] = {"early_stop": thresholds, "discrepancies": ["dists", "gmsd", "l2"]}
    for name, change in changes.items():
        base = ldm if "ldm" in name else gdm
        guidance = base["guidance"] | {
            "init_args": base["guidance"]["init_args"] | change.pop("guidance", {})
        }
        assert settings[name] == base | {"guidance": guidance} | change, name


def resolved(name: str) -> dict:
    """``model`` of a config and those that it builds on, merged."""
    merged: dict = {}
    for file in with_bases(name):
        for key, value in yaml.safe_load(file.read_text()).get("model", {}).items():
            if key == "guidance" and key in merged:
                value = (
                    merged[key]
                    | value
                    | {"init_args": merged[key]["init_args"] | value.get("init_args", {})}
                )
            merged[key] = value
    return merged


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_config_says_what_it_reproduces_and_stays_short(name):
    text = find_config(name).read_text()
    assert text.startswith("# ")
    assert len(text.splitlines()) <= 45


def test_the_readme_s_gdm_command_on_an_original_format_checkpoint(run, tmp_path):
    checkpoint = [
        "--model.backbone.checkpoint",
        str(REFERENCE / "gdm_unet.pt"),
        "--model.steps",
        "2",
        "--model.guidance.cutouts",
        "2",
    ]
    sizes = [
        "--model.backbone.input_size",
        "224",
        "--model.classifier.input_size",
        "224",
        "--data.image_size",
        "224",
    ]
    quick = [
        "--data.resize",
        "256",
        "--data.batch_size",
        "1",
        "--data.only",
        "[species]",
        "--data.limit",
        "1",
    ]
    rows = run("--config", "gdm.yaml", "--config", "small/gdm", *checkpoint, *sizes, *quick)
    assert len(rows) == 2
    assert {row["group"] for row in rows} == {"ind", "near"}
    assert_drawn(tmp_path)


def test_the_readme_s_ldm_command_on_an_original_format_checkpoint(run, tmp_path):
    rows = run(
        "--config",
        "ldm.yaml",
        "--config",
        "small/ldm",
        "--model.backbone.checkpoint",
        str(REFERENCE / "ldm_model.ckpt"),
    )
    assert len(rows) == 20
    assert {row["group"] for row in rows} == {"ind", "near"}
    assert_drawn(tmp_path)


@pytest.fixture(scope="module")
def cifar_classifier(tmp_path_factory) -> list[str]:
    """Settings of OpenOOD's classifier for CIFAR-10, with random weights."""
    (file,) = cifar_checkpoints(tmp_path_factory.mktemp("openood"), 1)
    return ["--model.classifier.checkpoint", file]


def cifar_checkpoints(folder: Path, count: int) -> list[str]:
    """Write checkpoints of OpenOOD's classifier for CIFAR-10, with random weights."""
    from diffguard_pl.classifiers.resnets import ResNet18_32x32

    files = [str(folder / f"s{seed}.ckpt") for seed in range(count)]
    for seed, file in enumerate(files):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            torch.save({"state_dict": ResNet18_32x32().state_dict()}, file)
    return files


@pytest.mark.parametrize(
    "name", ["cifar10", pytest.param("oracle/cifar10", marks=pytest.mark.slow)]
)
def test_table_1_runs_two_batches_of_each_set(name, run, cifar_classifier):
    small = ["--config", "small/cifar10", "--data.batch_size", "1"]
    rows = run("--config", name, *small, *cifar_classifier)
    expected = [("cifar10", "ind"), ("cifar100", "near"), ("tin", "near")]
    assert [(row["dataset"], row["group"]) for row in rows[::2]] == expected
    assert all(math.isfinite(row["logits"]) and row["logits"] < 0 for row in rows)
    assert all(row["error"] is None for row in rows)
    if name.startswith("oracle"):
        assert [row["reconstructed_as"] for row in rows[:2]] == [row["label"] for row in rows[:2]]


@pytest.mark.parametrize("name", [pytest.param("energy", marks=pytest.mark.slow), "ensemble"])
def test_a_combination_of_table_1_runs_two_batches_of_each_set(name, run, tmp_path):
    settings, base = resolved(f"combine/cifar10_{name}"), resolved("cifar10")
    assert settings["cascade"] == {"baseline": name, "budget": 0.5, "then": "logits"}
    small = ["--config", "small/cifar10", "--data.batch_size", "1", "--page.enabled", "false"]
    files = cifar_checkpoints(tmp_path, 2)
    if name == "ensemble":
        assert len(settings["classifier"]["checkpoint"]) == 3
        assert settings["classifier"]["checkpoint"][0] == base["classifier"]["checkpoint"]
        small += ["--model.classifier.checkpoint", f"[{files[0]}, {files[1]}]"]
    else:
        assert {*settings["baselines"]} == {"energy", "max_logit", "knn", "vim"}
        small += ["--model.classifier.checkpoint", files[0], "--model.baselines", "[energy]"]
    rows = run("--config", f"combine/cifar10_{name}", *small, "--model.discrepancies", "[logits]")
    datasets = ["cifar10", "calibration", "cifar100", "tin"]
    assert [row["dataset"] for row in rows[::2]] == datasets
    assert all(math.isfinite(row["logits"]) and math.isfinite(row[name]) for row in rows)
    (table,) = tmp_path.glob("runs/**/metrics.csv")
    lines = {(line["dataset"], line["score"]) for line in csv.DictReader(table.open())}
    assert ("average", "cascade") in lines


def test_table_1_compares_logits_and_borrows_the_settings_of_ldm():
    cifar10, ldm, oracle = resolved("cifar10"), resolved("ldm"), resolved("oracle/cifar10")
    assert cifar10["discrepancies"][0] == "logits"
    assert (cifar10["guidance"], cifar10["steps"]) == (ldm["guidance"], ldm["steps"])
    # no early stop, and a comparison with the input
    assert {*cifar10} == {*ldm}
    assert oracle["oracle"] == resolved("oracle/ldm")["oracle"] == "all"
    assert oracle["guidance"]["init_args"] == {"scale": 10.0, "cam_cut": None}
    architecture = cifar10["backbone"]["init_args"]["architecture"]
    assert parse_architecture(DDPMArchitecture, architecture, "cifar10") == DDPMArchitecture()


def assert_drawn(folder: Path) -> None:
    (picture,) = folder.glob("runs/**/pictures.png")
    assert Image.open(picture).width > 400


@pytest.mark.slow
def test_cifar10_at_full_size(run, tmp_path, cifar_classifier):
    weights = [*cifar_classifier, "--model.backbone.checkpoint", "random"]
    architecture = PUBLISHED["gdm-cifar10"].architecture
    (tmp_path / "full.yaml").write_text(
        yaml.safe_dump(
            {
                "model": {
                    "backbone": {
                        "init_args": {
                            "architecture": architecture_record(architecture)["architecture"]
                        }
                    }
                }
            }
        )
    )
    scale = [
        "--model.steps",
        "2",
        "--model.early_stop_steps",
        "1",
        "--data.batch_size",
        "1",
        "--data.only",
        "[tin, svhn]",
    ]
    rows = run("--config", "cifar10_gdm", "--config", "full.yaml", *weights, *scale)
    assert [(row["dataset"], row["group"]) for row in rows[::2]] == [
        ("cifar10", "ind"),
        ("tin", "near"),
        ("svhn", "far"),
    ]


def test_dit_on_a_small_model_in_the_layout_of_the_published_one(run, tmp_path):
    from helpers.small_models import autoencoder, ddim, dit

    DiTPipeline(dit(), autoencoder(), ddim()).save_pretrained(tmp_path / "dit")
    rows = run(
        "--config", "dit", "--model.backbone.checkpoint", "dit", "--model.steps", "5",
        "--model.classifier.input_size", "64", "--model.discrepancies", "[dists, ssim, l2]",
        "--data.image_size", "16", "--data.resize", "16", "--data.batch_size", "1",
        "--data.num_workers", "0",
    )  # fmt: skip
    assert len(rows) == 10
    assert all(math.isfinite(float(row["dists"])) for row in rows)


def test_trajectories_are_drawn_step_by_step(run, tmp_path):
    settings = ["--trajectory.count", "1", "--trajectory.every", "5", "--data.limit", "3"]
    run("--config", "digits_gdm", *settings)
    drawn = sorted(path.name for path in tmp_path.glob("runs/**/trajectories/*.png"))
    assert drawn == ["digits_0.png", "digits_4_9_0.png", "letters_0.png", "photos_0.png"]
    strips = Image.open(next(tmp_path.glob("runs/**/trajectories/digits_0.png")))
    assert strips.height > 3 * 96  # inversion, and denoising with and without guidance
    assert strips.width > 170 + 4 * 96


@pytest.mark.parametrize("name", ["digits_gdm", "digits_ldm"])
def test_the_analysis_sees_that_predicted_pictures_are_easier_to_classify(
    name, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "sys.argv", ["analyze", "--config", name, "--data.limit", "24", "--analysis.every", "5"]
    )
    analyze.main()
    rows = list(csv.DictReader(next(tmp_path.glob("runs/analyze/**/analysis.csv")).open()))
    assert [int(row["step"]) for row in rows] == (
        [0, 4, 9, 14, 19, 24] if name == "digits_gdm" else [0, 4, 9]
    )
    assert {*rows[0]} == {"step", "timestep", *VARIANTS}
    assert all(float(rows[0][variant]) > 0.9 for variant in VARIANTS)  # clean
    assert rows[0]["x_t"] == rows[0]["x0hat"] == "1.0"
    middle = {
        variant: float(rows[2 if name == "digits_gdm" else 1][variant]) for variant in VARIANTS
    }
    assert middle["x0hat"] > middle["x_t"] + 0.2
    for vote in VOTES[:-1]:
        assert middle[f"x0hat_cutouts_{vote}"] > middle[f"x_t_cutouts_{vote}"] + 0.2
    assert middle["x_t_cutouts_any"] >= max(middle[f"x_t_cutouts_{vote}"] for vote in VOTES)
    assert Image.open(next(tmp_path.glob("runs/analyze/**/analysis.png"))).width > 600


def test_a_classifier_of_noisy_digits_is_compared_at_every_step(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT / "examples")
    few = ["--data.limit", "40", "--analysis.every", "12", "--analysis.cutouts", "1"]
    noisy = ["--analysis.noisy_classifier", "noisy_digits.NoisyDigits"]
    analyze.main(["--config", "digits_gdm", *few, *noisy])
    (folder,) = [file.parent for file in tmp_path.glob("runs/analyze/**/agreement.csv")]
    with (folder / "agreement.csv").open() as file:
        rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    with (folder / "analysis.csv").open() as file:
        accuracy = [float(row["x_t_noisy_classifier"]) for row in csv.DictReader(file)]
    assert [row["step"] for row in rows] == [0, 11, 23]
    for row, noisy_is_right in zip(rows, accuracy, strict=True):
        assert row["both_correct"] + row["same_error"] + row["disagree"] == pytest.approx(1)
        assert row["both_correct"] <= noisy_is_right
    # On clean digits both are right; in noise only the one that knows noise.
    assert rows[0]["both_correct"] > 0.9
    assert accuracy[1] > 0.7
    assert rows[1]["disagree"] > 0.5
    assert Image.open(folder / "agreement.png").width > 600
    assert "different classes" in capsys.readouterr().out


def test_the_analysis_of_the_paper_with_guided_diffusion_s_classifier(
    data, torch_home, tmp_path, monkeypatch
):
    monkeypatch.setenv("TORCH_HOME", str(torch_home))
    monkeypatch.chdir(tmp_path)
    architecture = {
        "image_size": 32,
        "classifier_width": 32,
        "channel_mult": [1, 2],
        "classifier_attention_resolutions": [16],
        "num_head_channels": 16,
    }
    noisy = {
        "class_path": "diffguard_pl.backbones.NoisyClassifier",
        "init_args": {"checkpoint": "random", "architecture": architecture},
    }
    config = {"analysis": {"noisy_classifier": noisy, "cutouts": 2, "every": 5}}
    Path("noisy.yaml").write_text(yaml.safe_dump(config))
    configs = [f"--config={name}" for name in ("analysis/gdm", "small/gdm", "noisy.yaml")]
    analyze.main([*configs, "--data.root", str(data), "--data.limit", "1"])
    (file,) = tmp_path.glob("runs/analyze/**/agreement.csv")
    assert [line.split(",")[0] for line in file.read_text().splitlines()] == ["step", "0", "4"]


def test_the_analysis_does_not_depend_on_the_batch(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    few = ["--data.limit", "5", "--analysis.every", "12", "--analysis.cutouts", "3"]
    tables = []
    for size in ("2", "5"):
        folder = ["--data.batch_size", size, "--trainer.default_root_dir", size]
        analyze.main(["--config", "digits_gdm", *few, *folder])
        tables.append((tmp_path / size / "analysis.csv").read_text())
    assert tables[0] == tables[1]


def test_fig_4_in_the_miniature_layout(tmp_path, monkeypatch, torch_home, data):
    monkeypatch.setenv("TORCH_HOME", str(torch_home))
    monkeypatch.chdir(tmp_path)
    few = ["--data.root", str(data), "--data.limit", "2", "--data.only", "[species]"]
    small = ["--config", "small/gdm", "--model.discrepancies", "[l2]"]
    analyze.main(["inversion", "--config", "gdm", *small, *few])
    rows = list(csv.DictReader(next(tmp_path.glob("runs/**/inversion.csv")).open()))
    assert [(row["dataset"], row["step"], row["images"]) for row in rows] == [
        (dataset, step, "2") for dataset in ("imagenet", "species") for step in "0123"
    ]
    assert all(float(row["psnr_mean"]) > 40 for row in rows)
    assert all(math.isfinite(float(row["dists_mean"])) for row in rows)  # of random weights


def test_a_config_that_builds_on_itself_or_on_nothing_is_refused(tmp_path):
    (tmp_path / "a.yaml").write_text("base: b.yaml\n")
    (tmp_path / "b.yaml").write_text("base: a.yaml\n")
    with pytest.raises(InputError, match=r"a.yaml: base: builds on itself"):
        with_bases(tmp_path / "a.yaml")
    (tmp_path / "c.yaml").write_text("base: gmd\n")
    with pytest.raises(
        InputError, match=r"unknown config 'gmd'; choose from: ablation/gdm_cutouts_only"
    ):
        with_bases(tmp_path / "c.yaml")
    (tmp_path / "d.yaml").write_text("model: [")
    with pytest.raises(InputError, match=r"config .*d.yaml: not YAML"):
        load_data([tmp_path / "d.yaml"])
