"""Train the zoo of real forms and a SANE on it, on two cores in the background or on a lent GPU in minutes.

    python tools/release/real_forms.py pack --data ../shared/data          # what travels to a GPU: parts 1, 2, ...
    python tools/release/real_forms.py images --data DIR                   # files of images for the recipe
    python tools/release/real_forms.py cost                                # core hours, from two steps of each form
    python tools/release/real_forms.py zoo [--device cuda --processes 12 --minutes 4]
    python tools/release/real_forms.py sane [--device cuda --minutes 4] [--steps N]
    python tools/release/real_forms.py measure [--device cuda]             # decoded networks that it has not seen
    python tools/release/real_forms.py export --out DIR [--part 1 ...]     # what comes back, in files of 12 MB
    python tools/release/real_forms.py record --hardware NAME              # card and recipe into benchmarks/results/

All lies in `--work` (runs/real_forms). A stage that was stopped goes on where it was. Of each zoo some networks are
left out of pretraining: a fifth of the real forms, and the evaluation pools of the toys. tools/release/README.md
has the commands of a GPU session and of the variant for two cores.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from real_forms_export import export, record
from real_forms_images import images, pack
from real_forms_sane import measure, sane
from real_forms_shared import ROOT
from real_forms_zoo import cost, zoo


def main() -> None:
    """Run a stage."""
    arguments = _parser().parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    arguments.stage(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "real_forms")
    stages = parser.add_subparsers(required=True)
    for stage in (pack, images, cost, zoo, sane, measure, export, record):
        added = stages.add_parser(stage.__name__, help=(stage.__doc__ or "").partition("\n")[0])
        added.set_defaults(stage=stage)
        if stage in (pack, images):
            added.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
            added.add_argument("--photos", type=int, default=500, help="of each class, at most")
        if stage in (zoo, sane, measure):
            added.add_argument("--device", default="cpu")
        if stage in (zoo, sane):
            added.add_argument("--minutes", type=float)
        if stage is zoo:
            added.add_argument("--processes", type=int, default=1)
        if stage in (cost, zoo):
            added.add_argument("--only", action="append", help="networks of such names")
            added.add_argument("--epochs", type=int, help="at most")
            added.add_argument("--images", type=int, help="for training, at most")
        if stage is sane:
            for name, default in (("steps", 0), ("batch", 128), ("accumulate", 2), ("views", 3)):
                added.add_argument(f"--{name}", type=int, default=default)
            for name, default in (("width", 256), ("heads", 4), ("layers", 3), ("latent", 144)):
                added.add_argument(f"--{name}", type=int, default=default)
            for name, rate in (("lr", 1e-3), ("noise", 0.05), ("side", 0.3), ("hidden", 0.5)):
                added.add_argument(f"--{name}", type=float, default=rate)
            added.add_argument(
                "--toys", type=int, default=1, help="each is drawn so many times as often"
            )
            added.add_argument("--places", choices=["absolute", "relative"], default="relative")
            added.add_argument("--in-file-order", action="store_true", help="align instead")
            added.add_argument("--start", type=Path, help="a SANE to begin from, of its shape")
        if stage is record:
            added.add_argument("--hardware", required=True, help="what both were trained on")
        if stage is export:
            added.add_argument("--out", type=Path, required=True)
            added.add_argument("--part", type=int, default=0, help="of the zoo: four of its files")
    return parser


if __name__ == "__main__":
    main()
