#!/bin/bash
# Runs 1000 cycles of create, ssh and destroy in a lab and checks that nothing
# grows: descriptors, goroutines, threads, namespaces, mounts, memory.
#
#   scripts/soak.sh [CYCLES]
#
# Run by root through make soak; takes half an hour on two cores. make test does
# the same with fewer cycles.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
need_root
cd "$ROOT"
scripts/deps.sh --test
scripts/build.sh
scripts/runsc.sh --no-install
scripts/image.sh
go=$("$ROOT/scripts/go.sh")
export GOTOOLCHAIN=local GOFLAGS=-buildvcs=false GOWORK=off
export PODSPAWN_E2E_CYCLES=${1:-1000} PODSPAWN_TEST_REQUIRE=root,sshd,docker,gvisor
unset GOROOT
"$go" test -count=1 -timeout 3h -v -exec "$ROOT/scripts/lab.sh --install" -run '^TestCyclesLeaveNothing$' ./e2e
