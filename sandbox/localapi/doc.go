// Package localapi is the protocol of the daemon's socket: who may ask the
// daemon for what, in which words. It holds the wire types, the framing with
// descriptor passing, and the client; the server is package daemon.
//
// A frame is four bytes of length (big endian) and JSON, at most [MaxFrame]
// bytes. A connection carries one request and its response; OpSession's stays
// open afterwards as the session's lease, on which one byte more may come, [Finished]. Descriptors travel only from the
// daemon to its callers, with the response's first byte (SCM_RIGHTS).
//
// The daemon decides by the peer's credentials (SO_PEERCRED) which operations a
// connection may use; clients check that the daemon is uid 0, so that nobody
// else can play the daemon to a hook. It uses no net/http: the hooks that link
// this package start five times a login.
package localapi
