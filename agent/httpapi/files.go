package httpapi

import (
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/podspawn/podspawn/agent/api"
	"github.com/podspawn/podspawn/sandbox"
)

// stall is how long a transfer may stand still. A slow client is served for as
// long as it takes something; one that takes nothing is not.
const stall = time.Minute

// mediaTar is how folders travel.
const mediaTar = "application/x-tar"

func filePath(c echo.Context, more ...string) (string, error) {
	if err := noQuery(c, append(more, "path")...); err != nil {
		return "", err
	}
	p := c.QueryParam("path")
	if p == "" {
		return "", sandbox.Errorf(sandbox.KindInvalidSpec, "add ?path=/workspace/…", "the query parameter path is missing")
	}
	return p, nil
}

func (a *app) readFile(c echo.Context) error {
	p, err := filePath(c)
	if err != nil {
		return err
	}
	offset, length, ranged, err := byteRange(c.Request().Header.Get("Range"))
	if err != nil {
		return err
	}
	if err := longAnswer(c, time.Minute); err != nil {
		return err
	}
	f, err := a.caller(c).OpenFile(c.Request().Context(), c.Param("id"), api.FileRange{Path: p, Offset: offset, Length: length})
	if err != nil {
		return err
	}
	defer f.Body.Close()
	h := c.Response().Header()
	h.Set("Cache-Control", "no-store")
	// Foreign bytes: never shown by a browser as a page of ours.
	h.Set("Content-Disposition", "attachment")
	h.Set("Content-Security-Policy", "sandbox")
	h.Set("Podspawn-File-Mode", f.Info.Mode)
	h.Set("Podspawn-File-Type", f.Info.Type)
	h.Set("Podspawn-Expires-At", f.ExpiresAt.Format(time.RFC3339))
	status := http.StatusOK
	if f.Length < 0 {
		h.Set("Content-Type", mediaTar)
	} else {
		h.Set("Content-Type", "application/octet-stream")
		h.Set("Accept-Ranges", "bytes")
		h.Set("Last-Modified", f.Info.Modified.UTC().Format(http.TimeFormat))
		h.Set("Content-Length", strconv.FormatInt(f.Length, 10))
		if ranged && f.Length == 0 {
			h.Del("Content-Length")
			h.Set("Content-Range", fmt.Sprintf("bytes */%d", f.Info.Size))
			return withStatus(http.StatusRequestedRangeNotSatisfiable, sandbox.KindInvalidSpec, "ask for bytes that are there", "the file has %d bytes", f.Info.Size)
		}
		if ranged {
			status = http.StatusPartialContent
			h.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", f.Offset, f.Offset+f.Length-1, f.Info.Size))
		}
	}
	c.Response().WriteHeader(status)
	if _, err := io.Copy(steadyWriter{c}, f.Body); err != nil {
		// The status is sent: only a broken connection tells that bytes are missing.
		a.log.InfoContext(c.Request().Context(), "transfer broke off", "request_id", requestID(c), "error", err)
		panic(http.ErrAbortHandler)
	}
	return nil
}

// byteRange parses a Range header of one range; a form that is not understood is
// ignored, as RFC 9110 allows.
func byteRange(h string) (offset, length int64, ok bool, err error) {
	spec, found := strings.CutPrefix(h, "bytes=")
	if !found || strings.Contains(spec, ",") {
		return 0, 0, false, nil
	}
	from, to, found := strings.Cut(strings.TrimSpace(spec), "-")
	if !found {
		return 0, 0, false, nil
	}
	bad := withStatus(http.StatusRequestedRangeNotSatisfiable, sandbox.KindInvalidSpec, "write it like bytes=0-99, bytes=100- or bytes=-100", "the range can't be served")
	if from == "" {
		n, perr := strconv.ParseUint(to, 10, 62)
		if perr != nil || n == 0 {
			return 0, 0, false, bad
		}
		return -int64(n), 0, true, nil
	}
	first, perr := strconv.ParseUint(from, 10, 62)
	if perr != nil {
		return 0, 0, false, nil
	}
	if to == "" {
		return int64(first), 0, true, nil
	}
	last, perr := strconv.ParseUint(to, 10, 62)
	if perr != nil || last < first {
		return 0, 0, false, bad
	}
	return int64(first), int64(last-first) + 1, true, nil
}

