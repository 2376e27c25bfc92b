// Package client speaks the public HTTP API from the caller's side and is an
// api.API like the service itself: the command line and the MCP bridge are
// written against that interface and don't know which they have.
//
// The server is not trusted: its answers are bounded and only decoded, and text
// of its errors is cleaned before anyone sees it on a terminal.
package client
