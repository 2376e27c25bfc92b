package main

import (
	"time"

	"github.com/podspawn/podspawn/agent/token"
	"github.com/podspawn/podspawn/sandbox"
	"github.com/podspawn/podspawn/sandbox/daemon"
	"github.com/podspawn/podspawn/sandbox/localapi"
)

// tokens makes the token package's issuer and verifier what the daemon asks for.
type tokens struct {
	issuer   *token.Issuer
	verifier *token.Verifier
	name     string // issuer and audience: this service
}

var _ daemon.Tokens = tokens{}

// newTokens returns the tokens of the service at url, which is their issuer and
// their audience.
func newTokens(signer *token.Signer, url string) tokens {
	iss := token.NewIssuer(signer, url, url)
	return tokens{issuer: iss, verifier: token.NewVerifier(url, url, iss.Keys()), name: url}
}

func (t tokens) Issue(a sandbox.APIToken) (string, error) {
	return t.issuer.Issue(token.Claims{
		ID: a.ID, Tenant: a.Tenant, Subject: a.Subject, Scopes: a.Scopes, Caps: a.Caps,
		IssuedAt: a.IssuedAt, ExpiresAt: a.ExpiresAt,
	})
}

func (t tokens) Verify(raw string, now time.Time) (sandbox.APIToken, error) {
	c, err := t.verifier.Verify(raw, now)
	if err != nil {
		return sandbox.APIToken{}, err
	}
	return sandbox.APIToken{
		ID: c.ID, Tenant: c.Tenant, Subject: c.Subject, Scopes: c.Scopes, Caps: c.Caps,
		IssuedAt: c.IssuedAt, ExpiresAt: c.ExpiresAt,
	}, nil
}

func (t tokens) Keys() localapi.KeysResponse {
	out := localapi.KeysResponse{Issuer: t.name, Audience: t.name}
	for _, k := range t.issuer.Keys() {
		out.Keys = append(out.Keys, localapi.TokenKey{ID: k.ID, Key: k.Public})
	}
	return out
}
