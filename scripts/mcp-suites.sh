#!/bin/bash
# Installs the MCP project's own test programs, the conformance suite and the
# inspector, with the Node that they need, under /var/cache/podspawn/npm.
#
#   scripts/mcp-suites.sh
#
# Run by make test. Idempotent: nothing is done when these versions are there. The
# packages come from npm; nothing of them is installed anywhere else.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

dir=$CACHE/npm
wanted='{
  "name": "podspawn-mcp-suites",
  "private": true,
  "dependencies": {
    "node": "22.23.3",
    "@modelcontextprotocol/conformance": "0.2.0-alpha.12",
    "@modelcontextprotocol/inspector": "2.12.0"
  }
}'
[ "$(cat "$dir/installed.json" 2>/dev/null)" != "$wanted" ] || exit 0
have npm || die "npm is missing" "scripts/deps.sh --test installs it"
mkdir -p "$dir"
rm -f "$dir/installed.json"
printf '%s\n' "$wanted" >"$dir/package.json"
long "install the MCP suites" npm install --prefix "$dir" --no-audit --no-fund --loglevel=error ||
  die "the MCP suites could not be installed" "see the lines above; it needs the npm registry once"
printf '%s\n' "$wanted" >"$dir/installed.json"
