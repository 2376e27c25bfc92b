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
# Debug, for the time that each of the daemon's steps of a login takes.
export PODSPAWN_LOG_LEVEL=debug
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

# Made anew in each run. What fits the pool is taken from it, once it is full; what
# asks for another amount of memory is started.
pool_full='podspawn doctor --json | jq -e ".checks[] | select(.name == \"pool\") | .detail | startswith(\"2 of 2\")" >/dev/null'
around() { # NAME: wait for the pool before, remove what was made after
  printf '#!/bin/sh\nuntil %s; do sleep 0.2; done\n' "$pool_full" >"$cases/$1.before"
  printf '#!/bin/sh\nexec podspawn destroy tmp\n' >"$cases/$1.after"
  chmod 755 "$cases/$1.before" "$cases/$1.after"
}
script() { # NAME, text on stdin
  { echo '#!/bin/sh -e'; cat; } >"$cases/$1"
  chmod 755 "$cases/$1"
  around "$1"
}
printf 'image: podspawn/base\nresources: {memory: 1023m}\n' >"$work/cold.yaml"
api="curl -fsS --unix-socket $RUN/podspawn.sock -H Content-Type:application/json"
script create-ssh-pooled <<EOF
podspawn create tmp --on-exit keep >/dev/null
podspawn ssh tmp -- true
EOF
script create-ssh-cold <<EOF
podspawn create tmp -f $work/cold.yaml --on-exit keep >/dev/null
podspawn ssh tmp -- true
EOF
script api-first-pooled <<EOF
id=\$($api -d '{"name":"tmp","on_exit":"keep"}' http://podspawn/v1/sandboxes | jq -r .id)
$api -o /dev/null -d '{"command":"true"}' http://podspawn/v1/sandboxes/\$id/exec
EOF
script api-first-cold <<EOF
id=\$($api -d '{"name":"tmp","on_exit":"keep","spec":{"image":"podspawn/base","resources":{"memory":"1023m"}}}' http://podspawn/v1/sandboxes | jq -r .id)
$api -o /dev/null -d '{"command":"true"}' http://podspawn/v1/sandboxes/\$id/exec
EOF
script create-pooled <<EOF
podspawn create tmp --on-exit keep >/dev/null
EOF
script create-cold <<EOF
podspawn create tmp -f $work/cold.yaml --on-exit keep >/dev/null
EOF

# 64 MiB each: a file both ways, and a forwarded connection to a server that sends as much.
host="-F none -i $work/root -o IdentitiesOnly=yes -o BatchMode=yes -o LogLevel=ERROR -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null"
into="-F $work/cert/ssh_config -o ControlMaster=no -o ControlPath=none -o BatchMode=yes -o LogLevel=ERROR"
head -c 64M /dev/urandom >"$work/big"
cat >"$work/send.py" <<'PY'
import socket
s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); s.bind(("127.0.0.1", 9100)); s.listen(9)
b = bytes(1 << 20)
while True:
    c, _ = s.accept()
    for _ in range(64): c.sendall(b)
    c.close()
PY
python3 "$work/send.py" &
# shellcheck disable=SC2086 # lists of options
scp $into "$work/send.py" "$work/big" "$login:/tmp/" >&2
# shellcheck disable=SC2086
ssh $into "$login" 'setsid python3 /tmp/send.py >/dev/null 2>&1 </dev/null &'
case_ scp-in-host "scp $host $work/big root@127.0.0.1:$work/in"
case_ scp-in-sandbox "scp $into $work/big $login:/tmp/in"
case_ scp-out-host "scp $host root@127.0.0.1:$work/big $work/out"
case_ scp-out-sandbox "scp $into $login:/tmp/big $work/out"
case_ forward-host "sh -c 'test \$(ssh $host -W 127.0.0.1:9100 root@127.0.0.1 </dev/null | wc -c) = 67108864'"
case_ forward-sandbox "sh -c 'test \$(ssh $into -W 127.0.0.1:9100 $login </dev/null | wc -c) = 67108864'"

runtime=podspawn-runsc-10g
docker run -d --name bench-runsc --runtime $runtime --network none podspawn/base sleep 3600 >/dev/null
case_ docker-exec-runsc "docker exec bench-runsc true"
case_ docker-run-runsc "docker run --rm --runtime $runtime --network none podspawn/base true"
case_ docker-run-runc "docker run --rm --network none podspawn/base true"

# No case may run while the pool starts a sandbox.
for program in "$cases"/*; do
  [[ $program == *.* || -e $program.before ]] || cp "$cases/create-cold.before" "$program.before"
done

# Figures of another kind, taken at the end: where a login's time goes in the
# daemon (medians over all logins above), and what an idle sandbox costs in memory.
cat >"$work/figures" <<EOF
#!/bin/bash
set -euo pipefail
for op in principals pam-open session pam-close; do
  sed -n "s/.*request served.* op=hook.\$op us=\([0-9]*\) refused=false.*/\1/p" $LOGS/service.log | sort -n |
    awk -v op=\$op '{v[NR] = \$1} END {if (NR) print "daemon_" op "_ms", v[int((NR + 1) / 2)] / 1000}'
done
free() { awk '/^MemAvailable/ {print \$2 / 1024}' /proc/meminfo; }
until $pool_full; do sleep 0.2; done
sleep 1
before=\$(free)
for n in 1 2 3 4; do podspawn create idle\$n -f $work/cold.yaml --on-exit keep >/dev/null; done
sleep 2
awk -v a="\$before" -v b="\$(free)" 'BEGIN {print "idle_mib_per_sandbox", (a - b) / 4}'
EOF
chmod 755 "$work/figures"

.cache/bench -rounds "$1" -out bench/results.json -figures "$work/figures" \
  -ratio ssh-sandbox/ssh-host -ratio create-ssh-pooled/ssh-host -ratio create-ssh-pooled/create-ssh-cold \
  -ratio ssh-sandbox/docker-exec-runsc -ratio api-exec/docker-exec-runsc \
  -ratio scp-in-sandbox/scp-in-host -ratio scp-out-sandbox/scp-out-host -ratio forward-sandbox/forward-host \
  -ratio create-cold/docker-run-runsc -ratio create-pooled/docker-run-runsc \
  -ratio api-first-pooled/docker-run-runsc -ratio api-first-cold/docker-run-runsc \
  -ratio create-ssh-pooled/docker-run-runsc -ratio create-ssh-cold/docker-run-runsc "$cases"
