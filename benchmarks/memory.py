"""Peak memory of encoding networks of 0.1, 0.3 and 1 billion parameters.

    python benchmarks/memory.py                # full: writes results/memory.json and memory.md
    python benchmarks/memory.py --sizes 0.1    # a quick look, printed only

Files are sparse: a header and no more, so all weights are zero, which costs an encoder what any other values
cost. Each file holds matrices of 50 million and one of 100 million parameters, as large language models do.
The command `sane-plugins embed` runs in a process of its own, whose largest resident set is told, by
`getrusage`. The same is told for the import of torch alone.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
BYTES = {"F16": 2, "BF16": 2, "F32": 4}
LIMIT_GB = 1.5
_PEAK = "import resource, sys; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)"
_CHILD = f"""
import sys
from sane_plugins.cli.main import main
main(sys.argv[1:], standalone_mode=False)
{_PEAK}
"""


def write_sparse(
    path: Path,
    billions: float,
    kind: str,
    large: tuple[int, int] = (12_500, 8_000),
    usual: tuple[int, int] = (6_250, 8_000),
) -> int:
    """Write a safetensors file of that many values, none of which takes room; return their number."""
    left, end = round(billions * 1e9), 0
    header: dict[str, Any] = {}
    while left > 0:
        rows, columns = usual if header else large
        rows = max(1, min(rows, left // columns))
        for name, shape in (("weight", [rows, columns]), ("bias", [rows])):
            size = BYTES[kind] * rows * (columns if name == "weight" else 1)
            key = f"layers.{len(header) // 2}.{name}"
            header[key] = {"dtype": kind, "shape": shape, "data_offsets": [end, end + size]}
            end += size
        left -= rows * columns
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return end // BYTES[kind]


def measure(path: Path, output: Path | None = None) -> dict[str, float]:
    """Return the peak resident set in GB, and seconds, of embedding a file on the command line."""
    extra = [] if output is None else ["-o", str(output)]
    start = time.perf_counter()
    peak = _peak([sys.executable, "-c", _CHILD, "embed", str(path), "--json", *extra])
    return {"peak_gb": peak, "seconds": round(time.perf_counter() - start, 1)}


def _peak(command: list[str]) -> float:
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return round(int(done.stderr.split()[-1]) * 1024 / 1e9, 3)


def _row(billions: float, kind: str, folder: Path, with_latents: bool) -> dict[str, Any]:
    path = folder / "network.safetensors"
    size = write_sparse(path, billions, kind)
    output = folder / "embedding.safetensors" if with_latents else None
    found = measure(path, output)
    row = {
        "parameters": size,
        "type": kind,
        "file_gb": round(path.stat().st_size / 1e9, 2),
        "disk_mb": round(path.stat().st_blocks * 512 / 1e6, 1),
        "latents_written": with_latents,
        **found,
    }
    for left in (path, output):
        if left is not None:
            left.unlink()
    print(json.dumps(row), flush=True)
    return row


def _table(rows: list[dict[str, Any]], torch_gb: float) -> str:
    lines = [
        "# Memory of encoding large networks",
        "",
        f"`sane-plugins embed` on sparse safetensors files; importing torch alone takes {torch_gb:.2f} GB. "
        f"The limit is {LIMIT_GB} GB. Written by `python benchmarks/memory.py`.",
        "",
        "| parameters | type | file | latents written | peak resident set | seconds |",
        "|---:|---|---:|---|---:|---:|",
    ]
    lines += [
        f"| {row['parameters'] / 1e6:,.0f} million | {row['type']} | {row['file_gb']} GB | "
        f"{'yes' if row['latents_written'] else 'no'} | {row['peak_gb']:.2f} GB | {row['seconds']:.0f} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=float, nargs="*", help="billions of parameters")
    parser.add_argument("--types", nargs="*", default=["F32", "BF16"], choices=BYTES)
    chosen = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for kind in chosen.types:
            for billions in chosen.sizes or (0.1, 0.3, 1.0):
                rows.append(_row(billions, kind, Path(folder), with_latents=False))
        if not chosen.sizes:
            rows.append(_row(1.0, "BF16", Path(folder), with_latents=True))
    if not chosen.sizes:
        torch_gb = _peak([sys.executable, "-c", f"import torch; {_PEAK}"])
        told = {"torch_gb": torch_gb, "limit_gb": LIMIT_GB, "rows": rows}
        (RESULTS / "memory.json").write_text(json.dumps(told, indent=2) + "\n")
        (RESULTS / "memory.md").write_text(_table(rows, torch_gb))
    if worst := [row for row in rows if row["peak_gb"] > LIMIT_GB]:
        raise SystemExit(f"over {LIMIT_GB} GB: {worst}")


if __name__ == "__main__":
    main()
