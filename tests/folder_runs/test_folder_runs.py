"""Runs over folders: the same rows whatever computes them, whatever was there before, whatever lies about."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from runfolders import inline_host, make_networks, rows_of, shards_of
from safetensors.torch import load_file, save_file

from sane_plugins import hookimpl
from sane_plugins.atomic_files import claimed
from sane_plugins.errors import PluginError, SaneError, SourceError, UsageError
from sane_plugins.features import EncodeOptions
from sane_plugins.fingerprints import fingerprint, relate
from sane_plugins.folder_runs import (
    CheckJob,
    EmbedJob,
    FingerprintJob,
    Part,
    PredictJob,
    RunOptions,
    read_fingerprints,
    run_job,
    shard_files,
)
from sane_plugins.generation import embedded_prompts
from sane_plugins.host import Host
from sane_plugins.zoo import write_zoo

INLINE = RunOptions(engine="inline", rows_per_shard=5)
CHECK = CheckJob()


@pytest.fixture(scope="module")
def host() -> Host:
    return inline_host()


@pytest.fixture(scope="module")
def networks(tmp_path_factory) -> Path:
    """Return a folder of 11 networks, one of them twice, with what else lies in such folders."""
    folder = make_networks(tmp_path_factory.mktemp("runs") / "zoo", 10)
    (folder / "deep").mkdir()
    shutil.copy(folder / "n003.safetensors", folder / "deep" / "copy.safetensors")
    (folder / "notes.txt").write_text("no network")
    (folder / ".hidden").mkdir()
    shutil.copy(folder / "n003.safetensors", folder / ".hidden" / "x.safetensors")
    return folder


@pytest.fixture
def own(networks, tmp_path) -> Path:
    """Return a copy of the folder that a test may change."""
    return Path(shutil.copytree(networks, tmp_path / "own"))


def test_processes_write_the_bytes_that_one_process_writes(host, networks, tmp_path) -> None:
    a = run_job(host, networks, tmp_path / "a", EmbedJob(), INLINE)
    options = replace(INLINE, engine="local", workers=2)
    b = run_job(host, networks, tmp_path / "b", EmbedJob(), options)
    assert shards_of(tmp_path / "a") == shards_of(tmp_path / "b")
    assert (a.networks, a.computed, a.errors, a.shards, a.others) == (11, 10, 0, 3, 1)
    assert (b.networks, b.computed, b.errors, b.shards, b.others) == (11, 10, 0, 3, 1)


def test_rows_are_what_the_host_answers_for_each_file(host, networks, tmp_path) -> None:
    for job in (EmbedJob(), EmbedJob(encoder="statistics"), PredictJob(), CHECK):
        out = tmp_path / f"{job.name}{getattr(job, 'encoder', '')}"
        run_job(host, networks, out, job, INLINE)
        rows = rows_of(out)
        assert [*rows] == sorted(rows)
        assert rows["deep/copy.safetensors"] == {
            **rows["n003.safetensors"],
            "path": "deep/copy.safetensors",
        }
        for name in ("n000.safetensors", "n007.safetensors"):
            row = rows[name]
            assert row["error"] is None
            assert row["size"] == (networks / name).stat().st_size
            if job.name == "embed":
                encoding = host.encode(networks / name, EncodeOptions(encoder=job.encoder))
                assert torch.equal(
                    torch.tensor(row["embedding"], dtype=encoding.embedding.dtype),
                    encoding.embedding,
                )
                assert row["layer_names"] == [*encoding.names]
                assert np.array_equal(np.array(row["layers"]), encoding.layers.numpy())
            elif job.name == "predict":
                for key, estimate in host.predict(networks / name).items():
                    assert row[key]["in_distribution"] == estimate.in_distribution
                    assert estimate.value in (row[key]["value"], row[key]["class"])
            else:
                assert row["healthy"] == (row["verdict"] == "healthy")


def test_fingerprints_of_a_run_are_those_of_the_networks(host, networks, tmp_path) -> None:
    run_job(host, networks, tmp_path / "out", FingerprintJob(), INLINE)
    found = {
        name: packed.unpack(i)
        for packed in read_fingerprints(tmp_path / "out")
        for i, name in enumerate(packed.names)
    }
    assert len(found) == 11
    again = fingerprint(host.open(networks / "n004.safetensors"))
    assert relate(found["n004.safetensors"], again).is_same
    assert not relate(found["n005.safetensors"], again).is_same
    with pytest.raises(SourceError, match="fingerprint"):
        read_fingerprints(networks)


def test_only_what_is_new_is_computed(host, own, tmp_path) -> None:
    out = tmp_path / "out"
    assert run_job(host, own, out, CHECK, INLINE).computed == 10
    before = shards_of(out)
    assert run_job(host, own, out, CHECK, INLINE).computed == 0
    assert shards_of(out) == before

    (own / "n009.safetensors").rename(own / "renamed.safetensors")
    state = load_file(own / "n002.safetensors")
    save_file({k: v + 1 for k, v in state.items()}, own / "n002.safetensors")
    (own / "n005.safetensors").unlink()
    shutil.copy(own / "n000.safetensors", own / "new.safetensors")
    assert run_job(host, own, out, CHECK, INLINE).computed == 1
    fresh = tmp_path / "fresh"
    run_job(host, own, fresh, CHECK, INLINE)
    assert shards_of(out) == shards_of(fresh)


def test_what_was_cut_short_goes_on(host, own, tmp_path) -> None:
    out, computed = tmp_path / "out", []

    def cut(event) -> None:
        if event.job == "check" and event.done == 7:
            raise KeyboardInterrupt
        computed.append(event.note)

    watched = inline_host()
    watched.report = cut
    with pytest.raises(KeyboardInterrupt):
        run_job(watched, own, out, CHECK, INLINE)
    assert len([*out.glob("part-*")]) == 1
    (out / "part-00001-0123456789ab.parquet").write_bytes(b"PAR1 cut off")
    assert run_job(host, own, out, CHECK, INLINE).computed < 10
    run_job(host, own, tmp_path / "fresh", CHECK, INLINE)
    assert shards_of(out) == shards_of(tmp_path / "fresh")


def test_errors_are_rows_and_can_be_tried_again(host, own, tmp_path) -> None:
    out = tmp_path / "out"
    whole = (own / "n001.safetensors").read_bytes()
    (own / "n001.safetensors").write_bytes(whole[:-7])
    shutil.copy(own / "n001.safetensors", own / "deep" / "cut.safetensors")
    result = run_job(host, own, out, CHECK, INLINE)
    rows = rows_of(out)
    assert result.errors == 2
    assert rows["n001.safetensors"]["error"] == rows["deep/cut.safetensors"]["error"]
    assert str(own) not in rows["n001.safetensors"]["error"]
    assert rows["n001.safetensors"]["verdict"] is None
    assert rows["n000.safetensors"]["error"] is None
    assert run_job(host, own, out, CHECK, INLINE).computed == 0
    assert run_job(host, own, out, CHECK, replace(INLINE, retry_errors=True)).computed == 1
    (own / "n001.safetensors").write_bytes(whole)
    assert run_job(host, own, out, CHECK, INLINE).errors == 1
    assert rows_of(out)["n001.safetensors"]["error"] is None


def test_a_file_that_changes_while_it_is_read_has_an_error(
    host, own, tmp_path, monkeypatch
) -> None:
    row = CheckJob.row

    def touch_and_check(self, inner, graph):
        if graph.source.endswith("n004.safetensors"):
            os.utime(graph.source, ns=(1, 1))
        return row(self, inner, graph)

    monkeypatch.setattr(CheckJob, "row", touch_and_check)
    run_job(host, own, tmp_path / "out", CHECK, INLINE)
    errors = {path: x["error"] for path, x in rows_of(tmp_path / "out").items() if x["error"]}
    assert [*errors] == ["n004.safetensors"]
    assert "it changed while it was read" in errors["n004.safetensors"]


def test_nothing_in_a_hostile_folder_stops_a_run_or_is_passed_over(host, own) -> None:
    os.mkfifo(own / "pipe.safetensors")
    (own / "loop").symlink_to(own, target_is_directory=True)
    (own / "nowhere.pt").symlink_to(own / "gone")
    (own / "folder.safetensors").mkdir()
    (own / "empty.pt").touch()
    (own / "random.pt").write_bytes(bytes(range(256)) * 9)
    (own / "header.safetensors").write_bytes((2**62).to_bytes(8, "little") + b"{}")
    (own / "pickle.pkl").write_bytes(b"\x80\x04cos\nsystem\n(S'touch pwned'\ntR.")
    save_file({"x": torch.zeros(3)}, own / "line\nbreak.safetensors")
    odd = os.fsdecode(b"odd\xff.pt")
    (own / odd).write_bytes(b"garbage")
    result = run_job(host, own, own / "out", CHECK, INLINE)
    rows = rows_of(own / "out")
    failed = {path for path, x in rows.items() if x["error"]}
    assert {"empty.pt", "random.pt", "header.safetensors", "pickle.pkl", "odd\\udcff.pt"} <= failed
    assert not [path for path in rows if path.startswith(("loop/", "out/", "folder"))]
    assert "line\nbreak.safetensors" in rows
    assert result.errors == len(failed)
    assert (
        sum(path.startswith(("n0", "deep/")) and not x["error"] for path, x in rows.items()) == 11
    )
    assert not (own / "pwned").exists()
    assert run_job(host, own, own / "out", CHECK, INLINE).computed == 0


def test_parts_hold_each_network_once(host, networks, tmp_path) -> None:
    run_job(host, networks, tmp_path / "whole", CHECK, INLINE)
    found = []
    for i in (1, 2, 3):
        out = tmp_path / str(i)
        run_job(host, networks, out, CHECK, replace(INLINE, part=Part(i, 3)))
        found += rows_of(out).values()
    assert sorted(found, key=lambda x: x["path"]) == [*rows_of(tmp_path / "whole").values()]


def test_zoos_and_networks_in_several_files_are_networks(host, tmp_path) -> None:
    folder, zoo = tmp_path / "runs", embedded_prompts()
    entries = zoo.entries[:3]
    write_zoo(folder / "zoo", "mine", ((x, zoo.state_dict(x)) for x in entries))
    state = zoo.state_dict(entries[0])
    names = {key: f"model-0000{i % 2 + 1}-of-00002.safetensors" for i, key in enumerate(state)}
    for file in {*names.values()}:
        save_file({k: v for k, v in state.items() if names[k] == file}, folder / file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": names}))
    run_job(host, folder, tmp_path / "out", CHECK, INLINE)
    rows = rows_of(tmp_path / "out")
    assert [*rows] == [index.name, *sorted(f"zoo/{x.key}" for x in entries)]
    assert not [x for x in rows.values() if x["error"]]
    assert rows[index.name]["size"] == sum(x.stat().st_size for x in folder.glob("model*"))
    values = load_file(folder / file)
    save_file({k: v + 1 for k, v in values.items()}, folder / file)  # of one part alone
    assert run_job(host, folder, tmp_path / "out", CHECK, INLINE).computed == 1


def test_a_folder_of_anything_else_is_left_alone(host, networks, tmp_path, monkeypatch) -> None:
    out = tmp_path / "out"
    run_job(host, networks, out, CHECK, INLINE)
    before = shards_of(out)
    for job, told in ((FingerprintJob(), "another job"), (CheckJob(ignored=("huge",)), "settings")):
        with pytest.raises(UsageError, match=told):
            run_job(host, networks, out, job, INLINE)
    with pytest.raises(UsageError, match="no run has written"):
        run_job(host, networks, networks.parent, CHECK, INLINE)
    with pytest.raises(UsageError, match="read by the same run"):
        run_job(host, networks, networks, CHECK, INLINE)
    with pytest.raises(UsageError, match="there is no such engine"):
        run_job(host, networks, tmp_path / "new", CHECK, replace(INLINE, engine="steam"))
    (tmp_path / "bare").mkdir()
    with pytest.raises(SourceError, match="files is a network"):
        run_job(host, tmp_path / "bare", tmp_path / "no", CHECK, INLINE)
    with claimed(out), pytest.raises(UsageError, match="another process"):
        run_job(host, networks, out, CHECK, INLINE)
    assert shards_of(out) == before
    monkeypatch.setattr(shard_files, "import_module", _refuse)
    with pytest.raises(PluginError, match="sane-plugins\\[parquet\\]"):
        run_job(host, networks, out, CHECK, INLINE)


def _refuse(name: str) -> None:
    raise ImportError(f"No module named '{name}'")


def test_a_broken_engine_is_named(networks, tmp_path) -> None:
    class Broken:
        @hookimpl
        def sane_engines(self):
            return {"broken": lambda *_: 1 / 0}

    own = Host.installed()
    own.register(Broken(), "broken-engine")
    with pytest.raises(PluginError, match=r"broken-engine.*ZeroDivisionError"):
        run_job(own, networks, tmp_path / "out", CHECK, replace(INLINE, engine="broken"))
    assert "engine 'broken'" in own.problems[0].place


def test_a_host_encodes_many_in_their_order(host, networks) -> None:
    sources = [networks / "n002.safetensors", networks / "notes.txt", networks / "n001.safetensors"]
    here = [*host.encode_many(sources)]
    there = [*host.encode_many(sources, workers=2)]
    for one, other in zip(here, there, strict=True):
        if isinstance(one, SaneError):
            assert str(one) == str(other)
        else:
            assert torch.equal(one.embedding, other.embedding)
    assert isinstance(here[1], SourceError)
    assert torch.equal(here[2].embedding, host.encode(sources[2]).embedding)
    with pytest.raises(UsageError, match="there is no such engine"):
        [*host.encode_many(sources, engine="steam", workers=1)]
