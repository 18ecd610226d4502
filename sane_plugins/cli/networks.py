"""Commands that encode networks: embed, predict."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar

import click

from sane_plugins.cli.console import (
    command_options,
    note,
    open_host,
    print_json,
    print_table,
    progress_bars,
)
from sane_plugins.errors import SaneError, SourceError

if TYPE_CHECKING:
    from sane_plugins.properties import AnyEstimate, AnyHead

T = TypeVar("T")
_FILE = click.Path(path_type=Path)
_SOURCES = click.argument("sources", metavar="SOURCE...", nargs=-1, required=True)


@click.command()
@_SOURCES
@click.option("--encoder", default="sane", show_default=True, help="Which encoder.")
@click.option(
    "--sane", type=click.Path(path_type=Path), help="A SANE of your own, from 'pretrain'."
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Write latents, embeddings and layer embeddings here (.safetensors).",
)
@click.option("--force", is_flag=True, help="Replace the output file if it exists.")
@command_options
def embed(
    sources: tuple[str, ...],
    encoder: str,
    sane: Path | None,
    output: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Encode networks; each gets an embedding, and one per layer."""
    from sane_plugins.atomic_files import require_free
    from sane_plugins.features import EncodeOptions, write_encodings

    if output is not None:
        require_free(output, force)
    host, options = open_host(), EncodeOptions(encoder=encoder, model=sane, latents=False)
    with _beside(output) as files, progress_bars(host):
        done, failed = _each(
            sources,
            lambda x: host.encode(x, replace(options, latents=files(x) if files else False)),
        )
        if files and output is not None and done:
            write_encodings(done, {source: files(source) for source in done}, output)
            note(f"Written to {output}.")
    if as_json:
        print_json({source: x.embedding.tolist() for source, x in done.items()})
    elif output is None:
        rows = [(s, x.tokens, len(x.embedding), _few(x.embedding)) for s, x in done.items()]
        print_table(f"encoder {encoder}", ("source", "tokens", "numbers", "embedding"), rows)
    _finish(failed)


@click.command()
@_SOURCES
@click.option(
    "--property", "properties", multiple=True, help="Only this property; repeat for more."
)
@click.option("--heads", type=_FILE, help="Heads of your own, from 'heads fit'.")
@click.option("--sane", type=_FILE, help="The SANE that they were fitted with, if another.")
@click.option("--device", default="cpu", show_default=True, help="A torch device.")
@command_options
def predict(
    sources: tuple[str, ...],
    properties: tuple[str, ...],
    heads: Path | None,
    sane: Path | None,
    device: str,
    as_json: bool,
) -> None:
    """Predict accuracy, generalisation gap and training progress from weights alone."""
    from sane_plugins.properties import PredictOptions, load_heads
    from sane_plugins.runtime import require_device

    require_device(device)
    host = open_host()
    known = host.property_heads() if heads is None else load_heads(heads)
    options = PredictOptions(properties=properties or None, model=sane, heads=heads, device=device)
    with progress_bars(host):
        done, failed = _each(sources, lambda source: host.predict(source, options))
    if as_json:
        from dataclasses import asdict

        print_json({s: {k: asdict(x) for k, x in found.items()} for s, found in done.items()})
    else:
        rows = [_estimate(source, x) for source, found in done.items() for x in found.values()]
        print_table(
            "predicted from weights",
            ("source", "property", "value", "interval or set", "known kind"),
            rows,
        )
        used = {x.property for found in done.values() for x in found.values()}
        for name, head in known.items():
            if name in used:
                note(f"Note: {name} {_chosen(head)}.")
        if any(not x.in_distribution for found in done.values() for x in found.values()):
            note(
                "Note: 'no' means unlike every network that the head was fitted on: do not rely on it."
            )
    _finish(failed)


def _each(sources: Sequence[str], work: Callable[[str], T]) -> tuple[dict[str, T], list[str]]:
    """Do the work for every source; one that fails is told and does not stop the others."""
    done: dict[str, T] = {}
    failed = []
    for source in sources:
        try:
            done[source] = work(source)
        except SaneError as error:
            if len(sources) == 1:
                raise
            note(f"Error: {error}")
            failed.append(source)
    return done, failed


def _finish(failed: Sequence[str]) -> None:
    if failed:
        raise SourceError(
            "sources",
            f"{len(failed)} could not be read",
            "all were asked for",
            "see the errors above",
        )


def _estimate(source: str, found: AnyEstimate) -> tuple[str, ...]:
    if isinstance(found.value, str):
        value, around = (
            f"{found.value} ({found.probabilities[found.value]:.0%})",
            ", ".join(found.set),
        )
    else:
        low, high = found.interval
        value, around = f"{found.value:.3f} {found.unit}".strip(), f"{low:.3f} to {high:.3f}"
    known = "yes" if found.in_distribution else "no"
    return source, found.property, value, f"{around} ({found.coverage:.0%})", known


def _chosen(head: AnyHead) -> str:
    """Say which features a head reads, and how well each did in cross-validation."""
    best: dict[str, float] = {}
    for name, score in head.scores.items():
        features = name.partition("/")[0]
        best[features] = max(score, best.get(features, score))
    told = ", ".join(f"{features} {score:.2f}" for features, score in best.items())
    return f"is read from {head.features} (cross-validated {head.score}: {told})"


def _few(embedding: Any) -> str:
    return " ".join(f"{x:.3f}" for x in embedding[:4].tolist()) + " ..."


@contextmanager
def _beside(output: Path | None) -> Iterator[Callable[[str], Path] | None]:
    """Tell where the latents of each source wait until `output` is written; nowhere without an output."""
    if output is None:
        yield None
        return
    try:
        with TemporaryDirectory(prefix=".latents-", dir=output.parent) as folder:
            yield lambda source: Path(folder) / sha256(source.encode()).hexdigest()
    except OSError as error:
        raise SourceError(
            output,
            f"it cannot be written ({error.strerror})",
            "room and the right to write are needed",
            "choose another place",
        ) from error
