"""What a diffusers ``scheduler_config.json`` says of a model: its noise levels and parametrisation.

The stepping rule of the scheduler is not used: steps are DDIM's, whatever the model.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..diffusion.parametrisation import (
    EDM,
    PREDICTION_TYPES,
    Parametrisation,
    RectifiedFlow,
    VariancePreserving,
)
from ..diffusion.schedule import (
    Schedule,
    alpha_bar_of,
    alpha_bar_of_flow,
    alpha_bar_of_sigma,
    at_timesteps,
    cosine_alpha_bar,
    karras_sigmas,
    scaled_linear_alpha_bar,
    timesteps_at,
    zero_terminal_snr,
)
from ..errors import InputError, beginning, choose
from .diffusers_import import diffusers_class
from .load import LARGEST_NUMBER, read_json

BETA_SCHEDULES = ["linear", "scaled_linear", "squaredcos_cap_v2"]
MIN_LEVEL = 2.0**-24
"""Lower bound of the signal level and of the noise level, so that both can be divided by; diffusers
has the same bound."""
CONSISTENCY = "CMStochasticIterativeScheduler"
TRAIN_STEPS = 1000
"""Timesteps of a schedule that is continuous."""
NUMBERS = {"num_train_timesteps": int, "beta_start": float, "beta_end": float}
EDM_NUMBERS = dict.fromkeys(("sigma_min", "sigma_max", "sigma_data", "rho"), float)
"""Settings that are numbers above 0 where they are given."""


def read_scheduler(folder: Path) -> dict[str, Any]:
    """Return the config of the scheduler, in its folder or beside model_index.json."""
    path = folder / "scheduler" / "scheduler_config.json"
    return read_json(path if path.is_file() else folder / "scheduler_config.json")


def scheduler_alpha_bar(config: Mapping[str, Any]) -> Tensor:
    """Compute the signal level alpha-bar [T] of a ``scheduler_config.json``.

    In float64, while diffusers computes it in float32. A continuous schedule is given at T
    timesteps: flow matching at s = 1/T, ..., 1, EDM at sigmas as those of its sampler.

    Raises:
        InputError: The scheduler is of another family, or a setting is unknown or out of range.
    """
    for name, kind in (NUMBERS | (EDM_NUMBERS if _is_edm(config) else {})).items():
        value = config.get(name, 1)
        is_number = isinstance(value, int | kind) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value) or not 0 < value <= LARGEST_NUMBER:
            raise InputError(
                f"scheduler_config.json: {name} must be a number above 0, not {str(value)[:40]}; "
                "download it again"
            )
    try:
        return _alpha_bar(config)
    except InputError:
        raise
    except (TypeError, ValueError, RuntimeError, ZeroDivisionError) as error:
        raise InputError(
            f"scheduler_config.json: gives no noise levels ({beginning(str(error))}); download it "
            "again"
        ) from error


def _alpha_bar(config: Mapping[str, Any]) -> Tensor:
    if _is_flow(config):
        steps = config.get("num_train_timesteps", TRAIN_STEPS)
        s = torch.arange(1, steps + 1, dtype=torch.float64) / steps
        return alpha_bar_of_flow(s).clamp(MIN_LEVEL, 1 - MIN_LEVEL)
    if _is_edm(config):
        return alpha_bar_of_sigma(karras_sigmas(TRAIN_STEPS, *_sigma_range(config)))
    betas, kind = config.get("trained_betas"), config.get("beta_schedule")
    if betas is None and kind is None:
        raise InputError(
            f"scheduler_config.json: {config.get('_class_name')} has no betas, and is neither of "
            "flow matching nor EDM's; choose a model with a beta_schedule: "
            f"{', '.join(BETA_SCHEDULES)}"
        )
    start, end = config.get("beta_start", 1e-4), config.get("beta_end", 0.02)
    steps = config.get("num_train_timesteps", TRAIN_STEPS)
    if not 0 < start <= end <= 1:
        raise InputError(
            f"scheduler_config.json: beta_start={start}, beta_end={end}: must be 0 < beta_start <= "
            "beta_end <= 1; download it again"
        )
    if betas is not None:
        alpha_bar = alpha_bar_of(torch.tensor(betas, dtype=torch.float64))
    elif kind == "linear":
        alpha_bar = alpha_bar_of(torch.linspace(start, end, steps, dtype=torch.float64))
    elif kind == "scaled_linear":
        alpha_bar = scaled_linear_alpha_bar(start, end, steps)
    else:
        choose("beta_schedule", str(kind), BETA_SCHEDULES)
        alpha_bar = cosine_alpha_bar(steps)
    if config.get("rescale_betas_zero_snr"):
        alpha_bar = zero_terminal_snr(alpha_bar)
    return alpha_bar.clamp(MIN_LEVEL, 1 - MIN_LEVEL)


def scheduler_parametrisation(
    config: Mapping[str, Any], prediction_type: str | None
) -> Parametrisation:
    """Return what a network with this scheduler takes and predicts.

    Args:
        config: Content of ``scheduler_config.json``.
        prediction_type: ``epsilon``, ``sample`` or ``v_prediction``. None: the scheduler's.

    Raises:
        InputError: The scheduler has a parametrisation of its own, or the name is unknown.
    """
    kind = config.get("_class_name")
    if _is_flow(config) or kind == CONSISTENCY:
        if prediction_type is not None:
            raise InputError(
                f"prediction_type={prediction_type}: {kind} has its own; set it to null"
            )
        if _is_flow(config):
            return RectifiedFlow(config.get("num_train_timesteps", TRAIN_STEPS))
        sigma_data, sigma_min = config.get("sigma_data", 0.5), config.get("sigma_min", 0.002)
        return EDM(sigma_data, sigma_min, time_scale=250)
    predicts = prediction_type or config.get("prediction_type") or "epsilon"
    if _is_edm(config):
        choose("prediction_type", predicts, ["epsilon", "v_prediction"])
        return EDM(config.get("sigma_data", 0.5), sign=-1 if predicts == "v_prediction" else 1)
    choose("prediction_type", predicts, PREDICTION_TYPES)
    return VariancePreserving(predicts)


def scheduler_schedule(config: Mapping[str, Any], alpha_bar: Tensor, steps: int) -> Schedule:
    """Return the timesteps that the model's own scheduler visits in this number of steps.

    Args:
        config: Content of ``scheduler_config.json``.
        alpha_bar: [T] signal level of the training schedule.
        steps: Number of steps.

    Raises:
        InputError: The scheduler is unknown to diffusers, or does not take that many steps.
    """
    name = str(config.get("_class_name"))
    if not 1 <= steps <= len(alpha_bar):
        raise InputError(f"steps={steps}: must be 1 to {len(alpha_bar)}")
    try:
        if not name.endswith("Scheduler"):
            raise AttributeError(f"{name} is no scheduler")
        scheduler = diffusers_class(name).from_config(dict(config))
        scheduler.set_timesteps(steps)
    except Exception as error:  # diffusers does not check the settings of a config
        raise InputError(
            f"spacing=scheduler: {name} of diffusers does not give {steps} steps ({error}); set "
            "spacing to uniform or karras"
        ) from error

    # A scheduler of sigmas has one more, at the end: 0, or the smallest.
    sigmas = getattr(scheduler, "sigmas", None)
    if sigmas is None or len(sigmas) <= len(scheduler.timesteps):
        timesteps = torch.as_tensor(scheduler.timesteps).long().cpu().unique()
        timesteps = timesteps[(timesteps >= 0) & (timesteps < len(alpha_bar))]
        lowest = 1.0 if config.get("set_alpha_to_one", True) else float(alpha_bar[0])
        return at_timesteps(alpha_bar, timesteps, lowest)
    visited = torch.as_tensor(sigmas).double().cpu().unique()
    if _is_flow(config):
        visited = visited / (1 - visited)
    below, above = float(visited[0]), visited[1:]
    if name == CONSISTENCY:
        # Its last sigma is that of an image that is returned as it is.
        below = 0.0
    return at_timesteps(alpha_bar, timesteps_at(alpha_bar, above).unique(), 1 / (1 + below**2))


def _is_flow(config: Mapping[str, Any]) -> bool:
    name = str(config.get("_class_name"))
    prediction = config.get("prediction_type")
    has_flow_sigmas = bool(config.get("use_flow_sigmas"))
    return name.startswith("FlowMatch") or has_flow_sigmas or prediction == "flow_prediction"


def _is_edm(config: Mapping[str, Any]) -> bool:
    name = str(config.get("_class_name"))
    return name.startswith("EDM") or name == CONSISTENCY


def _sigma_range(config: Mapping[str, Any]) -> tuple[float, float, float]:
    """Return the smallest and the largest sigma, and rho."""
    low, high = config.get("sigma_min", 0.002), config.get("sigma_max", 80.0)
    if not 0 < low < high:
        raise InputError(
            f"scheduler_config.json: sigma_min={low}, sigma_max={high}: must be 0 < sigma_min < "
            "sigma_max; correct them"
        )
    return low, high, config.get("rho", 7.0)
