package token

import (
	"crypto/ed25519"
	"errors"
	"fmt"

	"github.com/golang-jwt/jwt/v5"

	"github.com/podspawn/podspawn/sandbox"
)

// tokenType is the typ header. JWTs of other uses, also those signed with the same
// key by mistake, have another.
const tokenType = "podspawn+jwt"

// Key is a public key that tokens are verified with. ID is its RFC 7638 thumbprint.
type Key struct {
	ID     string
	Public ed25519.PublicKey
}

// Issuer makes tokens. Use NewIssuer. Safe for concurrent use.
type Issuer struct {
	signer           *Signer
	issuer, audience string
}

// NewIssuer returns an Issuer of tokens from issuer for audience, both the
// service's public URL as a rule.
func NewIssuer(signer *Signer, issuer, audience string) *Issuer {
	return &Issuer{signer: signer, issuer: issuer, audience: audience}
}

// Keys returns the keys that verify what this Issuer makes.
func (i *Issuer) Keys() []Key { return []Key{i.signer.Key()} }

// Issue returns a token with these claims. Fractions of seconds are cut off. An
// error is a *sandbox.Error when the claims are at fault.
func (i *Issuer) Issue(c Claims) (string, error) {
	if i.issuer == "" || i.audience == "" {
		return "", errors.New("issue token: the service has no name")
	}
	if err := c.check(); err != nil {
		return "", refuseClaims(err)
	}
	w := c.wire(i.issuer, i.audience)
	if err := w.claims().check(); err != nil { // what is left without fractions of seconds
		return "", refuseClaims(err)
	}
	t := jwt.NewWithClaims(jwt.SigningMethodEdDSA, w)
	t.Header["typ"] = tokenType
	t.Header["kid"] = i.signer.id
	raw, err := t.SignedString(i.signer.key)
	if err != nil {
		return "", fmt.Errorf("sign token: %w", err)
	}
	if len(raw) > maxToken {
		return "", fmt.Errorf("sign token: %w", errSize)
	}
	return raw, nil
}

func refuseClaims(err error) error {
	out := &sandbox.Error{Kind: sandbox.KindInvalidSpec, Msg: "no such token can be made: " + err.Error(), Err: err}
	switch {
	case errors.Is(err, errSubject), errors.Is(err, errTenant):
		out.Hint = "use letters, digits and . _ @ : / + = -, at most 128, beginning with a letter or digit"
	case errors.Is(err, errScopes):
		out.Hint = "use sandbox:read, sandbox:run and sandbox:admin, each at most once"
	case errors.Is(err, errLifetime):
		out.Hint = "ask for a ttl between one second and 366 days"
	case errors.Is(err, errCaps):
		out.Hint = "leave a cap out to have the configuration's limit"
	default:
		out.Hint = "let the service choose the token's id"
	}
	return out
}
