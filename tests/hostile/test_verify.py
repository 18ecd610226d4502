"""`sane-init verify` of a stranger's file: one sentence about the file, and nothing runs that it names."""

import copy
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hostile.bounded import run_python
from safetensors.torch import load_file, save_file

from sane_plugins.arguments import ArgumentTypeError
from sane_plugins.cli.initialization.inputs import InputNames
from sane_plugins.cli.initialize import main
from sane_plugins.formats import LazyTensors
from sane_plugins.initialize import Provenance

DELETED = object()
VALUES = (
    *(DELETED, None, True, "", "x", "a\0b", "\ud800", "9" * 5000, "/dev/zero"),
    *(0, -1, 10**9, 2**70, 1e9, float("nan"), float("inf"), -1e300),
    *([], {}, [[[]]], [[1, 2]], [None], {"a": [1]}, {"kind": "sane"}),
)


def run(*arguments: object):
    return CliRunner().invoke(main, [str(x) for x in arguments])


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Make initial weights whose provenance has all that one can have."""
    folder = tmp_path_factory.mktemp("verify")
    rng = np.random.default_rng(0)
    y = np.arange(60) % 3
    x = (rng.integers(0, 40, (60, 28, 28)) + 60 * y[:, None, None]).astype(np.uint8)
    np.savez(folder / "task.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    output = folder / "out.safetensors"
    done = run(
        *("--task", folder / "task.npz", "-o", output, "--samples", 2, "--keep", 1),
        *("--search", "bootstrap", "--rounds", 2, "--few-shot", 1, "--few-shot-epochs", 1),
    )
    assert done.exit_code == 0, done.output
    return output


@pytest.fixture(scope="module")
def told(made) -> dict[str, Any]:
    return json.loads(LazyTensors(made).metadata["sane"])["provenance"]


@pytest.fixture
def retold(made, tmp_path):
    """Return a function that writes the file with changes in its provenance, `{"command.size": 3}`."""

    def write(changes: dict[str, object]) -> Path:
        metadata = json.loads(LazyTensors(made).metadata["sane"])
        for path, value in changes.items():
            metadata["provenance"] = changed(metadata["provenance"], path.split("."), value)
        file = tmp_path / "retold.safetensors"
        save_file(load_file(made), file, {"sane": json.dumps(metadata)})
        return file

    return write


def changed(record: Any, path: list[Any], value: object) -> Any:
    """Return plain data with one of their values replaced or deleted."""
    record = copy.deepcopy(record)
    inner = record
    for key in path[:-1]:
        inner = inner[key]
    if value is DELETED:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return record


def paths(record: Any, before: tuple[Any, ...] = ()) -> Iterator[list[Any]]:
    """Yield the path of every value, of lists the first element's."""
    if before:
        yield [*before]
    if isinstance(record, dict):
        for key in record:
            yield from paths(record[key], (*before, key))
    elif isinstance(record, list) and record:
        yield from paths(record[0], (*before, 0))


def test_every_field_is_checked_before_anything_is_done(told):
    """Whatever a field is replaced by, the provenance is refused, or what is made of it has its types."""
    refused = count = 0
    told = {**told, "prompts": told["prompts"][:1]}
    del told["plan"], told["scores"]  # a reader is told of them; nothing is made of them
    for path in paths(told):
        for value in VALUES:
            provenance = json.loads(json.dumps(changed(told, path, value)))
            count += 1
            try:
                made = Provenance.from_json(provenance)
                InputNames.from_json(made.command)
                assert 1 <= made.threads <= 1024
                assert 1 <= made.options.keep <= 100
            except ArgumentTypeError as error:
                refused += 1
                assert len(str(error)) < 500
    assert count > 1500
    assert refused > 0.7 * count


def test_what_the_product_wrote_is_accepted(made, told):
    assert Provenance.from_json(told).stored is told
    assert run("verify", made).exit_code == 0


