"""Recipes: networks of any form are trained, one zoo comes of it, and stops change no byte."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from sane_plugins.autoencoder import SANEConfig
from sane_plugins.cli.main import main
from sane_plugins.errors import UsageError, ZooError
from sane_plugins.pretraining.permuted_dataset import build_datasets
from sane_plugins.progress import Progress, silent
from sane_plugins.zoo import Zoo
from sane_plugins.zoo_training import Recipe, RecipeOptions, TrainingImages, train_recipe
from sane_plugins.zoo_training.augmentation import EpochPlan, resized
from sane_plugins.zoo_training.network_trainer import NetworkTrainer, TrainerSettings

REAL_FORMS = Path(__file__).parents[2] / "tools" / "release" / "recipes" / "real_forms.json"
FEW = {"epochs": 2, "batch": 32, "images": 64}
TWO = {
    "tasks": {"a": {"source": "a.npz", "channels": 3, "training": FEW}},
    "keep": [1],
    "networks": [
        {
            "tasks": ["a"],
            "factories": [
                {"name": "resnet", "depth": 8, "width": 4},
                {"name": "vit", "size": 16, "patch": 8, "width": 12, "depth": 1, "heads": 3},
            ],
        },
        {
            "tasks": ["a"],
            "factories": [{"name": "resnet", "depth": 8, "width": 4, "norm": "none"}],
            "training": [{"opt": "sgd", "lr": 1e3, "wd": 1e3}],
        },
    ],
}


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder with grey images, brighter where their class is, and a recipe."""
    rng = np.random.default_rng(0)
    y = np.arange(96) % 4
    x = rng.integers(0, 90, (96, 16, 16)).astype(np.uint8)
    for label in range(4):
        x[y == label, 4 * label : 4 * label + 4] += 150
    np.savez(tmp_path / "a.npz", x_train=x[:64], y_train=y[:64], x_test=x[64:], y_test=y[64:])
    (tmp_path / "recipe.json").write_text(json.dumps(TWO))
    return tmp_path


def options(folder: Path, **more) -> RecipeOptions:
    return RecipeOptions(name="made", data=folder, **more)


def contents(zoo: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in zoo.iterdir()}


@pytest.mark.slow  # every form that the real recipe names
def test_every_form_of_the_real_recipe_takes_two_steps(tmp_path) -> None:
    recipe = Recipe.read(REAL_FORMS)
    assert len(recipe.networks) >= 60
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(16, 3, 32, 32, generator=rng), torch.arange(16) % 10
    images = TrainingImages(x_train=x, y_train=y, x_test=x[:4], y_test=y[:4])
    settings = TrainerSettings(keep=(0, 1), measured=4, device="cpu", bf16=False, save_every=None)
    forms = {json.dumps(network.factory): network for network in recipe.networks}
    for network in forms.values():
        training = replace(network.training, epochs=1, batch=8, images=0)
        factory = {**network.factory, "channels_in": 3, "classes": 10}
        trainer = NetworkTrainer(replace(network, training=training), factory, images, settings)
        before = {key: x.clone() for key, x in trainer.module.named_parameters()}
        assert [*trainer.run(tmp_path / f"{network.name}.safetensors", "told")] == [1, 2]
        after = dict(trainer.module.named_parameters())
        still = [key for key, x in before.items() if torch.equal(x, after[key])]
        assert not still, f"{network.name}: {still}"


def test_a_recipe_becomes_a_zoo_and_its_card(folder) -> None:
    recipe = Recipe.read(folder / "recipe.json")
    zoo = train_recipe(recipe, options(folder), folder / "zoo")
    assert {(e.network, e.checkpoint) for e in zoo.entries} == {
        (network.name, epoch) for network in recipe.networks for epoch in ("0", "1", "2")
    }
    for entry in zoo.entries:
        assert entry.properties["dataset"] == "a"
        module = zoo.module(entry)
        with torch.no_grad():
            assert module(torch.zeros(1, 3, 16, 16)).shape == (1, 4)
    card = (folder / "zoo" / "card.md").read_text()
    assert all(network.name in card for network in recipe.networks)
    assert "0 were not begun and 0 not trained to their end" in card
    assert not (folder / "zoo.state").exists()
    config = SANEConfig(token_width=64)
    built = build_datasets([zoo], config, 1, torch.Generator().manual_seed(0), silent)
    assert len(built) == 3


def test_a_network_that_explodes_keeps_what_was_finite(folder) -> None:
    recipe = Recipe.read(folder / "recipe.json").only(["resnet-*"])
    zoo = train_recipe(recipe, options(folder), folder / "zoo")
    wild = [e for e in zoo.entries if e.properties["lr"] == 1e3]
    assert [e.properties["finite"] for e in wild][-1] is False
    for entry in wild:
        assert all(x.isfinite().all() for x in zoo.state_dict(entry).values())


class _KilledError(Exception):
    pass


