# shellcheck shell=bash
# The inner half of scripts/lab.sh, sourced by it as PID 1 of the lab: makes the
# lab's view of the machine, then runs the command. Arguments: --inside DIR
# INSTALL CMD…

dir=$2 install=$3
shift 3

# layer PATH STORE: PATH stays as it is on the machine and becomes writable;
# what is written goes to STORE.
layer() {
  [ -d "$1" ] || return 0
  mkdir -p "$2/upper" "$2/work"
  chmod --reference="$1" "$2/upper"
  mount -t overlay overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" "$1"
}

# empty PATH MODE
empty() {
  mkdir -p "$1"
  mount -t tmpfs -o "mode=$2" tmpfs "$1"
}

mkdir -p "$dir/ram"
mount -t tmpfs -o mode=700 tmpfs "$dir/ram"
for path in /etc /var/lib /home; do layer "$path" "$dir/ram${path//\//-}"; done
for path in /usr/libexec /usr/local/bin /tmp; do layer "$path" "$dir/disk${path//\//-}"; done
[ -d /usr/libexec ] || die "this machine has no /usr/libexec" "create it: mkdir /usr/libexec"

# A machine on which make up ran is set up: take that out of the lab's copy.
if [ -f /var/lib/podspawn/setup.json ] && [ -x /usr/local/bin/podspawn ]; then
  empty /run 755
  mkdir -p /run/sshd
  podspawn server-setup --uninstall >/dev/null 2>&1 </dev/null ||
    say "podspawn: the lab could not take this machine's own set-up out of its copy of /etc"
  umount -l /run
fi
empty /run 755
mkdir /run/lock /run/sshd
chmod 1777 /run/lock
empty /var/log 755
empty /dev/shm 1777
empty /root/.ssh 700
empty /var/lib/extrausers 755
[ ! -d /var/lib/podspawn ] || empty /var/lib/podspawn 711
mkdir -p "$dir/docker" /var/lib/docker
mount --bind "$dir/docker" /var/lib/docker
ip link set lo up

# Every container of every dockerd that reads this file is below one group, so
# that the janitor finds what a killed dockerd leaves behind.
mkdir -p /etc/docker
printf '{"cgroup-parent": "/%s"}\n' "$PODSPAWN_LAB" >/etc/docker/daemon.json
rm -f /run/docker.sock

if [ "$install" = yes ]; then
  for name in podspawn podspawn-hook podspawn-guest; do
    [ -x "$ROOT/bin/$name" ] || die "bin/$name is not built" "run scripts/build.sh first"
  done
  rm -rf "$LIBEXEC"
  install -D -m 755 -o root -g root "$ROOT/bin/podspawn" /usr/local/bin/podspawn
  install -D -m 755 -o root -g root "$ROOT/bin/podspawn-hook" "$LIBEXEC/podspawn-hook"
  install -D -m 755 -o root -g root "$ROOT/bin/podspawn-guest" "$LIBEXEC/podspawn-guest"
  "$ROOT/scripts/runsc.sh" 2>/dev/null || die "runsc could not be installed" "run scripts/runsc.sh first"
fi

# Last, since the lab's folder is below it. Not a layer: a dockerd of a test's own
# keeps its layers here, and they do not stack on another.
case "$ROOT/:$PWD/" in
  */var/tmp/*) ;; # the sources are there themselves
  *)
    mkdir "$dir/var-tmp"
    chmod 1777 "$dir/var-tmp"
    mount --bind "$dir/var-tmp" /var/tmp
    ;;
esac

# In the foreground: bash reaps every orphan while it waits. The command is not
# PID 1 itself, since most programs reap only their own children.
rc=0
"$@" || rc=$?
exit $rc
