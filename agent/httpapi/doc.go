// Package httpapi is the public API over HTTP: the routes under /v1, the gate
// before /mcp, health checks, and the server that carries them on TCP and on
// podspawn.sock. It maps HTTP to package api and back, and nothing else: use
// cases are package agent's, decisions the daemon's.
//
// A request passes, in this order: request id and log, recover, Host and Origin
// (a web page must not reach a service on its viewer's machine), the caller's
// credential, the strict decoder. Whatever goes wrong is answered with
// application/problem+json. The Authorization header is never logged.
package httpapi
