"""Several threads at once, and a live module that nobody may change."""

from __future__ import annotations

import copy
import hashlib
import math
import os
import pickle
import threading
import warnings
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from time import perf_counter

import numpy as np
import pytest
import torch
from hostile.thread_work import OPTIONS, Convolutional, build, compare, task
from torch import fx, nn
from torch.nn import functional

from sane_plugins import Host
from sane_plugins.formats import open_file
from sane_plugins.initialize import TrainOptions, train_epochs
from sane_plugins.inspection import survey_network
from sane_plugins.runtime import drawing_from, seeded, threads, without_warnings
from sane_plugins.tasks import forward_flops
from sane_plugins.weights import copy_module, from_module

REPEATS = int(os.environ.get("SANE_THREAD_REPEATS", "1"))  # 20 is the trial
SECONDS = 600.0  # no wait of a test is longer; one that is hangs


@pytest.fixture(scope="module")
def host() -> Host:
    return Host.installed()


def in_thread(function, *arguments):
    """Return a running future of a function in a thread of its own."""
    pool = ThreadPoolExecutor(1)
    future = pool.submit(function, *arguments)
    pool.shutdown(wait=False)
    return future


# Everything at once


def test_eight_threads_answer_as_one_does_while_others_infer(host):
    assert compare(8, REPEATS, host) == 8 * REPEATS


# Tracing


class Paused(nn.Module):
    """A forward that waits in the middle of a trace, and then goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        self.reached, self.go_on = threading.Event(), threading.Event()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x) / math.sqrt(x.size(-1))
        self.reached.set()
        assert self.go_on.wait(SECONDS)
        return self.second(x) * math.sqrt(x.size(0))


def expected_layers() -> tuple[object, ...]:
    module = Paused()
    module.go_on.set()
    return from_module(module).layers


def test_while_a_trace_is_under_way_other_threads_find_everything_as_it_was():
    expected, module, plain = expected_layers(), Paused(), nn.Module.__call__
    other = Convolutional(4).eval()
    images = task(0).x_test
    with torch.no_grad():
        output = other(images)
    tracing = in_thread(from_module, module)
    assert module.reached.wait(SECONDS)
    assert nn.Module.__call__ is plain
    assert not fx._symbolic_trace.is_fx_symbolic_tracing()
    assert all(part.training for part in module.modules())
    with torch.no_grad():
        assert torch.equal(other(images), output)
        assert math.sqrt(16.0) == 4.0
    # Another trace begins and ends within the first.
    assert from_module(other).layers == from_module(Convolutional(4)).layers
    module.go_on.set()
    assert tracing.result(SECONDS).layers == expected
    assert not hasattr(math.sqrt, "__wrapped__")


def test_a_forward_that_waits_for_a_lock_of_the_host_holds_nobody_up():
    class Locked(Paused):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.reached.set()
            with self.lock:
                return self.second(self.first(x))

    module = Locked()
    module.lock = threading.Lock()
    with module.lock:  # as a host that guards its model, and reads another one meanwhile
        tracing = in_thread(from_module, module)
        assert module.reached.wait(SECONDS)
        reading = in_thread(from_module, build(0))
        assert reading.result(SECONDS).layers
    assert "no topology" not in "".join(tracing.result(SECONDS).notes)


@pytest.mark.parametrize("first", ["ours", "the host's"])
def test_traces_of_the_host_that_overlap_ours_leave_nothing_behind(first):
    plain_call, plain_getattr = nn.Module.__call__, nn.Module.__getattr__
    functions = dict(vars(math))
    one, other = Paused(), Paused()
    ours = in_thread(from_module, one)
    assert one.reached.wait(SECONDS)  # before the host's begins, which gets all calls
    traces = [ours, in_thread(fx.Tracer().trace, other)]
    assert other.reached.wait(SECONDS)
    ends = [(one, traces[0]), (other, traces[1])]
    for module, tracing in ends if first == "ours" else ends[::-1]:
        module.go_on.set()
        tracing.exception(SECONDS)
    assert nn.Module.__call__ is plain_call
    assert nn.Module.__getattr__ is plain_getattr
    # Compilers ask whether these are Python's own.
    assert [name for name, value in vars(math).items() if value is not functions[name]] == []
    if (
        first == "the host's"
    ):  # as long as a trace of the host lasts, it gets the calls of all modules
        assert traces[0].result(SECONDS).layers == expected_layers()


def test_graphs_are_right_while_the_host_traces_again_and_again():
    module, stop = build(1), threading.Event()
    started = perf_counter()
    expected = from_module(module).layers
    pause = 3 * (perf_counter() - started)  # room for a trace of ours, however slow the machine

    def trace_on():
        other = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        while not stop.wait(pause):
            fx.Tracer().trace(other)

    tracing = in_thread(trace_on)
    try:
        assert all(from_module(module).layers == expected for _ in range(100))
    finally:
        stop.set()
        tracing.result(SECONDS)


class Listed(nn.Module):
    """Modules that are reached in unusual ways, and a forward that remembers what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(4, 4) for _ in range(3))
        self.bound, self.partial = self.second.forward, partial(self.apply_third, scale=2)
        self.through = lambda x: self.first(x)
        self.register_buffer("calls", torch.zeros(()))
        self.seen: list[object] = []
        self.stream = (x for x in range(3))  # cannot be copied

    def apply_third(self, x: torch.Tensor, scale: float) -> torch.Tensor:
        return self.third(x) * scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.seen.append(x)
        self.last = x + torch.rand(4)
        return self.partial(self.bound(self.through(self.last)))


