"""Memory layout of feature maps [N, C, H, W]: contiguous in every network, on every device.

torch's GroupNorm on a CPU loses digits in the channels-last layout where |mean| >> std: it computes
the variance as E[x^2] - E[x]^2. In the contiguous layout it does not. diffusers' attention returns
channels-last feature maps, and most layers keep the layout that they are given.
"""

from typing import Any

from torch import Tensor, nn


def keep_contiguous(network: nn.Module) -> None:
    """Make every GroupNorm of a network see a contiguous input. Repeated calls change nothing.

    The output of diffusers' attention is made contiguous, too: one copy there saves one in every
    GroupNorm after it, since residual connections carry the layout on.
    """
    for module in network.modules():
        if isinstance(module, nn.GroupNorm) and not _has(module._forward_pre_hooks, _input):
            module.register_forward_pre_hook(_input)
        # diffusers' attention, by its attributes, so that diffusers is not imported
        is_attention = hasattr(module, "to_q") and hasattr(module, "group_norm")
        if is_attention and not _has(module._forward_hooks, _output):
            module.register_forward_hook(_output)


def _has(hooks: dict[int, Any], hook: Any) -> bool:
    return any(found is hook for found in hooks.values())


def _input(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the inputs of a module with the first one contiguous."""
    return (inputs[0].contiguous(), *inputs[1:]) if inputs else inputs


def _output(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
    """Return the output of a module, contiguous."""
    return output.contiguous() if isinstance(output, Tensor) else output
