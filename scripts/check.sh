#!/bin/bash
# Checks the sources: format, vet, staticcheck, import directions, the documents
# against --help, and the scripts. Run through make check, by anybody, and by
# make test. Changes nothing. Runs all checks and fails when one did.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
cd "$ROOT"

go=$(scripts/go.sh)
export GOTOOLCHAIN=local GOFLAGS=-buildvcs=false GOWORK=off PATH=${go%/*}:$PATH
unset GOROOT
failed=()
check() { # NAME CMD…
  local name=$1 start=$SECONDS
  shift
  if "$@"; then say "ok   $name ($((SECONDS - start)) s)"; else
    say "FAIL $name"
    failed+=("$name")
  fi
}

format() {
  local gofumpt files
  gofumpt=$(scripts/tools.sh gofumpt) || return 1
  files=$("$gofumpt" -l .) || return 1
  [ -z "$files" ] || { say "not formatted (run gofumpt -w):" "$files"; return 1; }
}
staticcheck() {
  local staticcheck
  staticcheck=$(scripts/tools.sh staticcheck) || return 1
  "$staticcheck" ./...
}
# The law of imports and the documents are tests of the command.
laws() { "$go" test -count=1 -run 'Arch|Import|Docs|Help' ./cmd/podspawn; }
shell() {
  have shellcheck || { say "     shellcheck is not installed: scripts/deps.sh --test"; return 0; }
  shellcheck scripts/*.sh .ci/run bench/*.sh
}

check format format
check vet "$go" vet ./...
check staticcheck staticcheck
check "import directions and documents" laws
check "shell scripts" shell
[ ${#failed[@]} = 0 ] || die "checks failed: ${failed[*]}" "make check runs them alone"
