"""What the scores of a model depend on besides its weights, for detector files and caches."""

import json
from hashlib import sha256
from typing import Any

from .diffguard import DiffGuard


def describe_method(model: DiffGuard) -> dict[str, Any]:
    """Return what the scores of a model depend on besides its weights, as JSON."""
    classifier, backbone, sampling = model.classifier, model.backbone, model.sampling
    schedule = [
        sampling.schedule.timesteps.tolist(),
        [f"{level:.6g}" for level in backbone.alpha_bar.tolist()],
    ]
    method = {
        "scores": model.score_names,
        "schedule": sha256(json.dumps(schedule).encode()).hexdigest(),
        "detector": {
            "class": type(model).__qualname__,
            "compare_to": sampling.compare_to,
            "early_stop": dict(sampling.early_stop),
            "forback_skip_diff": sampling.forback_skip_diff,
            "early_stop_steps": sampling.early_stop_steps,
            "skip_first_steps": sampling.skip_first_steps,
            "skip_last_steps": sampling.skip_last_steps,
        },
        "guidance": {"class": type(model.guidance).__qualname__} | plain_settings(model.guidance),
        "baselines": model.baselines.hyperparameters,
        "classifier": {
            "input_size": classifier.input_size,
            "crop": classifier.crop,
            "interpolation": classifier.interpolation,
            "cam_layer": classifier.cam_layer,
            "map_layers": classifier.map_layers,
        },
        "normalisation": [classifier.mean.flatten().tolist(), classifier.std.flatten().tolist()],
        "backbone": [
            type(backbone).__qualname__,
            backbone.input_size,
            backbone.clip_denoised,
            backbone.null_label,
        ],
    }
    if settings := backbone.description():
        method["backbone_settings"] = settings
    if model.path_scores.names:
        method["path_scores"] = model.path_scores.hyperparameters
    for name, network in model.other_networks.items():
        method[name] = network.description()
    if model.class_map is not None:
        method["class_map"] = model.class_map.classes
    return json.loads(json.dumps(method))  # tuples become lists, as in a file


def plain_settings(part: Any) -> dict[str, Any]:
    """Return the public attributes of a part that JSON can hold; it may be of a user's class."""
    plain = (bool, int, float, str, list, tuple, dict, type(None))
    return {
        name: value
        for name, value in vars(part).items()
        if not name.startswith("_") and name != "training" and isinstance(value, plain)
    }
