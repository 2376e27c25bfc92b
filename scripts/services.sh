# shellcheck shell=bash
# Starts and finds dockerd, sshd and podspawn's own service, with systemd and
# without. Sourced by up.sh, down.sh and the bench.
#
# What we start without systemd gets a session of its own, a log under
# /var/log/podspawn and a pid file in /run/podspawn; the pid file is also the
# note that it is ours to stop.

RUN=/run/podspawn
LOGS=/var/log/podspawn

# detached NAME CMD…: starts a server that outlives this script.
detached() {
  local name=$1
  shift
  install -d -m 755 $RUN
  [ -d $LOGS ] || install -d -m 750 $LOGS
  setsid "$@" </dev/null >>"$LOGS/$name.log" 2>&1 9>&- &
  echo $! >"$RUN/$name.pid"
}

docker_answers() { timeout 10 docker version; }

start_dockerd() {
  if docker_answers >/dev/null 2>&1; then
    say "    dockerd runs already"
    return
  fi
  if on_systemd; then
    systemctl enable --now docker >&2
  else
    rm -f $RUN/dockerd.pid
    detached dockerd dockerd --pidfile /run/podspawn/docker-engine.pid
    say "    starting dockerd (log: $LOGS/dockerd.log)"
  fi
  wait_for 60 docker_answers || {
    tail -n 8 $LOGS/dockerd.log 2>/dev/null | cut -c1-300 | sed 's/^/    | /' >&2
    rm -f $RUN/dockerd.pid
    die "dockerd does not answer" "see $LOGS/dockerd.log, or journalctl -u docker"
  }
}

runtimes() { docker info -f '{{range $name, $r := .Runtimes}}{{println $name}}{{end}}' | grep podspawn-runsc || true; }
have_runtimes() { [ -n "$(runtimes)" ]; }

dockerd_pid() {
  local f
  for f in $RUN/docker-engine.pid /var/run/docker.pid; do
    if alive "$f" dockerd; then cat "$f"; return; fi
  done
  pgrep -o -x dockerd
}

# load_runtimes has a running dockerd read the runtimes of daemon.json.
load_runtimes() {
  [ "$(runtimes | wc -l)" -lt 6 ] || return 0
  kill -HUP "$(dockerd_pid)" || die "dockerd's process was not found" "restart Docker by hand, then run this again"
  wait_for 20 have_runtimes ||
    die "Docker does not offer gVisor's runtimes" "is podspawn-runsc-10g in /etc/docker/daemon.json? restart Docker, then run this again"
}

ssh_listen() { echo "${PODSPAWN_SSH_LISTEN:-127.0.0.1:22}"; }
ssh_port() { local l; l=$(ssh_listen); [[ $l == *:* ]] && echo "${l##*:}" || echo 22; }
sshd_listens() { ss -Hltn "sport = :$(ssh_port)" | grep -q .; }

# prepare_sshd makes what a machine without a running sshd may lack.
prepare_sshd() {
  install -d -m 755 /run/sshd
  ssh-keygen -A >/dev/null
}

start_sshd() {
  local address
  if sshd_listens; then
    say "    something listens on port $(ssh_port) already: $(ss -Hltnp "sport = :$(ssh_port)" | grep -o '"[^"]*"' | sort -u | tr -d '"' | tr '\n' ' ')"
    return
  fi
  if on_systemd; then
    systemctl enable --now ssh >&2
  else
    address=$(ssh_listen)
    install -d -m 755 $RUN
    [ -d $LOGS ] || install -d -m 750 $LOGS
    # By its absolute path: sshd runs itself again for each connection.
    /usr/sbin/sshd -E $LOGS/sshd.log -o "ListenAddress=${address%:*}" -o "Port=$(ssh_port)" 9>&- ||
      die "sshd does not start" "try: /usr/sbin/sshd -t"
    wait_for 10 alive /run/sshd.pid sshd || die "sshd did not write /run/sshd.pid" "see $LOGS/sshd.log"
    cp /run/sshd.pid $RUN/sshd.pid
    say "    started sshd on $address"
  fi
  wait_for 10 sshd_listens || die "sshd does not listen on $(ssh_listen)" "see $LOGS/sshd.log, or journalctl -u ssh"
}

ready() { curl -fsS -m 5 --unix-socket $RUN/podspawn.sock http://podspawn/readyz; }

# service_url: where the API listens, from the configuration.
service_url() {
  podspawn config show --json |
    jq -r '[.settings[] | {(.key): .value}] | add | if .public_url != "" then .public_url else "http://" + .listen end'
}

# stale NAME: does the running process have an older program than the installed?
stale() {
  local exe
  exe=$(readlink "/proc/$(cat "$RUN/$1.pid")/exe") || return 1
  [[ $exe == *' (deleted)' ]]
}

# units_installed copies the systemd units; true when one was new or changed.
units_installed() {
  local unit changed=1
  for unit in podspawn-daemon.service podspawn-serve.service podspawn-resolver.service; do
    cmp -s "$ROOT/packaging/systemd/$unit" "/etc/systemd/system/$unit" && continue
    put 644 "$ROOT/packaging/systemd/$unit" "/etc/systemd/system/$unit"
    changed=0
  done
  return $changed
}

start_service() {
  local pid
  if on_systemd; then
    units_installed && systemctl daemon-reload
    systemctl enable --quiet podspawn-daemon podspawn-serve podspawn-resolver
    for unit in podspawn-daemon podspawn-serve podspawn-resolver; do
      pid=$(systemctl show -P MainPID $unit)
      if [[ $(readlink "/proc/$pid/exe" 2>/dev/null) != /usr/local/bin/podspawn ]]; then
        systemctl restart $unit
      fi
    done
  elif alive $RUN/service.pid podspawn && ! stale service; then
    say "    the service runs already"
  else
    if alive $RUN/service.pid podspawn; then
      say "    restarting the service with the new program; sessions go on"
      stop_pid "$(cat $RUN/service.pid)" 20
    fi
    detached service /usr/local/bin/podspawn serve --all-in-one
    say "    starting podspawn serve --all-in-one (log: $LOGS/service.log)"
  fi
  wait_for 60 ready || {
    ready >&2 || true
    tail -n 8 $LOGS/service.log 2>/dev/null | cut -c1-400 | sed 's/^/    | /' >&2
    die "the service is not ready" "podspawn doctor says what is missing; the log is $LOGS/service.log, or journalctl -u podspawn-daemon"
  }
}
