// Package mcpserver is MCP on top of package api: the tools that an agent sees,
// over Streamable HTTP behind httpapi's gate, and over stdio for the bridge that
// runs on the caller's own machine. It is one implementation of each tool; the
// bridge only adds that keys are made locally, so that no private key passes
// through a model or a network.
//
// The HTTP transport is stateless: it works alike for every revision of the
// protocol, and there is no session whose id could open anything. Each request
// stands on its own credential.
package mcpserver