@pytest.mark.parametrize("at", [1, 3])
def test_a_stopped_run_ends_with_the_same_bytes(folder, at) -> None:
    recipe = Recipe.read(folder / "recipe.json")
    train_recipe(recipe, options(folder), folder / "whole")

    def kill(event: Progress) -> None:
        if event.job == "train networks" and event.done == at:
            raise _KilledError

    with pytest.raises(_KilledError):
        train_recipe(recipe, options(folder, save_every=1), folder / "cut", report=kill)
    with pytest.raises(UsageError, match="interrupted run"):
        train_recipe(recipe, options(folder), folder / "cut")
    other = recipe.at_most(epochs=1)
    with pytest.raises(UsageError, match="another recipe"):
        train_recipe(other, options(folder), folder / "cut", resume=True)
    zoo = folder / "cut"
    train_recipe(recipe, replace(options(folder), name="made"), zoo, resume=True)
    assert contents(zoo) == contents(folder / "whole")


def test_minutes_end_a_run_that_goes_on_later(folder) -> None:
    recipe = Recipe.read(folder / "recipe.json")
    cut = train_recipe(recipe, options(folder, minutes=1e-9), folder / "zoo")
    assert len(cut) == 0
    assert (folder / "zoo.state").exists()
    whole = train_recipe(recipe, options(folder), folder / "zoo", resume=True)
    assert len(whole) == 9
    assert not (folder / "zoo.state").exists()


@pytest.mark.slow  # processes
def test_processes_change_no_byte(folder) -> None:
    recipe = Recipe.read(folder / "recipe.json")
    train_recipe(recipe, options(folder), folder / "one")
    train_recipe(recipe, options(folder, processes=2), folder / "two")
    assert contents(folder / "one") == contents(folder / "two")


def test_training_learns_and_augmentation_moves_images_only(folder) -> None:
    recipe = Recipe.read(folder / "recipe.json").only(["resnet-*"])
    network = replace(
        recipe.networks[0], training=replace(recipe.networks[0].training, epochs=16, augment=False)
    )
    trained = train_recipe(replace(recipe, networks=(network,)), options(folder), folder / "zoo")
    last = [e for e in trained.entries if e.properties["epoch"] == 16]
    assert last[0].properties["train_accuracy"] > 0.6 > 0.35 > 1 / 4
    images = torch.randn(6, 3, 16, 16)
    rows, part = torch.arange(6), slice(0, 6)
    rng = torch.Generator().manual_seed(0)
    plain = EpochPlan.draw(6, augment=False, rng=rng, device="cpu")
    assert torch.equal(plain.images(images, rows, part, 0), images)
    cut = EpochPlan.draw(6, augment=True, rng=rng, device="cpu").images(images, rows, part, 24)
    assert cut.shape == resized(images, 24).shape == (6, 3, 24, 24)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tasks": {}}, "names a task 'a'"),
        ({"networks": []}, "0 networks"),
        ({"networks": [*TWO["networks"], TWO["networks"][0]]}, "two networks are the same"),
        ({"networks": [{"tasks": ["a"], "factories": [{"depth": 8}]}]}, "names no function"),
        ({"more": 1}, "'more' is not known"),
        ({"keep": ["one"]}, "keep"),
        (
            {"networks": [{**TWO["networks"][0], "training": [{"lr": -1}]}]},
            "lies between",
        ),
    ],
)
def test_a_wrong_recipe_is_one_sentence(folder, change, said) -> None:
    (folder / "wrong.json").write_text(json.dumps({**TWO, **change}))
    with pytest.raises(UsageError, match=said):
        Recipe.read(folder / "wrong.json")


def test_a_form_that_does_not_take_the_images_is_said_before_anything_is_trained(folder) -> None:
    wrong = {**TWO["networks"][0], "factories": [{"name": "small_cnn"}]}
    (folder / "wrong.json").write_text(json.dumps({**TWO, "networks": [wrong]}))
    with pytest.raises(ZooError, match="does not take images"):
        train_recipe(Recipe.read(folder / "wrong.json"), options(folder), folder / "zoo")
    assert not (folder / "zoo").exists()


def test_the_command(folder) -> None:
    out, told = str(folder / "zoo"), ["zoo", "train", "--recipe", str(folder / "recipe.json")]
    done = CliRunner().invoke(
        main, [*told, "-o", out, "--only", "vit-*", "--epochs", "1", "--json"]
    )
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    assert (answer["networks"], answer["checkpoints"], answer["done"]) == (1, 2, 1)
    assert len(Zoo.open(out)) == 2
    for more, said in (
        (["--only", "none"], "no network of the recipe"),
        (["--networks", "3"], "the recipe says that"),
        (["--data", str(folder / "nowhere")], "there is no such file"),
    ):
        done = CliRunner().invoke(main, [*told, "-o", str(folder / "other"), *more])
        assert done.exit_code in (1, 2)
        assert said in done.stderr
        assert done.stderr.count("\n") == 1
    done = CliRunner().invoke(main, ["zoo", "train", "-o", out, "--minutes", "1"])
    assert done.exit_code == 2 and "add --recipe FILE" in done.stderr
