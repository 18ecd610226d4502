"""`initialize_` as a pass of onnx-ir: an ONNX model gets initial weights for a task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
import torch
from torch import nn

from sane_plugins.errors import SourceError
from sane_plugins.weights import copy_module, shape_text

if TYPE_CHECKING:
    from sane_plugins import Host, Initialization, InitializeOptions, Task

_MOST_NAMED = 3


class InitializePass(ir.passes.InPlacePass):
    """Give the initializers of a model what `sane_plugins.initialize_` makes of them.

    `module` is the network that was exported, which runs in the model's place: its own weights do not count,
    and it stays as it is. Initializers are its tensors by name, so export without folding norms into
    convolutions (`torch.onnx.export(..., optimize=False)`). The other arguments are those of `initialize_`;
    `result` is its answer for the latest model. Types of initializers stay. Raises `SourceError` where the
    model does not hold the module's tensors, and what `initialize_` raises; the model is as it was then.
    """

    def __init__(
        self,
        module: nn.Module,
        task_or_images: Task | tuple[torch.Tensor, torch.Tensor] | torch.Tensor,
        prompts: Sequence[Any] = (),
        options: InitializeOptions | None = None,
        host: Host | None = None,
    ) -> None:
        super().__init__()
        self.result: Initialization | None = None
        self._module = module
        self._arguments = (task_or_images, prompts, options, host)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Initialise a model in place."""
        from sane_plugins import initialize_

        module = copy_module(self._module).cpu()
        values = _initializers(model, module)
        _load(module, values)
        self.result = initialize_(module, *self._arguments)
        state = module.state_dict()
        for name, value in values.items():
            old = value.const_value.numpy()
            new = state[name].detach().float().numpy().astype(old.dtype)
            value.const_value = ir.tensor(new, name=value.name)
        return ir.passes.PassResult(model, modified=True)


def _initializers(model: ir.Model, module: nn.Module) -> dict[str, ir.Value]:
    """Return the model's initializers by the module's names of floating-point tensors: all of these."""
    known, values, wrong = model.graph.initializers, {}, []
    for name, own in module.state_dict().items():
        if not own.is_floating_point():
            continue
        value = known.get(name)
        tensor = None if value is None else value.const_value
        if tensor is None:
            wrong.append(f"'{name}' is missing")
        elif tuple(tensor.shape) != tuple(own.shape):
            wrong.append(f"'{name}' has the shape {shape_text(tuple(tensor.shape))}")
        else:
            values[name] = value
    if wrong:
        more = f", and {len(wrong) - _MOST_NAMED} more" if len(wrong) > _MOST_NAMED else ""
        raise SourceError(
            str(model.graph.name or "the ONNX model"),
            ", ".join(wrong[:_MOST_NAMED]) + more,
            "the initializers must be the module's tensors",
            "export that module with optimize=False, in evaluation mode without folding norms",
        )
    return values


@torch.no_grad()
def _load(module: nn.Module, values: Mapping[str, ir.Value]) -> None:
    state = module.state_dict()
    for name, value in values.items():
        array = value.const_value.numpy().astype("float32")
        state[name].copy_(torch.from_numpy(array))
