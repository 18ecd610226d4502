"""Standard output holds a command's result and nothing else, whatever plugins print as they load and run.

For commands only: a library must not redirect what belongs to the whole process.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from io import UnsupportedOperation
from typing import Any, TextIO, cast

_DESCRIPTOR = 1


class _Claim:
    """Standard output while it is ours: all others that write to it write to standard error."""

    def __init__(self) -> None:
        self.results = self._stdout = sys.stdout
        self._is_process_wide = _is_standard_output(sys.stdout)
        if self._is_process_wide:  # what subprocesses and libraries in C print goes there too
            sys.stdout.flush()
            self.results = open(  # noqa: SIM115, PTH123
                os.dup(_DESCRIPTOR),
                "w",
                encoding=sys.stdout.encoding,
                errors=sys.stdout.errors,
                buffering=1,
            )
            _point_at_standard_error(_DESCRIPTOR)
        sys.stdout = cast(TextIO, _StandardError())

    def release(self) -> None:
        """Give standard output back."""
        sys.stdout = self._stdout
        if self._is_process_wide:
            self._stdout.flush()  # what plugins left there is not the result
            os.dup2(self.results.fileno(), _DESCRIPTOR)
            with suppress(
                OSError
            ):  # each line was written at once: a failure was raised, and told, then
                self.results.close()


class _StandardError:
    """Standard error in the place of standard output: whoever closes that closes nothing."""

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)

    def close(self) -> None:
        """Stay open."""


_claim: _Claim | None = None


def claim_standard_output() -> None:
    """Keep standard output for `result_stream` until `release_standard_output`."""
    global _claim
    _claim = _claim or _Claim()


def release_standard_output() -> None:
    """Give standard output back, if it was claimed."""
    global _claim
    claim, _claim = _claim, None
    if claim is not None:
        claim.release()


def result_stream() -> TextIO:
    """Return where a command's result goes."""
    return sys.stdout if _claim is None else _claim.results


def _is_standard_output(stream: TextIO) -> bool:
    try:
        return stream.fileno() == _DESCRIPTOR
    except (AttributeError, UnsupportedOperation, ValueError):
        return False  # another program's, or a test's, object


def _point_at_standard_error(descriptor: int) -> None:
    try:
        os.dup2(2, descriptor)
    except OSError:  # it is closed
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, descriptor)
        os.close(nowhere)
