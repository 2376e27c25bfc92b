#!/bin/bash
# Prints the path of a go program that is new enough for a go.mod.
#
#   scripts/go.sh [GO.MOD]   default: this repository's
#
# That is the machine's own when it will do. Otherwise a pinned toolchain comes
# through the Go module proxy, fetched by Debian's old Go (checksums verified as
# for any module), and is kept under /var/cache/podspawn/go. Idempotent; several
# at a time are fine. Needs root only when it has to fetch.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

pinned=1.26.8
mod=${1:-$ROOT/go.mod}
wanted=$(sed -n 's/^go \([0-9.]*\)$/\1/p' "$mod")
[ -n "$wanted" ] || die "$mod has no go line"

# enough GO: is that program at least the version asked for?
enough() {
  local version
  version=$(GOTOOLCHAIN=local "$1" env GOVERSION 2>/dev/null) || return 1
  version=${version#go}
  [ "$(printf '%s\n%s\n' "$wanted" "${version%%[^0-9.]*}" | sort -V | head -n 1)" = "$wanted" ]
}

unset GOROOT
cached=$CACHE/go/go$pinned/bin/go
for go in "$(command -v go || true)" /usr/local/go/bin/go "$cached"; do
  if [ -x "$go" ] && enough "$go"; then
    echo "$go"
    exit
  fi
done
[ "$(printf '%s\n%s\n' "$wanted" "$pinned" | sort -V | tail -n 1)" = "$pinned" ] ||
  die "$mod wants Go $wanted, and scripts/go.sh pins $pinned" "raise the pin in scripts/go.sh"

need_root
locked go
if [ -x "$cached" ] && enough "$cached"; then
  echo "$cached"
  exit
fi

old=$(command -v go || true)
if [ -z "$old" ]; then
  export DEBIAN_FRONTEND=noninteractive
  long "refresh the package lists" apt-get -q -y -o DPkg::Lock::Timeout=300 update
  long "install Debian's Go, to fetch a newer one with" \
    apt-get -q -y -o DPkg::Lock::Timeout=300 install --no-install-recommends golang-go ca-certificates ||
    die "golang-go could not be installed" "install any Go, then run this again"
  old=$(command -v go)
fi
case $(dpkg --print-architecture) in
  amd64) arch=amd64 ;;
  arm64) arch=arm64 ;;
  *) die "no Go toolchain is pinned for $(dpkg --print-architecture)" "install Go $wanted or newer" ;;
esac

work=$(mktemp -d "$CACHE/go.XXXXXX")
trap 'chmod -R u+w "$work" && rm -rf "$work"' EXIT
module=golang.org/toolchain@v0.0.1-go$pinned.linux-$arch
fetch() { (cd "$work" && GOFLAGS='' GOTOOLCHAIN=local GOMODCACHE=$work/mod "$old" mod download "$module"); }
long "fetch Go $pinned through the Go module proxy" fetch ||
  die "Go $pinned could not be fetched" "check that GOPROXY is reachable, or install Go $wanted or newer"
tree=$work/mod/$module
chmod -R u+w "$tree"
# A module's archive carries neither the executable bit nor nested go.mod files.
chmod +x "$tree"/bin/* "$tree"/pkg/tool/*/*
for f in "$tree"/src/_go.mod "$tree"/src/cmd/_go.mod; do
  [ ! -f "$f" ] || cp "$f" "${f%_go.mod}go.mod"
done
mkdir -p "$CACHE/go"
rm -rf "$CACHE/go/go$pinned"
mv "$tree" "$CACHE/go/go$pinned"
enough "$cached" || die "the fetched Go at $cached does not run" "remove $CACHE/go and run this again"
echo "$cached"
