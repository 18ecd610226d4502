"""Whether a network runs and trains on a task's images is asked before any work, and told as its error."""

from functools import partial

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from sane_plugins import Host
from sane_plugins.architectures import resnet, small_cnn
from sane_plugins.cli.initialize import main as sane_init
from sane_plugins.errors import SaneError, SourceError, TaskError
from sane_plugins.initialize import InitializeOptions
from sane_plugins.tasks import load_task, require_fit, require_trainable

TASK = load_task("digits")


class Raising(nn.Module):
    """A network that raises where `when` says so."""

    def __init__(self, when: str) -> None:
        super().__init__()
        self.linear, self.when = nn.Linear(64, 10), when

    def forward(self, x):
        met = {
            "always": True,
            "training": self.training,
            "one": len(x) == 1,
            "exit": self.when == "exit",
        }
        if met.get(self.when):
            raise SystemExit(3) if self.when == "exit" else RuntimeError("out of order")
        output = self.linear(x.flatten(1))
        return output.detach() if self.when == "backward" else output

    def load_state_dict(self, *args, **kwargs):
        if self.when == "load":
            raise ValueError("no weights taken")
        return super().load_state_dict(*args, **kwargs)

    def __deepcopy__(self, memo):
        if self.when == "copy":
            raise TypeError("no copies")
        copied = Raising(self.when)
        nn.Module.load_state_dict(copied, self.state_dict())
        return copied


TOLD = {
    "always": "Raising: its forward raised RuntimeError: out of order on images of 1 x 8 x 8, but",
    "training": "its forward raised RuntimeError: out of order on images of 1 x 8 x 8 in training",
    "one": "its forward raised RuntimeError: out of order on one of the images of 1 x 8 x 8, but",
    "exit": "its forward raised SystemExit: 3 on images of 1 x 8 x 8, but",
    "backward": "its backward pass raised RuntimeError: element 0 of tensors does not require grad",
    "load": "its load_state_dict raised ValueError: no weights taken, but",
}


@pytest.mark.parametrize("scored", [True, False])
@pytest.mark.parametrize("when", TOLD)
def test_what_the_network_raises_is_its_error(when: str, scored: bool) -> None:
    host = Host.installed()
    options = InitializeOptions(scored=scored)
    for target in (Raising(when), partial(Raising, when)):
        with pytest.raises(SaneError) as caught:
            host.initialize(target, TASK, options=options)
        assert TOLD[when] in str(caught.value)
        assert caught.value.plugin == ""
        assert when == "backward" or "test_network_fit.py" in caught.value.way_out
    assert not host.problems


def test_a_function_that_raises_is_the_users() -> None:
    def build_once():
        raise OSError("no such weights")

    host = Host.installed()
    with pytest.raises(SourceError, match="build_once: it raised OSError: no such weights, but"):
        host.initialize(build_once, TASK)
    with pytest.raises(SourceError, match="it returns int, but a"):
        host.initialize(partial(int, "3"), TASK)
    assert not host.problems


def test_a_network_that_runs_and_trains_is_left_as_it_was() -> None:
    torch.manual_seed(0)
    network, uncopied = resnet(1, 10).train(), Raising("copy")
    before = {key: value.clone() for key, value in network.state_dict().items()}
    state = torch.get_rng_state()
    require_trainable(network, TASK)
    assert network.training
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert torch.equal(state, torch.get_rng_state())
    require_trainable(uncopied, TASK)


def test_a_network_without_anything_to_train_is_told() -> None:
    frozen = small_cnn(1, 10).requires_grad_(False)
    with pytest.raises(SourceError, match="requires_grad"):
        require_trainable(frozen, load_task("digits", size=28))


def test_the_network_is_called_as_the_user_calls_it() -> None:
    with pytest.raises(TaskError, match=r"^my_nets:crash: its forward raised .* choose another"):
        require_fit(Raising("always"), TASK, "my_nets:crash")


@pytest.mark.parametrize("options", [(), ("--no-score",)])
def test_the_command_names_the_function(tmp_path, monkeypatch, options) -> None:
    (tmp_path / "nets_that_fail.py").write_text(
        "from torch import nn\n\n\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.head = nn.Linear(4, 10)\n\n"
        "    def forward(self, x):\n        raise RuntimeError('out of order')\n\n\n"
        "def crash():\n    return Net()\n"
    )
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(sane_init, ["nets_that_fail:crash", *options, "-o", "x.pt"])
    assert result.exit_code == 1
    told = (
        "Error: nets_that_fail:crash: its forward raised RuntimeError: out of order on images of 1"
    )
    assert result.output.startswith(told)
    assert len(result.output.splitlines()) == 1
    assert "line 10 of" in result.output
