"""Networks of one architecture as one module, and the state dict of each."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from sane_plugins.zoo_training.batched_layers import batched, not_batchable


class BatchedNetworks:
    """G networks of one architecture that run and learn as one.

    `flat` (G, P) holds all parameters; those of the module are views of it. Dropout draws from
    `streams`, one generator for each network.
    """

    def __init__(self, networks: Sequence[nn.Module], device: str) -> None:
        self._template, self.count = networks[0], len(networks)
        self.streams = [torch.Generator(device) for _ in networks]
        self.module = batched(copy.deepcopy(networks[0]), self.count, self.streams).to(device)
        self.flat = torch.stack([_flat(network) for network in networks]).to(device)
        self._make_views()
        self.buffers = dict(self.module.named_buffers())
        for name, buffer in self.buffers.items():
            buffer.copy_(torch.stack([network.get_buffer(name) for network in networks]))
        self._require_same_tensors()

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits (N, G, K) of all networks to the same images (N, C, H, W)."""
        logits: torch.Tensor = self.module(images)
        return logits

    def gradient(self, loss: torch.Tensor) -> torch.Tensor:
        """Return the gradient (G, P) of a sum of the networks' losses."""
        parts = torch.autograd.grad(loss, list(self.module.parameters()))
        return torch.cat([part.flatten(1) for part in parts], 1)

    def state_dict(
        self, index: int, flat: torch.Tensor, buffers: Mapping[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Return one network's state dict, as the plain network has it."""
        sizes = [value.numel() for value in self._template.parameters()]
        names = [name for name, _ in self._template.named_parameters()]
        parts = dict(zip(names, flat[index].split(sizes), strict=True))
        parts |= {name: value[index] for name, value in buffers.items()}
        return {
            key: parts[key].view(value.shape) for key, value in self._template.state_dict().items()
        }

    def _make_views(self) -> None:
        """Let the module's parameters be views of `flat`."""
        start = 0
        for parameter in self.module.parameters():
            size = parameter[0].numel()
            parameter.data = self.flat[:, start : start + size].view(parameter.shape)
            start += size

    @torch.no_grad()
    def _require_same_tensors(self) -> None:
        """Raise `ZooError` where the module has other tensors than the plain network."""
        plain = {k: v.shape for k, v in self._template.state_dict().items()}
        found = {k: v.shape[1:] for k, v in self.module.state_dict().items()}
        if plain != found:
            raise not_batchable(self._template, "its tensors are tied or made as it runs")

    @torch.no_grad()
    def require_same_outputs(self, images: torch.Tensor) -> None:
        """Raise `ZooError` unless the first network has the same outputs for these images as alone."""
        self.module.eval()
        alone = copy.deepcopy(self._template).to(images.device).eval()
        alone.load_state_dict(self.state_dict(0, self.flat, self.buffers))
        try:
            plain, batched_output = alone(images), self.logits(images)[:, 0]
        except Exception as error:  # any layer may refuse a shape, each in its own words
            first = str(error).partition("\n")[0][:160]
            raise not_batchable(
                self._template, f"it does not take these images ({first})"
            ) from error
        if plain.shape != batched_output.shape or not torch.allclose(
            plain, batched_output, rtol=1e-2, atol=1e-3
        ):
            raise not_batchable(
                self._template, "its forward does not work with an axis of networks"
            )


def _flat(network: nn.Module) -> torch.Tensor:
    return torch.cat([value.detach().flatten() for value in network.parameters()])
