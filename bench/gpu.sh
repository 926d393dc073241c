#!/usr/bin/env bash
# Everything that needs an NVIDIA GPU, in at most 9 minutes: build, tests, compute-sanitizer, benchmarks.
# Writes one results file and gpu.log to ${OUT:-bench/results}. A failing leg is recorded and the others
# still run; the exit status is 0 only if all of them passed.
#
#   OUT=/tmp/results PYTHON=python3 bench/gpu.sh
set -u
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
OUT=${OUT:-bench/results}
mkdir -p "$OUT"
LOG="$OUT/gpu.log"
: >"$LOG"
failed=()

# leg NAME SECONDS COMMAND...
leg() {
  local name=$1 limit=$2 start=$SECONDS status=0
  shift 2
  echo "== $name: $*" | tee -a "$LOG"
  timeout --kill-after=10 "$limit" "$@" >>"$LOG" 2>&1 || status=$?
  [ "$status" -eq 0 ] || failed+=("$name (exit status $status)")
  echo "== $name: exit status $status after $((SECONDS - start)) s" | tee -a "$LOG"
}

# A sanitizer run of the CUDA C++ kernels on small shapes.
sanitizer() {
  leg "compute-sanitizer $1" 40 compute-sanitizer --tool "$1" --error-exitcode 1 "$PYTHON" -m bench.sanitize
}

export GENSSL_CUDA=1
nvidia-smi >>"$LOG" 2>&1
capability=$("$PYTHON" -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())' 2>>"$LOG") || capability=
case $capability in
  90) export GENSSL_CUDA_ARCHS=90a ;;
  100) export GENSSL_CUDA_ARCHS=100a ;;
  ?*) export GENSSL_CUDA_ARCHS=$capability ;;
esac

leg build 100 "$PYTHON" setup.py build_ext --inplace
leg tests 130 "$PYTHON" -m pytest -q -m gpu tests
if command -v compute-sanitizer >/dev/null; then
  sanitizer memcheck
  sanitizer racecheck
else
  echo "== compute-sanitizer is not installed: leg left out" | tee -a "$LOG"
fi
leg benchmarks 220 "$PYTHON" -m bench --device cuda --json "$OUT"

if [ ${#failed[@]} -gt 0 ]; then
  printf 'failed: %s\n' "${failed[@]}" | tee -a "$LOG"
  exit 1
fi
echo "all legs passed" | tee -a "$LOG"
