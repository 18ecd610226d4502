"""Where several architectures share names and shapes, `config.json` beside the file says which it is."""

import json
from importlib.util import find_spec

import pytest
from safetensors.torch import save_file

from sane_plugins.host import Host

SHARED = {"timm:efficientnet_b0", "timm:tf_efficientnet_b0"}


@pytest.mark.skipif(find_spec("timm") is None, reason="timm is not installed")
def test_a_declared_architecture_is_the_one(tmp_path) -> None:
    host = Host.installed()
    state = host.build("timm:efficientnet_b0").state_dict()
    save_file({key: x.contiguous() for key, x in state.items()}, tmp_path / "model.safetensors")
    assert {*host.open(tmp_path).recognized} >= SHARED
    for name in ("tf_efficientnet_b0", "efficientnet_b0"):
        config = {"architecture": name, "pretrained_cfg": {"tag": "ra_in1k"}}
        (tmp_path / "config.json").write_text(json.dumps(config))
        graph = host.open(tmp_path)
        assert graph.recognized == (f"timm:{name}",)
        assert graph.has_topology
        assert f"declared as {name}.ra_in1k (timm)" in graph.notes
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "resnet18"}))
    assert {*host.open(tmp_path).recognized} >= SHARED  # its names and shapes are not those
