"""`sane-plugins embed`: encode networks with a SANE or with another encoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from hashlib import sha256
from pathlib import Path

import click

from sane_plugins import features
from sane_plugins.atomic_files import naming, private_folder
from sane_plugins.cli.console import (
    command_options,
    note,
    open_host,
    print_json,
    print_table,
    progress_bars,
)
from sane_plugins.cli.options.factories import Opener, factory_option
from sane_plugins.cli.options.outputs import OutputFile, require_free_outputs
from sane_plugins.cli.options.sources import process_each, require_none_failed
from sane_plugins.errors import SourceError

_FILE = click.Path(path_type=Path)


@click.command()
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True)
@click.option("--encoder", default="sane", show_default=True, help="Which encoder.")
@click.option("--sane", type=_FILE, help="A SANE of your own, from 'pretrain'.")
@click.option(
    "-o",
    "--output",
    type=OutputFile(),
    help="Write latents, embeddings and layer embeddings here (.safetensors).",
)
@click.option("--force", is_flag=True, help="Replace the output file if it exists.")
@factory_option
@command_options
def embed(
    sources: tuple[str, ...],
    encoder: str,
    sane: Path | None,
    output: Path | None,
    force: bool,
    factories: tuple[str, ...],
    as_json: bool,
) -> None:
    """Encode networks; each gets an embedding, and one per layer."""
    host = open_host()
    open_source = Opener(host, factories)
    require_free_outputs(host, [output], force, networks=sources, others=[sane])
    with _latent_files(output) as latent_file, progress_bars(host):

        def encode(source: str) -> features.Encoding:
            latents = latent_file(source) if latent_file else False
            options = features.EncodeOptions(encoder=encoder, sane=sane, latents=latents)
            try:
                return host.encode(open_source(source), options)
            except SourceError as error:
                if output is None or error.place != str(latents):
                    raise
                raise SourceError(output, error.found, error.needed, error.way_out) from error

        encodings, failed = process_each(sources, encode)
        if latent_file and output is not None and encodings:
            latents = {source: latent_file(source) for source in encodings}
            features.write_encodings(encodings, latents, output)
            note(f"Written to {output}.")
    open_source.tell_recognized()
    if as_json:
        print_json({source: x.embedding.tolist() for source, x in encodings.items()})
    elif output is None:
        rows = [(s, x.tokens, len(x.embedding), _preview(x)) for s, x in encodings.items()]
        print_table(f"encoder {encoder}", ("source", "tokens", "numbers", "embedding"), rows)
    require_none_failed(failed)


def _preview(encoding: features.Encoding) -> str:
    """Return the first numbers of an embedding."""
    return " ".join(f"{x:.3f}" for x in encoding.embedding[:4].tolist()) + " ..."


@contextmanager
def _latent_files(output: Path | None) -> Iterator[Callable[[str], Path] | None]:
    """Give each source a temporary file for its latents, on the disk of `output`; none without an output."""
    if output is None:
        yield None
        return
    with ExitStack() as stack:
        with naming(output):
            folder = stack.enter_context(private_folder(output.parent))
        yield lambda source: folder / sha256(source.encode(errors="surrogatepass")).hexdigest()
