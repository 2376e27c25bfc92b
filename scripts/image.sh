#!/bin/bash
# Makes the base image's archive under /var/cache/podspawn: the part of `podspawn
# image build` that needs the package source. Labs, which have no network, import
# it from there.
#
# Run by root, by make test and make bench. Idempotent. It uses a Docker engine of
# its own, without a bridge or firewall rules, so that testing adds no image to
# the machine's.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
need_root

locked base-image
work=$(mktemp -d /var/tmp/podspawn-image.XXXXXX)
engine=
# shellcheck disable=SC2317 # called by the trap
cleanup() {
  [ -z "$engine" ] || stop_pid "$engine" 30 || true
  rm -rf --one-file-system "$work"
}
trap cleanup EXIT
echo '{}' >"$work/daemon.json"
setpriv --pdeathsig TERM dockerd --config-file "$work/daemon.json" --host "unix://$work/docker.sock" \
  --data-root "$work/data" --exec-root "$work/exec" --pidfile "$work/pid" \
  --bridge none --iptables=false --ip6tables=false </dev/null >"$work/log" 2>&1 9>&- &
engine=$!
wait_for 60 docker -H "unix://$work/docker.sock" version || {
  tail -n 8 "$work/log" >&2
  die "a Docker engine for the base image did not start" "see the lines above"
}
export PODSPAWN_DOCKER_SOCKET=$work/docker.sock
long "base image (two minutes the first time)" "$ROOT/bin/podspawn" image build ||
  die "the base image could not be built" "see the lines above; it needs Debian's package source once"
