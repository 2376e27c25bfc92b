package httpapi

import (
	"context"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/podspawn/podspawn/agent/api"
	"github.com/podspawn/podspawn/sandbox"
)

// How long the longest answers may take before they are written.
const (
	createAnswer  = 3 * time.Minute
	destroyAnswer = 30 * time.Second
	execExtra     = time.Minute // on top of the command's timeout
	maxExec       = 24 * time.Hour
)

func (a *app) create(c echo.Context) error {
	if err := noQuery(c); err != nil {
		return err
	}
	var r api.CreateRequest
	if err := decode(c, &r, "project"); err != nil {
		return err
	}
	if err := longAnswer(c, createAnswer); err != nil {
		return err
	}
	if err := maker(c, &r); err != nil {
		return err
	}
	r.IdempotencyKey = c.Request().Header.Get("Idempotency-Key")
	s, err := a.caller(c).Create(c.Request().Context(), r)
	if err != nil {
		return err
	}
	c.Response().Header().Set("Location", "/v1/sandboxes/"+string(s.ID))
	return a.answer(c, http.StatusCreated, s)
}

// maker takes over who makes the sandbox.
func maker(c echo.Context, r *api.CreateRequest) error {
	switch m := api.Maker(c.Request().Header.Get(api.MakerHeader)); m {
	case "", api.MakerHTTP:
		r.Maker = api.MakerHTTP
	case api.MakerMCP, api.MakerRun:
		r.Maker = m
	default:
		return sandbox.Errorf(sandbox.KindInvalidSpec, "leave the header out", "%s: %q is unknown", api.MakerHeader, clip(string(m)))
	}
	return nil
}

func (a *app) validate(c echo.Context) error {
	for _, err := range []error{noQuery(c), noIdempotencyKey(c)} {
		if err != nil {
			return err
		}
	}
	var r api.CreateRequest
	if err := decode(c, &r, "project"); err != nil {
		return err
	}
	if err := maker(c, &r); err != nil {
		return err
	}
	v, err := a.caller(c).Validate(c.Request().Context(), r)
	if err != nil {
		return err
	}
	return a.answer(c, http.StatusOK, v)
}

func (a *app) list(c echo.Context) error {
	if err := noQuery(c, "cursor", "limit", "label", "all", "tenants"); err != nil {
		return err
	}
	r := api.ListRequest{Cursor: c.QueryParam("cursor")}
	if v := c.QueryParam("limit"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil || n < 1 {
			return sandbox.Errorf(sandbox.KindInvalidSpec, "use 1 to 100", "limit %q is no number of sandboxes", clip(v))
		}
		r.Limit = n
	}
	if v := c.QueryParam("all"); v != "" {
		all, err := strconv.ParseBool(v)
		if err != nil {
			return sandbox.Errorf(sandbox.KindInvalidSpec, "use true or false", "all is neither true nor false")
		}
		r.Final = all
	}
	switch v := c.QueryParam("tenants"); v {
	case "":
	case "all":
		r.AllTenants = true
	default:
		return sandbox.Errorf(sandbox.KindInvalidSpec, "use all, or leave it out", "tenants %q is not all", clip(v))
	}
	for _, l := range c.QueryParams()["label"] {
		k, v, ok := strings.Cut(l, "=")
		if !ok {
			return sandbox.Errorf(sandbox.KindInvalidSpec, "write it like label=team=web", "label %q is not KEY=VALUE", clip(l))
		}
		if r.Labels == nil {
			r.Labels = map[string]string{}
		}
		r.Labels[k] = v
	}
	l, err := a.caller(c).List(c.Request().Context(), r)
	if err != nil {
		return err
	}
	return a.answer(c, http.StatusOK, l)
}

func (a *app) get(c echo.Context) error {
	if err := noQuery(c); err != nil {
		return err
	}
	s, err := a.caller(c).Get(c.Request().Context(), c.Param("id"))
	if err != nil {
		return err
	}
	return a.answer(c, http.StatusOK, s)
}

func (a *app) extend(c echo.Context) error {
	if err := noQuery(c); err != nil {
		return err
	}
	var r api.ExtendRequest
	if err := decode(c, &r); err != nil {
		return err
	}
	s, err := a.caller(c).Extend(c.Request().Context(), c.Param("id"), time.Duration(r.TTL))
	if err != nil {
		return err
	}
	return a.answer(c, http.StatusOK, s)
}

func (a *app) destroy(c echo.Context) error {
	if err := noQuery(c); err != nil {
		return err
	}
	if err := longAnswer(c, destroyAnswer); err != nil {
		return err
	}
	// Destruction goes on when the client has gone; so does waiting for its result.
	s, err := a.caller(c).Destroy(context.WithoutCancel(c.Request().Context()), c.Param("id"))
	if err != nil {
		return err
	}
	status := http.StatusAccepted
	if s.State.Final() {
		status = http.StatusOK
	}
	return a.answer(c, status, s)
}

func (a *app) certificate(c echo.Context) error {
	for _, err := range []error{noQuery(c), noIdempotencyKey(c), accepts(c, "application/x-tar")} {
		if err != nil {
			return err
		}
	}
	var r api.CertificateRequest
	if err := decode(c, &r); err != nil {
		return err
	}
	s, err := a.caller(c).Certificate(c.Request().Context(), c.Param("id"), r)
	if err != nil {
		return err
	}
	return a.answer(c, http.StatusCreated, s)
}

func (a *app) exec(c echo.Context) error {
	for _, err := range []error{noQuery(c), noIdempotencyKey(c)} {
		if err != nil {
			return err
		}
	}
	var r api.ExecRequest
	if err := decode(c, &r); err != nil {
		return err
	}
	if strings.Contains(c.Request().Header.Get("Accept"), mediaEvents) {
		return a.streamExec(c, r)
	}
	if r.TTY != nil && !r.Background {
		return sandbox.Errorf(sandbox.KindInvalidSpec, "ask for "+mediaEvents+", or set background", "a command with a terminal has no single answer")
	}
	timeout := min(time.Duration(r.Timeout), maxExec)
	if timeout == 0 {
		timeout = 10 * time.Minute
	}
	if err := longAnswer(c, timeout+execExtra); err != nil {
		return err
	}
	res, err := a.caller(c).Exec(c.Request().Context(), c.Param("id"), r)
	if err != nil {
		return err
	}
	return a.answer(c, http.StatusOK, res)
}

func (a *app) token(c echo.Context) error {
	for _, err := range []error{noQuery(c), noIdempotencyKey(c)} {
		if err != nil {
			return err
		}
	}
	var r api.TokenRequest
	if err := decode(c, &r); err != nil {
		return err
	}
	t, err := a.caller(c).CreateToken(c.Request().Context(), r)
	if err != nil {
		return err
	}
	return a.answer(c, http.StatusCreated, t)
}

func (a *app) ca(c echo.Context) error {
	if err := noQuery(c); err != nil {
		return err
	}
	ca, err := a.caller(c).CA(c.Request().Context())
	if err != nil {
		return err
	}
	return a.answer(c, http.StatusOK, ca)
}

// answer writes v, which no cache may keep: answers carry certificates and tokens.
func (a *app) answer(c echo.Context, status int, v any) error {
	c.Response().Header().Set("Cache-Control", "no-store")
	return c.JSON(status, v)
}
