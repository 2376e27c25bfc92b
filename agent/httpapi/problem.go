package httpapi

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"

	"github.com/labstack/echo/v4"

	"github.com/podspawn/podspawn/agent/api"
	"github.com/podspawn/podspawn/sandbox"
)

// statusOf is the one place where kinds become status codes.
func statusOf(k sandbox.Kind) int {
	switch k {
	case sandbox.KindInvalidSpec, sandbox.KindUnknownField:
		return http.StatusBadRequest
	case sandbox.KindUnauthorized:
		return http.StatusUnauthorized
	case sandbox.KindInsufficientScope, sandbox.KindPolicy, sandbox.KindEgressDenied:
		return http.StatusForbidden
	case sandbox.KindNotFound:
		return http.StatusNotFound
	case sandbox.KindGone:
		return http.StatusGone
	case sandbox.KindConflict, sandbox.KindNotReady:
		return http.StatusConflict
	case sandbox.KindImageNotFound, sandbox.KindIdempotencyMismatch:
		return http.StatusUnprocessableEntity
	case sandbox.KindQuota:
		return http.StatusTooManyRequests
	case sandbox.KindCapacity, sandbox.KindUnavailable:
		return http.StatusServiceUnavailable
	case sandbox.KindTimeout:
		return http.StatusGatewayTimeout
	case sandbox.KindInternal:
		return http.StatusInternalServerError
	}
	return http.StatusInternalServerError
}

// retryAfter says in how many seconds the same request may succeed; 0 is never by itself.
func retryAfter(k sandbox.Kind) int {
	switch k {
	case sandbox.KindNotReady:
		return 1
	case sandbox.KindUnavailable, sandbox.KindTimeout:
		return 5
	case sandbox.KindCapacity, sandbox.KindQuota:
		return 30
	default:
		return 0
	}
}

// statusError is an error whose status says more than its kind does.
type statusError struct {
	status int
	err    *sandbox.Error
}

func (e *statusError) Error() string { return e.err.Error() }
func (e *statusError) Unwrap() error { return e.err }

func withStatus(status int, kind sandbox.Kind, hint, format string, args ...any) error {
	return &statusError{status, sandbox.Errorf(kind, hint, format, args...)}
}

// fail answers with a problem. It is echo's error handler: every error of
// routes, middleware and handlers comes here.
func (a *app) fail(err error, c echo.Context) {
	ctx := c.Request().Context()
	if c.Response().Committed {
		return // the client has an answer, or has gone in the middle of it
	}
	err = translate(err, c)
	public := sandbox.Public(err)
	status := statusOf(public.Kind)
	if se, ok := errors.AsType[*statusError](err); ok {
		status = se.status
	}
	h := c.Response().Header()
	switch status {
	case http.StatusUnauthorized:
		h.Set("WWW-Authenticate", challenge(c, "invalid_token", ""))
	case http.StatusForbidden:
		if public.Kind == sandbox.KindInsufficientScope {
			h.Set("WWW-Authenticate", challenge(c, "insufficient_scope", neededScope(c)))
		}
	}
	if s := retryAfter(public.Kind); s > 0 {
		h.Set("Retry-After", strconv.Itoa(s))
	}
	if status >= http.StatusInternalServerError && ctx.Err() == nil {
		a.log.ErrorContext(ctx, "request failed", "request_id", requestID(c), "route", c.Path(), "error", err)
	}
	writeProblem(c.Response(), status, public)
}

func writeProblem(w http.ResponseWriter, status int, e *sandbox.Error) {
	b, err := json.Marshal(api.Problem{
		Type: "about:blank", Title: http.StatusText(status), Status: status,
		Detail: e.Msg, Code: e.Kind, Hint: e.Hint,
	})
	if err != nil { // a struct of strings always marshals
		panic("httpapi: problem does not marshal: " + err.Error())
	}
	w.Header().Set("Content-Type", "application/problem+json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write(append(b, '\n')) // the client has gone; nobody is left to tell
}

// translate gives the router's and net/http's own errors a kind.
func translate(err error, c echo.Context) error {
	if he, ok := errors.AsType[*echo.HTTPError](err); ok {
		switch he.Code {
		case http.StatusNotFound:
			return withStatus(he.Code, sandbox.KindNotFound,
				"this version serves /v1/sandboxes, /v1/validate, /v1/tokens, /v1/ca, /mcp, /healthz and /readyz", "there is nothing at this path")
		case http.StatusMethodNotAllowed:
			return withStatus(he.Code, sandbox.KindInvalidSpec,
				"use one of "+c.Response().Header().Get("Allow"), "method %s is not allowed here", clip(c.Request().Method))
		}
		return fmt.Errorf("router: %w", err)
	}
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return withStatus(http.StatusRequestEntityTooLarge, sandbox.KindInvalidSpec, "send less", "the body exceeds %d bytes", api.MaxBody)
	}
	return err
}

func clip(s string) string {
	if len(s) > 40 {
		return s[:40] + "…"
	}
	return s
}
