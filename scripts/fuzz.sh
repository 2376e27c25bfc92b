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
trap 'rm -f "$events"' EXIT

found=$(grep -rHoE --include='*_test.go' --exclude-dir=.cache '^func Fuzz[A-Za-z0-9_]*' . | sort || true)
[ -n "$found" ] || { say "no fuzz tests"; exit 0; }
while IFS=: read -r file text; do
  say "    fuzz ${file%/*} ${text#func } for $seconds s"
  "$go" test -json -run '^$' -fuzz "^${text#func }\$" -fuzztime "${seconds}s" "${file%/*}" </dev/null >>"$events" || true
done <<<"$found"
[ -z "$log" ] || cp "$events" "$log"
"$go" run ./scripts/testsum <"$events"
