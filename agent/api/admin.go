package api

import (
	"context"
	"time"

	"github.com/podspawn/podspawn/sandbox"
)

// Admin is what an administrator can ask for besides [API]. All of it needs
// sandbox.ScopeAdmin; a token acts on its own tenant, root on the host on all.
// Implementations are those of API.
type Admin interface {
	// Revoke revokes certificates by serial, key id, or sandbox (login, id, name), and
	// ends the connections that they opened.
	Revoke(ctx context.Context, ref string) (Revoked, error)
	// Tokens lists API tokens, newest first.
	Tokens(ctx context.Context) (Tokens, error)
	// RevokeToken revokes a token with its certificates, connections and commands.
	RevokeToken(ctx context.Context, id string) (Revoked, error)
	// RotateCA makes a new user CA. For root on the host.
	RotateCA(ctx context.Context, r RotateRequest) (CA, error)
	// Drain turns the refusal of new sandboxes on or off. For root on the host.
	Drain(ctx context.Context, r DrainRequest) (Drain, error)
}

// RevokeRequest is the body of POST /v1/ca/revoke.
type RevokeRequest struct {
	Certificate string `json:"certificate"` // serial, key id, or a sandbox's login, id or name
}

// Revoked says what a revocation did.
type Revoked struct {
	Serials     []uint64 `json:"serials"`
	Connections int      `json:"connections"` // ended
	Commands    int      `json:"commands"`    // ended, of a token
}

// TokenInfo is what the service knows of a token; the token itself is not kept.
type TokenInfo struct {
	ID           string          `json:"id"`
	Tenant       string          `json:"tenant"`
	Subject      string          `json:"subject"`
	Scopes       []sandbox.Scope `json:"scopes"`
	MaxSandboxes int             `json:"max_sandboxes,omitempty"`
	MaxTTL       Duration        `json:"max_ttl,omitempty"`
	IssuedAt     time.Time       `json:"issued_at"`
	ExpiresAt    time.Time       `json:"expires_at"`
	RevokedAt    *time.Time      `json:"revoked_at,omitempty"`
}

// Tokens is the body of GET /v1/tokens.
type Tokens struct {
	Tokens []TokenInfo `json:"tokens"`
}

// RotateRequest is the body of POST /v1/ca/rotate.
type RotateRequest struct {
	// Overlap is for how long the former CA is still trusted; nil is 15 minutes, the
	// longest life of a certificate.
	Overlap *Duration `json:"overlap,omitempty"`
}

// TrustedCA is a user CA whose certificates are accepted.
type TrustedCA struct {
	Key         string     `json:"key"`
	Fingerprint string     `json:"fingerprint"`
	Until       *time.Time `json:"until,omitempty"` // nil for the one that signs
}

// DrainRequest is the body of POST /v1/drain.
type DrainRequest struct {
	Drain bool `json:"drain"`
}

// Drain is the answer.
type Drain struct {
	Draining bool `json:"draining"`
	Living   int  `json:"living"` // sandboxes
}
