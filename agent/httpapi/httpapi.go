package httpapi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"runtime/debug"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/podspawn/podspawn/agent/api"
	"github.com/podspawn/podspawn/sandbox"
	"github.com/podspawn/podspawn/sandbox/localapi"
)

// Service is what the handlers need of agent.Service.
type Service interface {
	// As returns the API as the caller with this credential sees it.
	As(auth localapi.Auth) api.API
	// WhoAmI asks the daemon who the caller is.
	WhoAmI(ctx context.Context, auth localapi.Auth) (sandbox.Caller, error)
	// Ready lists what keeps sandboxes from being made; empty is ready.
	Ready(ctx context.Context) ([]string, error)
}

// Config is what New needs.
type Config struct {
	Service   Service
	Verifier  Verifier // nil leaves every check of tokens to the daemon
	PublicURL string   // under which clients reach the service, or ""
	// MCP answers /mcp behind the gate; it finds its caller with APIFrom. nil serves none.
	MCP http.Handler
	// MCPScope returns the scope that an MCP message needs, "" for none. nil asks for none.
	MCPScope func(message []byte) sandbox.Scope
	Log      *slog.Logger // nil discards
}

// app is the handlers' common ground. It is safe for concurrent use.
type app struct {
	service  Service
	verifier Verifier
	public   publicHost
	mcp      http.Handler
	mcpScope func([]byte) sandbox.Scope
	log      *slog.Logger
	slots    *slots
}

// New returns the handler for all of the API. Serve it with [Serve].
func New(cfg Config) (http.Handler, error) {
	if cfg.Service == nil {
		return nil, errors.New("httpapi: no service")
	}
	a := &app{service: cfg.Service, verifier: cfg.Verifier, mcp: cfg.MCP, mcpScope: cfg.MCPScope, log: cfg.Log, slots: newSlots()}
	if a.log == nil {
		a.log = slog.New(slog.DiscardHandler)
	}
	if cfg.PublicURL != "" {
		u, err := url.Parse(cfg.PublicURL)
		if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
			return nil, fmt.Errorf("httpapi: public URL %q is no http or https URL", cfg.PublicURL)
		}
		a.public = publicHost(u.Host)
	}
	e := echo.New()
	e.HTTPErrorHandler = a.fail
	e.Pre(a.observe, a.recover, a.guardBrowser)
	e.GET("/healthz", a.healthz)
	e.GET("/readyz", a.readyz)

	// Not an echo.Group: with middleware that answers every path below it, which
	// turns 405 into 404.
	for _, r := range []struct {
		method, path string
		scope        sandbox.Scope
		handler      echo.HandlerFunc
	}{
		{http.MethodPost, "/v1/sandboxes", sandbox.ScopeRun, a.create},
		{http.MethodPost, "/v1/validate", sandbox.ScopeRead, a.validate},
		{http.MethodGet, "/v1/sandboxes", sandbox.ScopeRead, a.list},
		{http.MethodGet, "/v1/sandboxes/:id", sandbox.ScopeRead, a.get},
		{http.MethodPatch, "/v1/sandboxes/:id", sandbox.ScopeRun, a.extend},
		{http.MethodDelete, "/v1/sandboxes/:id", sandbox.ScopeRun, a.destroy},
		{http.MethodPost, "/v1/sandboxes/:id/certificates", sandbox.ScopeRun, a.certificate},
		{http.MethodPost, "/v1/sandboxes/:id/exec", sandbox.ScopeRun, a.exec},
		{http.MethodGet, "/v1/sandboxes/:id/exec/:exec", sandbox.ScopeRun, a.pollExec},
		{http.MethodPost, "/v1/sandboxes/:id/exec/:exec/input", sandbox.ScopeRun, a.inputExec},
		{http.MethodPost, "/v1/sandboxes/:id/exec/:exec/signal", sandbox.ScopeRun, a.signalExec},
		{http.MethodGet, "/v1/sandboxes/:id/files", sandbox.ScopeRun, a.readFile},
		{http.MethodPut, "/v1/sandboxes/:id/files", sandbox.ScopeRun, a.writeFile},
		{http.MethodDelete, "/v1/sandboxes/:id/files", sandbox.ScopeRun, a.deleteFile},
		{http.MethodGet, "/v1/sandboxes/:id/files/list", sandbox.ScopeRun, a.listFiles},
		{http.MethodPost, "/v1/tokens", sandbox.ScopeAdmin, a.token},
		{http.MethodGet, "/v1/ca", "", a.ca},
		{http.MethodGet, "/v1/tokens", sandbox.ScopeAdmin, a.tokens},
		{http.MethodDelete, "/v1/tokens/:id", sandbox.ScopeAdmin, a.revokeToken},
		{http.MethodPost, "/v1/ca/revoke", sandbox.ScopeAdmin, a.revoke},
		{http.MethodPost, "/v1/ca/rotate", sandbox.ScopeAdmin, a.rotateCA},
		{http.MethodPost, "/v1/drain", sandbox.ScopeAdmin, a.drain},
	} {
		e.Add(r.method, r.path, r.handler, a.authenticate, needs(r.scope))
	}
	if a.mcp != nil {
		e.Any("/mcp", a.serveMCP, a.authenticate)
	}
	return e, nil
}

// observe gives the request an id and logs it: never its headers, query or body.
func (a *app) observe(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		began := time.Now()
		id := sandbox.NewToken("req_")
		c.Set(requestIDKey, id)
		h := c.Response().Header()
		h.Set("X-Request-Id", id)
		h.Set("X-Content-Type-Options", "nosniff")
		if err := next(c); err != nil {
			c.Error(err)
		}
		r := c.Request()
		a.log.InfoContext(r.Context(), "request", "request_id", id, "method", clip(r.Method), "path", clipPath(r.URL.Path),
			"status", c.Response().Status, "took", time.Since(began), "remote", r.RemoteAddr)
		return nil
	}
}

func clipPath(p string) string {
	if len(p) > 200 {
		return p[:200] + "…"
	}
	return p
}

func requestID(c echo.Context) string {
	id, _ := c.Get(requestIDKey).(string)
	return id
}

// recover answers a panic like any other internal error.
func (a *app) recover(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) (err error) {
		defer func() {
			switch p := recover(); p {
			case nil:
			case http.ErrAbortHandler:
				panic(p) // net/http's own way to end a connection
			default:
				a.log.ErrorContext(c.Request().Context(), "panic", "request_id", requestID(c), "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
				err = fmt.Errorf("panic in %s", c.Path())
			}
		}()
		return next(c)
	}
}

func (a *app) healthz(c echo.Context) error {
	return c.JSON(http.StatusOK, map[string]string{"status": "ok"})
}

// readyz needs no credential and so names no cause beyond the daemon's own words.
func (a *app) readyz(c echo.Context) error {
	problems, err := a.service.Ready(c.Request().Context())
	if err != nil {
		return err
	}
	if len(problems) > 0 {
		return sandbox.Errorf(sandbox.KindUnavailable, "run podspawn doctor on the host", "not ready: %s", problems[0])
	}
	return c.JSON(http.StatusOK, map[string]string{"status": "ready"})
}
