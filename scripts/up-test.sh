#!/bin/bash
# Tests make up and make down, in a lab: up shows the main job, a second up is
# quick and changes nothing, a sandbox works, and down leaves the machine as it
# was, other containers included.
#
# Run by root, by make test. A lab has no network, so packages, gVisor and the
# base image must be there (scripts/test.sh sees to it). Prints one line a case.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
need_root
cd "$ROOT"

if [ -z "${PODSPAWN_LAB:-}" ]; then
  exec scripts/lab.sh "$0"
fi

# The caches are the machine's, and PURGE=1 removes them: in here, only a layer.
mkdir -p /run/uptest/upper /run/uptest/work
mount -t overlay overlay -o lowerdir=/var/cache,upperdir=/run/uptest/upper,workdir=/run/uptest/work /var/cache
[ "$(stat -f -c %T /var/cache)" = overlayfs ] || die "the caches could not be covered"

log=/run/uptest/log
quietly() { "$@" >>"$log" 2>&1 </dev/null; }
fail() {
  tail -n 40 "$log" >&2
  die "up: $*" "see the lines above"
}

# machine: what up may change and down has to give back.
machine() {
  (cd /etc && find ssh pam.d nsswitch.conf systemd -type f ! -name 'ssh_host_*' -exec sha256sum {} + | sort -k 2)
  jq -S . /etc/docker/daemon.json # its layout is not kept
  getent passwd podspawn-auth podspawn-api || true
  find /usr/local/bin /usr/libexec -name '*podspawn*'
  find /run/netns /etc/netns -mindepth 1 2>/dev/null || true
  nft list tables | grep podspawn || true # Docker leaves its own
  grep podspawn /proc/self/mountinfo | grep -v "$PODSPAWN_LAB" || true
}
# installed: what a second up must leave alone, times included; not the sandboxes
# that are held ready, since the main job takes one.
installed() {
  machine | grep -v 'sbx[-_]'
  find /etc/ssh /etc/pam.d /etc/podspawn /etc/docker /usr/libexec/podspawn /usr/local/bin/podspawn /var/lib/podspawn/keys /var/lib/podspawn/setup.json \
    -type f -printf '%p %m %u %T@ %s\n' | sort
  for name in service sshd dockerd; do echo "$name $(cat /run/podspawn/$name.pid)"; done
}
same() { # CASE BEFORE AFTER
  diff <(echo "$2") <(echo "$3") >>"$log" || fail "$1"
}

before=$(machine)
quietly make up || fail "make up does not succeed"
grep -q 'podspawn is up' "$log" || fail "make up does not say that it is up"
echo "ok up/first"

first=$(installed) began=$SECONDS
quietly make up || fail "a second make up does not succeed"
[ $((SECONDS - began)) -le 30 ] || fail "a second make up takes $((SECONDS - began)) s"
same "a second make up changes something" "$first" "$(installed)"
echo "ok up/again"

id=$(podspawn create --quiet) || fail "no sandbox after make up"
[ "$(podspawn ssh "$id" -- id -un </dev/null)" = dev ] || fail "ssh into a sandbox after make up"
quietly podspawn doctor || fail "podspawn doctor finds something after make up"
tar -C /usr/bin -c true | docker import - other/image >>"$log"
other=$(docker create other/image /true)
echo "ok up/works"

quietly make down || fail "make down does not succeed"
for name in podspawn sshd dockerd runsc; do
  ! pgrep -a "^$name" >>"$log" || fail "make down leaves processes: $(pgrep -a "^$name" | head -n 3)"
done
same "make down leaves something" "$before" "$(machine)"
quietly make down || fail "a second make down does not succeed"
dockerd >>"$log" 2>&1 </dev/null &
wait_for 60 docker version || fail "dockerd does not start after make down"
[ "$(docker ps -aq --no-trunc)" = "$other" ] || fail "make down touched another container, or left one"
echo "ok up/down leaves nothing"

quietly make up || fail "make up after make down does not succeed"
PURGE=1 quietly make down || fail "make down PURGE=1 does not succeed"
for path in /var/lib/podspawn /etc/podspawn /var/log/podspawn; do
  [ ! -e $path ] || fail "PURGE=1 leaves $path"
done
echo "ok up/purge"
