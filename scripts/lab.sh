#!/bin/bash
# Runs a command in a lab: a throw-away copy of this machine's set-up, in which
# dockerd, sshd and podspawn run for real and from which nothing remains.
#
#   scripts/lab.sh [--install] CMD [ARG…]
#
# Run by root: by make test, make bench, and as `go test -exec scripts/lab.sh`.
# Labs do not see each other; several may run side by side. The command's exit
# status is the lab's. --install puts bin/ and the built runsc to their places
# inside the lab (scripts/build.sh and scripts/runsc.sh must have run before).
#
# A lab has its own
#   processes     PID 1 is this script, which reaps orphans; when it ends, so do all
#   network       only a loopback, so no package source can be reached
#   /etc          a writable layer over the machine's; so too /var/lib, /home, /tmp,
#                 /usr/libexec and /usr/local/bin
#   /run, /var/log, /dev/shm, /root/.ssh, /var/lib/{extrausers,podspawn}   empty
#   /var/tmp      empty, on the disk
#   Docker root   /var/lib/docker, empty, on the disk under /var/tmp/podspawn-lab.*
#   cgroups       the machine's, but all containers below one group of the lab's
#
# Who cleans up: a janitor outside the lab holds the reading end of a pipe whose
# other end this script holds. However this script ends, kill -9 included, the
# janitor sees the end of the pipe, kills the lab's PID 1 and removes folder and
# cgroups. Should the janitor be killed too, the next lab sweeps up after it.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

if [ "${1:-}" = --inside ]; then
  . "$ROOT/scripts/lab-inside.sh" # which exits
fi

if [ "${1:-}" = --janitor ]; then # DIR PIDFILE, with the pipe as stdin
  dir=$2
  exec 8>"$dir/lock"
  flock 8
  echo ready >"$dir/janitor"
  # It inherits the lock: should this janitor be killed, nobody sweeps while the
  # lab is alive.
  cat >/dev/null || true
  . "$ROOT/scripts/lab-clean.sh"
  lab_clean "$dir"
  exit
fi

need_root
install=no
if [ "${1:-}" = --install ]; then
  install=yes
  shift
fi
[ $# -gt 0 ] || die "a lab needs a command" "usage: scripts/lab.sh [--install] CMD [ARG…]"

. "$ROOT/scripts/lab-clean.sh"
lab_sweep
dir=$(mktemp -d /var/tmp/podspawn-lab.XXXXXX)
chmod 755 "$dir"
mkfifo "$dir/pipe"
self=$ROOT/scripts/lab.sh

# The janitor is in a session of its own: a Ctrl-C meant for the lab spares it.
setsid "$self" --janitor "$dir" <"$dir/pipe" >/dev/null 2>>"$dir/janitor.log" &
janitor=$!
exec 7>"$dir/pipe"
wait_for 10 test -s "$dir/janitor" || die "the lab's janitor did not start" "see $dir/janitor.log"

# setpriv: should this script die, unshare is killed, and with it the lab.
rc=0
PODSPAWN_LAB=$(basename "$dir") setpriv --pdeathsig KILL \
  unshare --mount --net --pid --ipc --uts --fork --kill-child --mount-proc \
  "$self" --inside "$dir" "$install" "$@" 7>&- || rc=$?
exec 7>&-
wait "$janitor" || say "podspawn: the lab left something behind: see $dir"
exit $rc
