package httpapi

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/labstack/echo/v4"

	"github.com/podspawn/podspawn/agent/api"
	"github.com/podspawn/podspawn/sandbox"
)

const mediaEvents = "text/event-stream"

// ref is the sandbox in the path; "-" stands for any, since an exec id is enough.
func ref(c echo.Context) string {
	if id := c.Param("id"); id != "-" {
		return id
	}
	return ""
}

func (a *app) pollExec(c echo.Context) error {
	if err := noQuery(c, "cursor", "wait_seconds", "max_output_bytes"); err != nil {
		return err
	}
	p := api.ExecPoll{Cursor: c.QueryParam("cursor")}
	if v := c.QueryParam("wait_seconds"); v != "" {
		n, err := strconv.ParseFloat(v, 64)
		if err != nil || !(n >= 0 && n <= 50) {
			return sandbox.Errorf(sandbox.KindInvalidSpec, "use 0 to 50", "wait_seconds %q is out of range", clip(v))
		}
		p.Wait = time.Duration(n * float64(time.Second))
	}
	if v := c.QueryParam("max_output_bytes"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil || n < 1 {
			return sandbox.Errorf(sandbox.KindInvalidSpec, "use 1 to 1048576", "max_output_bytes %q is out of range", clip(v))
		}
		p.MaxOutput = n
	}
	if err := longAnswer(c, p.Wait); err != nil {
		return err
	}
	res, err := a.caller(c).PollExec(c.Request().Context(), ref(c), c.Param("exec"), p)
	if err != nil {
		return err
	}
	return a.answer(c, http.StatusOK, res)
}

func (a *app) inputExec(c echo.Context) error {
	for _, err := range []error{noQuery(c), noIdempotencyKey(c)} {
		if err != nil {
			return err
		}
	}
	var r api.ExecInput
	if err := decode(c, &r); err != nil {
		return err
	}
	ok, err := a.caller(c).InputExec(c.Request().Context(), ref(c), c.Param("exec"), r)
	if err != nil {
		return err
	}
	return a.answer(c, http.StatusOK, ok)
}

func (a *app) signalExec(c echo.Context) error {
	for _, err := range []error{noQuery(c), noIdempotencyKey(c)} {
		if err != nil {
			return err
		}
	}
	var r api.ExecSignal
	if err := decode(c, &r); err != nil {
		return err
	}
	ok, err := a.caller(c).SignalExec(c.Request().Context(), ref(c), c.Param("exec"), r)
	if err != nil {
		return err
	}
	return a.answer(c, http.StatusOK, ok)
}

// streamExec answers with server-sent events: started, stdout and stderr with
// their data, exit at the end, error when it broke off. A client that takes nothing
// stops the process, and after a while ends it.
func (a *app) streamExec(c echo.Context, r api.ExecRequest) error {
	// The first write decides: until then a failure has its own status.
	w := steadyWriter{c}
	begun := false
	err := a.caller(c).StreamExec(c.Request().Context(), c.Param("id"), r, func(e api.ExecEvent) error {
		if !begun {
			begun = true
			h := c.Response().Header()
			h.Set("Content-Type", mediaEvents)
			h.Set("Cache-Control", "no-store")
			h.Set("X-Accel-Buffering", "no")
			c.Response().WriteHeader(http.StatusOK)
		}
		text, err := eventText(e)
		if err != nil {
			return err
		}
		if _, err := w.Write(text); err != nil {
			return fmt.Errorf("write event: %w", err)
		}
		c.Response().Flush()
		return nil
	})
	if err == nil || !begun {
		return err
	}
	if c.Request().Context().Err() != nil {
		return nil // the client has gone
	}
	e := sandbox.Public(err)
	if e.Kind == sandbox.KindInternal {
		a.log.ErrorContext(c.Request().Context(), "stream failed", "request_id", requestID(c), "error", err)
	}
	b, err := json.Marshal(api.Problem{
		Type: "about:blank", Title: http.StatusText(statusOf(e.Kind)), Status: statusOf(e.Kind), Detail: e.Msg, Code: e.Kind, Hint: e.Hint,
	})
	if err != nil {
		return fmt.Errorf("encode problem: %w", err)
	}
	_, _ = fmt.Fprintf(w, "event: error\ndata: %s\n\n", b) // the client has gone; nobody is left to tell
	return nil
}

func eventText(e api.ExecEvent) ([]byte, error) {
	var v any
	switch e.Kind {
	case "ping":
		return []byte(": ping\n\n"), nil
	case "started":
		v = map[string]string{"exec_id": e.ExecID}
	case "exit":
		v = e.Result
	default:
		d := api.StreamData{Data: string(e.Data)}
		if !utf8.Valid(e.Data) {
			d = api.StreamData{Data: base64.StdEncoding.EncodeToString(e.Data), Encoding: "base64"}
		}
		v = d
	}
	b, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encode event: %w", err)
	}
	return fmt.Appendf(nil, "event: %s\ndata: %s\n\n", e.Kind, b), nil
}
