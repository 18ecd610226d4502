"""What comes in as ONNX or as a checkpoint goes out as one, and tells where it comes from."""

import warnings

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from sane_plugins.architectures import small_cnn
from sane_plugins.cli.initialize import main
from sane_plugins.errors import SourceError
from sane_plugins.formats import open_file
from sane_plugins.host import Host
from sane_plugins.tasks import load_task

FACTORY = "sane_plugins.architectures.families:small_cnn"


def run(*arguments: object):
    return CliRunner().invoke(main, [str(x) for x in arguments])


def init(model, output, *more: object):
    return run(
        model,
        "--factory",
        FACTORY,
        "--task",
        "digits",
        "--size",
        28,
        "-o",
        output,
        "--samples",
        2,
        "--keep",
        1,
        "--budget",
        5,
        *more,
    )


@pytest.fixture
def exported(tmp_path):
    pytest.importorskip("onnx")
    torch.manual_seed(0)
    path = tmp_path / "net.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            small_cnn().eval(),
            (torch.zeros(1, 1, 28, 28),),
            str(path),
            dynamo=False,
            do_constant_folding=False,
            dynamic_axes={"input": {0: "n"}},
            input_names=["input"],
        )
    return path


def test_an_onnx_model_keeps_its_nodes(exported, tmp_path) -> None:
    import onnx
    from onnx.reference import ReferenceEvaluator

    output = tmp_path / "new.onnx"
    done = init(exported, output)
    assert done.exit_code == 0, done.output
    before, after = onnx.load(exported), onnx.load(output)
    assert [n.SerializeToString() for n in before.graph.node] == [
        n.SerializeToString() for n in after.graph.node
    ]
    module = small_cnn().eval()
    module.load_state_dict({k: v.clone() for k, v in Host.installed().open(output).tensors.items()})
    images = torch.randn(3, 1, 28, 28)
    answer = torch.from_numpy(ReferenceEvaluator(after).run(None, {"input": images.numpy()})[0])
    assert torch.allclose(answer, module(images), atol=1e-3, rtol=1e-3)
    again = run("verify", output, "--factory", FACTORY)
    assert again.exit_code == 0, again.output


def test_a_network_is_saved_into_the_nodes_of_another(exported, tmp_path) -> None:
    """The adapter decides what fits its nodes; a check says so before the work, and writes nothing."""
    host, output = Host.installed(), tmp_path / "out" / "new.onnx"
    output.parent.mkdir()
    graph, other = host.open(small_cnn()), host.open(small_cnn(1, 7))
    for call in (host.check_save, host.save):
        with pytest.raises(SourceError, match="another shape"):
            call(other, output, like=str(exported))
        with pytest.raises(SourceError, match="Linear is no ONNX file"):
            call(graph, output, like=torch.nn.Linear(1, 1))
    for like in (str(exported), host.open(exported)):
        host.check_save(graph, output, like=like)
        assert not list(output.parent.iterdir())
        host.save(graph, output, like=like)
        saved = host.open(output).tensors
        assert all(torch.equal(saved[key], tensor) for key, tensor in graph.tensors.items())
        output.unlink()


def test_a_module_does_not_become_onnx(tmp_path) -> None:
    pytest.importorskip("onnx")
    done = run("small-cnn", "-o", tmp_path / "new.onnx")
    assert done.exit_code == 1
    assert "is no ONNX file" in done.stderr
    assert not list(tmp_path.iterdir())


def test_other_classes_do_not_fit_the_nodes(exported, tmp_path) -> None:
    import numpy as np

    y = np.arange(60) % 3
    x = (np.random.default_rng(0).integers(0, 99, (60, 28, 28)) + 50 * y[:, None, None]).astype(
        "uint8"
    )
    np.savez(tmp_path / "three.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    done = init(exported, tmp_path / "new.onnx", "--task", tmp_path / "three.npz")
    assert done.exit_code == 1
    assert "another shape" in done.stderr


@pytest.mark.parametrize("suffix", [".pt", ".npz"])
def test_forms_without_room_tell_it_beside(tmp_path, suffix: str) -> None:
    torch.manual_seed(0)
    torch.save(small_cnn().state_dict(), tmp_path / "own.pt")
    output = tmp_path / f"new{suffix}"
    done = init(tmp_path / "own.pt", output)
    assert done.exit_code == 0, done.output
    assert (tmp_path / f"new{suffix}.provenance.json").is_file()
    graph = open_file(output)
    assert graph is not None
    assert run("verify", output, "--factory", FACTORY).exit_code == 0
    output.with_name(f"{output.name}.provenance.json").unlink()
    assert "does not say" in run("verify", output).stderr


def test_generation_alone_says_that_nothing_was_compared(tmp_path) -> None:
    output = tmp_path / "new.safetensors"
    done = run("small-cnn", "--no-score", "-o", output)
    assert done.exit_code == 0, done.output
    assert "without comparison" in done.stdout
    assert run("verify", output, "--factory", FACTORY).exit_code == 0


TARGETS = """
import warnings

from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm


def body(one=lambda x: x, other=lambda x: x, last=lambda x: x):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layers = one(nn.Conv2d(1, 8, 3)), nn.BatchNorm2d(8), nn.ReLU(), other(nn.Conv2d(8, 8, 3))
        tail = nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), last(nn.Linear(32, 10))
    return nn.Sequential(*layers, *tail)


def newer():
    return body(parametrizations.weight_norm, parametrizations.spectral_norm)


def older():
    return nn.DataParallel(body(weight_norm, spectral_norm, weight_norm))


def pruned():
    network = body(other=parametrizations.orthogonal)
    prune.l1_unstructured(network[0], "weight", 0.3)
    return network
"""


@pytest.mark.parametrize("name", ["newer", "older", "pruned"])
def test_a_target_that_computes_its_weights_takes_its_file(
    name: str, tmp_path, monkeypatch
) -> None:
    """The names of the file are those of the target, and what it computes is what was generated."""
    (tmp_path / f"targets_{name}.py").write_text(TARGETS)
    monkeypatch.chdir(tmp_path)
    model, output = f"targets_{name}:{name}", tmp_path / "net.safetensors"
    done = run(model, "--task", "digits", "--size", 28, "--no-score", "-o", output)
    assert done.exit_code == 0, done.output
    again = run("verify", output, "--factory", model)
    assert again.exit_code == 0, again.output
    monkeypatch.syspath_prepend(tmp_path)
    torch.manual_seed(1)  # masks and lengths of another draw
    module = getattr(__import__(f"targets_{name}"), name)().eval()
    module.load_state_dict(load_file(output))
    task = load_task("digits").resized(28)
    with torch.no_grad():
        right = module(task.x_test).argmax(1) == task.y_test
    assert float(right.float().mean()) > 0.5  # its classifier was fitted to just these features
