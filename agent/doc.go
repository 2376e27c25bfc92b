// Package agent is what the unprivileged API process does for a caller: it
// turns a request of the public API into operations of the daemon and the
// guest. HTTP and MCP are written against the same [Service].
//
// It is not trusted with tenants. Every operation carries the caller's own
// credential to the daemon, which verifies it and decides; nothing here could
// name a tenant, mint a token or reach a sandbox that the credential does not
// open. It knows neither HTTP nor MCP, and holds no state.
package agent
