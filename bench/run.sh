#!/bin/bash
# Compares what a session costs: plain ssh to this machine beside ssh into a
# sandbox, and docker run and docker exec beside podspawn's own ways.
#
#   bench/run.sh [ROUNDS]   default 12
#
# Run by root, through make bench. Everything runs in a lab (scripts/lab.sh), the
# cases in turn within one run, since only their relation means something.
# Prints medians and ratios and writes bench/results.json.
set -euo pipefail
. "$(dirname "$0")/../scripts/lib.sh"
need_root
cd "$ROOT"

rounds=${1:-12}
scripts/deps.sh
go=$(scripts/go.sh)
scripts/build.sh
scripts/runsc.sh --no-install
scripts/image.sh
mkdir -p .cache
CGO_ENABLED=0 GOTOOLCHAIN=local GOFLAGS=-buildvcs=false GOWORK=off "$go" build -o .cache/bench ./bench
scripts/lab.sh --install bench/inside.sh "$rounds"
