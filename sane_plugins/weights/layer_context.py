"""What layers are by those around them, where a layer's own tensors leave several possibilities.

Whether a kernel is depthwise, grouped or transposed, whether a matrix is a table, and whether a lone vector
holds an activation's slopes, follows from the widths that other layers give and read. Where that does not
decide, the commoner layer is said.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

from sane_plugins.weights.layer_forms import (
    LayerForm,
    Shape,
    attribute_name,
    layer_form,
    layer_shapes,
    plain_roles,
)
from sane_plugins.weights.layers import RUNNING, Layer
from sane_plugins.weights.validity.operations import possible

MATRIX_KINDS = ("conv", "transposed_conv", "linear")
_READERS = (*MATRIX_KINDS, "recurrent", "attention")
_TABLE_RATIO = 4  # rows per column of a table, where the order of layers does not tell


def describe_layers(
    layers: Sequence[Layer],
    axes: Mapping[str, int] | None = None,
    tied: Collection[str] = (),
    *,
    in_own_order: bool = True,
) -> tuple[Layer, ...]:
    """Return layers with their kinds, groups, and the roles and axes of their tensors.

    `axes`, where it is given, holds the output axes of all tensors whose first is another one. `tied` names
    tensors that are read by other layers too. `in_own_order` is False where layers are sorted by name.
    """
    shapes = [layer_shapes(layer.params) for layer in layers]
    forms = [layer_form(x) for x in shapes]
    if (whole := _single_module(layers)).kind != "parameter":
        forms = [replace(whole, roles={x: whole.roles[x] for x in named}) for named in shapes]
        return tuple(_described(*pair, axes) for pair in zip(layers, forms, strict=True))
    if axes is not None:
        forms = [
            _with_axis(form, max((axes.get(p.key, 0) for p in layer.params), default=0))
            for form, layer in zip(forms, layers, strict=True)
        ]
    context = _Context(shapes, forms, in_own_order)
    has_names = any("weight" in x for x in shapes)
    described = []
    for i, layer in enumerate(layers):
        is_tied = any(param.key in tied for param in layer.params)
        form = context.step(i, is_tied, may_be_transposed=axes is None)
        if form.kind == "parameter" and not has_names:
            form = replace(form, kind="unknown")
        described.append(_described(layer, form, axes))
    return tuple(described)


def width(form: LayerForm, shapes: Mapping[str, Shape]) -> int:
    """Return the number of a layer's output channels, as far as its own tensors say it; 0 without any."""
    if form.kind in MATRIX_KINDS:
        is_transposed = form.kind == "transposed_conv"
        return shapes["weight"][form.axis] * (form.groups if is_transposed else 1)
    lengths = {shape[0] for shape in shapes.values() if len(shape) == 1}
    return lengths.pop() if form.kind == "norm" and len(lengths) == 1 else 0


def _with_axis(form: LayerForm, axis: int) -> LayerForm:
    """Return a form whose output axis is known."""
    if form.kind not in MATRIX_KINDS or axis == form.axis or axis > 1:
        return form
    if form.kind == "linear":
        return replace(form, axis=axis)
    return replace(form, kind="transposed_conv" if axis else "conv", axis=axis, groups=1)


def _single_module(layers: Sequence[Layer]) -> LayerForm:
    """Return what all tensors are together, where they are those of one module: their names have no dots."""
    params = [param for layer in layers for param in layer.params]
    if any(param.key != layer.name for layer in layers for param in layer.params):
        return LayerForm("parameter", {})
    return layer_form(layer_shapes(params))


def _described(layer: Layer, form: LayerForm, axes: Mapping[str, int] | None) -> Layer:
    params = []
    for param in layer.params:
        name = attribute_name(param.key)
        axis = form.axis if name == "weight" else 0
        axis = axis if axes is None else axes.get(param.key, 0)
        params.append(replace(param, role=form.roles[name], axis=axis))
    described = replace(layer, kind=form.kind, groups=form.groups, params=tuple(params))
    return possible(described, "parameter")  # `axes` may be a stranger's


def _states_and_inputs(
    forms: Sequence[LayerForm], shapes: Sequence[Mapping[str, Shape]]
) -> Iterator[int]:
    """Yield the widths that recurrent layers and torch's attention read."""
    for form, named in zip(forms, shapes, strict=True):
        if form.kind in ("recurrent", "attention"):
            yield from (shape[-1] for shape in named.values() if len(shape) > 1)


