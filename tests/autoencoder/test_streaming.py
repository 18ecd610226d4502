"""Networks of any size: the same encoding as in one piece, in memory that does not grow with them."""

import subprocess
import sys
import weakref
from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from networks import HAND_MADE
from safetensors.torch import load_file
from torch import nn

from sane_plugins.autoencoder import SANE, SANEConfig, encode, streaming
from sane_plugins.autoencoder.bfloat16 import precision_dtype
from sane_plugins.autoencoder.halo_windows import cut_windows, join_windows
from sane_plugins.autoencoder.positions import position_features
from sane_plugins.errors import SourceError
from sane_plugins.features import EncodeOptions, SaneEncoder, embed, statistics, write_encodings
from sane_plugins.weights import (
    WeightGraph,
    apply_scale,
    fit_scale,
    from_module,
    token_blocks,
    tokenize,
)

SMALL = SANEConfig(
    token_width=16, latent_width=8, model_width=24, heads=2, layers=2, window=8, halo=4
)
SINGLE = [name for name in HAND_MADE if name not in ("half", "bfloat16", "float8")]


@pytest.fixture
def model() -> SANE:
    torch.manual_seed(0)
    return SANE(SMALL).eval()


@pytest.fixture
def short_runs(monkeypatch):
    """Cut networks into many runs, encoded on two threads."""
    monkeypatch.setattr(streaming, "_BATCH", 3)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


def network() -> WeightGraph:
    torch.manual_seed(0)
    return from_module(
        nn.Sequential(nn.Conv2d(3, 20, 5), nn.BatchNorm2d(20), nn.Linear(70, 40), nn.Linear(1, 90))
    )


def in_one_piece(model: SANE, graph: WeightGraph) -> torch.Tensor:
    """Encode a network as the specification says: all windows of all tokens at once."""
    sizes = fit_scale(graph)
    tokens = tokenize(apply_scale(graph, sizes), SMALL.token_width)
    side = sizes.side[tokens.positions[:, 1]]
    places = position_features(graph.token_layout(SMALL.token_width), 0, len(tokens))
    parts = [
        cut_windows(x, SMALL.window, SMALL.halo) for x in (tokens.values.float(), side, places)
    ]
    with torch.no_grad():
        return join_windows(model.encode(*parts), len(tokens), SMALL.window, SMALL.halo)


@pytest.mark.parametrize("most", [1, 3, 50, 4096])
@pytest.mark.parametrize("name", SINGLE)
def test_blocks_are_the_standardised_tokens(name: str, most: int) -> None:
    torch.manual_seed(0)
    graph = from_module(HAND_MADE[name]())
    whole = tokenize(apply_scale(graph, fit_scale(graph)), 16).values.float()
    found = list(token_blocks(graph, 16, most=most))
    assert max(len(block.values) for block in found) <= most
    assert torch.equal(torch.cat([block.values for block in found]), whole)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_narrow_types_are_standardised_in_single(dtype: torch.dtype) -> None:
    graph = from_module(nn.Linear(30, 10).to(dtype))
    single = graph.replace({p.key: tensor.float() for p, tensor in graph.items()})
    here, there = (torch.cat([b.values for b in token_blocks(g, 16)]) for g in (graph, single))
    assert torch.equal(here, there)


def test_any_range_of_places_is_that_of_the_whole() -> None:
    graph = network()
    tokens = tokenize(graph, 16)
    layout = graph.token_layout(16)
    whole = position_features(layout, 0, len(tokens))
    assert torch.equal(layout.positions(), tokens.positions)
    assert torch.equal(layout.positions(5, 70), tokens.positions[5:70])
    assert torch.equal(whole[:, -1], tokens.mask.double().mean(1).float())
    for start in range(0, len(tokens), 37):
        stop = min(start + 50, len(tokens))
        assert torch.equal(position_features(layout, start, stop), whole[start:stop])
        assert torch.equal(layout.slot_numbers(start, stop), tokens.positions[start:stop, 1])


@pytest.mark.parametrize("name", SINGLE)
@pytest.mark.usefixtures("short_runs")
def test_runs_are_the_encoding_in_one_piece(name: str, model: SANE) -> None:
    torch.manual_seed(0)
    graph = from_module(HAND_MADE[name]())
    found = encode(model, graph)
    torch.testing.assert_close(found.values, in_one_piece(model, graph), atol=2e-5, rtol=1e-5)
    assert found.spans[-1][1] == len(found.values)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.usefixtures("short_runs")
def test_threads_change_no_bit(precision, model: SANE) -> None:
    graph = network()
    two = encode(model, graph, precision=precision)
    torch.set_num_threads(1)
    one = encode(model, graph, precision=precision)
    torch.set_num_threads(2)
    assert torch.equal(one.values, two.values)


@pytest.mark.usefixtures("short_runs")
def test_bfloat16_is_near_and_follows_the_weights(model: SANE) -> None:
    """The bound is that of rounding: a latent has deviation 1, a bfloat16 eight binary digits."""
    for parameter in model.parameters():
        parameter.data.mul_(3)  # attention that prefers some tokens
    graph = network()
    for _ in range(2):
        wide, narrow = (encode(model, graph, precision=p).values for p in ("float32", "bfloat16"))
        assert not torch.equal(wide, narrow)
        assert (wide - narrow).pow(2).mean().sqrt() < 0.03
        assert (wide.mean(0) - narrow.mean(0)).abs().max() < 0.02
        with torch.no_grad():
            model.tokens_in.weight.mul_(-1)


