#!/bin/bash
# Builds the three programs into bin/, and with --install installs them.
#
#   scripts/build.sh [--install | --faults]
#
# Run through make build (anybody) and make up (root). Installed files are
# root's, at paths that root alone can write, because sshd refuses a hook that
# is not; they arrive by rename, so running sessions keep the program they
# started with. Idempotent: equal files are left alone. --faults builds, into
# bin/faults/, what the tests of faults install in their lab (see sandbox/fault).
set -euo pipefail
. "$(dirname "$0")/lib.sh"

install=no out=bin tags=
case ${1:-} in
  '') ;;
  --install) install=yes; need_root ;;
  --faults) out=bin/faults tags=podspawn_faults ;;
  *) die "unknown argument $1" "usage: scripts/build.sh [--install | --faults]" ;;
esac
go=$("$ROOT/scripts/go.sh")
cd "$ROOT"
version=$(git describe --tags --always --dirty 2>/dev/null || echo unknown)

export CGO_ENABLED=0 GOTOOLCHAIN=local GOFLAGS=-buildvcs=false GOWORK=off
unset GOROOT
mkdir -p "$out"
build() { # NAME
  "$go" build -trimpath -tags "$tags" -ldflags "-s -w -X main.version=$version" -o "$out/.$1.$$" "./cmd/$1" &&
    mv -f "$out/.$1.$$" "$out/$1"
}
build_all() {
  local name
  for name in podspawn podspawn-hook podspawn-guest; do build "$name" || return; done
}
long "build podspawn $version${tags:+ with $tags}" build_all || die "podspawn could not be built" "see the compiler's lines above"

if [ $install = yes ]; then
  put 755 bin/podspawn /usr/local/bin/podspawn
  put 755 bin/podspawn-hook "$LIBEXEC/podspawn-hook"
  put 755 bin/podspawn-guest "$LIBEXEC/podspawn-guest"
fi
