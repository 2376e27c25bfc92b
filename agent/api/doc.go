// Package api is the public API's vocabulary: requests and responses as they
// are written on the wire, and [API], the use cases that HTTP, MCP and the
// command line share. It knows neither HTTP nor MCP.
package api
