"""What NNCF has pruned is read as what it computes, as a module and from its state dict."""

import sys
from importlib.util import find_spec

import pytest
import torch
from graftnets import ResidualNet, trained

from sane_plugins.architectures import import_torchvision
from sane_plugins.formats import from_state_dict
from sane_plugins.weights import copy_module, from_module, load_into

if "torchvision" not in sys.modules and find_spec("torchvision") is not None:
    import_torchvision()  # NNCF imports it, also one whose operators do not fit this torch
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # NNCF's own warnings
nncf = pytest.importorskip("nncf", reason="HOST ABSENT: run tox -e hosts")
pytest.importorskip("nncf.torch", reason="HOST ABSENT: run tox -e hosts")


@pytest.mark.parametrize(
    "mode", ["UNSTRUCTURED_MAGNITUDE_GLOBAL", "UNSTRUCTURED_REGULARIZATION_BASED"]
)
def test_a_pruned_network_is_read_as_what_it_computes(mode) -> None:
    plain = trained(ResidualNet((6, 8, 12)))
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    is_magnitude = "MAGNITUDE" in mode
    pruned = nncf.prune(
        copy_module(plain),
        mode=nncf.PruneMode[mode],
        ratio=0.5 if is_magnitude else None,
        examples_inputs=images,
    ).eval()
    with torch.no_grad():
        for name, value in pruned.named_parameters():
            if name.endswith(".mask"):  # as its training leaves it
                rng = torch.Generator().manual_seed(1)
                value.copy_(torch.randn(value.shape, generator=rng))
    graphs = (from_module(pruned), from_state_dict(pruned.state_dict(), "a file"))
    for graph in graphs:
        read = copy_module(plain)
        load_into(read, graph)
        with torch.no_grad():
            assert torch.allclose(read.eval()(images), pruned(images), atol=1e-5)
        zeros = sum(int((graph.tensors[p.key] == 0).sum()) for p in graph.params)
        assert zeros > 0.3 * graph.size
