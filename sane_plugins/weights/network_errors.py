"""Whose error it is: what the code of a network raised, apart from what this package raised."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import torch
from torch import nn

from sane_plugins.errors import SaneError, SourceError, first_line

_TORCH = Path(torch.__file__).parent
_PACKAGE = __name__.partition(".")[0]
# Modes of ours, through which a network's own calls of torch go.
_MODES = ("__torch_function__", "__torch_dispatch__")


@dataclass(frozen=True)
class RaisedByNetwork:
    """Which method of which module raised an error, and the last line of code there that is not torch's."""

    network: str
    method: str
    file: Path
    line: int

    @property
    def way_out(self) -> str:
        """Return what to do about it."""
        return f"repair it at line {self.line} of {self.file}"


def raised_by_network(error: BaseException) -> RaisedByNetwork | None:
    """Return which code of a network raised an error; None where it was ours or torch's.

    A method of a module counts that lies outside torch and is called after the last function of ours.
    """
    frames = list(_frames(error))
    ours = [i for i, (frame, _) in enumerate(frames) if _is_ours(frame)]
    called = frames[ours[-1] + 1 :] if ours else frames
    others = [(frame, line) for frame, line in called if not _is_pass_through(frame)]
    method = next(
        (frame for frame, _ in others if isinstance(_first_argument(frame), nn.Module)), None
    )
    if method is None:
        return None
    frame, line = others[-1]
    return RaisedByNetwork(
        network=type(_first_argument(method)).__name__,
        method=method.f_code.co_name,
        file=Path(frame.f_code.co_filename),
        line=line,
    )


@contextmanager
def network_errors_told() -> Iterator[None]:
    """Raise what a network's own code raised within the block as `SourceError`; other errors pass."""
    try:
        yield
    except SaneError:
        raise
    except (Exception, SystemExit) as error:
        raised = raised_by_network(error)
        if raised is None:
            raise
        raise SourceError(
            raised.network,
            f"its {raised.method} raised {type(error).__name__}: {first_line(error)}",
            "it is the network's own code, which must work",
            raised.way_out,
        ) from error


def _frames(error: BaseException) -> Iterator[tuple[FrameType, int]]:
    traceback = error.__traceback__
    while traceback is not None:
        yield traceback.tb_frame, traceback.tb_lineno
        traceback = traceback.tb_next


def _is_ours(frame: FrameType) -> bool:
    package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
    return package == _PACKAGE and frame.f_code.co_name not in _MODES


def _is_pass_through(frame: FrameType) -> bool:
    return frame.f_code.co_name in _MODES or Path(frame.f_code.co_filename).is_relative_to(_TORCH)


def _first_argument(frame: FrameType) -> Any:
    code: CodeType = frame.f_code
    return frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
