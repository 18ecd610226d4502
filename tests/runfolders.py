"""Folders of small networks for runs over folders, and what a run wrote."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sane_plugins import hookimpl
from sane_plugins.generation import embedded_prompts
from sane_plugins.host import Host

pq = pytest.importorskip("pyarrow.parquet")


class InlineEngine:
    """A plugin that offers an engine of this process."""

    @hookimpl
    def sane_engines(self):
        from enginework import inline

        return {"inline": inline}


def inline_host() -> Host:
    host = Host.installed()
    host.register(InlineEngine(), "inline-engine")
    return host


def make_networks(folder: Path, count: int) -> Path:
    """Write shipped networks with noise of their own."""
    folder.mkdir(parents=True, exist_ok=True)
    zoo, noise = embedded_prompts(), torch.Generator().manual_seed(0)
    for i in range(count):
        state = zoo.state_dict(zoo.entries[i % len(zoo)])
        for tensor in state.values():
            if tensor.is_floating_point():
                tensor += 0.01 * torch.randn(tensor.shape, generator=noise)
        save_file(state, folder / f"n{i:03d}.safetensors")
    return folder


def shards_of(out: Path) -> dict[str, bytes]:
    """Return the results of a run, byte by byte."""
    return {path.name: path.read_bytes() for path in sorted(out.glob("*.parquet"))}


def rows_of(out: Path) -> dict[str, dict]:
    """Return the rows of a run by path, in the order of its files."""
    rows = [row for path in sorted(out.glob("part-*")) for row in pq.read_table(path).to_pylist()]
    assert len({row["path"] for row in rows}) == len(rows)
    return {row["path"]: row for row in rows}
