// Package peersock is podspawn.sock as the API process sees it: a net.Listener
// whose connections the daemon accepts and passes on, each with a handle that
// stands for the peer's credentials.
//
// The API process is not trusted to say who its peers are, so it never has the
// listening socket: the daemon reads SO_PEERCRED itself and answers to the handle
// for as long as the connection is open.
package peersock
