#!/bin/sh
# Builds with gcc, and with clang under the sanitizers, runs every test, lets every parser read changed files, and says what
# each part took. Fails when anything fails.
set -eu
cd "$(dirname "$0")/.."

part() {  # part NAME COMMAND...: runs it and prints its time
  name=$1
  shift
  start=$(date +%s)
  "$@"
  echo "== $name: $(($(date +%s) - start)) s"
}

part "build release" make --no-print-directory release
part "build sanitize" make --no-print-directory sanitize

if command -v nvcc > /dev/null; then
  part "build the CUDA kernels" make --no-print-directory cuda-kernels ARCHITECTURES="80;90"
else
  echo "== build the CUDA kernels: SKIPPED: there is no nvcc"
fi

part "test release" ctest --test-dir build/release --output-on-failure -j "$(nproc)"
# Left out: what takes minutes and looks at numbers, which the sanitizers do not change.
part "test sanitize" ctest --test-dir build/sanitize --output-on-failure -j "$(nproc)" -E "cli.(heldout|isa|dump|cuda)"

part "fuzz" make --no-print-directory fuzz RUNS=10000
