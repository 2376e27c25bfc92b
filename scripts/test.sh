#!/bin/bash
# Runs every test, and installs what they need.
#
#   scripts/test.sh [PACKAGE…]   default ./...
#
# Run by root through make test and .ci/run; needs no terminal, and no more of
# the machine than git, make and its package sources. In this order: system
# packages, Go, our programs, gVisor, the base image, the MCP suites; then the
# checks, the labs' own test, make up and make down, all Go tests with the race
# detector, and some seconds of each fuzzer.
# Each package's tests run in a lab of their own (scripts/lab.sh), with real
# sshd, Docker and runsc, and a missing part is a failure, not a skip.
# A failed stage does not stop the next. The last line counts all tests.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
need_root
cd "$ROOT"

packages=("$@")
[ $# -gt 0 ] || packages=(./...)
began=$SECONDS
stage() { say "==> $* (at $((SECONDS - began)) s)"; }

stage "system packages"
scripts/deps.sh --test
stage "Go"
go=$(scripts/go.sh)
say "    $go: $("$go" env GOVERSION)"
stage "podspawn"
scripts/build.sh
scripts/build.sh --faults
stage "gVisor"
scripts/runsc.sh --no-install
stage "base image"
scripts/image.sh
stage "MCP suites"
scripts/mcp-suites.sh

logs=$(mktemp -d "$CACHE/test.XXXXXX")
trap 'rm -rf "$logs"' EXIT
export GOTOOLCHAIN=local GOFLAGS=-buildvcs=false GOWORK=off
unset GOROOT
"$go" build -o "$logs/testsum" ./scripts/testsum
failed=() other=0 # other: failed stages that are not Go tests

stage "checks"
scripts/check.sh || { failed+=(checks); other=$((other + 1)); }

stage "labs"
scripts/lab-test.sh || { failed+=(labs); other=$((other + 1)); }

stage "make up and make down"
scripts/up-test.sh || { failed+=(up); other=$((other + 1)); }

stage "go test -race, each package in a lab"
export PODSPAWN_TEST_REQUIRE=${PODSPAWN_TEST_REQUIRE-root,sshd,docker,gvisor,npm}
# Test programs are built where a lab sees them. They have /tmp for themselves: in
# a longer path there is no room for a socket's name.
GOTMPDIR=$logs "$go" test -race -json -count=1 -timeout 30m -p 2 \
  -exec "env -u GOTMPDIR $ROOT/scripts/lab.sh --install" "${packages[@]}" </dev/null |
  "$logs/testsum" -log "$logs/tests.json" || failed+=(tests)

stage "fuzzers"
scripts/fuzz.sh "${PODSPAWN_FUZZ_SECONDS:-4}" "$logs/fuzz.json" || failed+=(fuzzers)

stage "all"
[ ${#failed[@]} = 0 ] || say "FAILED: ${failed[*]}"
"$logs/testsum" -total -failed $other "$logs"/*.json || [ ${#failed[@]} -gt 0 ] || failed+=(count)
[ ${#failed[@]} = 0 ]
