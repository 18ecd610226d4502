"""The diffusion sampler stays near prompts as far as it is told to, knows the task, and repeats itself."""

import json
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from sane_plugins.architectures import small_cnn
from sane_plugins.autoencoder import embedded_sane, encode, fingerprint
from sane_plugins.cli.initialize import main
from sane_plugins.errors import UsageError, ZooError
from sane_plugins.generation import (
    ConditionedSampler,
    DenoiserConfig,
    DenoiserExample,
    Diffusion,
    SamplingContext,
    choose_prompts,
    embedded_prompts,
    fit_denoiser,
    load_denoiser,
    save_denoiser,
)
from sane_plugins.generation.denoiser import denoise
from sane_plugins.host import Host
from sane_plugins.tasks import SIZE, describe, load_task
from sane_plugins.tasks.task_embedding import nearness


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def prompts() -> tuple[torch.Tensor, SamplingContext]:
    """Return latents (3, T, L) of shipped prompts, and what surrounds them on digits."""
    sane = embedded_sane()
    graphs = choose_prompts(small_cnn(), embedded_prompts(), 3).graphs
    layout = graphs[0].token_layout(sane.config.token_width)
    places = sane.config.positions(layout, 0, len(layout))
    around = SamplingContext(places, describe(load_task("digits", 28)), fingerprint(sane))
    return torch.stack([encode(sane, graph).values for graph in graphs]), around


def test_the_level_says_how_near_a_prompt_stays(prompts) -> None:
    latents, around = prompts
    far = []
    for level in (0.0, 0.1, 0.5, 0.9):
        drawn = Diffusion(level=level).bound(around)(latents, 3, rng())
        assert drawn.shape == latents.shape
        assert drawn.isfinite().all()
        far.append(float((drawn[:, None] - latents).square().mean((2, 3)).min(1).values.mean()))
    assert far == sorted(far)
    assert far[0] == 0


def test_same_seed_same_latents_and_the_task_counts(prompts) -> None:
    latents, around = prompts
    sampler = Diffusion(level=0.6).bound(around)
    first = sampler(latents, 2, rng(1))
    assert torch.equal(first, sampler(latents, 2, rng(1)))
    assert not torch.equal(first, sampler(latents, 2, rng(2)))
    other = SamplingContext(around.places, -around.task, around.sane)
    assert not torch.allclose(
        first, Diffusion(level=0.6).bound(other)(latents, 2, rng(1)), atol=1e-3
    )


def test_latents_of_another_sane_are_refused(prompts) -> None:
    _, around = prompts
    with pytest.raises(UsageError, match="kde"):
        Diffusion().bound(SamplingContext(around.places, around.task, "another"))


def test_a_denoiser_learns_and_comes_back_from_its_file(tmp_path) -> None:
    centre = torch.randn(5, 4, generator=rng())
    places, task = torch.randn(5, 3, generator=rng(1)), torch.ones(2)
    near = [
        DenoiserExample(centre + 0.1 * torch.randn(5, 4, generator=rng(i)), places, task)
        for i in range(9)
    ]
    config = DenoiserConfig(latent=4, places=3, task=2, sane="none", width=16, blocks=1)
    *_, (model, _) = fit_denoiser([near], config, 400, rng(2))
    noise = torch.randn(20, 5, 4, generator=rng(3))
    found = denoise(model, noise, places, task, 0.98, 20)
    assert (found - centre).square().mean() < 0.3 * (noise - centre).square().mean()
    again = load_denoiser(save_denoiser(model, tmp_path / "own.safetensors"))
    assert again.config == config
    assert torch.allclose(denoise(again, noise, places, task, 0.98, 20), found, atol=0.1)
    other = tmp_path / "other.safetensors"
    save_file({"x": torch.zeros(1)}, other)
    with pytest.raises(ZooError, match="no denoiser"):
        load_denoiser(other)


def test_tasks_are_told_apart() -> None:
    digits = load_task("digits", 28)
    same = describe(digits.subset(900, rng()))
    mixed = digits.y_train[torch.randperm(len(digits.y_train), generator=rng())]
    other = describe(replace(digits, y_train=mixed))
    found = describe(digits)
    assert found.shape == (SIZE,)
    assert nearness(found, found) == 1
    assert nearness(found, same) > nearness(found, other)


def test_the_command_knows_it_and_makes_the_same_bytes_again(tmp_path) -> None:
    assert isinstance(Host.installed().samplers()["diffusion"], ConditionedSampler)
    output = tmp_path / "out.safetensors"
    run = CliRunner().invoke
    given = ["-o", str(output), "--sampler", "diffusion", "--samples", "2", "--keep", "1", "--json"]
    done = run(main, given)
    assert done.exit_code == 0, done.output
    assert "Diffusion" in json.loads(done.stdout)["provenance"]["options"]["sampler"]
    assert run(main, ["verify", str(output)]).exit_code == 0