STRANGE: dict[str, dict[str, object]] = {
    "a function as network": {"command.model": "os:abort"},
    "a function as factory": {"command.model": "/etc/passwd", "command.factory": "os:abort"},
    "a function as prompt": {"command.prompts": ["os:abort"]},
    "a library's function": {"command.model": "timm:create_model"},
    "a large network": {"command.model": "torchvision:vit_h_14"},
    "a large prompt": {"command.prompts": ["torchvision:vit_h_14"]},
    "a download": {"command.model": "torchvision:resnet18@DEFAULT"},
    "a prompt to download": {"command.prompts": ["torchvision:resnet18@DEFAULT"]},
    "a download after a network": {
        "command.model": "torchvision:squeezenet1_1",
        "command.prompts": ["torchvision:resnet18@DEFAULT"],
    },
    "a large prompt after a network": {
        "command.model": "torchvision:squeezenet1_1",
        "command.prompts": ["torchvision:vit_h_14"],
    },
    "many networks": {"command.prompts": ["torchvision:squeezenet1_1"] * 200},
    "many prompts": {"command.prompts": ["small_cnn"] * 20_000},
    "many digits": {"command.model": "torchvision:resnet18,classes=" + 4500 * "9"},
    "a folder that may not be read": {"command.task": "/proc"},
    **{
        f"a long {field}": {f"command.{field}": [5000 * "x"] if field == "prompts" else 5000 * "x"}
        for field in ("model", "task", "prompts", "sane", "sampler")
    },
    "a long factory": {"command.model": "/etc/passwd", "command.factory": 5000 * "x"},
    "a long file of weights": {"command.model": "torchvision:resnet18@" + 5000 * "x"},
    "a sampler": {"command.sampler": "os:abort"},
    "a device as task": {"command.task": "/dev/zero"},
    "a device as SANE": {"command.sane": "/dev/zero"},
    "a device as prompt": {"command.prompts": ["/dev/zero"]},
    "a device as network": {"command.model": "/dev/zero"},
    "a folder as task": {"command.task": "/"},
    "a folder as prompt": {"command.prompts": ["/"]},
    "a device to choose by": {"command.validation": "/dev/zero"},
    "a folder to choose by": {"command.validation": "/"},
    "a share of more than all": {"command.validation": "7"},
    "a long name to choose by": {"command.validation": 5000 * "x"},
    "large images to choose by": {"command.validation": "/", "command.size": 100_000},
    "large images": {"command.size": 100_000},
    "somewhat large images": {"command.size": 3000},
    "images of nothing": {"command.size": 0},
    "large images of a folder": {"command.task": "/", "command.size": 100_000},
    "many threads": {"versions.threads": "1" + 9 * "0"},
    "threads of a number": {"versions.threads": 1e9},
    "no thread": {"versions.threads": "0"},
    "years": {"options.few_shot_epochs": 10**9},
    "many candidates": {"options.candidates": 10**9, "options.keep": 10**9},
    "many rounds": {"options.rounds": 10**9},
    "a device": {"options.device": "meta"},
    "another device": {"options.device": "cuda:99"},
    "no such draw": {"recipe": {"kind": "sane", "number": 50_000}},
    "no such round": {"recipe": {"kind": "sane", "number": 0, "round": 9}},
    "no prompt": {"recipe": {"kind": "sane"}, "course": {"near": [], "lineage": []}},
    "no such prompt": {"recipe": {"kind": "sane"}, "course": {"near": [999], "lineage": []}},
    "a round of itself": {
        "recipe": {"kind": "sane", "round": 1},
        "course": {"near": [0], "lineage": [[[1, 0]]]},
    },
    "a round before": {
        "recipe": {"kind": "sane", "round": 1},
        "course": {"near": [0], "lineage": [[[-1, 0]]]},
    },
    "a round of nothing": {
        "recipe": {"kind": "sane", "round": 1},
        "course": {"near": [0], "lineage": [[]]},
    },
    "nothing pruned": {"options.pruned": True},
    "no such tensor": {"options.include": ["no-such"]},
}


@pytest.mark.parametrize("kind", STRANGE)
def test_one_sentence_about_the_file(retold, kind):
    if any("torchvision" in str(value) for value in STRANGE[kind].values()):
        from importlib.util import find_spec

        if find_spec("torchvision") is None:
            pytest.skip("needs torchvision")
    file, start = retold(STRANGE[kind]), time.process_time()
    done = run("verify", file)
    assert time.process_time() - start < 8
    assert done.exit_code == 1, done.output
    (sentence,) = [line for line in done.stderr.splitlines() if line.startswith("Error:")]
    assert sentence.startswith(f"Error: {file}")
    assert "unexpected" not in sentence
    assert "plugin" not in sentence.partition(": ")[0]
    assert "fetched" not in sentence
    assert len(sentence) < 1500


def test_a_course_of_many_rounds_is_walked_once(retold):
    """Each round is drawn near two draws of the round before: drawn anew each time, 40 take for ever."""
    lineage = [[[i, 0], [i, 1]] for i in range(40)]
    changes: dict[str, object] = {
        "recipe": {"kind": "sane", "round": 40},
        "course": {"near": [0], "lineage": lineage},
        "few_shot": None,
    }
    done = run("verify", retold(changes))
    assert done.exit_code == 1
    assert "made again, the bytes differ" in done.stdout


@pytest.mark.parametrize("kind", ["pipe.npz", "pipe.safetensors"])
def test_a_pipe_is_not_waited_for(retold, tmp_path, kind):
    pipe = tmp_path / kind
    os.mkfifo(pipe)
    field = "command.task" if pipe.suffix == ".npz" else "command.prompts"
    done = run("verify", retold({field: str(pipe) if field == "command.task" else [str(pipe)]}))
    assert done.exit_code == 1
    assert str(pipe) in done.stderr


def test_a_function_is_called_where_the_user_repeats_it(made, tmp_path):
    name = "sane_plugins.architectures.families:small_cnn"
    output = tmp_path / "own.safetensors"
    task = made.with_name("task.npz")
    assert run(name, "--task", task, "-o", output, "--no-score").exit_code == 0
    done = run("verify", output)
    assert done.exit_code == 1
    assert f"--factory {name}" in done.stderr
    for more in (("--factory", name), ("--trust",)):
        done = run("verify", output, *more)
        assert done.exit_code == 0
        assert (f"this is called: {name}" in done.stderr) == (more == ("--trust",))


def test_a_file_cannot_end_the_process(retold):
    file = retold({"command.model": "os:abort"})
    command = "from sane_plugins.cli.initialize import main; main()"
    outcome = run_python("-c", command, "verify", file).require_small()
    assert "os:abort" in outcome.require_sentence()
