"""Constants whose infinities are meant do not stop embedding and predicting; weights that diverged do."""

import json
from collections.abc import Callable

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from torch import nn

from sane_plugins import EncodeOptions, Host
from sane_plugins.cli.main import main
from sane_plugins.errors import SourceError
from sane_plugins.inspection import survey_network
from sane_plugins.weights import from_module

INF = torch.inf
SMALLEST = torch.finfo(torch.float32).min
MASKS = {
    "causal": torch.full((4, 4), -INF).triu(1),
    "of two": torch.full((2, 2), -INF).triu(1),
    "lower": torch.full((5, 5), INF).tril(-1) + 1,
    "of heads": torch.full((1, 3, 4, 4), -INF).triu(1),
    "of windows": torch.tensor([0.0, -INF]).repeat(5, 7, 2),
    "smallest numbers": torch.full((4, 4), SMALLEST).triu(1),
    "half": torch.full((4, 4), -INF, dtype=torch.float16).triu(1),
    "slopes of distance": torch.full((6, 6), -INF).triu(1) + torch.arange(6.0),
    "of tokens": torch.tensor([0.0, -INF, -INF, 0.0]),
}


class Network(nn.Module):
    def __init__(self, mask: torch.Tensor | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 3, bias=False)
        if mask is not None:
            self.register_buffer("mask", mask.clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(x).relu())


@pytest.fixture(scope="module")
def host() -> Host:
    return Host.installed()


@pytest.mark.parametrize("form", ["module", "net.safetensors", "net.pt"])
@pytest.mark.parametrize("name", MASKS)
def test_masks_are_left_out(name: str, form: str, host: Host, tmp_path) -> None:
    source: object = Network(MASKS[name])
    plain: object = Network(None)
    if form != "module":
        for folder, module in (("a", source), ("b", plain)):
            (tmp_path / folder).mkdir()
            write = save_file if form.endswith("safetensors") else torch.save
            write(module.state_dict(), tmp_path / folder / form)
        source, plain = tmp_path / "a" / form, tmp_path / "b" / form
    graph = host.open(source)
    if form == "module":
        assert torch.equal(host.encode(graph).embedding, host.encode(plain).embedding)
    statistics = EncodeOptions(encoder="statistics")
    assert host.encode(graph, statistics).names == host.encode(plain, statistics).names
    assert host.encode(graph).names == host.encode(plain).names
    assert host.predict(graph).keys() == host.predict(plain).keys()
    finite = graph.require_finite()
    assert "no weight" in finite.untouched["mask"]
    assert any("left out" in note for note in finite.notes)
    survey = survey_network(graph)
    assert (survey.parameters, survey.nonfinite, survey.coverage) == (64, 0, 1)
    assert [portion.keys for portion in survey.skipped] == [("mask",)]


def fill(path: str, change: Callable[[torch.Tensor], object]) -> Network:
    module = Network(torch.zeros(3, 3))
    change(module.get_parameter(path).data if path != "mask" else module.mask)
    return module


@pytest.mark.parametrize(
    ("path", "change"),
    [
        ("first.weight", lambda x: x[0].fill_(INF)),
        ("first.weight", lambda x: x.fill_(INF)),
        ("first.weight", lambda x: x.zero_()[0].fill_(INF)),
        ("first.bias", lambda x: x.zero_()[:2].fill_(-INF)),
        ("last.weight", lambda x: x[0].fill_(-INF)),
        ("last.weight", lambda x: x.fill_(-INF)),
        ("last.weight", lambda x: x.zero_()[0, 0].fill_(INF)),
        ("last.weight", lambda x: x[0, 0].fill_(torch.nan)),
        ("last.weight", lambda x: x[0, 0].fill_(3e38)),
        ("mask", lambda x: x[0].fill_(torch.nan)),
        ("mask", lambda x: x.fill_(INF)),
    ],
)
def test_weights_that_are_not_finite_are_refused(path: str, change, host: Host) -> None:
    graph = from_module(fill(path, change))
    for ability in (
        host.encode,
        host.predict,
        lambda x: host.encode(x, EncodeOptions(encoder="statistics")),
    ):
        with pytest.raises(SourceError, match=rf"'{path}': .* not finite"):
            ability(graph)
    assert survey_network(graph).nonfinite


def test_a_norm_that_diverged_is_no_mask() -> None:
    module = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6))
    module[1].running_var[:3] = INF
    with pytest.raises(SourceError, match=r"'1.running_var'"):
        from_module(module).require_finite()


def test_the_commands_answer(tmp_path) -> None:
    save_file(Network(MASKS["causal"]).state_dict(), tmp_path / "net.safetensors")
    path = str(tmp_path / "net.safetensors")
    for command in ("embed", "predict", "inspect"):
        done = CliRunner().invoke(main, [command, path, "--json"])
        assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert "mask" in json.dumps(told)
