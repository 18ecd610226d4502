"""`sane-plugins cost` as a user meets it: rows, errors as rows, JSON and CSV."""

import csv
import io
import json

import pytest
from click.testing import CliRunner

from sane_plugins.cli.main import main


def _run(*arguments: str):
    return CliRunner().invoke(main, ["cost", *arguments])


def test_an_error_is_a_row_and_the_exit_code_tells() -> None:
    done = _run("small-cnn", "no_such_module:build", "mlp")
    assert done.exit_code == 1
    assert "13 k" in done.stdout
    assert "not counted" in done.stdout
    assert "Error: no_such_module:build" in done.stderr
    assert "Traceback" not in done.output


def test_json_has_a_record_for_each_source_and_feeds_predictions(tmp_path) -> None:
    names = ["small-cnn", "mlp", "resnet", "vit", "wide-cnn"]
    done = _run(*names, "--latency", "--seconds", "0.002", "--clock", "cpu", "--json")
    assert done.exit_code == 0, done.output
    records = json.loads(done.stdout)
    assert list(records) == names
    assert all(x["latency"]["seconds"] > 0 for x in records.values())
    path = tmp_path / "few.json"
    path.write_text(done.stdout)
    refused = _run("mlp", "--measured", str(path))
    assert refused.exit_code == 2
    assert "at least 9 are needed" in refused.stderr
    copies = {f"{name}{i}": x for name, x in records.items() for i in range(3)}
    path.write_text(json.dumps(copies))
    predicted = _run("mlp", "--measured", str(path))
    assert "15 networks" in predicted.stderr
    assert "predicted" in predicted.stdout


def test_csv_has_a_line_for_each_source() -> None:
    done = _run("small-cnn", "no_such_module:build", "--csv")
    rows = [*csv.DictReader(io.StringIO(done.stdout))]
    assert [row["source"] for row in rows] == ["small-cnn", "no_such_module:build"]
    assert rows[0]["macs"] == "193784"
    assert rows[1]["error"]


@pytest.mark.parametrize(
    "wrong",
    [
        ("--size", "0"),
        ("--shape", "3,x"),
        ("--shape", "3,4", "--size", "5"),
        ("--json", "--csv"),
        ("--batch", "0"),
        ("--measured", "no-such-file.json"),
        ("--latency", "--device", "nowhere"),
    ],
)
def test_wrong_options_run_nothing(wrong) -> None:
    done = _run("small-cnn", *wrong)
    assert done.exit_code in (1, 2)
    assert not done.stdout
    assert done.stderr.count("Error") == 1


def test_a_file_is_what_its_factory_builds(tmp_path) -> None:
    import torch
    from torch import nn

    from sane_plugins.architectures import small_cnn

    module = nn.Sequential(nn.Flatten(), nn.Linear(12, 7))
    torch.save(module.state_dict(), tmp_path / "mine.pt")
    torch.save(small_cnn().state_dict(), tmp_path / "cnn.pt")
    done = _run(str(tmp_path / "cnn.pt"), "--factory", "small-cnn", "--json")
    assert json.loads(done.stdout)[str(tmp_path / "cnn.pt")]["macs"] == 193784
    assert "differs" in _run(str(tmp_path / "mine.pt"), "--factory", "small-cnn").stderr
