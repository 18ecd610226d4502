"""What `inspect` says of a network: all of it, true to the values, and in words."""

import importlib.util
import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import prune

from sane_plugins.architectures import small_cnn
from sane_plugins.cli.main import main as sane_plugins
from sane_plugins.formats import from_state_dict
from sane_plugins.inspection import (
    layer_table,
    percent,
    summary_lines,
    survey_network,
    survey_record,
)
from sane_plugins.inspection.token_map import token_map
from sane_plugins.weights import WeightGraph, apply_scale, fit_scale, from_module, tokenize

ROOT = Path(__file__).parents[2]


def _inspect(*arguments: object):
    return CliRunner().invoke(sane_plugins, ["inspect", *map(str, arguments)])


@pytest.fixture
def network(tmp_path) -> Path:
    torch.manual_seed(0)
    torch.save(small_cnn().state_dict(), tmp_path / "net.pt")
    return tmp_path / "net.pt"


class _Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 3, groups=2)
        self.back = nn.ConvTranspose2d(6, 4, 3, groups=2)
        self.head = nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.back(self.conv(x).relu()).mean((2, 3)))


def _by_name(graph: WeightGraph):
    return {layer.name: layer for layer in survey_network(graph).layers}


def test_figures_are_those_of_the_values() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(32, 4))
    nn.init.normal_(net[1].running_mean)
    found = _by_name(from_module(net))
    weight = net[0].weight.detach().double()
    assert found["0"].rms == pytest.approx(weight.square().mean().sqrt().item())
    assert found["0"].bias_rms == pytest.approx(net[0].bias.double().square().mean().sqrt().item())
    assert (found["1"].rms, found["1"].bias_rms) == (1, 0)  # running statistics are no weights
    assert found["0"].tensors[0].mean == pytest.approx(weight.mean().item())
    assert found["0"].tensors[0].deviation == pytest.approx(weight.std(correction=0).item())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_large_and_narrow_tensors_are_measured_in_pieces(dtype) -> None:
    torch.manual_seed(0)
    weight = (torch.randn(3, 1 << 20) + 100).to(dtype)
    (figures,) = survey_network(from_state_dict({"weight": weight}, "net")).tensors
    assert figures.mean == pytest.approx(weight.double().mean().item())
    assert figures.deviation == pytest.approx(weight.double().std(correction=0).item(), rel=1e-9)


def test_channels_of_zeros_are_counted_where_they_are() -> None:
    torch.manual_seed(0)
    net = _Grouped()
    with torch.no_grad():
        net.conv.weight[4] = 0  # an output channel of the second group
        net.conv.weight[:3, 1] = 0  # input channel 1, which only the first group reads
        net.back.weight[2] = 0  # an input channel: transposed
        net.back.weight[3:, 1] = 0  # output channel 3, of the second group
        net.head.weight[:, 0] = 0
    found = {name: layer.tensors[0].channels for name, layer in _by_name(from_module(net)).items()}
    conv, back, head = (found[name] for name in ("conv", "back", "head"))
    assert (conv.outputs, conv.zero_outputs, conv.inputs, conv.zero_inputs) == (6, 1, 4, 1)
    assert (back.outputs, back.zero_outputs, back.inputs, back.zero_inputs) == (4, 1, 6, 1)
    assert (head.outputs, head.zero_outputs, head.inputs, head.zero_inputs) == (5, 0, 4, 1)


def test_pruning_is_seen_and_told(tmp_path) -> None:
    torch.manual_seed(0)
    net = small_cnn()
    prune.l1_unstructured(net[4], "weight", amount=0.5)
    prune.ln_structured(net[8], "weight", amount=2, n=2, dim=0)
    torch.save(net.state_dict(), tmp_path / "pruned.pt")
    told = json.loads(_inspect(tmp_path / "pruned.pt", "--json").stdout)
    assert told["sparsity"]["zeros"] == 600 + 48
    assert told["sparsity"]["zero_outputs"] == 2
    (converted,) = told["converted"]
    assert set(converted["keys"]) == {"4.weight", "8.weight"}
    assert converted["values"] == 1200 + 96
    text = _inspect(tmp_path / "pruned.pt").stdout
    assert "Converted [1]: 2 tensors, 1,296 values, 52.6 %: its pruning mask is folded in" in text
    assert "2 of 48 output channels (4.2 %)" in text


def test_not_finite_values_are_told_and_left_out(tmp_path) -> None:
    weight = torch.tensor([[3.0, float("nan")], [float("inf"), 4.0]])
    torch.save({"weight": weight}, tmp_path / "net.pt")
    text = _inspect(tmp_path / "net.pt").stdout
    assert "2 values are NaN, infinite" in text
    told = json.loads(_inspect(tmp_path / "net.pt", "--json").stdout)
    assert told["not_finite"] == 2
    assert told["layers"][0]["rms"] == pytest.approx(12.5**0.5)


