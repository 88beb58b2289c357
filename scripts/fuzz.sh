#!/usr/bin/env bash
# Runs each fuzz target for SECONDS (first argument, default 60). Stable toolchain: coverage instrumentation only, no
# sanitizer; `cargo fuzz run TARGET` works too where cargo-fuzz and a nightly toolchain are at hand.
set -euo pipefail
cd "$(dirname "$0")/../fuzz"
seconds=${1:-60}
export RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1"
host=$(rustc -vV | sed -n 's/^host: //p')
cargo build --release --bins --target "$host"   # --target keeps the instrumentation out of build scripts
pids=()
for target in gguf http template config manifest; do
  mkdir -p "corpus/$target" "artifacts/$target"
  seeds=(); [ -d "seeds/$target" ] && seeds=("seeds/$target")
  "target/$host/release/$target" "corpus/$target" "${seeds[@]}" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 \
    -artifact_prefix="artifacts/$target/" >"artifacts/$target.log" 2>&1 &
  pids+=("$!:$target")
done
status=0
for entry in "${pids[@]}"; do
  target=${entry#*:}
  if wait "${entry%%:*}"; then
    echo "fuzz $target: $(grep -oE '^Done [0-9]+ runs.*' "artifacts/$target.log" | tail -n1), nothing found"
  else
    status=1; echo "fuzz $target: FAILED"; tail -n 30 "artifacts/$target.log"
  fi
done
exit $status
