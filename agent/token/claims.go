package token

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/podspawn/podspawn/sandbox"
)

// MaxLifetime bounds every token: a leap year.
const MaxLifetime = 366 * 24 * time.Hour

var (
	idPattern = regexp.MustCompile(`^tok_[0-9a-hjkmnp-tv-z]{16}$`)
	// namePattern is that of tenants and subjects: they end up in logs, key ids and
	// tables, and a CI job's subject looks like repo:owner/name:ref:refs/heads/main.
	namePattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._@:/+=-]{0,127}$`)
)

// Claims is what a token says of its bearer. Times are whole seconds, UTC.
type Claims struct {
	ID        string // "tok_" and 16 characters, as sandbox.NewToken("tok_") makes
	Tenant    string
	Subject   string
	Scopes    []sandbox.Scope // at least one
	Caps      sandbox.Caps
	IssuedAt  time.Time
	ExpiresAt time.Time
}

// check reports what is wrong with claims that are to be issued or were verified.
func (c Claims) check() error {
	switch life := c.ExpiresAt.Sub(c.IssuedAt); {
	case !idPattern.MatchString(c.ID):
		return errID
	case !namePattern.MatchString(c.Subject):
		return errSubject
	case !namePattern.MatchString(c.Tenant):
		return errTenant
	case life <= 0 || life > MaxLifetime:
		return errLifetime
	case c.Caps.MaxSandboxes < 0 || c.Caps.MaxTTL < 0:
		return errCaps
	}
	return checkScopes(c.Scopes)
}

func checkScopes(scopes []sandbox.Scope) error {
	known := []sandbox.Scope{sandbox.ScopeRead, sandbox.ScopeRun, sandbox.ScopeAdmin}
	if len(scopes) == 0 || len(scopes) > len(known) {
		return errScopes
	}
	for i, s := range scopes {
		if !slices.Contains(known, s) || slices.Contains(scopes[:i], s) {
			return errScopes
		}
	}
	return nil
}

// wire is the payload. Pointers tell a missing time from 1970.
type wire struct {
	Issuer   string        `json:"iss"`
	Subject  string        `json:"sub"`
	Audience audience      `json:"aud"`
	Expires  *int64        `json:"exp"`
	NotYet   *int64        `json:"nbf"`
	Issued   *int64        `json:"iat"`
	ID       string        `json:"jti"`
	Tenant   string        `json:"tenant"`
	Scope    string        `json:"scope"` // separated by spaces, as in RFC 8693
	Caps     *sandbox.Caps `json:"caps,omitempty"`
}

var _ jwt.Claims = (*wire)(nil)

// audience is one string. A list of one means the same to others; ours has none,
// so that a token for two services can't be made to look like one for us.
type audience string

// UnmarshalJSON refuses what this version would not have written: an unknown claim
// may be a cap that must hold, a doubled one is read differently by others.
func (w *wire) UnmarshalJSON(text []byte) error {
	type plain wire
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	var p plain
	if err := d.Decode(&p); err != nil {
		return errClaims
	}
	again, err := json.Marshal(p)
	if err != nil || !bytes.Equal(again, text) {
		return errClaims
	}
	*w = wire(p)
	return nil
}

func (c Claims) wire(issuer, aud string) *wire {
	expires, issued := c.ExpiresAt.Unix(), c.IssuedAt.Unix()
	var scopes []string
	for _, s := range c.Scopes {
		scopes = append(scopes, string(s))
	}
	w := &wire{
		Issuer: issuer, Subject: c.Subject, Audience: audience(aud), Expires: &expires, NotYet: &issued, Issued: &issued,
		ID: c.ID, Tenant: c.Tenant, Scope: strings.Join(scopes, " "),
	}
	if c.Caps != (sandbox.Caps{}) {
		w.Caps = &c.Caps
	}
	return w
}

// claims must only be called when all times are present.
func (w *wire) claims() Claims {
	c := Claims{
		ID: w.ID, Tenant: w.Tenant, Subject: w.Subject,
		IssuedAt: time.Unix(*w.Issued, 0).UTC(), ExpiresAt: time.Unix(*w.Expires, 0).UTC(),
	}
	for s := range strings.SplitSeq(w.Scope, " ") {
		c.Scopes = append(c.Scopes, sandbox.Scope(s))
	}
	if w.Caps != nil {
		c.Caps = *w.Caps
	}
	return c
}

// The methods of jwt.Claims, with which the library does its part of the checks.

// GetExpirationTime returns exp.
func (w *wire) GetExpirationTime() (*jwt.NumericDate, error) { return date(w.Expires) }

// GetNotBefore returns nbf.
func (w *wire) GetNotBefore() (*jwt.NumericDate, error) { return date(w.NotYet) }

// GetIssuedAt returns iat.
func (w *wire) GetIssuedAt() (*jwt.NumericDate, error) { return date(w.Issued) }

// GetIssuer returns iss.
func (w *wire) GetIssuer() (string, error) { return w.Issuer, nil }

// GetSubject returns sub.
func (w *wire) GetSubject() (string, error) { return w.Subject, nil }

// GetAudience returns aud.
func (w *wire) GetAudience() (jwt.ClaimStrings, error) {
	return jwt.ClaimStrings{string(w.Audience)}, nil
}

// date refuses what arithmetic with a time.Duration could wrap around with.
func date(seconds *int64) (*jwt.NumericDate, error) {
	if seconds == nil {
		return nil, nil
	}
	if *seconds < 0 || *seconds > math.MaxInt32*4 {
		return nil, fmt.Errorf("%w: out of range", errTime)
	}
	return &jwt.NumericDate{Time: time.Unix(*seconds, 0)}, nil
}

// Why a token is refused or not made: one sentinel a reason.
var (
	errSize      = errors.New("token is too long")
	errEncoding  = errors.New("token is not in the one encoding that is issued")
	errHeader    = errors.New("token's header has other fields than are issued")
	errType      = errors.New("token is of another type")
	errAlgorithm = errors.New("token is signed with another algorithm")
	errKey       = errors.New("token's key is unknown")
	errSignature = errors.New("token's signature does not verify")
	errClaims    = errors.New("token's claims are not in the form that is issued")
	errMissing   = errors.New("token lacks a claim")
	errTime      = errors.New("token has an impossible time")
	errExpired   = errors.New("token has expired")
	errNotYet    = errors.New("token is not valid yet")
	errLifetime  = errors.New("token is valid for longer than any that is issued")
	errIssuer    = errors.New("token is of another issuer")
	errAudience  = errors.New("token is for another service")
	errID        = errors.New("token's id has another form")
	errSubject   = errors.New("subject has another form")
	errTenant    = errors.New("tenant has another form")
	errScopes    = errors.New("scopes are missing, unknown or doubled")
	errCaps      = errors.New("caps are negative")
)
