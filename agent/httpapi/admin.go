package httpapi

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/podspawn/podspawn/agent/api"
)

// revokeAnswer is how long ending what was revoked may take.
const revokeAnswer = time.Minute

// admin answers a request of an administrator: it reads the body into in, unless
// that is nil, and writes what do returns.
func (a *app) admin(c echo.Context, in any, do func(ctx context.Context, by api.Admin) (any, error)) error {
	if err := errors.Join(noQuery(c), noIdempotencyKey(c)); err != nil {
		return err
	}
	if in != nil {
		if err := decode(c, in); err != nil {
			return err
		}
	}
	by, ok := a.caller(c).(api.Admin)
	if !ok {
		return errors.New("the service has nothing for administrators")
	}
	if err := longAnswer(c, revokeAnswer); err != nil {
		return err
	}
	out, err := do(c.Request().Context(), by)
	if err != nil {
		return err
	}
	return a.answer(c, http.StatusOK, out)
}

func (a *app) tokens(c echo.Context) error {
	return a.admin(c, nil, func(ctx context.Context, by api.Admin) (any, error) { return by.Tokens(ctx) })
}

func (a *app) revokeToken(c echo.Context) error {
	return a.admin(c, nil, func(ctx context.Context, by api.Admin) (any, error) { return by.RevokeToken(ctx, c.Param("id")) })
}

func (a *app) revoke(c echo.Context) error {
	var r api.RevokeRequest
	return a.admin(c, &r, func(ctx context.Context, by api.Admin) (any, error) { return by.Revoke(ctx, r.Certificate) })
}

func (a *app) rotateCA(c echo.Context) error {
	var r api.RotateRequest
	return a.admin(c, &r, func(ctx context.Context, by api.Admin) (any, error) { return by.RotateCA(ctx, r) })
}

func (a *app) drain(c echo.Context) error {
	var r api.DrainRequest
	return a.admin(c, &r, func(ctx context.Context, by api.Admin) (any, error) { return by.Drain(ctx, r) })
}
