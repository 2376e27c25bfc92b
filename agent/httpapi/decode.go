package httpapi

import (
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/podspawn/podspawn/agent/api"
	"github.com/podspawn/podspawn/sandbox"
)

// decode reads the body into v; later is as in api.Decode.
func decode(c echo.Context, v any, later ...string) error {
	b, err := body(c)
	if err != nil {
		return err
	}
	return api.Decode(b, v, later...)
}

// body reads a JSON body, bounded in size and, by the server's read timeout, in
// time. Once it is read the timeout is lifted: left running, it would end the
// context of a handler that takes longer.
func body(c echo.Context) ([]byte, error) {
	r := c.Request()
	if mt, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || mt != "application/json" {
		return nil, withStatus(http.StatusUnsupportedMediaType, sandbox.KindInvalidSpec,
			"send Content-Type: application/json", "the body's type is not application/json")
	}
	if r.Header.Get("Content-Encoding") != "" {
		return nil, withStatus(http.StatusUnsupportedMediaType, sandbox.KindInvalidSpec, "send the body as it is", "encoded bodies are not accepted")
	}
	b, err := io.ReadAll(http.MaxBytesReader(c.Response(), r.Body, api.MaxBody))
	if err != nil {
		return nil, bodyError(err)
	}
	if err := deadline(http.NewResponseController(c.Response()).SetReadDeadline(time.Time{})); err != nil {
		return nil, fmt.Errorf("lift read timeout: %w", err)
	}
	return b, nil
}

func bodyError(err error) error {
	if te, ok := err.(interface{ Timeout() bool }); ok && te.Timeout() {
		return withStatus(http.StatusRequestTimeout, sandbox.KindTimeout, "send it faster", "the body did not arrive in time")
	}
	return fmt.Errorf("read body: %w", err)
}

// longAnswer replaces the server's write timeout for a handler that may take d
// before it answers.
func longAnswer(c echo.Context, d time.Duration) error {
	err := deadline(http.NewResponseController(c.Response()).SetWriteDeadline(time.Now().Add(d + writeTimeout)))
	if err != nil {
		return fmt.Errorf("set write timeout: %w", err)
	}
	return nil
}

// deadline forgives a ResponseWriter that has no deadlines: what is not a
// connection has none to keep (a test's recorder).
func deadline(err error) error {
	if errors.Is(err, http.ErrNotSupported) {
		return nil
	}
	return err
}

// noQuery refuses query parameters that the route does not have.
func noQuery(c echo.Context, known ...string) error {
	for k, v := range c.QueryParams() {
		if !slices.Contains(known, k) {
			hint := "leave it out"
			if near := api.Nearest(k, known); near != "" {
				hint = fmt.Sprintf("did you mean %s?", near)
			}
			return sandbox.Errorf(sandbox.KindUnknownField, hint, "unknown query parameter %q", clip(k))
		}
		if len(v) > 1 && k != "label" {
			return sandbox.Errorf(sandbox.KindInvalidSpec, "give it once", "query parameter %s is given twice", k)
		}
	}
	return nil
}

// noIdempotencyKey refuses the header where this version would ignore it.
func noIdempotencyKey(c echo.Context) error {
	if c.Request().Header.Get("Idempotency-Key") != "" {
		return sandbox.Errorf(sandbox.KindInvalidSpec, "leave the header out; it works on POST /v1/sandboxes",
			"Idempotency-Key is not supported yet on this path")
	}
	return nil
}

// accepts refuses representations that the contract has and this version has not.
func accepts(c echo.Context, later string) error {
	accept := c.Request().Header.Get("Accept")
	if strings.Contains(accept, later) && !strings.Contains(accept, "application/json") && !strings.Contains(accept, "*/*") {
		return withStatus(http.StatusNotAcceptable, sandbox.KindInvalidSpec, "ask for application/json",
			"%s is not supported yet by this version", later)
	}
	return nil
}