def test_inference_mode_changes_nothing(model: SANE) -> None:
    graph = network()
    with torch.inference_mode():
        first = encode(model, graph, precision="bfloat16").values.clone()
        made_within = SANE(SMALL).eval()
        encode(made_within, graph, precision="bfloat16")
    assert torch.equal(encode(model, graph, precision="bfloat16").values, first)


def test_precision_by_name() -> None:
    assert precision_dtype("float32", torch.device("cpu")) == torch.float32
    assert precision_dtype("bfloat16", torch.device("cpu")) == torch.bfloat16
    assert precision_dtype("auto", torch.device("cuda")) == torch.float32


@pytest.mark.usefixtures("short_runs")
def test_latents_kept_dropped_and_written_are_one_encoding(model: SANE, tmp_path) -> None:
    graph, encoder = network(), SaneEncoder(model)
    kept, dropped, written = (
        encoder.encode(graph, EncodeOptions(latents=latents))
        for latents in (True, False, tmp_path / "latents")
    )
    assert dropped.latents is None
    assert written.latents is None
    for other in (dropped, written):
        assert torch.equal(kept.embedding, other.embedding)
        assert torch.equal(kept.layers, other.layers)
        assert kept.tokens == other.tokens == len(kept.latents)
    torch.testing.assert_close(kept.embedding, kept.latents.mean(0))
    for (start, stop), layer in zip(kept.spans, kept.layers, strict=True):
        torch.testing.assert_close(layer, kept.latents[start:stop].mean(0))
    files = {"net": tmp_path / "latents"}
    write_encodings({"net": written, "other": kept}, files, tmp_path / "e.safetensors")
    found = load_file(tmp_path / "e.safetensors")
    assert torch.equal(found["net/latents"], kept.latents)
    assert torch.equal(found["other/latents"], kept.latents)
    assert torch.equal(found["net/layers"], kept.layers)


@pytest.mark.usefixtures("short_runs")
def test_progress_ends_at_the_last_token(model: SANE) -> None:
    events = []
    options = EncodeOptions(latents=False, report=events.append)
    found = SaneEncoder(model).encode(network(), options)
    assert [event.done for event in events] == sorted({event.done for event in events})
    assert events[-1].done == events[-1].total == found.tokens


def test_a_weight_that_is_not_finite_is_named(model: SANE) -> None:
    graph = network()
    bad = graph.replace({"2.weight": torch.full((40, 70), torch.inf)})
    with pytest.raises(SourceError, match=r"'2\.weight'.*2800 of 2800 values are not finite"):
        encode(model, bad)
    with pytest.raises(SourceError, match="not finite"):
        embed(bad, EncodeOptions(encoder="statistics"))


class _Watched(Mapping):
    """Counts reads, and asserts at each that the large tensors read before are gone."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], together: int) -> None:
        self._tensors, self._alive, self._together = tensors, [], together
        self.reads: list[str] = []

    def __getitem__(self, key: str) -> torch.Tensor:
        self._alive = [ref for ref in self._alive if ref() is not None]
        assert len(self._alive) < self._together, key
        self.reads.append(key)
        found = self._tensors[key].clone()
        if found.ndim > 1:
            self._alive.append(weakref.ref(found))
        return found

    def __iter__(self):
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


@pytest.mark.usefixtures("short_runs")
def test_each_tensor_is_read_once_and_let_go(model: SANE) -> None:
    graph = network()
    watched = _Watched(graph.tensors, together=1)
    encode(model, replace(graph, tensors=watched))
    assert watched.reads == [param.key for param in graph.params]


def test_statistics_hold_a_matrix_and_its_neighbour() -> None:
    graph = from_module(nn.Sequential(*(nn.Linear(12, 12) for _ in range(6))))
    watched = replace(graph, tensors=_Watched(graph.tensors, together=2))
    assert torch.equal(statistics(watched), statistics(graph))


PEAK = """
import resource, sys, torch
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from memory import write_sparse
from sane_plugins.autoencoder.model import SANE, SANEConfig
from sane_plugins.features.encoders import EncodeOptions, SaneEncoder
from sane_plugins.formats.reading import open_file
torch.set_num_threads(1)
path = Path(sys.argv[1])
write_sparse(path, float(sys.argv[3]), "F32", large=(1250, 8000), usual=(1250, 8000))
model = SANE(SANEConfig(model_width=24, heads=2, layers=1)).eval()
SaneEncoder(model).encode(open_file(path), EncodeOptions(latents=False))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_network(tmp_path, request) -> None:
    """Five times the file, the same largest tensor: at most 30 MB more."""
    folder = request.config.rootpath / "benchmarks"
    small, large = (
        int(
            subprocess.check_output(
                [sys.executable, "-c", PEAK, tmp_path / "net.safetensors", folder, size], text=True
            )
        )
        for size in ("0.02", "0.1")
    )
    assert large - small < 30_000


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_gpu_gives_nearly_the_same(precision, model: SANE) -> None:
    graph = network()
    here = encode(model, graph).values
    there = encode(model.cuda(), graph, precision=precision).values.cpu()
    assert (here - there).pow(2).mean().sqrt() < 0.03
