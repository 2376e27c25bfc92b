package httpapi

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/podspawn/podspawn/agent/api"
	"github.com/podspawn/podspawn/sandbox"
	"github.com/podspawn/podspawn/sandbox/localapi"
)

// Verifier checks a token early, so that a request with a bad one costs the
// daemon nothing. The daemon verifies again: a Verifier that lets too much pass
// opens nothing. It is called concurrently.
type Verifier interface {
	Verify(raw string, now time.Time) error
}

// maxToken bounds a token, in bytes.
const maxToken = 8 << 10

const authHint = "send Authorization: Bearer and a token of podspawn token create"

// apiKey is the context key of the caller's API.
type apiKey struct{}

// APIFrom returns the API of the request that ctx belongs to, as its caller sees
// it: for handlers behind the gate that know only a context (MCP).
func APIFrom(ctx context.Context) (api.API, error) {
	if a, ok := ctx.Value(apiKey{}).(api.API); ok {
		return a, nil
	}
	return nil, sandbox.Errorf(sandbox.KindUnauthorized, authHint, "no credential")
}

// credential returns the caller's credential. A token goes before the peer: who
// sends one wants to be its subject.
func credential(r *http.Request) (localapi.Auth, error) {
	values := r.Header.Values("Authorization")
	if len(values) == 0 {
		if peer, ok := r.Context().Value(peerKey{}).(string); ok && peer != "" {
			return localapi.Auth{Peer: peer}, nil
		}
		return localapi.Auth{}, errNoCredential
	}
	if len(values) > 1 {
		return localapi.Auth{}, sandbox.Errorf(sandbox.KindUnauthorized, authHint, "more than one Authorization header")
	}
	scheme, token, _ := strings.Cut(values[0], " ")
	if !strings.EqualFold(scheme, "Bearer") || token == "" {
		return localapi.Auth{}, sandbox.Errorf(sandbox.KindUnauthorized, authHint, "the Authorization header is not Bearer and a token")
	}
	if len(token) > maxToken || strings.ContainsFunc(token, func(c rune) bool { return c <= ' ' || c > '~' }) {
		return localapi.Auth{}, sandbox.Errorf(sandbox.KindUnauthorized, authHint, "the bearer token has no valid form")
	}
	return localapi.Auth{Bearer: localapi.Secret(token)}, nil
}

// errNoCredential is told apart because RFC 6750 wants no error code for it.
var errNoCredential = sandbox.Errorf(sandbox.KindUnauthorized, authHint, "no credential")

// authenticate refuses requests without a credential that could be good.
func (a *app) authenticate(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		auth, err := credential(c.Request())
		if err != nil {
			if errors.Is(err, errNoCredential) {
				c.Set(bareChallenge, true)
			}
			return err
		}
		if auth.Bearer != "" && a.verifier != nil {
			if err := a.verifier.Verify(auth.Bearer.Reveal(), time.Now()); err != nil {
				return refused(err)
			}
		}
		release, err := a.slots.take(auth)
		if err != nil {
			return err
		}
		defer release()
		c.Set(authKey, auth)
		return next(c)
	}
}

// refused is a token that the Verifier does not accept. Its reason goes to the
// log; who sent the token learns a public reason or none.
func refused(err error) error {
	if e, ok := errors.AsType[*sandbox.Error](err); ok {
		return e
	}
	return &sandbox.Error{
		Kind: sandbox.KindUnauthorized, Msg: "the token is not valid", Err: err,
		Hint: "it may have expired; make another with podspawn token create",
	}
}

// Keys of echo's context.
const (
	authKey       = "auth"
	scopeKey      = "scope"
	bareChallenge = "bare_challenge"
	requestIDKey  = "request_id"
)

func (a *app) caller(c echo.Context) api.API {
	auth, _ := c.Get(authKey).(localapi.Auth) // the zero Auth opens nothing
	return a.service.As(auth)
}

// challenge is the value of WWW-Authenticate, RFC 6750.
func challenge(c echo.Context, code, scope string) string {
	v := `Bearer realm="podspawn"`
	if bare, _ := c.Get(bareChallenge).(bool); !bare {
		v += `, error="` + code + `"`
	}
	if scope != "" {
		v += `, scope="` + scope + `"`
	}
	return v
}

// needs notes which scope a route needs, for the challenge. The daemon decides.
func needs(s sandbox.Scope) echo.MiddlewareFunc {
	return func(next echo.HandlerFunc) echo.HandlerFunc {
		return func(c echo.Context) error {
			c.Set(scopeKey, s)
			return next(c)
		}
	}
}

func neededScope(c echo.Context) string {
	s, _ := c.Get(scopeKey).(sandbox.Scope)
	return string(s)
}
