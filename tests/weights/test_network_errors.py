"""What a network's own code raises is told as that network's error, and what we raise is not."""

import pytest
import torch
from torch import nn

from sane_plugins import Host
from sane_plugins.errors import PluginError, SourceError
from sane_plugins.weights import from_module, network_errors_told, raised_by_network


class Broken(nn.Linear):
    """A layer whose methods raise; torch calls them from within its own."""

    def __init__(self, broken: str) -> None:
        super().__init__(4, 2)
        self.broken = broken

    def forward(self, x):
        if self.broken == "forward":
            raise ValueError("no forward")
        return super().forward(x)

    def state_dict(self, *args, **kwargs):
        if self.broken == "state_dict":
            raise KeyError("no state")
        return super().state_dict(*args, **kwargs)


def _raised(call) -> BaseException:
    with pytest.raises(Exception) as caught:
        call()
    return caught.value


def test_the_method_and_the_line_are_named() -> None:
    network = nn.Sequential(Broken("forward"))
    raised = raised_by_network(_raised(lambda: network(torch.zeros(1, 4))))
    assert raised is not None
    assert (raised.network, raised.method) == ("Broken", "forward")
    assert raised.file.name == "test_network_errors.py"
    assert "no forward" in raised.file.read_text().splitlines()[raised.line - 1]


def test_what_torch_refuses_is_no_networks_error() -> None:
    assert raised_by_network(_raised(lambda: nn.Linear(4, 2)(torch.zeros(1, 5)))) is None
    raised = raised_by_network(_raised(lambda: Broken("")(torch.zeros(1, 5))))
    assert raised is not None  # by way of its own forward
    assert raised.method == "forward"


def test_other_errors_pass_as_they_are() -> None:
    with pytest.raises(ZeroDivisionError), network_errors_told():
        _ = 1 / 0
    with pytest.raises(KeyboardInterrupt), network_errors_told():
        raise KeyboardInterrupt
    error = SourceError("it", "a", "b", "c")
    with pytest.raises(SourceError) as caught, network_errors_told():
        raise error
    assert caught.value is error


def test_a_state_dict_that_fails_is_the_networks() -> None:
    told = r"Broken: its state_dict raised KeyError: 'no state', but .*; repair it at line \d+ of "
    with pytest.raises(SourceError, match=told):
        from_module(Broken("state_dict"))
    host = Host.installed()
    for ask in (host.open, host.encode):
        with pytest.raises(SourceError, match=told):
            ask(Broken("state_dict"))
    assert not host.problems


def test_our_own_fault_never_says_to_switch_us_off(monkeypatch) -> None:
    def fails(*_, **__):
        raise RuntimeError("we are wrong")

    monkeypatch.setattr("sane_plugins.features.embed", fails)
    with pytest.raises(PluginError, match="fault of sane-plugins: report it") as caught:
        Host.installed().encode(nn.Linear(4, 2))
    assert "disable" not in str(caught.value)
