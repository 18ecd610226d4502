"""Layouts of quantised weights: their values by the formats' formulas, written out here, and true counts."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sane_plugins.formats import from_state_dict, open_file, save_safetensors

State = dict[str, torch.Tensor]
E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
RNG = torch.Generator().manual_seed(0)


def rand(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=RNG) + 0.1


def codes(high: int, *shape: int, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    return torch.randint(0, high, shape, generator=RNG).to(dtype)


def fp8(*shape: int, dtype: torch.dtype = torch.float8_e4m3fn) -> torch.Tensor:
    return (torch.randn(shape, generator=RNG) * 50).to(dtype)


def pack(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack the last axis in 32-bit integers, the first value in the lowest bits."""
    groups = values.long().reshape(*values.shape[:-1], -1, 32 // bits)
    words = sum(groups[..., i] << bits * i for i in range(32 // bits))
    return torch.where(words >= 2**31, words - 2**32, words).int()


def pairs(values: torch.Tensor) -> torch.Tensor:
    """Pack 4-bit codes in bytes, the first of two in the low half."""
    return values[..., ::2] | values[..., 1::2] << 4


def tiles(scale: torch.Tensor, *block: int) -> torch.Tensor:
    return scale.float().repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)


def fp8_cases() -> dict[str, tuple[State, torch.Tensor]]:
    """Return FP8 weights `l.weight` of each granularity, and their values."""
    w, wide, ragged, experts = fp8(16, 32), fp8(256, 384), fp8(200, 300), fp8(3, 16, 32)
    x, row, column = w.float(), rand(16, 1), rand(3, 1, 32)
    tile, short = rand(2, 3), rand(2, 3)
    exponents = codes(12, 16, 1) + 120
    exact = tiles(short, 128, 128)[:200, :300]
    return {
        "tensor": ({"l.weight": w, "l.weight_scale": torch.tensor(0.002)}, x * 0.002),
        "one in a vector": ({"l.weight": w, "l.weight_scale": torch.tensor([0.5])}, x * 0.5),
        "channel": ({"l.weight": w, "l.weight_scale": row}, x * row),
        "channel, a vector": ({"l.weight": w, "l.weight_scale": row[:, 0]}, x * row),
        "half scale": ({"l.weight": w, "l.weight_scale": row.bfloat16()}, x * row.bfloat16()),
        "inverse": ({"l.weight": w, "l.weight_scale_inv": torch.tensor(0.1)}, x * 0.1),
        "tiles": (
            {"l.weight": wide, "l.weight_scale_inv": tile},
            wide.float() * tiles(tile, 128, 128),
        ),
        "ragged tiles": (
            {"l.weight": ragged, "l.weight_scale_inv": short},
            ragged.float() * exact,
        ),
        "exponents": (
            {"l.weight": w, "l.weight_scale": exponents},
            x * 2.0 ** (exponents.float() - 127),
        ),
        "exponent type": (
            {"l.weight": w, "l.weight_scale": exponents.view(torch.float8_e8m0fnu)},
            x * 2.0 ** (exponents.float() - 127),
        ),
        "before the name": ({"l.weight": w, "l.scale_weight": torch.tensor(3.0)}, x * 3),
        "plain name": ({"l.weight": w, "l.scale": rand(16, 1)}, None),
        "other type": (
            {"l.weight": w.float().to(torch.float8_e5m2), "l.weight_scale": torch.tensor(2.0)},
            w.float().to(torch.float8_e5m2).float() * 2,
        ),
        "experts": (
            {"l.weight": experts, "l.weight_scale": rand(3)},
            None,
        ),
        "experts by column": (
            {"l.weight": experts, "l.weight_scale": column},
            experts.float() * column,
        ),
    }


FP8 = fp8_cases()
FP8["plain name"] = (
    FP8["plain name"][0],
    FP8["plain name"][0]["l.weight"].float() * FP8["plain name"][0]["l.scale"],
)
FP8["experts"] = (
    FP8["experts"][0],
    FP8["experts"][0]["l.weight"].float() * FP8["experts"][0]["l.weight_scale"][:, None, None],
)


def read(state: State, tmp_path: Path) -> dict[str, torch.Tensor]:
    """Return the weights of a state dict, after it went through a file, and through one written from it."""
    graph = from_state_dict(state, "state")
    save_file(state, tmp_path / "net.safetensors")
    again = open_file(
        save_safetensors(open_file(tmp_path / "net.safetensors"), tmp_path / "b.safetensors")
    )
    weights = {param.key: tensor for param, tensor in graph.items()}
    assert {p.key for p in again.params} == weights.keys()
    assert all(torch.equal(x, weights[p.key]) for p, x in again.items())
    assert graph.coverage == 1
    return weights


@pytest.mark.parametrize("name", FP8)
@pytest.mark.parametrize("beside", [False, True])
def test_8_bit_floats_are_read_with_their_scale(name: str, beside: bool, tmp_path) -> None:
    stored, wanted = FP8[name]
    state = dict(stored)
    if beside:  # what belongs to activations
        state |= {"l.input_scale": torch.tensor(9.0), "l.bias": torch.ones(16)}
    weights = read(state, tmp_path)
    assert weights.keys() == {"l.weight"} | ({"l.bias"} if beside else set())
    torch.testing.assert_close(weights["l.weight"], wanted)


def test_8_bit_floats_without_a_scale_are_said() -> None:
    graph = from_state_dict({"l.weight": fp8(4, 4)}, "state")
    assert any("8-bit floats are read as stored" in note for note in graph.notes)


@pytest.mark.parametrize(
    "scale",
    [rand(5), rand(3, 32), rand(16, 5), rand(16, 32, 1), codes(5, 16, dtype=torch.int32)],
)
def test_scales_that_do_not_fit_are_missed(scale: torch.Tensor) -> None:
    state = {"l.weight": fp8(16, 32), "l.weight_scale": scale, "b.weight": rand(4, 4)}
    graph = from_state_dict(state, "state")
    assert (graph.missed, graph.size) == ({"l.weight": 512}, 16)


def test_a_plain_weight_keeps_a_scale_that_is_its_own() -> None:
    state = {"l.weight": rand(4, 4), "l.weight_scale": rand(4), "l.scale": rand(1)}
    assert from_state_dict(state, "state").size == 21


def affine(key: str, dtype: torch.dtype, zero: bool) -> tuple[State, State]:
    q, scale = codes(100, 16, 32, dtype=dtype), rand(16, 4)
    state, shift = {key: q, f"{key}_scale": scale}, torch.zeros(16, 4)
    if zero:
        state[f"{key}_zero_point"] = codes(9, 16, 4, dtype=dtype)
        shift = state[f"{key}_zero_point"].float()
    return state, {key: (q.float() - tiles(shift, 1, 8)) * tiles(scale, 1, 8)}


def float4(form: str) -> tuple[State, State]:
    q = codes(16, 8, 64)
    values, packed = E2M1[q.long()], pairs(q)
    if form == "plain":
        return {"l.weight": packed.view(torch.float4_e2m1fn_x2)}, {"l.weight": values}
    if form == "gpt-oss":
        exponents = codes(6, 3, 8, 4) + 125
        q = codes(16, 3, 8, 4, 32)
        values = E2M1[q.long()] * 2.0 ** (exponents.float() - 127)[..., None]
        state = {"e.up_blocks": pairs(q), "e.up_scales": exponents, "e.up_bias": rand(3, 8)}
        return state, {
            "e.up": values.reshape(3, 8, 128).transpose(1, 2),
            "e.up_bias": state["e.up_bias"],
        }
    if form.startswith("mx"):
        exponents = codes(6, 8, 2) + 125
        name = "l.weight" if form == "mx" else "l.weight_packed"
        state = {name: packed, "l.weight_scale": exponents}
        return state, {"l.weight": values * tiles(2.0 ** (exponents.float() - 127), 1, 32)}
    scale, total = rand(8, 4).to(torch.float8_e4m3fn), torch.tensor(0.25)
    wide = tiles(scale, 1, 16)
    if form == "modelopt":
        state = {"l.weight": packed, "l.weight_scale": scale, "l.weight_scale_2": total}
        state["l.input_scale"] = torch.tensor(1.0)
        return state, {"l.weight": values * wide * total}
    state = {"l.weight_packed": packed, "l.weight_scale": scale}
    state |= {"l.weight_global_scale": total[None], "l.input_global_scale": torch.ones(1)}
    return state, {"l.weight": values * wide / total}


def gptq(bits: int, version: int, ordered: bool) -> tuple[State, State]:
    inputs, outputs, groups = 64, 16, 4
    middle = 2 ** (bits - 1)
    q, scale = codes(2**bits, inputs, outputs), rand(groups, outputs)
    order = torch.arange(inputs, dtype=torch.int32) // 16
    state = {
        "l.qweight": pack(q.T, bits).T.contiguous(),
        "l.qzeros": pack(torch.full((groups, outputs), middle - (version == 1)), bits),
        "l.scales": scale.half(),
    }
    if ordered:
        order = order[torch.randperm(inputs, generator=RNG)]
        state["l.g_idx"] = order
    weight = (q.float() - middle) * scale.half().float()[order.long()]
    return state, {"l.weight": weight.T}


def awq() -> tuple[State, State]:
    inputs, outputs, groups = 64, 16, 4
    q, zeros, scale = codes(16, inputs, outputs), codes(16, groups, outputs), rand(groups, outputs)
    order = torch.tensor([0, 2, 4, 6, 1, 3, 5, 7])  # place in a word -> value

    def packed(x: torch.Tensor) -> torch.Tensor:
        return pack(x.reshape(len(x), -1, 8)[..., order].reshape(len(x), -1), 4)

    weight = (q.float() - tiles(zeros, 16, 1)) * tiles(scale, 16, 1)
    state = {"l.qweight": packed(q), "l.qzeros": packed(zeros), "l.scales": scale}
    return state, {"l.weight": weight.T}


def bitmask(dtype: torch.dtype) -> tuple[State, State]:
    dense = (rand(6, 13) * (rand(6, 13) > 0.6)).to(dtype)
    places = torch.cat([dense != 0, torch.zeros(6, 3, dtype=torch.bool)], 1).reshape(6, 2, 8)
    state = {
        "l.weight.compressed": dense[dense != 0],
        "l.weight.bitmask": (places * 2 ** torch.arange(8)).sum(-1).to(torch.uint8),
        "l.weight.shape": torch.tensor([6, 13]),
        "l.weight.row_offsets": torch.zeros(6, dtype=torch.int64),
    }
    return state, {"l.weight": dense}


def grouped_by_input() -> tuple[State, State]:
    q, scale = codes(16, 16, 64), rand(16, 4)
    order = torch.randint(0, 4, (64,), generator=RNG, dtype=torch.int32)
    state = {"l.weight_packed": pack(q, 4), "l.weight_scale": scale, "l.weight_g_idx": order}
    state["l.weight_shape"] = torch.tensor([16, 64])
    return state, {"l.weight": (q.float() - 8) * scale[:, order.long()]}


READ: dict[str, Callable[[], tuple[State, State]]] = {
    "int8 groups": lambda: affine("l.weight", torch.int8, False),
    "int8 zero points": lambda: affine("l.weight", torch.int8, True),
    "uint8 zero points": lambda: affine("l.weight", torch.uint8, True),
    "another name": lambda: affine("l.in_proj_weight", torch.int8, False),
    **{
        f"float4 {form}": lambda form=form: float4(form)
        for form in ("plain", "mx", "mx packed", "modelopt", "compressed-tensors", "gpt-oss")
    },
    **{
        f"gptq {bits} bits v{version}{' g_idx' * ordered}": (
            lambda b=bits, v=version, o=ordered: gptq(b, v, o)
        )
        for bits in (2, 4, 8)
        for version in (1, 2)
        for ordered in (False, True)
    },
    "awq": awq,
    "bitmask": lambda: bitmask(torch.float32),
    "bitmask of half": lambda: bitmask(torch.bfloat16),
    "compressed-tensors g_idx": grouped_by_input,
}


@pytest.mark.parametrize("name", READ)
def test_certain_layouts_are_read(name: str, tmp_path) -> None:
    state, wanted = READ[name]()
    weights = read(state, tmp_path)
    assert weights.keys() == wanted.keys()
    for key, tensor in wanted.items():
        torch.testing.assert_close(weights[key], tensor)


def uncertain() -> dict[str, tuple[State, int]]:
    """Return layouts that cannot be read for certain, and how many weights they have."""
    q4 = pack(codes(16, 16, 64), 4)
    asymmetric = gptq(4, 1, False)[0] | {"l.qzeros": pack(codes(16, 4, 16), 4)}
    three = {
        "l.qweight": codes(9, 6, 16, dtype=torch.int32),
        "l.qzeros": codes(9, 4, 3, dtype=torch.int32)[:, :3].repeat(1, 1),
        "l.scales": rand(4, 32),
    }
    three["l.qweight"] = codes(9, 6, 32, dtype=torch.int32)
    state = json.dumps({"quant_type": "nf4", "blocksize": 64, "dtype": "float99", "shape": [8, 16]})
    nf4 = {
        "l.weight": codes(256, 64, 1),
        "l.weight.absmax": rand(2),
        "l.weight.quant_map": rand(16),
    }
    return {
        "gptq with zero points": (asymmetric, 1024),
        "gptq of zeros": (
            gptq(4, 1, False)[0] | {"l.qzeros": torch.zeros(4, 2, dtype=torch.int32)},
            1024,
        ),
        "gptq of 3 bits": (three, 64 * 32),
        "gptq without zero points": (
            {"l.qweight": q4.T.contiguous(), "l.scales": rand(4, 16)},
            1024,
        ),
        "gptq, bits by g_idx": (
            {
                "l.qweight": codes(9, 8, 16, dtype=torch.int32),
                "l.g_idx": codes(4, 32, dtype=torch.int32),
            },
            32 * 16,
        ),
        "gptq, a group that is not there": (
            gptq(4, 1, True)[0] | {"l.g_idx": torch.full((64,), 4, dtype=torch.int32)},
            1024,
        ),
        "packed without shape": ({"l.weight_packed": q4, "l.weight_scale": rand(16, 4)}, 1024),
        "packed, of another shape": (
            {
                "l.weight_packed": q4,
                "l.weight_scale": rand(16, 4),
                "l.weight_shape": torch.tensor([16, 30]),
            },
            480,
        ),
        "nf4 without a state": (nf4, 128),
        "nf4 of another type": (
            nf4
            | {
                "l.weight.quant_state.bitsandbytes__nf4": torch.tensor(
                    [*state.encode()], dtype=torch.uint8
                )
            },
            128,
        ),
        "int8 reordered": (
            {
                "l.weight": codes(9, 8, 8, dtype=torch.int8),
                "l.SCB": rand(8),
                "l.weight_format": torch.tensor(2, dtype=torch.uint8),
            },
            64,
        ),
        "eetq": ({"l.weight": codes(9, 8, 8, dtype=torch.int8), "l.weight_scales": rand(8)}, 64),
        "nvfp4 without its second scale": (
            {"l.weight": codes(256, 8, 32), "l.weight_scale": fp8(8, 4)},
            512,
        ),
        "mxfp6": ({"l.weight_packed": codes(256, 8, 48), "l.weight_scale": codes(9, 8, 2)}, 512),
        "quanto of 4 bits": (
            {
                "l.weight._data._data": codes(256, 8, 16),
                "l.weight._scale": rand(16, 1),
                "l.weight._shift": rand(16, 1),
            },
            256,
        ),
        "quanto of 2 bits": (
            {
                "l.weight._data._data": codes(256, 4, 16),
                "l.weight._scale": rand(16, 1),
                "l.weight._shift": rand(16, 1),
            },
            256,
        ),
        "hqq without settings": (
            {"l.W_q": codes(256, 8, 16), "l.scale": rand(16, 1), "l.zero": rand(16, 1)},
            256,
        ),
        "torchao int4": (
            {
                "l._weight_qdata": codes(9, 64, 64, dtype=torch.int8),
                "l._weight_scale": rand(4, 64),
                "l._weight_zero_point": rand(4, 64),
            },
            4096,
        ),
        "a bit mask of another size": (
            bitmask(torch.float32)[0] | {"l.weight.bitmask": codes(9, 6, 3)},
            78,
        ),
        "unknown integers": ({"l.weight": codes(9, 8, 8, dtype=torch.int8)}, 64),
        "unknown words": ({"l.packed": codes(9, 8, 8, dtype=torch.int32)}, 512),
    }


@pytest.mark.parametrize("name", uncertain())
def test_uncertain_layouts_are_counted_truly(name: str, tmp_path) -> None:
    state, count = uncertain()[name]
    plain = {"b.weight": rand(4, 4), "b.bias": rand(4)}
    save_file({**state, **plain}, tmp_path / "net.safetensors")
    for graph in (
        from_state_dict({**state, **plain}, "x"),
        open_file(tmp_path / "net.safetensors"),
    ):
        assert {p.key for p in graph.params} == plain.keys()
        assert [*graph.missed.values()] == [count]
        assert graph.coverage == 20 / (20 + count)
        assert state.keys() <= graph.untouched.keys()
        assert all(graph.untouched[key] for key in state)
    again = open_file(save_safetensors(graph, tmp_path / "again.safetensors"))  # nothing is lost
    assert again.missed == graph.missed
    assert all(torch.equal(again.tensors[key], x) for key, x in state.items())


def test_a_mask_with_other_places_than_values_is_one_sentence() -> None:
    from sane_plugins.errors import SourceError

    state, _ = bitmask(torch.float32)
    state["l.weight.compressed"] = state["l.weight.compressed"][:-1]
    graph = from_state_dict(state, "net")
    with pytest.raises(SourceError, match=r"net, 'l\.weight': it is broken"):
        graph.state_dict()