@pytest.fixture
def partial(tmp_path) -> Path:
    """Write a network of which 600 of 1000 values are in a form that nobody knows."""
    tensors = {
        "a.weight": torch.ones(20, 20),
        "b.weight": torch.ones(20, 30, dtype=torch.int8),
        "steps": torch.tensor(3),
    }
    save_file(tensors, tmp_path / "net.safetensors")
    return tmp_path / "net.safetensors"


def test_what_could_not_be_read_is_one_clear_line(partial) -> None:
    text = _inspect(partial).stdout
    (line,) = [x for x in text.splitlines() if x.startswith("Coverage")]
    assert line == ("Coverage: only 40.0 % of the parameters could be read; 600 values could not.")
    assert "Not read: 1 tensor, 600 values, 60.0 %" in text
    assert "Skipped as no weights: 1 tensor: torch.int64 values are no weights (steps)" in text
    told = json.loads(_inspect(partial, "--json").stdout)
    assert told["coverage"] == 0.4
    assert told["missed"][0]["keys"] == ["b.weight"]
    assert set(told["untouched"]) == {"b.weight", "steps"}
    assert told["layers"][0]["share"] == 0.4


def test_fail_under_is_for_pipelines(partial, network) -> None:
    done = _inspect(partial, "--fail-under", 90)
    assert done.exit_code == 1
    assert "40.0 % of its parameters could be read, but --fail-under asks for 90 %" in done.stderr
    assert done.stderr.count("\n") == 1
    assert "Coverage" in done.stdout
    assert _inspect(partial, "--fail-under", 40).exit_code == 0
    assert _inspect(network, "--fail-under", 100).exit_code == 0
    assert _inspect(network, "--fail-under", 101).exit_code == 2


def test_long_tables_are_cut_and_nothing_is_lost(tmp_path) -> None:
    tensors = {f"block{i}.weight": torch.ones(2, i + 1) for i in range(50)}
    torch.save(tensors, tmp_path / "net.pt")
    text = _inspect(tmp_path / "net.pt").stdout
    assert "... 20 more" in text
    assert f"{sum(2 * (i + 1) for i in range(15, 35)):,}" in text
    assert "block14" in text
    assert "block15" not in text
    assert "block15" in _inspect(tmp_path / "net.pt", "--all-layers").stdout


def test_a_shared_tensor_is_counted_once() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    net[2].weight = net[0].weight
    graph = from_module(net)
    found = survey_network(graph)
    assert sum(layer.parameters for layer in found.layers) == found.parameters == graph.size == 24
    assert found.coverage == 1


def test_topology_and_symmetry_are_told(network) -> None:
    text = _inspect("small-cnn").stdout
    assert "Topology known" in text
    assert "38 hidden channels in 4 groups" in text
    text = _inspect(network).stdout
    assert "Topology known" in text
    assert "38 hidden channels in 4 groups" in text
    widths = (9, 7, 5, 3)
    unknown = nn.Sequential(*[nn.Linear(a, b) for a, b in pairwise(widths)])
    torch.save(unknown.state_dict(), network)
    text = _inspect(network).stdout
    assert "Topology inferred: 3 of 3 layers" in text
    assert "12 hidden channels in 2 groups" in text
    torch.save(nn.Sequential(*[nn.Linear(4, 4) for _ in range(3)]).state_dict(), network)
    text = _inspect(network).stdout
    assert "Topology unknown: a file of tensors does not say" in text
    assert "Symmetry" not in text


@pytest.mark.parametrize(
    ("share", "told"),
    [(0, "0 %"), (1, "100 %"), (1e-9, "under 0.1 %"), (1 - 1e-9, "over 99.9 %"), (0.5, "50.0 %")],
)
def test_a_share_is_whole_only_where_it_is(share: float, told: str) -> None:
    assert percent(share) == told


def test_token_map_is_the_standardised_tokens() -> None:
    torch.manual_seed(0)
    graph = from_module(_Grouped())
    scale = {x.key: x.scale for x in survey_network(graph).tensors}
    tokens = tokenize(apply_scale(graph, fit_scale(graph)), 16)
    whole = token_map(graph, scale, 16)
    torch.testing.assert_close(whole.values, tokens.values, rtol=1e-4, atol=1e-5)
    assert torch.equal(whole.mask, tokens.mask)
    assert whole.spans == (("conv", 0, 12), ("back", 12, 21), ("head", 21, 26))
    few = token_map(graph, scale, 16, most=7)
    assert len(few.values) == 7
    assert few.total == len(tokens)
    assert torch.equal(few.values, whole.values[few.place])
    assert torch.equal(few.mask, whole.mask[few.place])


