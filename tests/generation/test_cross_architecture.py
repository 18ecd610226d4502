"""Prompts of other widths, depths and kernels: what they compute stays, and nothing is left out unsaid."""

from functools import partial

import pytest
import torch
from torch import nn

from sane_plugins.architectures import resnet, small_cnn, wide_cnn
from sane_plugins.generation import resize_tensor
from sane_plugins.generation.cross_architecture import plan_expansion
from sane_plugins.weights import from_module, load_into


@pytest.fixture
def exact(monkeypatch) -> None:
    """Let repeated channels be equal."""
    monkeypatch.setattr(resize_tensor, "_SYMMETRY_BREAKING_STD", 0.0)


def grown(prompt: nn.Module, target: nn.Module) -> nn.Module:
    """Return the target with the prompt's weights, its classifier too."""
    source, graph = from_module(prompt), from_module(target)
    found = plan_expansion(source, graph, frozenset())
    assert found is not None
    load_into(target, graph.replace(found.apply([source.tensors], graph.tensors)))
    return target.eval()


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("factor", [2, 3])
def test_a_wider_network_computes_the_same(factor: int) -> None:
    torch.manual_seed(0)
    prompt, images = small_cnn().eval(), torch.randn(8, 1, 28, 28)
    target = grown(prompt, wide_cnn(factor=factor))
    assert torch.allclose(target(images), prompt(images), atol=1e-4)


@pytest.mark.usefixtures("exact")
def test_grey_prompts_see_the_mean_of_colours() -> None:
    torch.manual_seed(0)
    prompt = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))
    target = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 5))
    images = torch.randn(4, 3, 8, 8)
    after = grown(prompt, target)(images)
    assert torch.allclose(after, prompt(images.mean(1, keepdim=True)), atol=1e-4)


def test_repeated_channels_differ_a_little() -> None:
    torch.manual_seed(0)
    weight = grown(small_cnn(), wide_cnn())[0].weight
    assert not torch.equal(weight[:8], weight[8:])
    assert torch.cosine_similarity(weight[:8].flatten(), weight[8:].flatten(), 0) > 0.9


def test_a_deeper_residual_network_takes_blocks_in_their_places() -> None:
    torch.manual_seed(0)
    prompt, target = resnet(depth=8), resnet(depth=20)
    source, graph = from_module(prompt), from_module(target)
    found = plan_expansion(source, graph, frozenset())
    assert found is not None
    pairs = {piece.param.key: piece.source.key for piece in found.mappings}
    assert pairs.keys() == {p.key for p in graph.params}
    for key in (k for k in pairs if "conv" in k and "layer" in k):
        stage, _, name, _ = key.split(".")
        assert pairs[key].split(".")[0] == stage
        if not key.startswith(("layer2.0", "layer3.0")):
            assert pairs[key].split(".")[2] == name  # what a residual branch starts or ends with
    own, theirs = target.state_dict(), grown(prompt, target).state_dict()
    assert own.keys() == theirs.keys()


def test_a_narrower_network_takes_some_of_the_channels() -> None:
    torch.manual_seed(0)
    prompt = wide_cnn()
    target = grown(prompt, small_cnn())
    assert torch.equal(target[0].weight, prompt[0].weight[:8])
    assert torch.equal(target[4].weight, prompt[4].weight[:6, :8])


def test_prompts_side_by_side_stay_what_they_are() -> None:
    torch.manual_seed(0)
    prompts, target = [small_cnn().eval() for _ in range(3)], wide_cnn(factor=3).eval()
    sources, graph = [from_module(prompt) for prompt in prompts], from_module(target)
    classifier = frozenset({"14.weight", "14.bias"})
    found = plan_expansion(sources[0], graph, classifier)
    assert found is not None
    assert found.width_ratio == 3
    apart = graph.replace({p.key: torch.zeros(p.shape) for p in graph.params})
    tensors = found.apply([source.tensors for source in sources], apart.tensors)
    load_into(target, graph.replace(tensors))
    images = torch.randn(8, 1, 28, 28)
    maps = torch.cat([prompt[:10](images) for prompt in prompts], 1)
    assert torch.allclose(target[:10](images), maps, atol=1e-5)


