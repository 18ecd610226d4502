"""Convolutions with a forward pass of their own, tried out: do they treat channels as torch's do?

Such classes pad by the size of the image, or standardise their filters. A symbolic trace stops at them, and
nothing else says what they compute.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.nn.modules import conv
from torch.nn.utils import parametrize

from sane_plugins.weights.module_tensors.copies import evaluation_copy

_MORE_PLACES = 2
_TOLERANCE = 1e-4


def is_plain_convolution(module: nn.Module) -> bool:
    """Return whether its channels may change places as those of torch's convolution of its groups may.

    It is called on random images. False for anything else, on the meta device, and where a call fails.
    """
    if not isinstance(module, conv._ConvNd) or isinstance(module, conv._ConvTransposeNd):
        return False
    tensors = [*module.parameters(), *module.buffers()]
    if any(x.device.type != "cpu" for x in tensors) or parametrize.is_parametrized(module):
        return False
    copy: Any = evaluation_copy(module)
    rng = torch.Generator().manual_seed(0)
    spaces = zip(module.kernel_size, module.dilation, module.stride, strict=True)
    places = [d * (k - 1) + 1 + _MORE_PLACES * s for k, d, s in spaces]
    image = torch.randn(1, module.in_channels, *places, generator=rng).to(module.weight.dtype)
    order = torch.arange(module.groups)
    swapped = torch.cat([order[:2].flip(0), order[2:]])
    try:
        with torch.no_grad():
            plain = copy(image)
            return _has_channels(plain, image, module.out_channels) and all(
                _follows(copy, image, plain, groups, rng)
                for groups in (order, order.flip(0), swapped)
            )
    except Exception:  # it is code of anyone's
        return False


def _has_channels(output: object, image: torch.Tensor, channels: int) -> bool:
    return (
        isinstance(output, torch.Tensor)
        and output.ndim == image.ndim
        and output.shape[1] == channels
    )


def _follows(
    module: Any,
    image: torch.Tensor,
    plain: torch.Tensor,
    groups: torch.Tensor,
    rng: torch.Generator,
) -> bool:
    """Return whether outputs change places as the filters do, and reading other places changes nothing.

    Whole groups change places, and the outputs in each; what is read does so alone where there is one group.
    """
    outputs = torch.arange(module.out_channels).view(module.groups, -1)
    outputs = torch.stack([row[torch.randperm(len(row), generator=rng)] for row in outputs[groups]])
    inputs = torch.arange(module.in_channels).view(module.groups, -1)[groups]
    columns = torch.arange(inputs.shape[1])
    if module.groups == 1:
        columns = torch.randperm(len(columns), generator=rng)
    rows = outputs.flatten()
    changed = {
        name: x[rows] if x.ndim and len(x) == len(rows) else x
        for name, x in module.named_parameters()
    }
    changed["weight"] = module.weight[rows][:, columns]
    other = functional_call(module, changed, (image[:, inputs[:, columns].flatten()],))
    largest = float(plain.abs().max())
    return torch.allclose(plain[:, rows], other, _TOLERANCE, _TOLERANCE * largest)
