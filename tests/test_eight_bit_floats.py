"""Files of 8-bit floats get the answers of the same numbers in single precision."""

import pytest
import torch
from safetensors.torch import save_file

from sane_plugins import Host
from sane_plugins.architectures import small_cnn
from sane_plugins.fingerprints import fingerprint, relate
from sane_plugins.health import check_network

TYPES = [
    *(torch.float8_e4m3fn, torch.float8_e5m2),
    *(torch.float8_e4m3fnuz, torch.float8_e5m2fnuz),
]


@pytest.fixture(params=TYPES, ids=str)
def pair(request, tmp_path):
    torch.manual_seed(0)
    state = small_cnn().state_dict()
    narrow = {key: x.to(request.param) for key, x in state.items()}
    save_file(narrow, tmp_path / "narrow.safetensors")
    save_file({key: x.float() for key, x in narrow.items()}, tmp_path / "wide.safetensors")
    host = Host.installed()
    return host, *(host.open(tmp_path / f"{name}.safetensors") for name in ("narrow", "wide"))


def test_answers(pair) -> None:
    host, narrow, wide = pair
    assert torch.equal(host.encode(narrow).embedding, host.encode(wide).embedding)
    told, asked = host.predict(narrow), host.predict(wide)
    assert told.keys() == asked.keys()
    for name, estimate in told.items():
        if not isinstance(estimate.value, str):
            assert estimate.value == pytest.approx(asked[name].value, rel=1e-4)
    assert relate(fingerprint(narrow), fingerprint(wide)).similarity == pytest.approx(1.0)
    assert [x.text for x in check_network(narrow).findings] == [
        x.text for x in check_network(wide).findings
    ]
