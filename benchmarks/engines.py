"""How fast do runs over folders go, what does a machine hour buy, and how much do two workers gain over one?

    python benchmarks/engines.py --only rates [--networks 60]
    python benchmarks/engines.py --only run [--networks 400]
    python benchmarks/engines.py --only speed [--networks 2000]

Rates: each job on shipped networks with noise of their own (10 KB each) and on a ResNet-18 of torchvision (47 MB), on one
thread, in processor time, which other programs of the machine hardly move; the same of reading contents, of a worker's start;
bytes of a row in Parquet. Run: what the run itself takes for a row of `embed`, from the file's digest to the shard, where an engine answers at once. Speed: the time that `embed` takes with one worker and with two, whole
runs from the start of the workers to the last shard, three times in turns; it needs two idle cores, and says how idle they were.
Writes results/engines.json, of which each part stays until it is measured again, and engines.md.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from sane_plugins import Host, hookimpl
from sane_plugins.architectures import import_torchvision
from sane_plugins.engines import Done
from sane_plugins.folder_runs import (
    JOBS,
    EmbedJob,
    ListedNetwork,
    Manifest,
    NetworkContent,
    RunOptions,
    StartWorker,
    plan_shards,
    read_manifest,
    run_job,
)
from sane_plugins.generation import embedded_prompts
from sane_plugins.progress import silent
from sane_plugins.runtime import threads

RESULTS = Path(__file__).parent / "results"
SMALL, LARGE = "10 KB each", "47 MB (ResNet-18)"
ROUNDS = 3
PLANS = (10**6, 10**8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", choices=("rates", "run", "speed"), required=True)
    parser.add_argument("--networks", type=int)
    arguments = parser.parse_args()
    path = RESULTS / "engines.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        measure, count = MEASURES[arguments.only]
        results[arguments.only] = measure(Path(folder), arguments.networks or count)
    path.write_text(json.dumps(results, indent=1) + "\n")
    (RESULTS / "engines.md").write_text(table(results))
    print(table(results))


def small_networks(folder: Path, count: int) -> Path:
    """Write shipped networks with noise of their own."""
    folder.mkdir()
    zoo, noise = embedded_prompts(), torch.Generator().manual_seed(0)
    for i in range(count):
        state = zoo.state_dict(zoo.entries[i % len(zoo)])
        for tensor in state.values():
            if tensor.is_floating_point():
                tensor += 0.01 * torch.randn(tensor.shape, generator=noise)
        save_file(state, folder / f"{i:06d}.safetensors")
    return folder


def large_network(folder: Path) -> Path:
    folder.mkdir()
    torch.manual_seed(0)
    save_file(import_torchvision().models.resnet18().state_dict(), folder / "resnet18.safetensors")
    return folder


def rates(folder: Path, count: int) -> dict[str, Any]:
    """Return processor seconds per network, by job and corpus, and what a run itself takes."""
    host = Host.installed()
    corpora = {
        SMALL: small_networks(folder / "small", count),
        LARGE: large_network(folder / "large"),
    }
    found: dict[str, Any] = {"jobs": {}, "contents": {}}
    with threads(1):
        for corpus, networks in corpora.items():
            manifest, seconds = timed(lambda x=networks: read_manifest(x, host.open, silent))  # type: ignore[misc]
            number = len(manifest.networks)
            found["contents"][corpus] = {
                "seconds": seconds / number,
                "bytes": manifest.size / number,
            }
            for name, kind in JOBS.items():
                work = StartWorker(job=kind(), folder=networks)()
                work(manifest.networks[0])  # what is loaded once
                rows, seconds = timed(lambda w=work, m=manifest: [*map(w, m.networks)])  # type: ignore[misc]
                assert not any("error" in row for row in rows)
                found["jobs"].setdefault(name, {})[corpus] = {"seconds": seconds / number}
        for name, kind in JOBS.items():
            out = folder / f"out-{name}"
            run_job(host, corpora[SMALL], out, kind(), RunOptions())
            size = sum(x.stat().st_size for x in out.glob("part-*"))
            found["jobs"][name]["row_bytes"] = size / count
    found["memory"] = bytes_per_network()
    start = os.times()
    [*Host.installed().encode_many([next(corpora[SMALL].iterdir())], workers=1)]
    end = os.times()
    found["start"] = (
        end.children_user + end.children_system - start.children_user - start.children_system
    )
    return found


def bytes_per_network(count: int = 20_000) -> float:
    """Return what a run keeps in memory of each network while it is planned and worked through."""
    tracemalloc.start()
    networks = [
        ListedNetwork(
            f"runs/{i // 1000:05d}/checkpoint-{i:09d}.safetensors",
            NetworkContent(i, f"{i:064x}", i),
        )
        for i in range(count)
    ]
    shards = plan_shards(Manifest(tuple(networks), 0), rows=1000, size=2**30)
    waiting = {x.content.digest: [shard] for shard in shards for x in shard.networks}
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return size / len(waiting)


def run(folder: Path, count: int) -> dict[str, float]:
    """Return the processor seconds of a run for each row, where an engine has the answer already."""
    networks = small_networks(folder / "small", count)
    host = Host.installed()
    first = read_manifest(networks, host.open, silent).networks[0]
    answer = pickle.dumps(StartWorker(job=EmbedJob(), folder=networks)()(first))

    class Instant:
        @hookimpl
        def sane_engines(self) -> dict[str, Any]:
            return {"instant": instant}

    def instant(_start: Any, tasks: Any, _workers: int) -> Iterator[Done]:
        for i, task in enumerate(tasks):
            pickle.dumps(task)
            yield Done(i, pickle.loads(answer))

    host.register(Instant(), "instant")
    options = RunOptions(engine="instant")
    run_job(host, networks, folder / "warm", EmbedJob(), options)
    _, seconds = timed(lambda: run_job(host, networks, folder / "out", EmbedJob(), options))
    return {"networks": count, "seconds": seconds / count}


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    begun = time.process_time()
    result = work()
    return result, time.process_time() - begun


def speed(folder: Path, count: int) -> dict[str, Any]:
    """Return the seconds of whole runs with one worker and with two, in turns."""
    host, networks = Host.installed(), small_networks(folder / "small", count)
    load = os.getloadavg()[0]
    found: dict[str, Any] = {"networks": count, "load_before": load, "seconds": {"1": [], "2": []}}
    for turn in range(ROUNDS):
        for workers in (1, 2):
            out = folder / f"{turn}-{workers}"
            done = run_job(host, networks, out, EmbedJob(), RunOptions(workers=workers))
            found["seconds"][str(workers)].append(done.seconds)
    return found


def table(results: Mapping[str, Any]) -> str:
    """Return the Markdown tables."""
    lines: list[str] = []
    if (found := results.get("rates")) and "run" in results:
        lines += [
            "| job | networks | processor time each | MB/s of a core | row in Parquet | core hours of 10⁶ | of 10⁸ |",
            "|---|---|---|---|---|---|---|",
        ]
        for corpus in (SMALL, LARGE):
            content = found["contents"][corpus]
            for name, job in found["jobs"].items():
                each = job[corpus]["seconds"] + content["seconds"]
                hours = " | ".join(f"{n * each / 3600:,.0f}" for n in PLANS)
                row = f"{job['row_bytes'] / 1000:.1f} KB" if corpus == SMALL else ""
                shown = f"{each * 1000:.0f} ms" if each < 1 else f"{each:.1f} s"
                rate = content["bytes"] / each / 1e6
                lines.append(
                    f"| {name} | {corpus} | {shown} | {rate:.{2 if rate < 10 else 0}f} | {row} | {hours} |"
                )
        small, large = (found["contents"][x] for x in (SMALL, LARGE))
        lines += [
            "",
            "| beside the jobs | processor time |",
            "|---|---|",
            f"| reading contents, per small file | {small['seconds'] * 1000:.2f} ms |",
            f"| reading contents, per GB of large files | {large['seconds'] / large['bytes'] * 1e9:.2f} s |",
            f"| the run itself, per row of `embed` (contents included) | {results['run']['seconds'] * 1000:.2f} ms |",
            f"| start of a worker, with one network | {found['start']:.1f} s |",
            f"| memory of the run, per network | {found['memory'] / 1000:.1f} KB |",
        ]
    if found := results.get("speed"):
        one, two = (min(found["seconds"][x]) for x in ("1", "2"))
        lines += [
            "",
            "| `embed` | one worker | two workers | gain | load before |",
            "|---|---|---|---|---|",
            f"| {found['networks']} small networks, best of {ROUNDS} | {one:.1f} s | {two:.1f} s |"
            f" {one / two:.2f} | {found['load_before']:.1f} |",
        ]
    return "\n".join(lines) + "\n"


MEASURES = {"rates": (rates, 60), "run": (run, 400), "speed": (speed, 2000)}

if __name__ == "__main__":
    main()
