"""Networks of one architecture batched into one module, with access to each state dict."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from sane_plugins.zoo_training.batched_layers import batched, not_batchable


class BatchedNetworks:
    """G networks of one architecture that run and train as one module.

    `flat` (G, P) holds all parameters; the module's parameters are views of it. `streams` are the dropout
    generators, one per network.
    """

    def __init__(self, networks: Sequence[nn.Module], device: str) -> None:
        self._template, self.count = networks[0], len(networks)
        self.streams = [torch.Generator(device) for _ in networks]
        self.module = batched(copy.deepcopy(networks[0]), self.count, self.streams).to(device)
        self.flat = torch.stack([_flatten_parameters(network) for network in networks]).to(device)
        self._make_views()
        self.buffers = dict(self.module.named_buffers())
        for name, buffer in self.buffers.items():
            buffer.copy_(torch.stack([network.get_buffer(name) for network in networks]))
        self._require_same_tensors()

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits (N, G, K) of all networks for the same images (N, C, H, W)."""
        logits: torch.Tensor = self.module(images)
        return logits

    def gradient(self, loss: torch.Tensor) -> torch.Tensor:
        """Return the gradient (G, P) of the summed losses of the networks."""
        parts = torch.autograd.grad(loss, list(self.module.parameters()))
        return torch.cat([part.flatten(1) for part in parts], 1)

    def state_dict(
        self, index: int, flat: torch.Tensor, buffers: Mapping[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Return the state dict of network `index`, with the keys and shapes of the unbatched module."""
        sizes = [value.numel() for value in self._template.parameters()]
        names = [name for name, _ in self._template.named_parameters()]
        parts = dict(zip(names, flat[index].split(sizes), strict=True))
        parts |= {name: value[index] for name, value in buffers.items()}
        return {
            key: parts[key].view(value.shape) for key, value in self._template.state_dict().items()
        }

    def _make_views(self) -> None:
        """Make the module's parameters views of `flat`."""
        start = 0
        for parameter in self.module.parameters():
            size = parameter[0].numel()
            parameter.data = self.flat[:, start : start + size].view(parameter.shape)
            start += size

    @torch.no_grad()
    def _require_same_tensors(self) -> None:
        """Raise `ZooError` if the batched module's tensors differ from the unbatched network's."""
        expected = {k: v.shape for k, v in self._template.state_dict().items()}
        actual = {k: v.shape[1:] for k, v in self.module.state_dict().items()}
        if expected != actual:
            raise not_batchable(self._template, "its tensors are tied or made as it runs")

    @torch.no_grad()
    def require_same_outputs(self, images: torch.Tensor) -> None:
        """Raise `ZooError` unless the first network's outputs match those of the unbatched module."""
        self.module.eval()
        network = copy.deepcopy(self._template).to(images.device).eval()
        network.load_state_dict(self.state_dict(0, self.flat, self.buffers))
        try:
            expected, actual = network(images), self.logits(images)[:, 0]
        except Exception as error:  # any layer may refuse a shape, each in its own words
            reason = str(error).partition("\n")[0][:160]
            raise not_batchable(
                self._template, f"it does not take these images ({reason})"
            ) from error
        if expected.shape != actual.shape or not torch.allclose(
            expected, actual, rtol=1e-2, atol=1e-3
        ):
            raise not_batchable(
                self._template, "its forward does not work with an axis of networks"
            )


def _flatten_parameters(network: nn.Module) -> torch.Tensor:
    return torch.cat([value.detach().flatten() for value in network.parameters()])
