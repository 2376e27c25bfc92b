#!/bin/bash
# Undoes make up: ends all sandboxes, takes podspawn out of sshd, PAM, NSS and
# Docker, and stops what make up started.
#
# Run by root, through make down. Idempotent, and works on a machine that is only
# half set up. Packages, caches, the audit log, state and certificate authorities
# stay; PURGE=1 removes all of these but the packages. Other containers, users,
# and sshd's other settings are left alone.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
. "$ROOT/scripts/services.sh"
need_root
cd "$ROOT"
unset DOCKER_HOST DOCKER_CONTEXT
purge=${PURGE:-0}
left=()

podspawn=/usr/local/bin/podspawn
[ -x $podspawn ] || podspawn=$ROOT/bin/podspawn

say "==> 1/5 sandboxes"
# Asked nicely, so that the audit log has their end; by force below.
if [ -S $RUN/podspawn.sock ] && [ -x "$podspawn" ]; then
  timeout 90 "$podspawn" drain --destroy --wait 30s >/dev/null 2>&1 </dev/null || true
fi
if on_systemd; then
  for unit in podspawn-serve podspawn-resolver podspawn-daemon; do
    [ ! -f /etc/systemd/system/$unit.service ] || systemctl disable --now --quiet $unit || left+=("unit $unit")
    rm -f /etc/systemd/system/$unit.service
  done
  systemctl daemon-reload
fi
if alive $RUN/service.pid podspawn; then
  stop_pid "$(cat $RUN/service.pid)" 20 || left+=("service")
  say "    stopped the service"
fi
rm -f $RUN/service.pid

# Sessions and relays run as the sandboxes' own users.
logins() { sed -n 's/^\(sbx-[0-9a-z]*\):.*/\1/p' /var/lib/extrausers/passwd 2>/dev/null || true; }
for login in $(logins); do
  uid=$(sed -n "s/^$login:[^:]*:\([0-9]*\):.*/\1/p" /var/lib/extrausers/passwd)
  # Each process of that user, and the root half of its sshd, which is its parent.
  for pid in $(pgrep -U "$uid" || true); do
    parent=$(sed -n 's/^PPid:\t//p' "/proc/$pid/status" 2>/dev/null || true)
    if [ "$(cat "/proc/${parent:-0}/comm" 2>/dev/null)" = sshd ]; then kill -TERM "$parent" 2>/dev/null || true; fi
    kill -KILL "$pid" 2>/dev/null || true
  done
done
if docker_answers >/dev/null 2>&1; then
  label=label=dev.podspawn.sandbox
  docker ps -aq --filter $label | xargs -r docker rm -f -v >/dev/null
  docker network ls -q --filter $label | xargs -r docker network rm >/dev/null
  docker volume ls -q --filter $label | xargs -r docker volume rm -f >/dev/null
fi
for dir in "$RUN"/guests/*/; do
  [ -d "$dir" ] || continue
  umount "$dir" 2>/dev/null || umount -l "$dir" 2>/dev/null || true
  rmdir "$dir" 2>/dev/null || left+=("$dir")
done
for netns in /run/netns/sbx-*; do
  [ ! -e "$netns" ] || ip netns del "${netns##*/}" || left+=("$netns")
done
rm -rf /etc/netns/sbx-*
for bridge in /sys/class/net/ps-*; do
  [ ! -e "$bridge" ] || ip link delete dev "${bridge##*/}" type bridge || left+=("bridge ${bridge##*/}")
done
ip -4 addr flush dev lo label lo:podspawn 2>/dev/null || true
if have nft; then
  for table in $(nft list tables 2>/dev/null | sed -n 's/^table inet \(podspawn[a-z_-]*\)$/\1/p'); do
    nft delete table inet "$table"
  done
fi

say "==> 2/5 sshd, PAM, NSS (podspawn server-setup --uninstall)"
if [ -x "$podspawn" ]; then
  "$podspawn" server-setup --uninstall >&2 || left+=("sshd, PAM and NSS settings: see above")
elif [ -f /var/lib/podspawn/setup.json ]; then
  die "this machine is set up, but there is no podspawn program to undo it with" "run make build, then make down again"
fi
# Only our own lines: the files may have other users.
for file in passwd group shadow; do
  f=/var/lib/extrausers/$file
  [ -f $f ] || continue
  sed -e '/^sbx-[0-9a-z]*:/d' -e '/^podspawn:/d' $f >$f.podspawn-down
  chmod --reference=$f $f.podspawn-down
  chown --reference=$f $f.podspawn-down
  mv $f.podspawn-down $f
done

say "==> 3/5 sshd and dockerd"
if alive $RUN/sshd.pid sshd; then
  stop_pid "$(cat $RUN/sshd.pid)" 10 || left+=("sshd")
  say "    stopped the sshd that make up started"
fi
if docker_answers >/dev/null 2>&1; then
  [ "$purge" != 1 ] || docker images -q podspawn/base | sort -u | xargs -r docker rmi -f >/dev/null
  if alive $RUN/dockerd.pid dockerd; then
    if [ -n "$(docker ps -q)" ]; then
      say "    other containers run: the dockerd that make up started goes on (pid $(cat $RUN/dockerd.pid))"
      kill -HUP "$(cat $RUN/dockerd.pid)"
    else
      stop_pid "$(cat $RUN/dockerd.pid)" 30 || left+=("dockerd")
      say "    stopped the dockerd that make up started"
    fi
  else
    kill -HUP "$(dockerd_pid)" 2>/dev/null || true # forget the runtimes
  fi
fi

say "==> 4/5 programs"
rm -rf /usr/local/bin/podspawn "$LIBEXEC"
umount -l $RUN/guests 2>/dev/null || true
if alive $RUN/dockerd.pid dockerd; then
  find $RUN -mindepth 1 -maxdepth 1 ! -name 'dockerd.pid' ! -name 'docker-engine.pid' -exec rm -rf --one-file-system {} +
else
  rm -rf --one-file-system $RUN
fi
rm -rf /var/lib/podspawn/home

say "==> 5/5 what stays"
if [ "$purge" = 1 ]; then
  rm -rf --one-file-system "$CACHE" /var/lib/podspawn $LOGS /etc/podspawn
  say "    removed caches, audit log, state and certificate authorities; packages stay"
else
  say "    packages; $CACHE; /var/lib/podspawn (state, certificate authorities); $LOGS; PURGE=1 removes all but the packages"
fi
[ ${#left[@]} = 0 ] || die "could not remove: ${left[*]}" "run make down again; podspawn doctor may say more"
say "podspawn is down."
