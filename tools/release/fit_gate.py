"""Fit the gate that ships in the wheel: a logistic regression on runs of settling tasks, written to
`sane_plugins/data/gate.json`.

    python tools/release/fit_gate.py --data ../shared/data [--zoos runs/zoos]

Runs that are missing in runs/gate-families/ are made first, which takes hours; it may be stopped and goes on later. `benchmarks/gate.py` chose the features and measures
what is fitted here, on runs of other tasks.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))  # runs are those of the figures
import zoodata
from gate_model import fitted
from gate_runs import SETTLING, measured, restore

SHIPPED = Path(__file__).parents[2] / "sane_plugins" / "data" / "gate.json"


def main() -> None:
    """Run what is missing, fit, and write the shipped file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--zoos", type=Path, default=zoodata.RUNS / "zoos")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    restore()
    gate = fitted(measured(SETTLING, arguments.data, arguments.zoos))
    SHIPPED.write_text(json.dumps(gate, indent=1) + "\n")
    print(f"fitted on {gate['runs']} runs, {gate['helped']} of which were helped: {gate}")


if __name__ == "__main__":
    main()
