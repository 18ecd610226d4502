"""What a layer is by its tensors alone: their names within the layer, ranks and shapes.

For layers of files, and of modules whose class is not one of torch's. Names are those that libraries give
to the tensors of a layer (`weight`, `running_mean`), never the name of a layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sane_plugins.weights.layers import NORM_ROLES, RUNNING, Kind, Param, Role

Shape = tuple[int, ...]
_STORED_NORM_ROLES: Mapping[str, Role] = {
    **NORM_ROLES,
    "gamma": "scale",
    "beta": "shift",
    "scale": "scale",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
    "_mean": "running_mean",
    "_variance": "running_var",
}
_RECURRENT_NAMES = (("weight_ih", "weight_hh"), ("kernel", "recurrent_kernel"), ("W", "R"))


@dataclass(frozen=True)
class LayerForm:
    """Kind, roles by the tensors' names within the layer, output axis of the matrix, and groups."""

    kind: Kind
    roles: Mapping[str, Role]
    axis: int = 0
    groups: int = 1


def attribute_name(key: str) -> str:
    """Return a tensor's name within its layer."""
    return key.rpartition(".")[2]


def layer_shapes(params: Iterable[Param]) -> dict[str, Shape]:
    """Return the shapes of a layer's tensors by their names within it."""
    return {attribute_name(param.key): param.shape for param in params}


def layer_form(shapes: Mapping[str, Shape]) -> LayerForm:
    """Return what a layer is by its tensors' shapes; `parameter` where they do not say it.

    A matrix without companions counts as linear, a square kernel as one of a convolution that is not
    transposed, and a kernel of one input channel as not grouped: what lies around a layer may say more.
    """
    if _is_norm(shapes):
        return LayerForm("norm", {name: _STORED_NORM_ROLES.get(name, "other") for name in shapes})
    roles = plain_roles(shapes)
    if _is_recurrent(shapes):
        return LayerForm("recurrent", roles)
    if _is_attention(shapes):
        return LayerForm("attention", roles)
    weight, bias = shapes.get("weight", ()), shapes.get("bias")
    if weight == (1,) and len(shapes) == 1:
        return LayerForm("pointwise", roles)  # one slope for all channels
    if not 2 <= len(weight) <= 5:
        return LayerForm("parameter", roles)
    is_matrix = len(weight) == 2
    if bias is None or bias == weight[:1]:
        return LayerForm("linear" if is_matrix else "conv", roles)
    if bias == weight[1:2]:
        return LayerForm("linear" if is_matrix else "transposed_conv", roles, axis=1)
    if not is_matrix and (groups := _transposed_groups(weight, bias)):
        return LayerForm("transposed_conv", roles, axis=1, groups=groups)
    return LayerForm("parameter", roles)


def plain_roles(shapes: Mapping[str, Shape]) -> dict[str, Role]:
    """Return the roles of tensors that belong to no norm."""
    return {name: _plain_role(name, len(shape)) for name, shape in shapes.items()}


def _plain_role(name: str, rank: int) -> Role:
    word = "weight" if rank > 1 else "bias"
    is_named = name.startswith(word) or name.endswith(f"_{word}")
    if not is_named:
        return "other"
    return "weight" if rank > 1 else "bias"


def _is_norm(shapes: Mapping[str, Shape]) -> bool:
    """Return whether a layer has statistics, or scale and shift, all of one shape, or torch's scale alone."""
    found = {role: shapes[x] for x, role in _STORED_NORM_ROLES.items() if x in shapes}
    if len({*found.values()}) != 1 or not all(found.values()):
        return False
    if set(RUNNING) <= found.keys() or {"scale", "shift"} <= found.keys():
        return True
    (weight,) = {*found.values()}
    return [*shapes] == ["weight"] and len(weight) == 1 and weight[0] > 1


def _is_recurrent(shapes: Mapping[str, Shape]) -> bool:
    """Return whether matrices read the input and the state, as torch, Keras and ONNX name them."""
    return any(
        any(name.startswith(reads_input) for name in shapes)
        and any(name.startswith(reads_state) for name in shapes)
        for reads_input, reads_state in _RECURRENT_NAMES
    )


def _is_attention(shapes: Mapping[str, Shape]) -> bool:
    """Return whether a layer holds its query, key and value matrices as torch's attention does."""
    fused = shapes.get("in_proj_weight", ())
    return (len(fused) == 2 and fused[0] == 3 * fused[1]) or all(
        len(shapes.get(f"{part}_proj_weight", ())) == 2 for part in "qkv"
    )


def _transposed_groups(weight: Shape, bias: Shape) -> int:
    """Return the groups of a transposed convolution (in, out / groups, ...); 0 where it is none."""
    if len(bias) != 1 or not weight[1] or bias[0] % weight[1]:
        return 0
    groups = bias[0] // weight[1]
    return groups if groups and weight[0] % groups == 0 else 0
