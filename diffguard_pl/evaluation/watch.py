"""Callbacks that watch inversion and denoising step by step."""

from collections.abc import Callable, Mapping

from ..diffusion.ddim import Step, StepCallback


def watching(
    watchers: Mapping[str, StepCallback], check: Callable[[], None]
) -> dict[str, StepCallback]:
    """Return what to call after each step of ``inversion`` and ``denoising``.

    Args:
        watchers: Functions that watch one of the two, by name.
        check: Function to call first; may raise to end the run.
    """

    def checked(watcher: StepCallback | None) -> StepCallback:
        def after_step(step: Step) -> None:
            check()
            if watcher is not None:
                watcher(step)

        return after_step

    return {stage: checked(watchers.get(stage)) for stage in ("inversion", "denoising")}