def test_a_trace_reaches_modules_through_attributes_and_changes_none():
    module = Listed()
    before, state = state_of(module), torch.get_rng_state()
    kinds = {layer.name: layer.kind for layer in from_module(module).layers}
    assert kinds["first"] == kinds["third"] == "linear"
    assert state_of(module) == before
    assert torch.equal(torch.get_rng_state(), state)


# A live module


def state_of(module: nn.Module) -> str:
    """Return a digest of everything that a module holds: modes, hooks, tensors, gradients, attributes."""
    digest = hashlib.sha256()
    for name, part in module.named_modules():
        for key, value in vars(part).items():
            keyed = value if isinstance(value, dict) else {"": value}
            for inner, found in keyed.items():
                content: object = found
                if isinstance(found, torch.Tensor):
                    version = (id(found), found._version, found.requires_grad)
                    content = (version, found.detach().numpy().tobytes(), found.grad)
                    if found.grad is not None:
                        content = (*content[:2], id(found.grad), found.grad.numpy().tobytes())
                digest.update(f"{name} {key} {inner} {content!r} {id(found)}".encode())
    return digest.hexdigest()


def live_module(with_hooks: bool) -> nn.Module:
    """Return a network in the middle of its training: gradients, statistics, hooks, mixed modes."""
    torch.manual_seed(3)
    module = Convolutional(6).train()
    module.head = nn.utils.parametrizations.spectral_norm(module.head)
    module.features[0].eval()
    called: list[object] = []
    if with_hooks:
        module.features.register_forward_hook(lambda *_: called.append("after"))
        module.head.register_forward_hook(lambda *_: called.append("after"))
    module.called = called
    functional.cross_entropy(module(task(0).x_train), task(0).y_train).backward()
    return module


def _save(host: Host, module: nn.Module, folder: Path) -> None:
    host.check_save(host.open(module), folder / "saved.safetensors")
    host.save(host.open(module), folder / "saved.safetensors")


ABILITIES = {
    "open": lambda host, module, _: host.open(module),
    "encode": lambda host, module, _: host.encode(module),
    "predict": lambda host, module, _: host.predict(module),
    "inspect": lambda host, module, _: survey_network(host.open(module)),
    "build": lambda host, module, _: host.build(module).eval()(task(0).x_test),
    "save": _save,
    "initialise as target": lambda host, module, _: host.initialize(module, task(0), (), OPTIONS),
    "initialise a function": lambda host, *_: host.initialize(
        partial(build, 0), task(0), (), OPTIONS
    ),
    "initialise as prompt": lambda host, module, _: host.initialize(
        partial(build, 0), task(0), [module], OPTIONS
    ),
}


