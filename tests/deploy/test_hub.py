"""Detectors go to a stand-in of the Hugging Face Hub and come back."""

import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from helpers.hub import hub  # noqa: F401
from torchvision.transforms.functional import to_pil_image

from diffguard_pl import Detector, InputError, load
from diffguard_pl.checkpoints.registry import SHIPPED
from diffguard_pl.commands import score, watch
from diffguard_pl.config import diffguard_from, settings_of
from diffguard_pl.datamodules.digits import digits

IMAGES = digits("test").images[:6]
SETTINGS = settings_of("digits_ldm")["model"] | {
    "steps": 2,
    "discrepancies": ["l2"],
    "baselines": {"msp": None, "knn": {"K": 3}},
}


def made(**classifier) -> Detector:
    """Make a small detector with a fitted score."""
    settings = SETTINGS | {"classifier": SETTINGS["classifier"] | classifier}
    model = diffguard_from(settings)
    train = digits("train")
    model.fit_baselines([(train.images[:100], torch.tensor(train.labels[:100]))])
    detector = Detector(model, score="l2", tpr=0.9, class_names=[f"c{i}" for i in range(8)])
    detector.calibrate([train.images[100:160]])
    detector.settings = settings
    return detector


@pytest.fixture(scope="module")
def detector() -> Detector:
    return made()


def test_a_detector_goes_to_the_hub_and_comes_back(detector, hub, tmp_path, capsys):  # noqa: F811
    url = detector.push_to_hub("me/guard", data="60 digits", licence="apache-2.0")
    ((commit, files),) = list(hub.repos["me/guard"].items())[1:]
    assert url == f"{hub.url}/me/guard/commit/{commit}"
    assert sorted(name for name in files if not name.startswith(".")) == [
        "README.md",
        "detector.json",
        "detector.json.fitted.safetensors",
    ]
    card = files["README.md"].decode()
    assert card.startswith('---\nlicense: "apache-2.0"\n')
    for part in ("`l2`", "| 90 % |", "60 digits", "c0, c1", 'from_pretrained("me/guard")'):
        assert part in card

    expected = detector.predict(IMAGES)
    for found in (Detector.from_pretrained("me/guard"), Detector.load("hf://me/guard")):
        decisions = found.predict(IMAGES)
        torch.testing.assert_close(decisions.scores, expected.scores)
        torch.testing.assert_close(decisions.all_scores["knn"], expected.all_scores["knn"])

    to_pil_image(IMAGES[0]).save(tmp_path / "a.png")
    score.main(["--detector", "hf://me/guard", str(tmp_path / "a.png")])
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["class"].startswith("c")

    log = str(tmp_path / "log.jsonl")
    score.main(["--detector", "hf://me/guard", str(tmp_path / "a.png"), "--out", log])
    watch.main([log, "--detector", "hf://me/guard"])
    assert capsys.readouterr().out.startswith("1 decisions")


def test_a_revision_is_what_it_was(detector, hub):  # noqa: F811
    detector.push_to_hub("me/guard")
    (*_, first) = hub.repos["me/guard"]
    other = made()
    other.calibrate([digits("train").images[200:240]])
    other.push_to_hub("me/guard")
    before = Detector.from_pretrained("me/guard", revision=first)
    assert before.threshold == detector.threshold
    assert Detector.from_pretrained("me/guard").threshold == other.threshold
    for revision in ("0" * 40, "v9"):
        with pytest.raises(InputError, match=rf"hf://me/guard@{revision}: has no revision"):
            Detector.from_pretrained("me/guard", revision=revision)


def test_weights_of_this_machine_go_along_only_if_asked_for(hub, tmp_path):  # noqa: F811
    weights = tmp_path / "private folder" / "weights"
    shutil.copytree(SHIPPED / "digits_classifier", weights)
    local = made(checkpoint=str(weights))
    with pytest.raises(InputError, match=r"weights is a file of this machine; use with_weights"):
        local.push_to_hub("me/guard")
    assert "me/guard" not in hub.repos
    local.push_to_hub("me/guard", with_weights=True)
    (*_, files) = hub.repos["me/guard"].values()
    assert "weights/model.safetensors" in files
    assert b"private folder" not in files["detector.json"]
    expected = local.predict(IMAGES).scores
    shutil.rmtree(weights)
    torch.testing.assert_close(
        Detector.from_pretrained("me/guard").predict(IMAGES).scores, expected
    )


def test_without_a_network_the_copy_in_the_cache_is_used(detector, hub, monkeypatch):  # noqa: F811
    detector.push_to_hub("me/guard")
    Detector.from_pretrained("me/guard")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    template = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    assert Detector.from_pretrained("me/guard").threshold == detector.threshold
    with pytest.raises(
        InputError, match=r"hf://me/other: cannot be downloaded .*check the network"
    ):
        Detector.from_pretrained("me/other")
    with pytest.raises(InputError, match=r"push_to_hub: me/other cannot be written .*log in"):
        detector.push_to_hub("me/other")


def test_what_is_no_detector_is_refused(detector, hub, tmp_path: Path):  # noqa: F811
    hub.commit("me/model", {"config.json": b"{}"})
    with pytest.raises(InputError, match=r"hf://me/model: has no detector\.json"):
        Detector.from_pretrained("me/model")
    with pytest.raises(InputError, match="hf://me/none: not found on Hugging Face"):
        Detector.from_pretrained("me/none")
    for name in ("guard", "a/b/c", "../x"):
        with pytest.raises(InputError, match="must be owner/name"):
            Detector.from_pretrained(name)
    hub.commit("me/evil", {"detector.json": b'{"format": "other"}'})
    with pytest.raises(InputError, match="is not a detector file"):
        Detector.from_pretrained("me/evil")
    no_config = Detector(load("digits_ldm", steps=2))
    with pytest.raises(InputError, match="was not made from a config"):
        no_config.push_to_hub("me/guard")
    with pytest.raises(InputError, match=r"has no readable metrics\.csv"):
        detector.push_to_hub("me/guard", run=tmp_path)


def test_a_card_has_the_results_of_a_run(detector, hub, tmp_path: Path):  # noqa: F811
    header = "group,dataset,score,auroc,fpr95\n"
    (tmp_path / "metrics.csv").write_text(header + "near,digits_4_9,l2,0.987654,0.125\n")
    detector.push_to_hub("me/guard", run=tmp_path)
    (*_, files) = hub.repos["me/guard"].values()
    assert "| near | digits_4_9 | l2 | 98.77 | 12.50 |" in files["README.md"].decode()
