"""Stages of real_forms.py that train the zoo, or tell what that costs."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace

import torch
from real_forms_shared import RECIPE, Lines, say

from sane_plugins.zoo_training import Recipe, RecipeOptions, TrainingImages, train_recipe
from sane_plugins.zoo_training.network_trainer import NetworkTrainer, TrainerSettings
from sane_plugins.zoo_training.recipe_zoo import load_images

COST_BATCH = 32


def recipe_of(arguments: argparse.Namespace) -> Recipe:
    recipe = Recipe.read(RECIPE)
    recipe = recipe.only(arguments.only) if arguments.only else recipe
    return recipe.at_most(epochs=arguments.epochs, images=arguments.images)


def cost(arguments: argparse.Namespace) -> None:
    """Take a step of each form on one core, by processor time, and say what the recipe costs."""
    recipe, each, total = recipe_of(arguments), dict[str, float](), 0.0
    counts = {
        name: len(load_images(task, arguments.work / "images").y_train)
        for name, task in recipe.tasks.items()
    }
    x, y = torch.randn(2 * COST_BATCH, 3, 32, 32), torch.zeros(2 * COST_BATCH, dtype=torch.long)
    given = TrainingImages(x_train=x, y_train=y, x_test=x[:2], y_test=y[:2])
    settings = TrainerSettings(keep=(), measured=2, device="cpu", bf16=False, save_every=None)
    torch.set_num_threads(1)
    for network in recipe.networks:
        form = json.dumps([network.factory, network.training.size])
        if form not in each:
            short = replace(network.training, batch=COST_BATCH, images=0, epochs=1)
            factory = {**network.factory, "channels_in": 3, "classes": 10}
            trainer = NetworkTrainer(replace(network, training=short), factory, given, settings)
            steps = trainer.run(arguments.work / "cost.safetensors", form)
            next(steps)  # the first one is slower
            started = time.process_time()
            next(steps)
            each[form] = (time.process_time() - started) / COST_BATCH
            (arguments.work / "cost.safetensors").unlink(missing_ok=True)
            say(f"{each[form] * 1e3:.2f} ms an image: {form}")
        images_seen = min(network.training.images or 10**9, counts[network.task])
        total += each[form] * images_seen * network.training.epochs
    say(f"{total / 3600:.1f} core hours for {len(recipe.networks)} networks")


def zoo(arguments: argparse.Namespace) -> None:
    """Train the recipe."""
    trained = train_recipe(
        recipe_of(arguments),
        RecipeOptions(
            name="real-forms",
            data=arguments.work / "images",
            device=arguments.device,
            processes=arguments.processes,
            minutes=arguments.minutes,
        ),
        arguments.work / "real-forms",
        resume=True,
        report=Lines(),
    )
    say(f"{trained}: {len(trained.networks)} networks, {len(trained)} checkpoints")
