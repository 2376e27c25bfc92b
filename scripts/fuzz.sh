#!/bin/bash
# Runs every fuzz test for some seconds.
#
#   scripts/fuzz.sh [SECONDS [LOG]]   default 4; LOG receives go test's events
#
# Run through make fuzz and make test, by anybody. A crasher is written to the
# package's testdata/fuzz by go test itself, to be committed with its fix.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
cd "$ROOT"

seconds=${1:-4} log=${2:-}
go=$(scripts/go.sh)
export GOTOOLCHAIN=local GOFLAGS=-buildvcs=false GOWORK=off
unset GOROOT
events=$(mktemp)
run=$(mktemp)
trap 'rm -f "$events" "$run"' EXIT

# fuzz NAME PACKAGE prints the run's events. An input that is being tried when the
# time is up can make Go's fuzzing engine report its own deadline as a failure,
# with no failing input: such a run counts for nothing, and is done again.
fuzz() {
  local try
  for try in 1 2 3; do
    "$go" test -json -run '^$' -fuzz "^$1\$" -fuzztime "${seconds}s" "$2" </dev/null >"$run" || true
    if ! grep -q 'context deadline exceeded' "$run" || grep -q 'Failing input' "$run"; then break; fi
    [ "$try" = 3 ] || say "    fuzz $2 $1: the engine ran into its own deadline; again"
  done
  cat "$run"
}

found=$(grep -rHoE --include='*_test.go' --exclude-dir=.cache '^func Fuzz[A-Za-z0-9_]*' . | sort || true)
[ -n "$found" ] || { say "no fuzz tests"; exit 0; }
while IFS=: read -r file text; do
  say "    fuzz ${file%/*} ${text#func } for $seconds s"
  fuzz "${text#func }" "${file%/*}" >>"$events"
done <<<"$found"
[ -z "$log" ] || cp "$events" "$log"
"$go" run ./scripts/testsum <"$events"
