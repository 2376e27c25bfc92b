#!/bin/bash
# Sets this machine up for podspawn and runs the main job once.
#
# Run by root, through make up, on Debian 12 or newer or Ubuntu 22.04 or newer.
# Idempotent: a second run takes seconds and changes nothing. Starts only what
# does not run yet, and notes in /run/podspawn what it started (*.pid), so that
# make down stops just that. PODSPAWN_SSH_LISTEN=ADDRESS[:PORT] says where sshd
# listens when none runs yet (default 127.0.0.1:22).
set -euo pipefail
. "$(dirname "$0")/lib.sh"
. "$ROOT/scripts/services.sh"
need_root
cd "$ROOT"
unset DOCKER_HOST DOCKER_CONTEXT
[ $# = 0 ] || die "unknown argument $1" "usage: scripts/up.sh"

began=$SECONDS step_began=$SECONDS number=0 title=
finish_step() {
  [ -z "$title" ] || say "    [$((SECONDS - step_began)) s]"
  step_began=$SECONDS
}
step() {
  finish_step
  number=$((number + 1)) title=$1
  say "==> $number/10 $title"
}
trap '[ $? = 0 ] || say "podspawn: hint: make up stopped at step $number ($title); it is safe to run again, and make down undoes it"' EXIT

[ -x /usr/local/bin/podspawn ] ||
  say "The first make up takes some minutes: packages, Go, gVisor and the base image are fetched and built."
locked up

step "system packages"
scripts/deps.sh
step "Go"
say "    $(scripts/go.sh)"
step "podspawn: build and install"
scripts/build.sh --install
step "gVisor"
scripts/runsc.sh
say "    $("$LIBEXEC/runsc" --version | head -n 1)"

step "sshd, PAM, NSS, certificate authorities (podspawn server-setup)"
prepare_sshd
podspawn server-setup >&2

step "Docker"
start_dockerd
load_runtimes
say "    Docker $(docker version -f '{{.Server.Version}}') with the runtimes $(runtimes | tr '\n' ' ')"

step "sshd"
start_sshd

step "base image"
long "podspawn image build (two minutes the first time)" podspawn image build ||
  die "the base image could not be built" "see the lines above; it needs Debian's package source once"

step "service"
start_service
say "    ready: $(service_url)"

step "the main job, once"
scripts/mainjob.sh
finish_step
title=

cat >&2 <<TEXT

podspawn is up ($((SECONDS - began)) s). What to type next:

  podspawn run                                  a sandbox for one session, gone when you leave it
  podspawn create demo && podspawn ssh demo     the same in two steps
  podspawn token create --subject me            a token for $(service_url)/mcp
  podspawn mcp                                  MCP over stdio, for an agent on this machine
  podspawn doctor                               is everything in order?
  make down                                     undo all this
TEXT
