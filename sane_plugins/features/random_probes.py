"""Random probes of a chain of matrices: activity, saturation and decisions on inputs without any data.

The activation is not in the weights, so probes run once with each of three: one that cuts off, one that
saturates around zero, and one that saturates away from it. The places of a kernel read different probes
(the earlier layer's, shifted), so channel order does not matter.
The method: docs/explanation/sane.md, section 5.5.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from scipy.special import expit

Array = npt.NDArray[np.float64]
_PROBES = 192
_SMOOTH = 0.8
_TINY = 1e-12
_LAYER = 8
_LAST = 13


def probe(chain: Sequence[tuple[Array, Array | None]]) -> tuple[list[Array], Array]:
    """Return activity per matrix, a list of (ACTIVITY,), and the decisions (DECISIONS,) of the outputs.

    chain: matrices (rows, inputs, places) with biases (rows,). From the first matrix that does not read
    what the one before it writes, activity is zero, and so are the decisions.
    """
    layers, outputs = zip(
        *(_propagate(chain, activation) for activation in _ACTIVATIONS), strict=True
    )
    return [np.concatenate(each) for each in zip(*layers, strict=True)], np.concatenate(outputs)


def _relu(x: Array) -> Array:
    return np.maximum(x, 0.0)


def _logistic(x: Array) -> Array:
    return np.asarray(expit(x))


_ACTIVATIONS: Sequence[Callable[[Array], Array]] = (_relu, np.tanh, _logistic)
ACTIVITY = _LAYER * len(_ACTIVATIONS)
DECISIONS = _LAST * len(_ACTIVATIONS)


def _propagate(
    chain: Sequence[tuple[Array, Array | None]], activation: Callable[[Array], Array]
) -> tuple[list[Array], Array]:
    activities: list[Array] = []
    x, y = np.zeros((0, _PROBES)), np.zeros((0, _PROBES))
    for i, (w, bias) in enumerate(chain):
        if i and w.shape[1] != len(x):
            break
        patches = _shifted(x, w.shape[2]) if i else _random_inputs(w.shape[1], w.shape[2])
        y = np.einsum("rik,ikn->rn", w, patches, optimize=True)
        drive = float(y.std())
        y = y if bias is None else y + bias[:, None]
        x = activation(y)
        activities.append(_activity(y, x, drive))
    is_chain = 0 < len(activities) == len(chain)
    missing = [np.zeros(_LAYER)] * (len(chain) - len(activities))
    return [*activities, *missing], _decisions(y) if is_chain else np.zeros(_LAST)


def _random_inputs(inputs: int, places: int) -> Array:
    """Draw inputs (inputs, places, n) of deviation 1 whose places mostly agree, as in real images."""
    rng = np.random.default_rng(0)
    common = rng.standard_normal((inputs, 1, _PROBES))
    own = rng.standard_normal((inputs, places, _PROBES))
    return np.asarray(_SMOOTH**0.5 * common + (1 - _SMOOTH) ** 0.5 * own)


def _shifted(x: Array, places: int) -> Array:
    """Give each place of a kernel another probe of the same channel: (inputs, places, n)."""
    step = 1 + _PROBES // max(places, 1) // 4
    return np.stack([np.roll(x, k * step, axis=1) for k in range(places)], axis=1)


def _log(x: float) -> float:
    return float(np.log(max(x, _TINY)))


def _activity(y: Array, x: Array, drive: float) -> Array:
    on = (y > 0).mean(1)
    within, between = float(y.std(1).mean()), float(y.mean(1).std())
    return np.array(
        [
            _log(drive),
            _log(within),
            _log(between / max(within, _TINY)),
            float((on < 0.02).mean()),
            float((on > 0.98).mean()),
            float((np.abs(y) > 2).mean()),
            _log(float(x.std(1).mean())),
            on.mean(),
        ]
    )


def _decisions(y: Array) -> Array:
    """Return how sure, how varied and how even the last matrix's choices are."""
    exponent = np.exp(y - y.max(0))
    p = exponent / exponent.sum(0)
    chosen = np.bincount(y.argmax(0), minlength=len(y)) / y.shape[1]
    centred = y - y.mean(0)
    power = np.linalg.eigvalsh(np.cov(np.atleast_2d(centred)).reshape(len(y), len(y)))
    share = np.maximum(power[::-1], 0.0) / max(float(power.clip(0).sum()), _TINY)
    spread = centred.std(1)
    lead = np.diff(np.sort(y, axis=0)[-2:], axis=0) if len(y) > 1 else np.zeros((1, y.shape[1]))
    scale = max(float(spread.mean()), _TINY)
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
            _log(float(lead.mean())),
            lead.std() / max(float(lead.mean()), _TINY),
            _entropy(share),
            spread.std() / scale,
            _entropy(chosen),
        ]
    )


def _entropy(p: Array) -> float:
    return -float((p * np.log(p + _TINY)).sum())
