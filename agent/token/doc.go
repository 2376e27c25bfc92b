// Package token makes and checks API tokens: JWTs signed with Ed25519, in the one
// form that this package writes. It owns that form, the signing key's file, and
// every reason to refuse a token that can be seen in the token itself.
//
// It does not know which tokens were revoked (the daemon's register does), and it
// checks no tokens of other issuers. The API process verifies with public keys
// to refuse early; the daemon verifies again and decides.
package token
