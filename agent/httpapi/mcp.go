package httpapi

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/podspawn/podspawn/sandbox"
	"github.com/podspawn/podspawn/sandbox/localapi"
)

// mcpAnswer is how long an MCP message may take; tools answer within 25 s.
const mcpAnswer = 30 * time.Second

// serveMCP is the gate before MCP: whatever comes past it has a credential that
// the daemon accepts and the scope that the message needs, or gets 401 or 403 as
// the MCP specification wants it. A session id opens nothing: there are none.
func (a *app) serveMCP(c echo.Context) error {
	r := c.Request()
	auth, _ := c.Get(authKey).(localapi.Auth)
	if r.Method != http.MethodPost {
		// There is no stream to GET and no session to DELETE.
		c.Response().Header().Set("Allow", http.MethodPost)
		return withStatus(http.StatusMethodNotAllowed, sandbox.KindInvalidSpec, "use POST", "method %s is not allowed here", clip(r.Method))
	}
	b, err := body(c)
	if err != nil {
		return err
	}
	if err := a.mayCall(c, auth, b); err != nil {
		return err
	}
	if err := longAnswer(c, mcpAnswer); err != nil {
		return err
	}
	r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(b)), int64(len(b))
	ctx := context.WithValue(r.Context(), apiKey{}, a.service.As(auth))
	// The handler has no use for the credential, and what it has not it can't leak.
	r = r.Clone(ctx)
	r.Header.Del("Authorization")
	a.mcp.ServeHTTP(c.Response(), r)
	return nil
}

func (a *app) mayCall(c echo.Context, auth localapi.Auth, message []byte) error {
	who, err := a.service.WhoAmI(c.Request().Context(), auth)
	if err != nil {
		return err
	}
	if a.mcpScope == nil {
		return nil
	}
	need := a.mcpScope(message)
	if need == "" || who.Can(need) {
		return nil
	}
	c.Set(scopeKey, need)
	return sandbox.Errorf(sandbox.KindInsufficientScope, "ask for a token with "+string(need), "the token does not have the scope %s", need)
}
