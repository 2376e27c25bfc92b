package token

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/podspawn/podspawn/sandbox"
)

const (
	maxToken = 4 << 10
	// leeway is how far the clock of the issuing host may be ahead. A token is never
	// accepted after its end.
	leeway = 30 * time.Second
)

// Verifier checks tokens. Use NewVerifier. Safe for concurrent use.
type Verifier struct {
	issuer, audience string
	keys             map[string]ed25519.PublicKey
}

// NewVerifier returns a Verifier of tokens from issuer for audience, signed with
// one of the keys. A key whose ID is not its thumbprint verifies nothing, and
// without an issuer or audience nothing is accepted.
func NewVerifier(issuer, audience string, keys []Key) *Verifier {
	v := &Verifier{issuer: issuer, audience: audience, keys: map[string]ed25519.PublicKey{}}
	for _, k := range keys {
		if len(k.Public) == ed25519.PublicKeySize && k.ID == thumbprint(k.Public) {
			v.keys[k.ID] = bytes.Clone(k.Public)
		}
	}
	return v
}

// Verify returns the claims of a token that this service issued and that is valid
// at now; whether it was revoked is not looked at. Every error is a
// *sandbox.Error of KindUnauthorized that repeats nothing of the token.
func (v *Verifier) Verify(raw string, now time.Time) (Claims, error) {
	c, err := v.verify(raw, now)
	if err != nil {
		return Claims{}, unauthorized(err)
	}
	return c, nil
}

func (v *Verifier) verify(raw string, now time.Time) (Claims, error) {
	if len(raw) > maxToken {
		return Claims{}, errSize
	}
	if !canonical(raw) {
		return Claims{}, errEncoding
	}
	// The library's options are all used, since its defaults accept a token without
	// an end, for anybody, signed with any algorithm that a key fits. What it has no
	// option for is checked in keyFor, before the signature, and below.
	parser := jwt.NewParser(
		jwt.WithValidMethods([]string{jwt.SigningMethodEdDSA.Alg()}),
		jwt.WithStrictDecoding(),
		jwt.WithExpirationRequired(),
		jwt.WithNotBeforeRequired(),
		jwt.WithIssuedAt(),
		jwt.WithIssuer(v.issuer),
		jwt.WithAudience(v.audience),
		jwt.WithLeeway(leeway),
		jwt.WithTimeFunc(func() time.Time { return now }),
	)
	var w wire
	if _, err := parser.ParseWithClaims(raw, &w, v.keyFor); err != nil {
		return Claims{}, reason(err)
	}
	switch {
	case w.Expires == nil || w.NotYet == nil || w.Issued == nil:
		return Claims{}, errMissing
	case w.Issuer != v.issuer || v.issuer == "":
		return Claims{}, errIssuer
	case string(w.Audience) != v.audience || v.audience == "":
		return Claims{}, errAudience
	case now.Unix() >= *w.Expires:
		return Claims{}, errExpired
	case *w.NotYet != *w.Issued:
		return Claims{}, errTime
	}
	c := w.claims()
	if err := c.check(); err != nil {
		return Claims{}, err
	}
	return c, nil
}

// keyFor checks the header and chooses the key. A kid is only ever looked up in a
// map, and a header that names a key or a place to get one from (jwk, jku, x5c,
// x5u), or demands something of us (crit), is refused like any unknown one.
func (v *Verifier) keyFor(t *jwt.Token) (any, error) {
	for name := range t.Header {
		if name != "alg" && name != "typ" && name != "kid" {
			return nil, errHeader
		}
	}
	if typ, ok := t.Header["typ"].(string); !ok || typ != tokenType {
		return nil, errType
	}
	if alg, ok := t.Header["alg"].(string); !ok || alg != jwt.SigningMethodEdDSA.Alg() {
		return nil, errAlgorithm
	}
	kid, ok := t.Header["kid"].(string)
	if !ok {
		return nil, errKey
	}
	key, ok := v.keys[kid]
	if !ok {
		return nil, errKey
	}
	return key, nil
}

// canonical reports whether raw is three parts, each in the only base64 of its
// bytes, the first a header with no doubled field. Decoders skip line endings and
// ignore spare bits: with them one token would have many spellings, and whatever
// keeps or compares tokens as text could be passed by.
func canonical(raw string) bool {
	parts := strings.Split(raw, ".")
	if len(parts) != 3 {
		return false
	}
	for _, p := range parts {
		b, err := base64.RawURLEncoding.DecodeString(p)
		if err != nil || len(b) == 0 || base64.RawURLEncoding.EncodeToString(b) != p {
			return false
		}
	}
	header, err := base64.RawURLEncoding.DecodeString(parts[0])
	if err != nil {
		return false
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(header, &fields); err != nil {
		return false
	}
	again, err := json.Marshal(fields)
	return err == nil && bytes.Equal(again, header)
}

// reason turns the library's errors, whose texts repeat parts of tokens, into ours.
func reason(err error) error {
	for _, own := range []error{errHeader, errType, errAlgorithm, errKey, errClaims, errTime} {
		if errors.Is(err, own) {
			return own
		}
	}
	switch {
	case errors.Is(err, jwt.ErrTokenRequiredClaimMissing):
		return errMissing
	case errors.Is(err, jwt.ErrTokenExpired):
		return errExpired
	case errors.Is(err, jwt.ErrTokenNotValidYet), errors.Is(err, jwt.ErrTokenUsedBeforeIssued):
		return errNotYet
	case errors.Is(err, jwt.ErrTokenInvalidIssuer):
		return errIssuer
	case errors.Is(err, jwt.ErrTokenInvalidAudience):
		return errAudience
	case errors.Is(err, jwt.ErrTokenSignatureInvalid) && errors.Is(err, jwt.ErrEd25519Verification):
		return errSignature
	case errors.Is(err, jwt.ErrTokenSignatureInvalid), errors.Is(err, jwt.ErrTokenUnverifiable):
		return errAlgorithm
	default:
		return errEncoding
	}
}

// unauthorized says no more than what helps an honest client.
func unauthorized(err error) error {
	out := &sandbox.Error{
		Kind: sandbox.KindUnauthorized,
		Msg:  "the token is not valid here",
		Hint: "get a token of this service with podspawn token create",
		Err:  err,
	}
	switch {
	case errors.Is(err, errExpired):
		out.Msg, out.Hint = "the token has expired", "get a new one with podspawn token create"
	case errors.Is(err, errNotYet):
		out.Msg, out.Hint = "the token is not valid yet", "check the clocks of this host and of the one that made the token"
	}
	return out
}