@pytest.mark.parametrize("suffix", [".png", ".pdf", ".svg"])
def test_plot_writes_a_picture(network, tmp_path, suffix: str) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / f"out{suffix}"
    done = _inspect(network, "--plot", picture)
    assert done.exit_code == 0, done.stderr
    assert picture.read_bytes()[:4] in (b"\x89PNG", b"%PDF", b"<?xm")
    assert "2,464 parameters" in done.stdout
    assert [x.name for x in tmp_path.iterdir() if "partial" in x.name] == []


def test_plot_of_odd_networks(tmp_path) -> None:
    """Zeros, one value, NaN, names that a formula or a font would trip over."""
    pytest.importorskip("matplotlib")
    tensors = {
        "$a_b^.weight": torch.zeros(3, 2),
        "重み.weight": torch.full((1, 1), float("nan")),
        "x": torch.tensor(2.0),
        "empty": torch.zeros(0),
    }
    torch.save(tensors, tmp_path / "net $x$.pt")
    done = _inspect(tmp_path / "net $x$.pt", "--plot", tmp_path / "out.png")
    assert done.exit_code == 0, done.stderr


def test_plot_overwrites_nothing_unasked(network, tmp_path, monkeypatch) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / "out.png"
    picture.write_text("precious")
    monkeypatch.setattr("sane_plugins.host.Host.open", lambda *_: pytest.fail("worked"))
    done = _inspect(network, "--plot", picture)
    assert done.exit_code == 2
    assert "--force" in done.stderr
    assert picture.read_text() == "precious"
    done = _inspect(network, "--plot", tmp_path / "out.xyz")
    assert done.exit_code == 2
    assert ".png" in done.stderr
    monkeypatch.undo()
    assert _inspect(network, "--plot", picture, "--force").exit_code == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_the_way_out_is_told(network, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("sane_plugins.inspection.plot.find_spec", lambda _: None)
    done = _inspect(network, "--plot", tmp_path / "out.png")
    assert done.exit_code == 1
    assert "pip install 'sane-plugins[plot]'" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_the_committed_page_of_formats_is_what_the_generator_gives(sane_data, tmp_path) -> None:
    pytest.importorskip("onnx")
    script, page = ROOT / "tools" / "release" / "formats_table.py", tmp_path / "formats.md"
    command = [sys.executable, script, "--data", sane_data, "--quick", "--page", page]
    done = subprocess.run(
        [*map(str, command), "--out", str(tmp_path / "formats.json")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    committed = (ROOT / "docs" / "reference" / "real-files.md").read_text()
    assert _without_runtime(page.read_text()) == _without_runtime(committed), (
        "docs/reference/real-files.md is out of date: run python tools/release/formats_table.py --data FOLDER"
    )


def _without_runtime(page: str) -> list[str]:
    """Return the page without its last column, which depends on onnxruntime."""
    return [
        x.rpartition("|")[0].rpartition("|")[0] if x[:1] == "|" else x for x in page.splitlines()
    ]


def test_a_page_of_formats_tells_failures_from_refusals(tmp_path) -> None:
    spec = importlib.util.spec_from_file_location(
        "formats", ROOT / "tools" / "release" / "formats_table.py"
    )
    formats = importlib.util.module_from_spec(spec)
    sys.modules["formats"] = formats
    spec.loader.exec_module(formats)
    (tmp_path / "checkpoints").mkdir()
    torch.save({"a|b.weight": torch.ones(2, 2)}, tmp_path / "checkpoints" / "a.pt")
    (tmp_path / "checkpoints" / "b.pt").write_text("nothing")
    (tmp_path / "README.md").write_text(
        "Hostile or broken on purpose: `b.pt` (no\nnetwork). `a.pt` is."
    )
    rows = list(formats.read_all(tmp_path, quick=True))
    assert [row.read for row in rows] == ["in full", "refused"]
    assert rows[1].remark == "hostile or broken on purpose: no network"
    assert str(tmp_path) not in formats.page(rows)


def test_a_survey_is_put_into_words_without_the_command() -> None:
    survey = survey_network(
        from_module(nn.Sequential(*(nn.Linear(2, 2) for _ in range(50)))), width=4
    )
    whole, ends = layer_table(survey, None), layer_table(survey, 40)
    assert len(whole.rows) == 50
    assert len(ends.rows) == 31
    assert {len(row) for row in (*whole.rows, *ends.rows)} == {len(whole.columns)}
    lines = list(summary_lines(survey))
    assert lines[0] == "300 parameters (float32) in 100 tensors of 50 layers."
    assert any(f"{survey.tokens:,} pieces (tokens) of up to 4" in line for line in lines)
    record = survey_record(survey)
    assert (record["tokens"], record["token_width"]) == (survey.tokens, 4)
