"""Names of torch.ao's packed layers: their weight and bias are kept in one object, whose name they lose."""

from __future__ import annotations

from functools import partial

import torch

from sane_plugins.quantization.stored import QuantizedTensor, Stored, Tensors

_NAMES = {
    "_packed_params._packed_params.0": "weight",
    "_packed_params._packed_params.1": "bias",
    "_packed_params._packed_weight": "weight",
}


def find_packed_params(key: str, stored: Stored) -> QuantizedTensor | None:
    """Recognise the weight and bias of a quantised linear layer or embedding by torch.ao's names."""
    if "_packed_" not in key:
        return None
    for ending, attribute in _NAMES.items():
        layer = key.removesuffix(ending)
        if layer != key and layer[-1:] in ("", "."):
            name = f"{layer}{attribute}"
            if stored.dtype(key).is_floating_point and name not in stored.described:
                shape, dtype = stored.described[key]
                return QuantizedTensor(name, shape, (key,), "", partial(_rename, key), dtype)
    return None


def _rename(key: str, tensors: Tensors) -> torch.Tensor:
    return tensors[key]