def test_what_joins_prompts_side_by_side_is_the_default() -> None:
    torch.manual_seed(0)
    prompts, target = [small_cnn() for _ in range(2)], from_module(small_cnn(3))
    sources = [from_module(prompt) for prompt in prompts]
    found = plan_expansion(sources[0], target, frozenset({"14.weight", "14.bias"}))
    assert found is not None
    assert found.width_ratio == 2
    tensors = found.apply([source.tensors for source in sources], target.tensors)
    weight, default = tensors["4.weight"], target.tensors["4.weight"]
    own = torch.zeros(16, 16, dtype=torch.bool)
    own[:6, :8] = own[6:12, 8:] = own[12:, :8] = True
    assert torch.equal(weight[~own], default[~own])
    assert not torch.isclose(weight[own], default[own]).all(2).all(1).any()


def test_a_layer_as_wide_as_before_takes_an_equal_part_of_each() -> None:
    torch.manual_seed(0)

    def build(width: int) -> nn.Module:
        return nn.Sequential(
            nn.Linear(5, width),
            nn.ReLU(),
            nn.Linear(width, 6),
            nn.ReLU(),
            nn.Linear(6, width),
            nn.ReLU(),
            nn.Linear(width, 3),
        )

    prompts, target = [from_module(build(4)) for _ in range(2)], from_module(build(8))
    found = plan_expansion(prompts[0], target, frozenset({"6.weight", "6.bias"}))
    assert found is not None
    tensors = found.apply([prompt.tensors for prompt in prompts], target.tensors)
    for key in ("2.bias", "2.weight"):
        first, second = (prompt.tensors[key] for prompt in prompts)
        both = tensors[key] if key == "2.bias" else tensors[key][:3, :4]
        assert torch.equal(both[:3], first[:3])
        both = tensors[key] if key == "2.bias" else tensors[key][:, 4:]
        assert torch.equal(both[3:], second[3:])
    assert torch.equal(tensors["4.weight"][:4, :3], prompts[0].tensors["4.weight"][:, :3])
    assert torch.equal(tensors["4.weight"][4:, 3:], prompts[1].tensors["4.weight"][:, 3:])
    assert torch.equal(tensors["4.weight"][4:, :3], target.tensors["4.weight"][4:, :3])


def test_a_kept_classifier_reads_every_prompt() -> None:
    torch.manual_seed(0)
    prompts, target = [from_module(small_cnn()) for _ in range(2)], from_module(wide_cnn())
    found = plan_expansion(prompts[0], target, frozenset({"14.weight", "14.bias"}))
    assert found is not None
    tensors = found.apply([prompt.tensors for prompt in prompts], target.tensors)
    weights = [prompt.tensors["14.weight"] for prompt in prompts]
    assert torch.equal(tensors["14.weight"][:, :10], weights[0][:, :10])
    assert torch.equal(tensors["14.weight"][:, 10:], weights[1][:, 10:])


def test_one_wider_layer_does_not_part_the_others() -> None:
    torch.manual_seed(0)
    prompt = nn.Sequential(*[nn.Linear(4, 4) for _ in range(4)], nn.Linear(4, 3))
    target = nn.Sequential(*[nn.Linear(4, 4) for _ in range(3)], nn.Linear(4, 8), nn.Linear(8, 3))
    found = plan_expansion(
        from_module(prompt), from_module(target), frozenset({"4.weight", "4.bias"})
    )
    assert found is not None
    assert found.width_ratio == 1


@pytest.mark.parametrize("kernel", [3, 7])
def test_other_kernels_share_their_middle(kernel: int) -> None:
    torch.manual_seed(0)
    build = partial(nn.Conv2d, 1, 4, padding="same")
    prompt = nn.Sequential(build(5), nn.Flatten(), nn.Linear(256, 3))
    target = nn.Sequential(build(kernel), nn.Flatten(), nn.Linear(256, 3))
    grown(prompt, target)
    middle = slice(2, 5) if kernel == 7 else slice(0, 3)
    assert torch.equal(target[0].weight[..., middle, middle], prompt[0].weight[..., 1:4, 1:4])


def test_maps_of_another_size_are_resized() -> None:
    torch.manual_seed(0)
    target = grown(small_cnn(1), small_cnn(3))
    assert all(p.isfinite().all() for p in target.parameters())
    assert target[11].weight.shape == (20, 256)


def test_a_kind_that_the_prompt_lacks_is_not_made_up() -> None:
    prompt = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(64, 3))
    target = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 3))
    assert plan_expansion(from_module(prompt), from_module(target), frozenset()) is None
