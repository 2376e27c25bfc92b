package localapi

import (
	"time"

	"github.com/podspawn/podspawn/sandbox"
)

// Operations for administrators: uid of podspawn-api, with the caller's Auth.
// All but OpWhy need ScopeAdmin. Root on the host acts on all tenants; a token on
// its own.
const (
	OpRevoke      Op = "api.revoke"
	OpTokens      Op = "api.tokens"
	OpTokenRevoke Op = "api.token-revoke"
	OpRotate      Op = "api.ca-rotate" // root on the host only
	OpDrain       Op = "api.drain"     // root on the host only
)

// RevokeRequest revokes certificates: one by serial, or all that carry a key id,
// or all of a sandbox, named by login, id or name.
type RevokeRequest struct {
	Ref string `json:"ref"`
}

// RevokeResponse says what was revoked and what was ended.
type RevokeResponse struct {
	Serials     []uint64 `json:"serials"` // revoked, also before
	Connections int      `json:"connections"`
	Commands    int      `json:"commands,omitempty"` // of the revoked token
}

// TokensRequest lists API tokens.
type TokensRequest struct{}

// TokensResponse is newest first.
type TokensResponse struct {
	Tokens []sandbox.APIToken `json:"tokens"`
}

// TokenRevokeRequest revokes a token with everything that it opened.
type TokenRevokeRequest struct {
	ID string `json:"id"`
}

// RotateRequest makes a new user CA. The old one is trusted for Overlap more.
type RotateRequest struct {
	Overlap time.Duration `json:"overlap"`
}

// TrustedCA is a user CA that certificates may be signed with.
type TrustedCA struct {
	Key         string    `json:"key"` // one line of authorized_keys form
	Fingerprint string    `json:"fingerprint"`
	Until       time.Time `json:"until,omitzero"` // zero: the one that signs
}

// DrainRequest turns the refusal of new sandboxes on or off.
type DrainRequest struct {
	On bool `json:"on"`
}

// DrainResponse says how many sandboxes are alive.
type DrainResponse struct {
	Draining bool `json:"draining"`
	Living   int  `json:"living"`
}
