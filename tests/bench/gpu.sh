#!/usr/bin/env bash
# Builds the CUDA kernels, runs their tests and times them, in under eight minutes:
#
#     tests/bench/gpu.sh
#
# Needs a GPU, nvcc, and a Python with torch, numpy, scipy and safetensors; PYTHON names it. The text
# goes to "$OUT", else docs/results. Everything is run even where a step fails; the exit code tells.
set -uo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3}
out=${OUT:-docs/results}
stem="$out/$(date +%F)-gpu"
mkdir -p "$out"
FCACHE_KERNEL_CACHE=$(mktemp -d)
trap 'rm -rf "$FCACHE_KERNEL_CACHE"' EXIT
export FCACHE_KERNEL_CACHE FCACHE_KERNELS=require FCACHE_REQUIRE_CUDA=1 PYTHONUNBUFFERED=1
failed=0

# step NAME SECONDS COMMAND...: runs it into a file of its own.
step() {
  local name=$1 seconds=$2 began=$SECONDS
  shift 2
  if timeout "$seconds" "$@" 2>&1 | sed -u "s#$PWD/##g; s#/tmp/[^ ']*#TMP#g" | tee "$stem-$name.txt"; then
    echo "$name: $((SECONDS - began)) s"
  else
    echo "$name FAILED after $((SECONDS - began)) s"
    failed=1
  fi
}

step machine 15 bash -c "
  nvidia-smi --query-gpu=name,driver_version,clocks.max.sm,memory.total --format=csv
  nvcc --version | tail -2
  $python -c 'import sys, torch; print(sys.version.split()[0], torch.__version__, torch.version.cuda)'"
step build 90 "$python" - <<'PYTHON'
import os
import time
from pathlib import Path

from fcache.ops import kernels_in_use
from fcache.ops.build import build

for device in ("cuda", "cpu"):
    began = time.perf_counter()
    path = build(device, Path(os.environ["FCACHE_KERNEL_CACHE"]))
    print(f"{path.name}: {path.stat().st_size:,} bytes, {time.perf_counter() - began:.1f} s")
for use in kernels_in_use().values():
    print(use)
PYTHON
if "$python" -c "import pytest" 2>/dev/null; then
  step tests 180 "$python" -m pytest -p no:cacheprovider --durations=5 tests/ops/test_*_cuda.py
else
  echo "There is no pytest here: the tests are left out. The bench still checks values before it times."
  failed=1
fi
step bench 180 "$python" -m tests.bench.bench_ms_deform_attn --device cuda --batch 8 --rounds 10 \
  --dtype bfloat16,float32 --json "$stem-bench.json"
exit "$failed"
