#!/bin/bash
# Makes the base image's archive, once, under /var/cache/podspawn: the part of
# `podspawn image build` that needs the package source. A lab, which has no
# network, imports it from there. Run by root, by make test. Idempotent.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
need_root

locked image
if "$ROOT/bin/podspawn" image build --help 2>&1 | grep -q -- --tar-only; then
  long "base image (two minutes, once)" "$ROOT/bin/podspawn" image build --tar-only ||
    die "the base image could not be built" "see the lines above; it needs Debian's package source once"
else
  say "    this podspawn cannot build an image yet"
fi