@pytest.mark.parametrize("ability", ABILITIES)
def test_a_live_module_is_untouched_to_the_byte(ability, host, tmp_path):
    # A copy has the hooks too, and calls them when it runs.
    runs = ("build", "initialise as target", "initialise as prompt")
    module = live_module(with_hooks=ability not in runs)
    state, randomness, np_state = state_of(module), torch.get_rng_state(), np.random.get_state()
    ABILITIES[ability](host, module, tmp_path)
    assert state_of(module) == state
    assert torch.equal(torch.get_rng_state(), randomness)
    assert np.array_equal(np.random.get_state()[1], np_state[1])


def test_a_target_that_cannot_be_copied_is_initialised_as_one_that_can(host):
    torch.manual_seed(0)
    plain = build(1)
    locked = copy.deepcopy(plain)
    locked.lock = threading.Lock()
    with pytest.raises(TypeError):
        copy.deepcopy(locked)
    tensors = [
        host.initialize(target, task(1), [plain], OPTIONS).graph.tensors
        for target in (plain, locked)
    ]
    assert tensors[0].keys() == tensors[1].keys()
    assert all(torch.equal(tensors[0][key], tensors[1][key]) for key in tensors[0])


def test_a_copy_shares_no_tensor_and_keeps_ties():
    module = Listed()
    module.second.weight = module.first.weight
    copied = copy_module(module)
    assert copied.second.weight is copied.first.weight
    assert copied.bound.__self__ is copied.second
    own = {x.data_ptr() for x in (*copied.parameters(), *copied.buffers())}
    assert not own & {x.data_ptr() for x in (*module.parameters(), *module.buffers())}
    copied(torch.randn(2, 4))
    assert not module.seen
    assert not int(module.calls)


# Random numbers


DRAWS = {
    "rand": lambda _: torch.rand(5),
    "randn": lambda _: torch.randn(5),
    "randint": lambda _: torch.randint(9, (5,)),
    "randint, low": lambda _: torch.randint(2, 9, (5,)),
    "randperm": lambda _: torch.randperm(9),
    "like": lambda x: torch.rand_like(x) + torch.randn_like(x),
    "dropout": lambda x: functional.dropout(x),
    "alpha": lambda x: functional.feature_alpha_dropout(x[..., None], training=True),
    "rrelu": lambda x: functional.rrelu(x, training=True),
    "bernoulli": lambda x: torch.bernoulli(x.sigmoid()),
    "attention": lambda x: functional.scaled_dot_product_attention(x, x, x, dropout_p=0.5),
    "gumbel": lambda x: functional.gumbel_softmax(x),
    "init": lambda _: nn.init.trunc_normal_(torch.empty(3, 3)),
    "orthogonal": lambda _: nn.init.orthogonal_(torch.empty(3, 3)),
    "recurrent": lambda x: nn.LSTM(4, 4, 2, dropout=0.5)(x)[0],
    "encoder": lambda x: nn.TransformerEncoderLayer(4, 2, 8)(x),
}


