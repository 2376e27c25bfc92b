#!/bin/bash
# Tests scripts/lab.sh: dockerd, a container and sshd run in a lab, the lab is
# killed with KILL in three ways, and nothing of it is left: no process, mount,
# cgroup, folder or network.
#
# Run by root, by make test. Prints one line a case and "ok" or fails.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
need_root
cd "$ROOT"

# Runs inside the lab: real parts, then waits to be killed.
parts() {
  dockerd >/var/log/dockerd.log 2>&1 &
  wait_for 60 docker version || { tail -n 5 /var/log/dockerd.log; die "dockerd did not start in the lab"; }
  local tree=/var/log/tree
  mkdir -p $tree/bin
  cp "$(command -v busybox)" $tree/bin/busybox
  tar -C $tree -c . | docker import - lab/busybox >/dev/null
  docker run -d --name one lab/busybox /bin/busybox sleep 3600 >/dev/null
  ssh-keygen -q -t ed25519 -N '' -f /run/hostkey
  /usr/sbin/sshd -o ListenAddress=127.0.0.1 -o Port=22 -o HostKey=/run/hostkey
  wait_for 10 ssh-keyscan -T 1 127.0.0.1 || die "sshd did not start in the lab"
  find /sys/fs/cgroup -type d -path "*/$PODSPAWN_LAB/*" | grep -q . || die "the container is not below the lab's cgroup"
  docker ps -q | grep -q . || die "the container does not run"
  echo "up $PODSPAWN_LAB" >"$1"
  sleep 600
}
if [ "${1:-}" = parts ]; then
  parts "$2"
  exit
fi

mkdir -p "$CACHE"
out=$(mktemp -d "$CACHE/labtest.XXXXXX") # a lab has a /tmp and /var/tmp of its own
trap 'rm -rf "$out"' EXIT

# left LAB: what is left of it.
left() {
  find /sys/fs/cgroup -type d -name "*$1*" 2>/dev/null
  grep -l "PODSPAWN_LAB=$1" /proc/[0-9]*/environ 2>/dev/null || true
  grep "$1" /proc/self/mountinfo || true
  ls -d "/var/tmp/$1" 2>/dev/null || true
}
swept() { scripts/lab.sh true && nothing_left "$1"; }
nothing_left() { [ -z "$(left "$1")" ]; }

# killed CASE HOW: starts the parts in a lab, runs HOW with the pid of lab.sh and
# the lab's name, and expects nothing to be left.
killed() {
  local pid lab before after
  before=$(ip -o link | wc -l)
  scripts/lab.sh scripts/lab-test.sh parts "$out/$1" >"$out/$1.log" 2>&1 &
  pid=$!
  wait_for 90 test -s "$out/$1" || { cat "$out/$1.log" >&2; die "lab killed/$1: the parts did not start"; }
  lab=$(cut -d' ' -f2 "$out/$1")
  "$2" "$pid" "$lab"
  wait "$pid" 2>/dev/null || true
  # Starting a lab sweeps, once the pipe's reader has seen that its writer is gone.
  if [ "$1" = janitor_too ]; then wait_for 30 swept "$lab"; fi
  wait_for 30 nothing_left "$lab" || die "lab killed/$1 left: $(left "$lab" | tr '\n' ' ')"
  after=$(ip -o link | wc -l)
  [ "$before" = "$after" ] || die "lab killed/$1: the machine's network interfaces changed"
  echo "ok lab killed/$1: nothing left"
}
outer() { kill -KILL "$1"; }
# The lab's PID 1 is the child of unshare, which is a child of lab.sh.
init() { kill -KILL "$(pgrep -P "$(pgrep -P "$1" -x unshare)")"; }
janitor_too() { kill -KILL "$(pgrep -f "lab.sh --janitor /var/tmp/$2\$")" "$1"; }

killed outer outer
killed init init
killed janitor_too janitor_too

rc=0
scripts/lab.sh bash -c 'exit 7' || rc=$?
[ $rc = 7 ] || die "lab status: got $rc, want 7"
echo "ok lab status/7"
scripts/lab.sh sleep 1 & scripts/lab.sh sleep 1 & wait
echo "ok lab side by side"
