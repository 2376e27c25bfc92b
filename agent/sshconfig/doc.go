// Package sshconfig writes what OpenSSH's client needs to reach a sandbox: an
// ssh_config, a command, a known_hosts line, and on the client's side the
// folder that holds them with the key.
//
// The service uses it to answer API calls. Clients use it again on their side:
// an ssh_config can run programs (ProxyCommand), so text that came from a server
// is never written to one. [Install] takes only host, port, user, certificate
// and CA key from the server's answer, checks each, and writes its own.
//
// It knows nothing of HTTP, the daemon or the sandbox behind the login.
package sshconfig
