"""Versions of what the package computes with, and the devices that it can compute on."""

from __future__ import annotations

import logging
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version

import torch

from sane_plugins import __version__
from sane_plugins.architectures import import_torchvision
from sane_plugins.errors import SaneError

_SHOWN = (
    "torch",
    "numpy",
    "safetensors",
    "pluggy",
    "click",
    "scikit-learn",
    "scipy",
    "torchvision",
    "timm",
    "onnx",
)


def list_versions() -> dict[str, str]:
    """Return the versions of Python, of the package and of what it stands on; empty if not installed."""
    found = {"python": platform.python_version(), "sane-plugins": __version__}
    for name in _SHOWN:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = ""
    return found


def list_devices() -> dict[str, str]:
    """Return the devices that torch has here, and what each is."""
    threads = torch.get_num_threads()
    devices = {"cpu": f"{platform.machine()}, {threads} thread{'s' * (threads != 1)}"}
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            known = torch.cuda.get_device_properties(i)
            devices[f"cuda:{i}"] = f"{known.name}, {known.total_memory / 2**30:.0f} GiB"
    if torch.backends.mps.is_available():
        devices["mps"] = "Apple's GPU"
    return devices


def examine_torchvision() -> tuple[list[str], list[str]]:
    """Return what is wrong with torchvision, and what cannot be done with it, where it is installed."""
    try:
        found = version("torchvision")
    except PackageNotFoundError:
        return [], []
    with _silenced():
        try:
            import_torchvision()
        except SaneError as error:
            return [str(error)], []
    # Where its operators do not fit, `import_torchvision` declares them, and they have no kernel.
    if torch._C._dispatch_has_kernel_for_dispatch_key("torchvision::nms", "CPU"):
        return [], []
    return [], [
        f"torchvision {found} was built for another torch than {torch.__version__}: its detection models are"
        " read and cannot run, and 'import torchvision' of your own fails; install the torchvision that"
        " belongs to this torch"
    ]


@contextmanager
def _silenced() -> Iterator[None]:
    """Keep the import of torchvision from warning of what is told here."""
    logger = logging.getLogger("sane_plugins.architectures")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
