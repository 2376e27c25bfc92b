// Package agenttest plays the daemon for tests of the API process: a real
// localapi server on a real unix socket, with sandboxes in memory whose commands
// are processes of this machine. It keeps to the protocol, checks the credential
// of every request, and records what was asked.
package agenttest