@pytest.mark.parametrize("draw", DRAWS)
def test_private_draws_are_those_of_the_seeded_generator_which_does_not_notice(draw):
    x = torch.linspace(-1, 1, 24).reshape(2, 3, 4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        expected = DRAWS[draw](x), DRAWS[draw](x)
    state = torch.get_rng_state()
    with drawing_from(torch.Generator().manual_seed(5)) as draws:
        found = DRAWS[draw](x), DRAWS[draw](x)
    assert draws.has_drawn
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert torch.equal(torch.get_rng_state(), state)


def test_training_with_dropout_neither_hears_nor_disturbs_other_threads():
    def train():
        module = trained()
        train_epochs(module, task(0), 2, TrainOptions(batch=8), torch.Generator().manual_seed(1))
        return {key: value.clone() for key, value in module.state_dict().items()}

    def trained():
        with seeded(torch.Generator().manual_seed(0)):
            return Convolutional(6)

    expected, stop = train(), threading.Event()
    torch.manual_seed(11)
    numbers = torch.rand(100_000)
    torch.manual_seed(11)

    def draw_on():
        drawn = [torch.rand(())]
        while not stop.is_set() and len(drawn) < 100_000:
            drawn.append(torch.rand(()))
        return torch.stack(drawn)

    module = trained()
    drawing = in_thread(draw_on)
    try:
        rng = torch.Generator().manual_seed(1)
        train_epochs(module, task(0), 2, TrainOptions(batch=8), rng)
    finally:
        stop.set()
    drawn = drawing.result(SECONDS)
    assert all(torch.equal(value, expected[key]) for key, value in module.state_dict().items())
    assert torch.equal(drawn, numbers[: len(drawn)])


def test_networks_built_in_several_threads_are_those_of_one():
    def weights(number: int) -> bytes:
        with seeded(torch.Generator().manual_seed(number)):
            parts = [nn.Linear(8, 8) for _ in range(20)]
            torch.manual_seed(number)  # a builder of the user's may seed the generator itself
            parts += [nn.Linear(8, 8) for _ in range(20)]
        return b"".join(part.weight.detach().numpy().tobytes() for part in parts)

    expected, state = [weights(number) for number in range(8)], torch.get_rng_state()
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(weights, [*range(8)] * 5))
    assert found == expected * 5
    assert torch.equal(torch.get_rng_state(), state)


# Settings of the process


def test_the_number_of_threads_is_the_callers_alone():
    before, entered, leave = torch.get_num_threads(), threading.Barrier(3), threading.Event()

    def work():
        with threads(3):
            entered.wait(SECONDS)
            leave.wait(SECONDS)
            number = torch.get_num_threads()
        return number, torch.get_num_threads()

    working = [in_thread(work) for _ in range(2)]
    entered.wait(SECONDS)
    assert torch.get_num_threads() == before
    assert in_thread(torch.get_num_threads).result(SECONDS) == before
    leave.set()
    assert [future.result(SECONDS) for future in working] == [(3, before)] * 2
    assert in_thread(torch.get_num_threads).result(SECONDS) == before


def test_warnings_of_other_threads_are_heard():
    quiet, leave = threading.Event(), threading.Event()

    def work():
        with without_warnings():
            quiet.set()
            assert leave.wait(SECONDS)
            warnings.warn("not heard", stacklevel=1)

    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        working = in_thread(work)
        assert quiet.wait(SECONDS)
        warnings.warn("heard", stacklevel=1)
        leave.set()
        working.result(SECONDS)
        warnings.warn("heard later", stacklevel=1)
    assert [str(warning.message) for warning in heard] == ["heard", "heard later"]


def test_the_filter_of_one_thread_is_like_any_other_to_libraries_that_copy_filters():
    with warnings.catch_warnings():
        with without_warnings():
            warnings.warn("not heard", stacklevel=1)
        copied = pickle.loads(pickle.dumps(warnings.filters[0]))
        assert copied == warnings.filters[0]
        action, message, category, module, line = copied
        assert message is module is None
        warnings.filterwarnings(
            action, "", category, "", line
        )  # as scikit-learn does for its workers
        with pytest.warns(UserWarning, match="^heard$"):
            warnings.warn("heard", stacklevel=1)


def test_counting_operations_calls_no_hook_of_other_threads():
    module, hooks = build(0).eval(), []

    class Watching(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            hooks.extend(torch.nn.modules.module._global_forward_hooks)
            hooks.extend(torch.nn.modules.module._global_forward_pre_hooks)
            return module(x)

    assert forward_flops(Watching(), task(0).x_test[:1]) > 1
    assert not hooks


# One file, many readers


@pytest.mark.parametrize("suffix", ["npy", "npz", "deflated.npz", "safetensors", "pt"])
def test_one_graph_is_read_by_many_threads(suffix, tmp_path, host):
    path = tmp_path / f"file.{suffix}"
    values = np.random.default_rng(0).standard_normal((8, 200, 50)).astype("float32")
    arrays = {f"layer{i}.weight": value for i, value in enumerate(values)}
    if suffix == "npy":
        np.save(path, values[0])
    elif suffix == "npz":
        np.savez(path, **arrays)
    elif suffix == "deflated.npz":
        np.savez_compressed(path, **arrays)
    elif suffix == "pt":
        torch.save({key: torch.from_numpy(value) for key, value in arrays.items()}, path)
    else:
        host.save(host.open({k: torch.from_numpy(v) for k, v in arrays.items()}), path)
    graph = open_file(path)
    expected = {key: graph.tensors[key].clone() for key in graph.tensors}

    def read(number: int) -> bool:
        keys = [*graph.tensors]
        keys = keys[number % len(keys) :] + keys[: number % len(keys)]
        return all(torch.equal(graph.tensors[key], expected[key]) for key in keys * 5)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(32)))


