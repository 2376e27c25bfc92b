#!/bin/bash
# Prints the path of a development tool, at its pinned version.
#
#   scripts/tools.sh staticcheck|gofumpt
#
# Run by make check and make test, by anybody. The tool is built once from its
# module (checksum verified) and kept under /var/cache/podspawn/tools, or under
# .cache/tools where that is not writable. Idempotent.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

case ${1:-} in
  staticcheck) module=honnef.co/go/tools/cmd/staticcheck version=v0.8.2 ;;
  gofumpt) module=mvdan.cc/gofumpt version=v0.12.0 ;;
  *) die "unknown tool ${1:-}" "usage: scripts/tools.sh staticcheck|gofumpt" ;;
esac
go=$("$ROOT/scripts/go.sh")
store=$CACHE/tools
mkdir -p "$store" 2>/dev/null || true
[ -w "$store" ] || store=$ROOT/.cache/tools
dir=$store/$version-$("$go" env GOVERSION) # a tool must be built by the Go whose code it reads
if [ ! -x "$dir/$1" ]; then
  long "build $1 $version" env GOBIN="$dir" GOFLAGS= GOWORK=off GOTOOLCHAIN=local "$go" install "$module@$version" ||
    die "$1 could not be built" "see the lines above; it needs the Go module proxy once"
fi
echo "$dir/$1"
