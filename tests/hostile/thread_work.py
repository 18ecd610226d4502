"""Work for threads: small networks of many kinds, and what a host does with them, as comparable bytes."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
from torch import nn

from sane_plugins import Host
from sane_plugins.initialize import InitializeOptions
from sane_plugins.tasks import Task
from sane_plugins.weights import from_module

CLASSES, SIZE = 3, 8


class Convolutional(nn.Module):
    """Convolutions, batch norm and dropout, and a lock that no copy can take along."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.lock = threading.Lock()
        self.features = nn.Sequential(
            nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Dropout2d(0.2)
        )
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.features(x).mean((2, 3))
        return self.head(nn.functional.dropout(x, 0.1, self.training))


class Attentive(nn.Module):
    """Attention written by hand: `math.sqrt` of a size is recorded by a patched function."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed = nn.Linear(SIZE, width)
        self.queries, self.keys = nn.Linear(width, width), nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x.flatten(1, 2))
        scores = self.queries(x) @ self.keys(x).transpose(1, 2) / math.sqrt(x.size(-1))
        return self.head(self.norm(scores.softmax(-1) @ x).mean(1))


def build(number: int) -> nn.Module:
    """Return the network of a thread, its weights at random."""
    kind = (Convolutional, Attentive)[number % 2]
    return kind(6 + 2 * (number // 2))


def task(number: int, images: int = 30) -> Task:
    """Return small random images of a thread, whose classes differ in brightness."""
    rng = torch.Generator().manual_seed(number)
    labels = torch.arange(images) % CLASSES
    x = torch.randn(images, 1, SIZE, SIZE, generator=rng) + labels[:, None, None, None]
    return Task(
        name=f"task {number}",
        x_train=x,
        y_train=labels,
        x_test=x,
        y_test=labels,
        classes=tuple(map(str, range(CLASSES))),
    )


OPTIONS = InitializeOptions(
    candidates=1, keep=1, few_shot=1, few_shot_epochs=1, validation=0.4, epochs=1
)


class Work:
    """One thread's network and host, and the answers to what is asked of them."""

    def __init__(self, number: int, host: Host) -> None:
        self.number, self.host, self.task = number, host, task(number)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(number)
            self.module = build(number).train()

    def answers(self, with_initialize: bool = True) -> tuple[object, ...]:
        """Encode, predict, and initialise; return bytes."""
        encoding = self.host.encode(self.module)
        estimates = self.host.predict(self.module)
        found: tuple[object, ...] = (
            from_module(self.module).layers,
            encoding.embedding.numpy().tobytes(),
            encoding.layers.numpy().tobytes(),
            repr(sorted(estimates.items())),
        )
        if not with_initialize:
            return found
        made = self.host.initialize(partial(build, self.number), self.task, [self.module], OPTIONS)
        tensors = {key: value.numpy().tobytes() for key, value in made.graph.tensors.items()}
        scores = [(row.name, row.before, row.last, row.chosen) for row in made.rows]
        return (*found, tensors, scores, repr(made.forecast))


class Inference(threading.Thread):
    """Plain inference of a host's own network until it is stopped; counts right and wrong outputs."""

    def __init__(self, number: int) -> None:
        super().__init__(daemon=True)
        self.right, self.wrong, self._stopped = 0, [], threading.Event()
        self._module, self._images = build(number).eval(), task(number).x_test
        with torch.inference_mode():
            self._expected = self._module(self._images)

    def run(self) -> None:
        while not self._stopped.is_set():
            try:
                with torch.inference_mode():
                    is_right = torch.equal(self._module(self._images), self._expected)
            except Exception as error:
                self.wrong.append(repr(error))
            else:
                self.right += is_right
                if not is_right:
                    self.wrong.append("another output")

    def stop(self) -> None:
        self._stopped.set()
        self.join()


def compare(threads: int, repeats: int, host: Host, say: Callable[[str], None] = str) -> int:
    """Compare answers of threads that work beside each other with single-threaded ones; return how many.

    Initialising in all of `repeats` rounds, while two more threads infer.
    """
    works = [Work(number, host) for number in range(threads)]
    expected = [work.answers() for work in works]
    say("single-threaded answers are there")
    inferences = [Inference(100), Inference(101)]
    for inference in inferences:
        inference.start()
    barrier, done = threading.Barrier(threads), [0] * threads

    def repeat(number: int) -> None:
        barrier.wait()
        for round_ in range(repeats):
            answers = works[number].answers()
            for i, (found, needed) in enumerate(zip(answers, expected[number], strict=True)):
                assert found == needed, f"thread {number}, round {round_}, answer {i}"
            done[number] += 1
            say(f"thread {number}: {done[number]} rounds")

    try:
        with ThreadPoolExecutor(threads) as pool:
            for future in [pool.submit(repeat, number) for number in range(threads)]:
                future.result()
    finally:
        for inference in inferences:
            inference.stop()
    for inference in inferences:
        assert not inference.wrong, inference.wrong[:3]
        assert inference.right
    say(f"{sum(inference.right for inference in inferences)} inferences were right")
    return sum(done)


if __name__ == "__main__":  # the trial of the issue: python -m hostile.thread_work, from tests
    print(compare(8, 20, Host.installed(), partial(print, flush=True)), "rounds were right")
