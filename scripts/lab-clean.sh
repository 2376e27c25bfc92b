# shellcheck shell=bash
# Removes what a lab leaves. Sourced by lab.sh, outside the lab.

# lab_processes DIR: the pids, seen from here, of processes started for the lab.
lab_processes() {
  grep -lz "^PODSPAWN_LAB=$(basename "$1")\$" /proc/[0-9]*/environ 2>/dev/null | cut -d/ -f3 || true
}

# lab_groups DIR: the cgroups of its containers, children first.
lab_groups() {
  local name
  {
    basename "$1"
    # Also those of a dockerd that a test started with settings of its own.
    find "$1" -maxdepth 5 -type d -path '*/containers/*' -name '????????????????????????????????????????????????????????????????' -printf '%f\n'
  } | while read -r name; do
    find /sys/fs/cgroup -depth -type d -path "*/$name*" 2>/dev/null || true
  done
}

# lab_clean DIR: kills whatever still runs there, then removes groups and folder.
# Killing the lab's PID 1 kills all others, whatever their environment says.
lab_clean() {
  local dir=$1 pid end=$((SECONDS + 20)) group left
  [[ $dir == /var/tmp/podspawn-lab.* ]] || return 1
  while :; do
    left=$(lab_processes "$dir")
    [ -n "$left" ] || break
    for pid in $left; do kill -KILL "$pid" 2>/dev/null || true; done
    [ $SECONDS -lt $end ] || return 1
    sleep 0.1
  done
  # A group can be removed when the kernel has let go of its last process.
  while :; do
    left=$(lab_groups "$dir")
    [ -n "$left" ] || break
    while read -r group; do rmdir "$group" 2>/dev/null || true; done <<<"$left"
    [ $SECONDS -lt $end ] || return 1
    sleep 0.1
  done
  rm -rf --one-file-system "$dir"
}

# lab_sweep removes labs whose janitor is gone: nobody holds their lock.
lab_sweep() {
  local dir
  for dir in /var/tmp/podspawn-lab.*; do
    [ -f "$dir/lock" ] || continue
    (
      flock -n 8 || exit 0
      lab_clean "$dir"
    ) 8<"$dir/lock" || say "podspawn: could not clear up the old lab $dir"
  done
}
