package httpapi

import (
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"

	"github.com/labstack/echo/v4"

	"github.com/podspawn/podspawn/sandbox"
)

// guardBrowser refuses what only a web page would send. A page can make its
// viewer's browser call a service on 127.0.0.1, also under a name of the page's
// own that it lets resolve there (DNS rebinding): so on a loopback listener the
// Host must be a loopback name or our public one, and everywhere an Origin must be
// the service's own. Requests through podspawn.sock have no such Host.
func (a *app) guardBrowser(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		r := c.Request()
		if local, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); ok && loopbackAddr(local) &&
			!loopbackHost(hostname(r.Host)) && !a.public.is(r.Host) {
			return withStatus(http.StatusForbidden, sandbox.KindPolicy,
				"use 127.0.0.1 or localhost, or set public_url", "host %q is not this service's", clip(r.Host))
		}
		if origins := r.Header.Values("Origin"); len(origins) > 0 && !a.sameOrigin(r, origins) {
			return withStatus(http.StatusForbidden, sandbox.KindPolicy,
				"call it from a program, not from a web page", "requests from another web origin are refused")
		}
		return next(c)
	}
}

func (a *app) sameOrigin(r *http.Request, origins []string) bool {
	if len(origins) != 1 {
		return false
	}
	u, err := url.Parse(origins[0])
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
		return false
	}
	return strings.EqualFold(u.Host, r.Host) || a.public.is(u.Host)
}

// publicHost is the host and port of the configured public URL, or "".
type publicHost string

func (p publicHost) is(host string) bool { return p != "" && strings.EqualFold(string(p), host) }

func loopbackAddr(a net.Addr) bool {
	t, ok := a.(*net.TCPAddr)
	return ok && t.IP.IsLoopback()
}

func hostname(hostport string) string {
	if h, _, err := net.SplitHostPort(hostport); err == nil {
		return h
	}
	return strings.Trim(hostport, "[]")
}

func loopbackHost(h string) bool {
	if strings.EqualFold(h, "localhost") {
		return true
	}
	a, err := netip.ParseAddr(h)
	return err == nil && a.IsLoopback()
}
