# shellcheck shell=bash
# Functions that the scripts of this folder share. Sourced, never run.
#
# Words for people go to stderr, so that a script whose result is a value (go.sh)
# can be used in $(…). Every failure says what failed, why, and what to do.

# shellcheck disable=SC2034 # these are for the scripts that source this file
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
CACHE=${PODSPAWN_CACHE:-/var/cache/podspawn}
# shellcheck disable=SC2034
LIBEXEC=/usr/libexec/podspawn

# Runners may start us with next to no environment.
export PATH=${PATH:-/usr/local/bin:/usr/bin:/bin}:/usr/sbin:/sbin
export HOME=${HOME:-$(getent passwd "$(id -u)" | cut -d: -f6)}

say() { printf '%s\n' "$*" >&2; }

# die WHAT [HINT]: ends the script.
die() {
  say "podspawn: error: $1"
  [ $# -lt 2 ] || say "podspawn: hint: $2"
  exit 1
}

have() { command -v "$1" >/dev/null 2>&1; }

need_root() {
  [ "$(id -u)" = 0 ] || die "$(basename "$0") must run as root" "run it with sudo"
}

# on_systemd reports whether systemd manages this machine. A lab never does.
on_systemd() { [ -d /run/systemd/system ] && [ -z "${PODSPAWN_LAB:-}" ]; }

# alive PIDFILE NAME: is the process that the file names running, and is it
# still that program? A pid file that survived a reboot may name anything.
alive() {
  local pid
  pid=$(cat "$1" 2>/dev/null) || return 1
  [[ $pid =~ ^[0-9]+$ ]] && [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = "$2" ]
}

# wait_for SECONDS CMD…: polls until CMD succeeds.
wait_for() {
  local end=$((SECONDS + $1))
  shift
  until "$@" >/dev/null 2>&1; do
    [ $SECONDS -lt $end ] || return 1
    sleep 0.1
  done
}

# ended PID: is the process gone, or only waiting to be reaped?
ended() {
  local state
  state=$(sed -n 's/^State:\t\(.\).*/\1/p' "/proc/$1/status" 2>/dev/null) || return 0
  [ -z "$state" ] || [ "$state" = Z ]
}

# stop_pid PID SECONDS: TERM, then KILL.
stop_pid() {
  kill -TERM "$1" 2>/dev/null || return 0
  wait_for "$2" ended "$1" && return 0
  kill -KILL "$1" 2>/dev/null || return 0
  wait_for 5 ended "$1"
}

# long LABEL CMD…: runs a step that may take minutes. Its output goes to a log;
# a line every 15 s shows that it lives, and a failure shows the log's end.
long() {
  local label=$1 log start ticker rc=0
  shift
  log=$(mktemp "/tmp/podspawn-${label//[^a-zA-Z0-9]/-}.XXXXXX")
  start=$SECONDS
  say "    $label …"
  (
    trap 'kill $!; exit' TERM
    while :; do
      sleep 15 &
      wait $!
      say "    $label: still at it ($((SECONDS - start)) s)"
    done
  ) &
  ticker=$!
  "$@" </dev/null >"$log" 2>&1 || rc=$?
  kill "$ticker" 2>/dev/null || true
  wait "$ticker" 2>/dev/null || true
  if [ $rc != 0 ]; then
    tail -n 25 "$log" | sed 's/^/    | /' >&2
    say "podspawn: error: $label: exit status $rc (the whole log: $log)"
    return $rc
  fi
  rm -f "$log"
  say "    $label: done ($((SECONDS - start)) s)"
}

# locked NAME: waits until no other run holds the lock, and keeps it until exit.
locked() {
  mkdir -p "$CACHE"
  exec 9>"$CACHE/.$1.lock"
  flock -n 9 || { say "    waiting for another run that holds $CACHE/.$1.lock"; flock 9; }
}

# put MODE SRC DST: installs a root-owned file by rename, so that what runs from
# the old one goes on undisturbed. An equal file is left alone.
put() {
  if [ -f "$3" ] && cmp -s "$2" "$3" && [ "$(stat -c '%a %u %g' "$3")" = "$1 0 0" ]; then
    return 0
  fi
  install -D -o root -g root -m "$1" "$2" "$3.new.$$"
  mv -f "$3.new.$$" "$3"
  say "    installed $3"
}
