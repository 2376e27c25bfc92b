// Package ephemeralkeys issues and checks the short-lived SSH certificates of
// podspawn: user certificates that are bound to one sandbox and its spec, and
// host certificates by which clients know the machine. It stands alone: it
// knows sandboxes only as opaque strings and imports nothing of ours.
//
// The certificate format is OpenSSH's PROTOCOL.certkeys. The package signs
// public keys only; it never sees a client's private key.
package ephemeralkeys
