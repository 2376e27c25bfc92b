#!/bin/bash
# Builds gVisor's runsc, once, and installs it as /usr/libexec/podspawn/runsc.
#
#   scripts/runsc.sh [--no-install]
#
# The version is pinned by scripts/runsc/go.mod and go.sum; the result is kept
# as /var/cache/podspawn/runsc-VERSION. Run by root, through make up and make
# test. Idempotent: a second run compares two files. Two minutes on two cores.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

install=yes
case ${1:-} in
  '') ;;
  --no-install) install=no ;;
  *) die "unknown argument $1" "usage: scripts/runsc.sh [--no-install]" ;;
esac
need_root
pin=$ROOT/scripts/runsc
version=$(sed -n 's/^require gvisor.dev\/gvisor \(v[^ ]*\)$/\1/p' "$pin/go.mod")
[ -n "$version" ] || die "$pin/go.mod does not pin gvisor.dev/gvisor"
built=$CACHE/runsc-$version

locked runsc
if ! "$built" --version >/dev/null 2>&1; then
  go=$("$ROOT/scripts/go.sh" "$pin/go.mod")
  work=$(mktemp -d "$CACHE/runsc.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  cp "$pin"/go.mod "$pin"/go.sum "$pin"/tools.go "$work/"
  build() {
    (cd "$work" && GOFLAGS=-buildvcs=false GOWORK=off GOTOOLCHAIN=local CGO_ENABLED=0 \
      "$go" build -trimpath -ldflags "-s -w -X gvisor.dev/gvisor/runsc/version.version=$version" \
      -o "$work/runsc" gvisor.dev/gvisor/runsc)
  }
  long "build gVisor (two minutes on two cores, once)" build ||
    die "gVisor could not be built" "see the lines above; it needs the Go module proxy once"
  "$work/runsc" --version >/dev/null || die "the built runsc does not run on this machine"
  chmod 755 "$work/runsc"
  mv -f "$work/runsc" "$built"
fi
[ $install = no ] || put 755 "$built" "$LIBEXEC/runsc"
