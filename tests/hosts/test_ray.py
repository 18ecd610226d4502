"""The engine of a Ray cluster, and its class for Ray Data, in a real cluster of this machine."""

import os
import signal
from pathlib import Path

import pytest

ray = pytest.importorskip("ray")
pytest.importorskip("pyarrow")

import sane_ray  # noqa: E402
from runfolders import inline_host, make_networks, rows_of, shards_of  # noqa: E402
from sane_ray.data_rows import AddColumns  # noqa: E402

from sane_plugins.folder_runs import CheckJob, EmbedJob, RunOptions, run_job  # noqa: E402
from sane_plugins.host import Host  # noqa: E402
from sane_plugins.progress import Progress  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestWarning"),
]
COUNT = 200


@pytest.fixture(scope="module", autouse=True)
def cluster():
    """Start a cluster once; its workers are no more patient than others of this machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_MODE", "disabled")
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        yield
        ray.shutdown()


@pytest.fixture(scope="module")
def host() -> Host:
    host = inline_host()
    if "ray" not in host.engines():
        host.register(sane_ray, "ray")
    return host


@pytest.fixture(scope="module")
def networks(tmp_path_factory) -> Path:
    folder = make_networks(tmp_path_factory.mktemp("ray") / "zoo", COUNT)
    (folder / "broken.pt").write_bytes(b"no network")
    return folder


def actors() -> list[int]:
    """Return the processes of actors that have begun."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().startswith(b"ray::Performer"):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def test_ray_and_local_write_the_same_bytes_whatever_is_killed(host, networks, tmp_path) -> None:
    job, killed = EmbedJob(), []

    def kill_one(event: Progress) -> None:
        if event.job == job.name and event.done >= COUNT // 4 and not killed:
            killed.append(actors()[0])
            os.kill(killed[0], signal.SIGKILL)

    host.report = kill_one
    options = RunOptions(engine="ray", workers=2, rows_per_shard=30)
    result = run_job(host, networks, tmp_path / "ray", job, options)
    assert killed
    assert (result.networks, result.errors) == (COUNT + 1, 1)
    local = RunOptions(workers=2, rows_per_shard=30)
    run_job(host, networks, tmp_path / "local", job, local)
    assert shards_of(tmp_path / "ray") == shards_of(tmp_path / "local")


def test_a_pipeline_of_ray_data_gets_the_columns_of_a_job(host, networks, tmp_path) -> None:
    paths = [str(networks / f"n00{i}.safetensors") for i in range(4)] + [
        str(networks / "broken.pt")
    ]
    rows = (
        ray.data.from_items([{"path": path, "mine": i} for i, path in enumerate(paths)])
        .map_batches(
            AddColumns, fn_constructor_args=(CheckJob(),), batch_format="pandas", concurrency=1
        )
        .take_all()
    )
    assert sorted(row["mine"] for row in rows) == [*range(5)]
    told = {Path(row["path"]).name: row for row in rows}
    run_job(host, networks, tmp_path / "out", CheckJob(), RunOptions(engine="inline"))
    for name, row in rows_of(tmp_path / "out").items():
        if name in told:
            assert told[name]["verdict"] == row["verdict"]
            assert told[name]["error"] == row["error"]
