#!/bin/bash
# Installs the system packages that podspawn needs, from the machine's own
# package sources, and only those that are missing.
#
#   scripts/deps.sh          what the service needs
#   scripts/deps.sh --test   what the tests need as well
#
# Run by root, through make up and make test. Idempotent. Without systemd no
# package may start a service (make up starts what it needs itself); with
# systemd the packages behave as usual.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

# package[:command]: with a command, any program of that name will do.
run_packages=(
  docker.io openssh-server openssh-client libnss-extrausers libpam-net
  nftables iptables iproute2 mmdebstrap rsync procps util-linux
  curl:curl ca-certificates jq:jq git:git
)
test_packages=(
  gcc:gcc libc6-dev socat:socat netcat-openbsd tmux:tmux strace:strace busybox-static
  shellcheck:shellcheck nodejs:node npm:npm
)

installed() {
  [ "$(dpkg-query -W -f='${db:Status-Abbrev}' "$1" 2>/dev/null | cut -c1-2)" = ii ]
}

missing=()
# want adds an entry to missing unless it is there. docker.io counts as there
# when another Docker Engine (docker-ce) is.
want() {
  local package=${1%%:*} command=
  [[ $1 != *:* ]] || command=${1#*:}
  if [ "$package" = docker.io ] && have dockerd && have docker; then return; fi
  if [ -n "$command" ] && have "$command"; then return; fi
  installed "$package" || missing+=("$package")
}

case ${1:-} in
  '') wanted=("${run_packages[@]}") ;;
  --test) wanted=("${run_packages[@]}" "${test_packages[@]}") ;;
  *) die "unknown argument $1" "usage: scripts/deps.sh [--test]" ;;
esac
have apt-get || die "this machine has no apt-get" "Debian 12 or newer and Ubuntu 22.04 or newer are supported"
for entry in "${wanted[@]}"; do want "$entry"; done
[ ${#missing[@]} -gt 0 ] || exit 0

need_root
say "    missing packages: ${missing[*]}"

# A policy-rc.d that says 101 keeps packages from starting services. It is put
# there only for this run, and only where there is no systemd and none yet.
policy=/usr/sbin/policy-rc.d
if ! on_systemd && [ ! -e $policy ]; then
  printf '#!/bin/sh\nexit 101\n' >$policy
  chmod 755 $policy
  trap 'rm -f $policy' EXIT
fi

export DEBIAN_FRONTEND=noninteractive
apt_get=(apt-get -q -y -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3)
long "refresh the package lists" "${apt_get[@]}" update ||
  die "the package lists could not be refreshed" "see the lines above; is the network up?"
long "install ${#missing[@]} packages" "${apt_get[@]}" install --no-install-recommends "${missing[@]}" ||
  die "packages could not be installed: ${missing[*]}" "try: apt-get install ${missing[*]}"
