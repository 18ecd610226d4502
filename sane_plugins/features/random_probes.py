"""Random probes of a chain of matrices: activity, saturation and decisions on random inputs.

Weights do not reveal the activation function, so probes run with ReLU, tanh and sigmoid. Kernel positions
see different probes (the previous layer's, shifted), so features are invariant to channel order.
The method: docs/explanation/sane.md, section 5.5.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import expit

Array = npt.NDArray[np.float64]
_PROBES = 192
_POSITION_CORRELATION = 0.8
_EPSILON = 1e-12
_MAX_ROWS, _MAX_COLUMNS = 2**15, 2**16  # each of the probes takes as many numbers
MAX_MATRICES = 2**10  # of a chain that is probed
_MAX_RESPONSE = 1e100  # far from overflow when it is squared, or multiplied by the next matrix
_ACTIVITY_FEATURES = 8
_DECISION_FEATURES = 13


def probe(chain: Sequence[tuple[Array, Array | None]]) -> tuple[list[Array], Array]:
    """Return activity per matrix, a list of (ACTIVITY,), and the decisions (DECISIONS,) of the outputs.

    chain: matrices (rows, inputs, places) with biases (rows,). From the first matrix whose inputs differ from
    the previous outputs, or that is too large (`is_small`), activity is zero, and so are the decisions. Of
    more than `MAX_MATRICES`, none is probed.
    """
    rows, last = [], _last_responses()
    for response in _responses(chain):
        rows.append(_activity(response))
        last.append(response)
    rows += [np.zeros(_ACTIVITY_FEATURES)] * (_COUNT * len(chain) - len(rows))
    activities = [np.concatenate(rows[i : i + _COUNT]) for i in range(0, len(rows), _COUNT)]
    return activities, _last_decisions(last, len(chain))


def probe_decisions(chain: Sequence[tuple[Array, Array | None]]) -> Array:
    """Return the decisions that `probe` returns, without the activity."""
    last = _last_responses()
    last.extend(_responses(chain))
    return _last_decisions(last, len(chain))


def is_small(shape: tuple[int, int, int]) -> bool:
    """Return whether a matrix (rows, inputs, places) is probed."""
    rows, inputs, places = shape
    return rows <= _MAX_ROWS and inputs * places <= _MAX_COLUMNS


def _relu(x: Array) -> Array:
    return np.maximum(x, 0.0)


def _sigmoid(x: Array) -> Array:
    return np.asarray(expit(x))


_ACTIVATIONS: Sequence[Callable[[Array], Array]] = (_relu, np.tanh, _sigmoid)
_COUNT = len(_ACTIVATIONS)
ACTIVITY = _ACTIVITY_FEATURES * _COUNT
DECISIONS = _DECISION_FEATURES * _COUNT


@dataclass(frozen=True)
class _Response:
    """What matrix `place` responds to the probes: y (rows, n), its activations, and the deviation of W x."""

    place: int
    y: Array
    x: Array
    input_std: float


def _responses(chain: Sequence[tuple[Array, Array | None]]) -> Iterator[_Response]:
    """Yield what each matrix responds, with one activation after the other."""
    if len(chain) > MAX_MATRICES:
        return
    x = [np.zeros((0, _PROBES))] * _COUNT
    for place, (w, bias) in enumerate(chain):
        if not is_small(w.shape) or (place and w.shape[1] != len(x[0])):
            return
        for i, activation in enumerate(_ACTIVATIONS):
            if place:
                y, input_std = _respond(w, bias, _shifted(x[i], w.shape[2]))
            elif not i:  # no activation comes before the first matrix
                y, input_std = _respond(w, bias, _random_inputs(w.shape[1], w.shape[2]))
            x[i] = activation(y)
            yield _Response(place, y, x[i], input_std)


def _respond(w: Array, bias: Array | None, patches: Array) -> tuple[Array, float]:
    """Return W x + b (rows, n), and the deviation of W x."""
    y = _bounded(np.einsum("rik,ikn->rn", w, patches, optimize=True))
    input_std = float(y.std())
    return y if bias is None else _bounded(y + bias[:, None]), input_std


def _last_responses() -> deque[_Response]:
    return deque(maxlen=_COUNT)


def _last_decisions(last: Sequence[_Response], matrices: int) -> Array:
    """Return the decisions of the last matrix for each activation; zeros if it was not reached."""
    if not last or last[-1].place != matrices - 1:
        return np.zeros(DECISIONS)
    if matrices == 1:
        return np.tile(_decisions(last[0].y), _COUNT)
    return np.concatenate([_decisions(response.y) for response in last])


def _bounded(y: Array) -> Array:
    """Return finite responses: those of a network with huge weights grow with every matrix."""
    return np.clip(np.nan_to_num(y, copy=False), -_MAX_RESPONSE, _MAX_RESPONSE, out=y)


def _random_inputs(inputs: int, places: int) -> Array:
    """Draw unit-variance inputs (inputs, places, n), correlated between positions as in real images."""
    rng = np.random.default_rng(0)
    common = rng.standard_normal((inputs, 1, _PROBES))
    independent = rng.standard_normal((inputs, places, _PROBES))
    return np.asarray(
        _POSITION_CORRELATION**0.5 * common + (1 - _POSITION_CORRELATION) ** 0.5 * independent
    )


def _shifted(x: Array, places: int) -> Array:
    """Give each kernel position a different probe of the same channel: (inputs, places, n)."""
    step = 1 + _PROBES // max(places, 1) // 4
    return np.stack([np.roll(x, k * step, axis=1) for k in range(places)], axis=1)


def _log(x: float) -> float:
    return float(np.log(max(x, _EPSILON)))


def _activity(response: _Response) -> Array:
    y, x = response.y, response.x
    active = (y > 0).mean(1)
    within, between = float(y.std(1).mean()), float(y.mean(1).std())
    return np.array(
        [
            _log(response.input_std),
            _log(within),
            _log(between / max(within, _EPSILON)),
            float((active < 0.02).mean()),
            float((active > 0.98).mean()),
            float((np.abs(y) > 2).mean()),
            _log(float(x.std(1).mean())),
            active.mean(),
        ]
    )


def _decisions(y: Array) -> Array:
    """Return confidence, diversity and balance of the last matrix's softmax decisions."""
    p = y - y.max(0)
    np.exp(p, out=p)
    p /= p.sum(0)
    chosen = np.bincount(y.argmax(0), minlength=len(y)) / y.shape[1]
    centred = y - y.mean(0)
    power = np.linalg.eigvalsh(_smaller_covariance(centred))
    share = np.maximum(power[::-1], 0.0) / max(float(power.clip(0).sum()), _EPSILON)
    spread = centred.std(1)
    margin = np.zeros((1, y.shape[1]))
    if len(y) > 1:
        margin = np.diff(np.partition(y, (-2, -1), axis=0)[-2:], axis=0)
    scale = max(float(spread.mean()), _EPSILON)
    return np.array(
        [
            p.max(0).mean(),
            _log(scale),
            chosen.max(),
            float((chosen > 0.01).mean()),
            _entropy(p.mean(1)),
            _entropy(p) / y.shape[1],
            share[0],
            _log(float(centred.mean(1).std()) / scale),
            _log(float(margin.mean())),
            margin.std() / max(float(margin.mean()), _EPSILON),
            _entropy(share),
            spread.std() / scale,
            _entropy(chosen),
        ]
    )


def _smaller_covariance(x: Array) -> Array:
    """Return the covariance of rows (n, n), or a smaller matrix of its eigenvalues that are not 0."""
    if len(x) <= x.shape[1]:
        return np.cov(x).reshape(len(x), len(x))
    x = x - x.mean(1, keepdims=True)
    return np.asarray(x.T @ x / (x.shape[1] - 1))


def _entropy(p: Array) -> float:
    product = p + _EPSILON
    np.log(product, out=product)
    product *= p
    return -float(product.sum())
