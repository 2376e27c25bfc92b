#!/bin/bash
# The inner half of bench/run.sh, run in a lab: starts sshd, Docker and podspawn,
# makes one program for each case, and has the bench program time them.
set -euo pipefail
. "$(dirname "$0")/../scripts/lib.sh"
. "$ROOT/scripts/services.sh"
[ -n "${PODSPAWN_LAB:-}" ] || die "bench/inside.sh runs in a lab" "use make bench"
cd "$ROOT"

prepare_sshd
podspawn server-setup >&2
start_dockerd
load_runtimes
start_sshd
long "base image" podspawn image build
start_service

work=$(mktemp -d /tmp/podspawn-bench.XXXXXX)
cases=$work/cases
mkdir "$cases"
# case NAME CMD…
case_() {
  printf '#!/bin/sh\nexec %s\n' "$2" >"$cases/$1"
  chmod 755 "$cases/$1"
}

install -d -m 700 /root/.ssh
ssh-keygen -q -t ed25519 -N '' -f "$work/root"
cp "$work/root.pub" /root/.ssh/authorized_keys
case_ ssh-host "ssh -F none -i $work/root -o IdentitiesOnly=yes -o BatchMode=yes -o LogLevel=ERROR -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null root@127.0.0.1 true"

podspawn create bench --on-exit keep --ttl 1h >/dev/null
podspawn cert bench --out "$work/cert" --ttl 15m >/dev/null
login=$(podspawn get bench --json | jq -r .login)
id=$(podspawn get bench --json | jq -r .id)
case_ ssh-sandbox "ssh -F $work/cert/ssh_config -o ControlMaster=no -o ControlPath=none -o BatchMode=yes -o LogLevel=ERROR $login true"
case_ api-exec "curl -fsS -o /dev/null --unix-socket $RUN/podspawn.sock -H 'Content-Type: application/json' -d '{\"command\":\"true\"}' http://podspawn/v1/sandboxes/$id/exec"
case_ podspawn-run "podspawn run -- true"

runtime=podspawn-runsc-10g
docker run -d --name bench-runsc --runtime $runtime --network none podspawn/base sleep 3600 >/dev/null
case_ docker-exec-runsc "docker exec bench-runsc true"
case_ docker-run-runsc "docker run --rm --runtime $runtime --network none podspawn/base true"
case_ docker-run-runc "docker run --rm --network none podspawn/base true"

.cache/bench -rounds "$1" -out bench/results.json \
  -ratio ssh-sandbox/ssh-host -ratio ssh-sandbox/docker-exec-runsc -ratio api-exec/docker-exec-runsc \
  -ratio podspawn-run/docker-run-runsc -ratio podspawn-run/docker-run-runc "$cases"