class _Halving(nn.Module):
    """Changes all its parameters in its forward, as clipping and constraints on weights do."""

    def __init__(self, change) -> None:
        super().__init__()
        self.change, self.inner = change, nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.change(self)
        return self.inner(x)


def _each(change):
    return lambda module: [change(parameter) for parameter in module.parameters()]


CHANGES = {
    "clipped": _each(lambda x: x.data.clamp_(-0.01, 0.01)),
    "another tensor": _each(lambda x: setattr(x, "data", x.data / 2)),
    "through NumPy": _each(lambda x: x.detach().numpy().fill(1)),
    "frozen": _each(lambda x: x.requires_grad_(False)),
    "with a gradient": _each(lambda x: setattr(x, "grad", torch.ones_like(x))),
    "by name": lambda module: module.inner._parameters.get("weight").data.zero_(),
    "all": lambda module: [x.data.zero_() for x in dict(module.inner._parameters).values()],
    "loaded": lambda module: module.load_state_dict(
        {key: value * 0 for key, value in module.state_dict().items()}
    ),
    "halved": lambda module: module.half(),
    "initialised": lambda module: nn.init.zeros_(next(module.parameters()).data),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_forward_that_changes_parameters_changes_none_of_the_hosts(change):
    module = _Halving(CHANGES[change])
    before = state_of(module)
    kinds = {layer.name: layer.kind for layer in from_module(module).layers}
    assert kinds["inner"] == "linear"
    assert state_of(module) == before


def test_parameters_that_are_iterated_are_those_of_the_module():
    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = (nn.Parameter(torch.ones(4, 4)) for _ in range(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for parameter in self.parameters():
                x = torch.nn.functional.linear(x, parameter)
            return torch.nn.functional.linear(x, self.first)

    layers = {layer.name: layer for layer in from_module(Chain()).layers}
    assert {"first", "second"} <= layers.keys()
    assert layers["%linear_1"].inputs == ("%linear", "second")


class _Holder:
    def __init__(self, module: nn.Module) -> None:
        self.module = module


class _Slotted(nn.Linear):
    __slots__ = ("scale",)

    def __init__(self) -> None:
        super().__init__(4, 4)
        self.scale = 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * self.scale


Named = namedtuple("Named", ["module"])


@pytest.mark.parametrize("hold", [_Holder, Named])
def test_a_trace_reaches_modules_that_other_objects_hold(hold):
    class Held(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 4)
            self.holder = hold(self.inner)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.holder.module(x)

    module = Held()
    assert {x.name: x.kind for x in from_module(module).layers}["inner"] == "linear"
    assert module.holder.module is module.inner


def test_attributes_in_slots_are_copied_too():
    kinds = {x.name: x.kind for x in from_module(nn.Sequential(_Slotted(), nn.ReLU())).layers}
    assert kinds["%linear"] == "linear"


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize(
    "compile_", [torch.jit.script, lambda module: torch.jit.trace(module, torch.ones(1, 4))]
)
def test_a_program_of_torchscript_is_one_step(compile_):
    part = compile_(nn.Sequential(nn.Linear(4, 4), nn.ReLU()))
    assert {x.key for x in from_module(part).params} == {"0.weight", "0.bias"}
    layers = {x.name: x for x in from_module(nn.Sequential(part, nn.Linear(4, 2))).layers}
    assert layers["1"].inputs == ("0",)
    assert layers["0"].kind == "opaque"
