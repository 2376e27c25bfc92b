#!/bin/bash
# Runs the main job once and prints each step with what it saw: a sandbox made
# over MCP, a certificate, OpenSSH into gVisor, exit, and nothing left.
#
# Run by root on a machine where the service runs (make up does). Fails when a
# step does not show what it must. Leaves no key, token or sandbox behind.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
. "$ROOT/scripts/services.sh"
need_root

work=$(mktemp -d /tmp/podspawn-mainjob.XXXXXX)
id=
# shellcheck disable=SC2317 # called by the trap
cleanup() {
  [ -z "$id" ] || podspawn destroy "$id" >/dev/null 2>&1 || true
  rm -rf "$work"
}
trap cleanup EXIT
see() { say "    $*"; }
now() { date +%s%3N; }

# A token of ten minutes; in a file, since arguments are public.
podspawn token create --subject make-up --ttl 10m >"$work/token"
{ printf 'Authorization: Bearer '; cat "$work/token"; } >"$work/headers"
url=$(service_url)/mcp

# rpc METHOD PARAMS: one MCP request over Streamable HTTP; prints its result. The
# answer is JSON, or JSON in an event stream.
number=0 session=
rpc() {
  local answer
  number=$((number + 1))
  jq -cn --arg m "$1" --argjson p "$2" --argjson n $number '{jsonrpc: "2.0", id: $n, method: $m, params: $p}' >"$work/request"
  curl -sS -m 60 -D "$work/answer.headers" -H @"$work/headers" -H 'Content-Type: application/json' \
    -H 'Accept: application/json, text/event-stream' ${session:+-H "Mcp-Session-Id: $session"} \
    -H 'MCP-Protocol-Version: 2025-06-18' --data-binary @"$work/request" "$url" >"$work/answer" ||
    die "$url does not answer" "see $LOGS/service.log"
  answer=$(sed 's/^data: *//' "$work/answer" | grep '^{' | jq -c "select(.id == $number)" || true)
  [ -n "$answer" ] || die "MCP $1: $(head -n 1 "$work/answer.headers" | tr -d '\r') $(head -c 400 "$work/answer")"
  jq -e '.error == null' >/dev/null <<<"$answer" || die "MCP $1: $(jq -c .error <<<"$answer")"
  jq -c .result <<<"$answer"
}
# tool NAME ARGUMENTS: calls a tool; prints its structured result.
tool() {
  local result
  result=$(rpc tools/call "$(jq -cn --arg n "$1" --argjson a "$2" '{name: $n, arguments: $a}')")
  jq -e '.isError != true' >/dev/null <<<"$result" || die "MCP tool $1: $(jq -c '.structuredContent // .content' <<<"$result")"
  jq -c .structuredContent <<<"$result"
}

start=$(now)
hello=$(rpc initialize '{"protocolVersion":"2025-06-18","capabilities":{},"clientInfo":{"name":"make-up","version":"1"}}')
session=$(sed -n 's/^mcp-session-id: *\([^\r]*\)\r*$/\1/Ip' "$work/answer.headers")
say "  MCP: connected to $(jq -r '.serverInfo.name + " " + .serverInfo.version' <<<"$hello") at $url"

start=$(now)
made=$(tool sandbox_create "$(jq -cn '{podfile: "lifecycle: {ttl: 5m, on_exit: destroy, grace: 0s}\n"}')")
id=$(jq -r .id <<<"$made")
login=$(jq -r .login <<<"$made")
for _ in $(seq 60); do
  state=$(tool sandbox_get "{\"id\":\"$id\"}" | jq -r .state)
  [[ $state =~ ^(accepted|starting)$ ]] || break
  sleep 0.2
done
[[ $state =~ ^(ready|running)$ ]] || die "the sandbox is $state, not ready" "podspawn get $id says why"
say "  sandbox_create: $id, login $login, $state after $(($(now) - start)) ms"

start=$(now)
ssh-keygen -q -t ed25519 -N '' -C '' -f "$work/key"
issued=$(tool ssh_certificate_issue "$(jq -cn --arg id "$id" --arg key "$(cat "$work/key.pub")" '{id: $id, public_key: $key}')")
ssh_block=$(jq -c 'if .ssh then .ssh else . end' <<<"$issued")
jq -r .certificate <<<"$ssh_block" >"$work/key-cert.pub"
jq -r .known_hosts <<<"$ssh_block" >"$work/known_hosts"
say "  ssh_certificate_issue: in $(($(now) - start)) ms, for a key made here"
ssh-keygen -L -f "$work/key-cert.pub" | grep -E 'Serial|Valid|Key ID' | sed 's/^ */    /' >&2

start=$(now)
host=$(jq -r .host <<<"$ssh_block") port=$(jq -r .port <<<"$ssh_block")
status=0
# shellcheck disable=SC2016 # for the sandbox's shell
ssh -F none -i "$work/key" -o CertificateFile="$work/key-cert.pub" -o IdentitiesOnly=yes -o BatchMode=yes \
  -o UserKnownHostsFile="$work/known_hosts" -o StrictHostKeyChecking=yes -p "$port" "$login@$host" \
  'echo "$(id -un) in $(pwd) on $(uname -sr)"; dmesg | head -n 3; exit 7' >"$work/seen" </dev/null || status=$?
say "  ssh $login@$host: $(($(now) - start)) ms, exit status $status (the command said exit 7)"
sed 's/^/    | /' "$work/seen" >&2
[ $status = 7 ] || die "ssh into the sandbox: exit status $status, want 7" "podspawn why $login"
grep -qi gvisor "$work/seen" || die "what answered is not gVisor" "podspawn doctor"

# It destroys itself after the last session: nothing of it may be left.
left() {
  docker ps -aq --filter "label=dev.podspawn.sandbox=$id" | sed 's/^/container /'
  docker network ls -q --filter "label=dev.podspawn.sandbox=$id" | sed 's/^/network /'
  [ ! -e "/run/netns/$login" ] || echo "network namespace"
  [ ! -e "/etc/netns/$login" ] || echo "/etc/netns/$login"
  ! getent passwd "$login" >/dev/null || echo "NSS entry"
  ls -d $RUN/guests/*"${id#sbx_}"* 2>/dev/null || true
  grep -o "[^ ]*${id#sbx_}[^ ]*" /proc/self/mountinfo | sed 's/^/mount /' || true
}
gone() { [ -z "$(left)" ]; }
start=$(now)
wait_for 30 gone || die "30 s after the exit there is still: $(left | tr '\n' ' ')" "podspawn get $id"
end=$(tool sandbox_get "{\"id\":\"$id\"}")
say "  gone $(($(now) - start)) ms after the exit:"
see "docker ps -a: none with label dev.podspawn.sandbox=$id; no network of it"
see "ip netns: no $login; getent passwd $login: nothing"
see "no socket below $RUN/guests, no mount"
see "sandbox_get: $(jq -r '.state + ", reason " + (.reason // "?")' <<<"$end")"
id=
