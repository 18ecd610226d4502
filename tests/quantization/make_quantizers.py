"""Write quantizers.safetensors: weights as other libraries store them, and what these say their values are.

    pip install torchao bitsandbytes hqq optimum-quanto compressed-tensors
    python tests/quantization/make_quantizers.py

Keys are `<case>|stored|<name>` and `<case>|answer|<name>`; the metadata name the libraries' versions.
"""

import importlib.util
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

LIBRARIES = ("torchao", "bitsandbytes", "hqq", "optimum-quanto", "compressed-tensors")
Case = tuple[str, dict[str, torch.Tensor], dict[str, torch.Tensor]]


def network() -> nn.Sequential:
    """Return a small network whose layers divide into groups of 16."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 32))


def torchao_cases() -> Iterator[Case]:
    """Yield torchao's tensors, flattened for safetensors by its own function."""
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict
    from torchao.quantization import (
        Float8WeightOnlyConfig,
        Int8WeightOnlyConfig,
        IntxWeightOnlyConfig,
        quantize_,
    )
    from torchao.quantization.granularity import PerGroup

    configs = {
        "int8": Int8WeightOnlyConfig(),
        "float8": Float8WeightOnlyConfig(),
        "float8 e5m2": Float8WeightOnlyConfig(weight_dtype=torch.float8_e5m2),
        "intx rows": IntxWeightOnlyConfig(weight_dtype=torch.int4),
        "intx groups": IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(16)),
    }
    for name, config in configs.items():
        module = network()
        quantize_(module, config)
        state = module.state_dict()
        stored, _ = flatten_tensor_state_dict(state)
        yield (
            f"torchao {name}",
            stored,
            {k: x.dequantize() if "weight" in k else x for k, x in state.items()},
        )


def quanto_cases() -> Iterator[Case]:
    """Yield state dicts of quanto's modules."""
    from optimum.quanto import freeze, qfloat8, qint8, quantize

    for kind in (qint8, qfloat8):
        module = network()
        quantize(module, weights=kind)
        freeze(module)
        stored = module.state_dict()
        answer = {key: x for key, x in stored.items() if key.endswith("bias")}
        answer |= {f"{i}.weight": module[i].weight.dequantize() for i in (0, 2)}
        yield f"quanto {kind.name}", stored, answer


def bitsandbytes_cases() -> Iterator[Case]:
    """Yield state dicts of bitsandbytes' layers: 4 bits, scales plain and quantised, and LLM.int8."""
    import bitsandbytes

    for kind in ("nf4", "fp4"):
        for nested in (False, True):
            for storage in (torch.uint8, torch.bfloat16):
                layer = bitsandbytes.nn.Linear4bit(
                    32, 16, quant_type=kind, compress_statistics=nested, quant_storage=storage
                )
                layer.load_state_dict(network()[0].state_dict())
                layer.weight = layer.weight.to("cpu")
                if layer.weight.quant_state is None:
                    layer.weight = layer.weight._quantize("cpu")
                values = bitsandbytes.functional.dequantize_4bit(
                    layer.weight.data, layer.weight.quant_state
                )
                name = f"bitsandbytes {kind}{' nested' * nested} in {storage}"
                yield name, layer.state_dict(), {"weight": values, "bias": layer.bias}
    layer = bitsandbytes.nn.Linear8bitLt(32, 16, has_fp16_weights=False)
    layer.load_state_dict(network()[0].state_dict())
    layer = layer.to("cpu")
    layer(torch.randn(2, 32))
    stored = layer.state_dict()
    values = bitsandbytes.functional.int8_vectorwise_dequant(stored["weight"], stored["SCB"])
    yield "bitsandbytes int8", stored, {"weight": values, "bias": layer.bias}


def hqq_cases() -> Iterator[Case]:
    """Yield state dicts of HQQ's layers, of all sizes, grouped along both axes."""
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    for bits in (8, 4, 3, 2, 1):
        for axis in (0, 1):
            layer = HQQLinear(
                network()[0],
                BaseQuantizeConfig(nbits=bits, group_size=32, axis=axis),
                compute_dtype=torch.float32,
                device="cpu",
            )
            answer = {"weight": layer.dequantize(), "bias": layer.bias}
            yield f"hqq {bits} bits, axis {axis}", layer.state_dict(), answer


def compressed_tensors_cases() -> Iterator[Case]:
    """Yield weights packed by compressed-tensors' own function, with and without zero points."""
    # By its file: the package asks for transformers.
    found = importlib.util.find_spec("compressed_tensors")
    path = Path(found.origin).parent / "compressors" / "pack_quantized" / "helpers.py"
    spec = importlib.util.spec_from_file_location("helpers", path)
    helpers = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(helpers)
    rng = torch.Generator().manual_seed(0)
    for bits in (4, 8):
        low, high = -(2 ** (bits - 1)), 2 ** (bits - 1)
        codes = torch.randint(low, high, (16, 64), generator=rng, dtype=torch.int8)
        zeros = torch.randint(low, high, (16, 4), generator=rng, dtype=torch.int8)
        scale = torch.rand(16, 4, generator=rng)
        stored = {
            "l.weight_packed": helpers.pack_to_int32(codes, bits),
            "l.weight_scale": scale,
            "l.weight_shape": torch.tensor([16, 64]),
        }
        unpacked = helpers.unpack_from_int32(
            stored["l.weight_packed"], bits, torch.Size((16, 64))
        ).float()
        wide = scale.repeat_interleave(16, 1)
        yield f"compressed-tensors {bits} bits", stored, {"l.weight": unpacked * wide}
        packed = helpers.pack_to_int32(zeros, bits, packed_dim=0).contiguous()
        answer = (unpacked - zeros.float().repeat_interleave(16, 1)) * wide
        name = f"compressed-tensors {bits} bits, zero points"
        yield name, stored | {"l.weight_zero_point": packed}, {"l.weight": answer}


def main() -> None:
    """Write the file beside this one."""
    tensors = {}
    for cases in (
        torchao_cases,
        quanto_cases,
        bitsandbytes_cases,
        hqq_cases,
        compressed_tensors_cases,
    ):
        for name, stored, answer in cases():
            for part, state in (("stored", stored), ("answer", answer)):
                for key, x in state.items():
                    tensors[f"{name}|{part}|{key}"] = x.detach().clone().contiguous()
    path = Path(__file__).with_name("quantizers.safetensors")
    save_file(tensors, path, metadata={name: version(name) for name in LIBRARIES})


if __name__ == "__main__":
    main()
