#!/bin/sh
# The zoo of real forms and its SANE on a GPU, in under ten minutes: real_forms_gpu.sh WORK OUT [ZOO_MINUTES SANE_MINUTES].
# WORK holds part1, part2 and part3 of `real_forms.py pack`. A stage that fails does not keep back what the others made.
set -u
cd "$(dirname "$0")/../.."
WORK=$1 OUT=$2 ZOO_MINUTES=${3:-4} SANE_MINUTES=${4:-3.5}
export PYTHONPATH="$PWD:$PWD/adapters" PYTHONUNBUFFERED=1 OMP_NUM_THREADS=1
run() { python3 tools/release/real_forms.py --work "$WORK" "$@"; }
mkdir -p "$WORK/packed" && cp "$WORK"/part1/*.zip "$WORK"/part2/* "$WORK/packed"
run images --data "$WORK/packed"
run zoo --device cuda --processes "${PROCESSES:-14}" --minutes "$ZOO_MINUTES" ${EPOCHS:+--epochs "$EPOCHS"}
export OMP_NUM_THREADS=8
run sane --device cuda --minutes "$SANE_MINUTES"
run measure --device cuda
run export --out "$OUT"