class _Context:
    """The forms and widths of all layers; `step` decides them in order."""

    def __init__(
        self,
        shapes: Sequence[Mapping[str, Shape]],
        forms: Sequence[LayerForm],
        in_own_order: bool,
    ) -> None:
        self._shapes, self._forms, self._in_own_order = shapes, [*forms], in_own_order
        self._widths = [width(form, x) for form, x in zip(forms, shapes, strict=True)]
        self._matrices = [i for i, form in enumerate(forms) if form.kind in MATRIX_KINDS]
        self._given = Counter(self._widths[i] for i in self._matrices)
        self._read = Counter(self._inputs(i) for i in self._matrices)
        self._read.update(_states_and_inputs(forms, shapes))
        self._vectors = Counter(
            w for form, w in zip(forms, self._widths, strict=True) if form.kind == "norm"
        )
        self._tables = self._find_tables()
        self._readers_of_images = {
            i
            for i in self._matrices
            if forms[i].kind == "conv" and self._inputs(i) > 1 and not self._is_known(i)
        }
        # What the layers before the next one give and read.
        self._before = self._inputs_before = 0
        self._given_before: Counter[int] = Counter()
        self._read_before: set[int] = set()

    def step(self, i: int, is_tied: bool, may_be_transposed: bool) -> LayerForm:
        """Return what the next layer is, by itself and by the others."""
        form = self._forms[i] = self._form(i, is_tied, may_be_transposed)
        self._widths[i] = width(form, self._shapes[i])
        self._before = self._widths[i] or self._before
        if form.kind in MATRIX_KINDS:
            self._given_before[self._widths[i]] += 1
            self._inputs_before = self._inputs(i) * form.groups
            self._read_before.add(self._inputs(i))
        return form

    def _form(self, i: int, is_tied: bool, may_be_transposed: bool) -> LayerForm:
        form, shapes = self._forms[i], self._shapes[i]
        weight = shapes.get("weight", ())
        if form.kind == "norm" and [*shapes] == ["weight"] and self._holds_slopes(i):
            return LayerForm("pointwise", plain_roles(shapes))
        if i in self._tables or (is_tied and form.kind == "linear" and self._gives_nothing(i)):
            return replace(form, kind="embedding")
        if form.kind != "conv" or 0 in weight:
            return form
        if may_be_transposed and "bias" not in shapes and self._is_transposed(i, weight):
            return replace(form, kind="transposed_conv", axis=1)
        return replace(form, groups=self._groups(i, weight))

    def _inputs(self, i: int) -> int:
        return self._shapes[i]["weight"][1 - self._forms[i].axis]

    def _holds_slopes(self, i: int) -> bool:
        """Return whether a lone vector is an activation's: no norm follows another, or a kernel's bias."""
        if i == 0 or self._widths[i - 1] != self._widths[i]:
            return False
        before = self._forms[i - 1]
        is_biased = before.kind == "conv" and "bias" in self._shapes[i - 1]
        return is_biased or {*RUNNING} <= {*before.roles.values()}

    def _is_transposed(self, i: int, weight: Shape) -> bool:
        """Return whether a kernel without a bias reads on its first axis, by the widths around it."""
        first, second = weight[:2]
        if first == second or not self._in_own_order:
            return False
        if i + 1 < len(self._forms) and self._forms[i + 1].kind == "norm":
            return self._widths[i + 1] == second and self._before in (0, first)
        is_known = self._given[second] or second in self._read_before
        return i == self._matrices[-1] and self._before == first and not is_known

    def _groups(self, i: int, weight: Shape) -> int:
        """Return the groups of a convolution with this weight (out, in / groups, ...)."""
        first, second = weight[:2]
        if second == 1:
            return self._depthwise_groups(i, first)
        groups, rest = divmod(self._before, second)
        is_branch = second == self._inputs_before  # of a value that the layer before reads as well
        if rest or groups < 2 or first % groups or first % second or is_branch:
            return 1
        is_square = first == self._before and max(weight[2:]) > 1
        if self._in_own_order:
            return groups if is_square or not self._given[second] else 1
        # Names tell little of what comes before, and the first layer reads images, which none gives.
        return groups if is_square and not self._given[second] and self._read[second] > 1 else 1

    def _depthwise_groups(self, i: int, first: int) -> int:
        """Return the groups of a kernel whose second axis is 1: one channel is read, or each by itself."""
        before = self._before
        is_first = i == self._matrices[0] or (not self._in_own_order and self._given[first] == 1)
        if is_first and (self._in_own_order or not self._readers_of_images):
            return 1
        if not self._in_own_order or before < 2 or first % before:
            return first
        rest = first - before
        is_sum = self._given_before[rest] > (rest == before)
        return first if self._given_before[first] or is_sum else before

    def _is_known(self, i: int) -> bool:
        inputs = self._inputs(i)
        return bool(self._given[inputs] or self._vectors[inputs])

    def _find_tables(self) -> set[int]:
        """Return the matrices that are looked up: their columns are read by others, their rows by none.

        They come first; among layers sorted by name, they have many rows, and a shape of their own.
        """
        alike = Counter(self._shapes[i]["weight"] for i in self._matrices)
        tables: list[int] = []
        last = max((i for i, x in enumerate(self._forms) if x.kind in _READERS), default=0)
        for i in self._matrices:
            is_table = i < last and self._forms[i].kind == "linear" and self._gives_nothing(i)
            if self._in_own_order and not is_table:
                break
            rows, columns = self._shapes[i]["weight"][:2]
            is_tall = rows > _TABLE_RATIO * columns and alike[rows, columns] == 1
            if is_table and (self._in_own_order or is_tall):
                tables.append(i)
        own = Counter(self._inputs(i) for i in tables)
        return {
            i for i in tables if self._read[(n := self._inputs(i))] > own[n] or self._vectors[n]
        }

    def _gives_nothing(self, i: int) -> bool:
        """Return whether no other layer reads a value of as many channels as a matrix has rows.

        Gates and fused projections are cut into equal parts, each of a width that is read.
        """
        rows = self._widths[i]
        parts = [rows // n for n in (1, 2, 3, 4) if rows % n == 0]
        is_read = any(self._read[part] or self._vectors[part] for part in parts)
        return bool(rows) and "bias" not in self._shapes[i] and not is_read