func (a *app) writeFile(c echo.Context) error {
	p, err := filePath(c, "mode")
	if err != nil {
		return err
	}
	r := c.Request()
	body := newSteadyReader(c)
	w := api.FileWrite{Path: p, Body: body}
	if mt, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err == nil && mt == mediaTar {
		w.Tar = true
	}
	if r.Header.Get("Content-Encoding") != "" {
		return withStatus(http.StatusUnsupportedMediaType, sandbox.KindInvalidSpec, "send the bytes as they are", "encoded bodies are not accepted")
	}
	if v := c.QueryParam("mode"); v != "" {
		n, err := strconv.ParseUint(v, 8, 32)
		if err != nil || n == 0 || n > 0o777 {
			return sandbox.Errorf(sandbox.KindInvalidSpec, "use octal permission bits such as 0644", "mode %q is none", clip(v))
		}
		w.Mode = uint32(n)
	}
	out, err := a.caller(c).WriteFile(r.Context(), c.Param("id"), w)
	if err != nil {
		// What is left of the body is not worth reading.
		body.stop()
		c.Response().Header().Set("Connection", "close")
		return err
	}
	if err := longAnswer(c, 0); err != nil {
		return err
	}
	return a.answer(c, http.StatusOK, out)
}

func (a *app) deleteFile(c echo.Context) error {
	p, err := filePath(c, "recursive")
	if err != nil {
		return err
	}
	recursive := false
	if v := c.QueryParam("recursive"); v != "" {
		if recursive, err = strconv.ParseBool(v); err != nil {
			return sandbox.Errorf(sandbox.KindInvalidSpec, "use true or false", "recursive is neither true nor false")
		}
	}
	if err := longAnswer(c, time.Minute); err != nil {
		return err
	}
	if err := a.caller(c).DeleteFile(c.Request().Context(), c.Param("id"), p, recursive); err != nil {
		return err
	}
	return c.NoContent(http.StatusNoContent)
}

func (a *app) listFiles(c echo.Context) error {
	p, err := filePath(c)
	if err != nil {
		return err
	}
	l, err := a.caller(c).ListFiles(c.Request().Context(), c.Param("id"), p)
	if err != nil {
		return err
	}
	return a.answer(c, http.StatusOK, l)
}

// steadyReader reads a body for as long as something comes. Read is called from
// another goroutine than the handler's, which must not end before stop has returned.
type steadyReader struct {
	rc      *http.ResponseController
	stopped atomic.Bool

	mu sync.Mutex // held while r is read
	r  io.Reader
}

func newSteadyReader(c echo.Context) *steadyReader {
	return &steadyReader{rc: http.NewResponseController(c.Response().Writer), r: c.Request().Body}
}

func (s *steadyReader) Read(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	// Both: the server's own write timeout runs while the body is still coming.
	if err := errors.Join(deadline(s.rc.SetReadDeadline(now.Add(stall))), deadline(s.rc.SetWriteDeadline(now.Add(2*stall)))); err != nil {
		return 0, err
	}
	if s.stopped.Load() {
		return 0, http.ErrBodyReadAfterClose
	}
	n, err := s.r.Read(p)
	if err == io.EOF {
		// Left running it would end the context of the handler.
		_ = s.rc.SetReadDeadline(time.Time{}) // as above
	}
	return n, err
}

// stop ends a Read that is under way. The connection is of no further use.
func (s *steadyReader) stop() {
	s.stopped.Store(true)
	_ = s.rc.SetReadDeadline(time.Unix(1, 0)) // a recorder has none, and never waits
	s.mu.Lock()
	defer s.mu.Unlock()
}

// steadyWriter writes for as long as something is taken.
type steadyWriter struct{ c echo.Context }

func (s steadyWriter) Write(p []byte) (int, error) {
	if err := deadline(http.NewResponseController(s.c.Response()).SetWriteDeadline(time.Now().Add(stall))); err != nil {
		return 0, err
	}
	return s.c.Response().Write(p)
}
