package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"path"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/podspawn/podspawn/agent/api"
	"github.com/podspawn/podspawn/sandbox"
	"github.com/podspawn/podspawn/sandbox/localapi"
)

// DefaultServer is the service on this host.
const DefaultServer = "unix:///run/podspawn/podspawn.sock"

// Bounds of an answer. An exec's carries two capped streams.
const (
	maxAnswer   = 32 << 20
	dialTimeout = 5 * time.Second
)

// Config says which service to call, and as whom.
type Config struct {
	Server    string          // unix:///path, http://… or https://…; "" is DefaultServer
	Token     localapi.Secret // "" is none, for the socket's peer credentials
	UserAgent string
	// Dial, when set, makes the connections to Server, which is then only a name.
	Dial func(context.Context) (net.Conn, error)
}

// Client calls the service. It connects with the first call. It is safe for
// concurrent use.
type Client struct {
	base   string // scheme and host, no path
	where  string // for people
	socket bool
	token  localapi.Secret
	agent  string
	http   *http.Client
}

var _ api.API = (*Client)(nil)

// New returns a Client. Errors are *sandbox.Error of KindInvalidSpec: the
// address is none, or it would carry the token in the clear across a network.
func New(cfg Config) (*Client, error) {
	server := cfg.Server
	if server == "" {
		server = DefaultServer
	}
	if cfg.Dial != nil {
		return &Client{
			base: "http://podspawn.sock", where: server, agent: cfg.UserAgent, token: cfg.Token,
			http: &http.Client{
				Transport: &http.Transport{
					DialContext:  func(ctx context.Context, _, _ string) (net.Conn, error) { return cfg.Dial(ctx) },
					MaxIdleConns: 4, IdleConnTimeout: 30 * time.Second, MaxResponseHeaderBytes: 64 << 10,
				},
				CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
			},
		}, nil
	}
	u, err := url.Parse(server)
	if err != nil || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, badServer(server)
	}
	c := &Client{token: cfg.Token, agent: cfg.UserAgent}
	dialer := &net.Dialer{Timeout: dialTimeout}
	tr := &http.Transport{
		DialContext: dialer.DialContext, TLSHandshakeTimeout: 10 * time.Second,
		MaxIdleConns: 4, IdleConnTimeout: 30 * time.Second, MaxResponseHeaderBytes: 64 << 10,
	}
	switch u.Scheme {
	case "unix":
		if u.Host != "" || !path.IsAbs(u.Path) {
			return nil, badServer(server)
		}
		socket := u.Path
		tr.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "unix", socket)
		}
		c.base, c.where, c.socket = "http://podspawn.sock", socket, true
	case "http", "https":
		if u.Host == "" || (u.Path != "" && u.Path != "/") {
			return nil, badServer(server)
		}
		if u.Scheme == "http" && cfg.Token != "" && !loopback(u.Hostname()) {
			return nil, sandbox.Errorf(sandbox.KindInvalidSpec, "use https, or a tunnel to 127.0.0.1",
				"refusing to send a token to %s without TLS", u.Host)
		}
		tr.Proxy = http.ProxyFromEnvironment
		c.base, c.where = u.Scheme+"://"+u.Host, u.Host
	default:
		return nil, badServer(server)
	}
	c.http = &http.Client{
		Transport: tr,
		// A redirect could carry the token elsewhere; the API has none.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return c, nil
}

func badServer(server string) error {
	if len(server) > 80 {
		server = server[:80] + "…"
	}
	return sandbox.Errorf(sandbox.KindInvalidSpec, "write it like https://host:port or unix:///run/podspawn/podspawn.sock",
		"%q is no server", server)
}

func loopback(host string) bool {
	if strings.EqualFold(host, "localhost") {
		return true
	}
	a, err := netip.ParseAddr(host)
	return err == nil && a.IsLoopback()
}

// Close closes idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Create makes a sandbox.
func (c *Client) Create(ctx context.Context, r api.CreateRequest) (api.Sandbox, error) {
	h := http.Header{}
	if r.IdempotencyKey != "" {
		h.Set("Idempotency-Key", r.IdempotencyKey)
	}
	if r.Maker != "" {
		h.Set(api.MakerHeader, string(r.Maker))
	}
	var out api.Sandbox
	return out, c.do(ctx, http.MethodPost, "/v1/sandboxes", h, r, &out)
}

// Validate says what Create would make of r.
func (c *Client) Validate(ctx context.Context, r api.CreateRequest) (api.Validation, error) {
	h := http.Header{}
	if r.Maker != "" {
		h.Set(api.MakerHeader, string(r.Maker))
	}
	var out api.Validation
	return out, c.do(ctx, http.MethodPost, "/v1/validate", h, r, &out)
}

// Get returns one sandbox.
func (c *Client) Get(ctx context.Context, ref string) (api.Sandbox, error) {
	var out api.Sandbox
	return out, c.do(ctx, http.MethodGet, of(ref), nil, nil, &out)
}

// List returns a page of sandboxes.
func (c *Client) List(ctx context.Context, r api.ListRequest) (api.List, error) {
	q := url.Values{}
	if r.Cursor != "" {
		q.Set("cursor", r.Cursor)
	}
	if r.Limit != 0 {
		q.Set("limit", strconv.Itoa(r.Limit))
	}
	if r.Final {
		q.Set("all", "true")
	}
	if r.AllTenants {
		q.Set("tenants", "all")
	}
	for k, v := range r.Labels {
		q.Add("label", k+"="+v)
	}
	p := "/v1/sandboxes"
	if len(q) > 0 {
		p += "?" + q.Encode()
	}
	var out api.List
	return out, c.do(ctx, http.MethodGet, p, nil, nil, &out)
}

// Extend sets the end to now + ttl.
func (c *Client) Extend(ctx context.Context, ref string, ttl time.Duration) (api.Sandbox, error) {
	var out api.Sandbox
	return out, c.do(ctx, http.MethodPatch, of(ref), nil, api.ExtendRequest{TTL: api.Duration(ttl)}, &out)
}

// Destroy destroys a sandbox.
func (c *Client) Destroy(ctx context.Context, ref string) (api.Sandbox, error) {
	var out api.Sandbox
	return out, c.do(ctx, http.MethodDelete, of(ref), nil, nil, &out)
}

// Certificate asks for a certificate. Its Command and Config are the server's
// words: write your own with package sshconfig.
func (c *Client) Certificate(ctx context.Context, ref string, r api.CertificateRequest) (api.SSH, error) {
	var out api.SSH
	return out, c.do(ctx, http.MethodPost, of(ref)+"/certificates", nil, r, &out)
}

// Exec runs a command to its end. Cancelling ctx kills it.
func (c *Client) Exec(ctx context.Context, ref string, r api.ExecRequest) (api.ExecResult, error) {
	var out api.ExecResult
	return out, c.do(ctx, http.MethodPost, of(ref)+"/exec", nil, r, &out)
}

// CA returns the certificate authorities.
func (c *Client) CA(ctx context.Context) (api.CA, error) {
	var out api.CA
	return out, c.do(ctx, http.MethodGet, "/v1/ca", nil, nil, &out)
}

// CreateToken makes an API token.
func (c *Client) CreateToken(ctx context.Context, r api.TokenRequest) (api.Token, error) {
	var out api.Token
	return out, c.do(ctx, http.MethodPost, "/v1/tokens", nil, r, &out)
}

func of(ref string) string { return "/v1/sandboxes/" + url.PathEscape(ref) }

func (c *Client) do(ctx context.Context, method, target string, h http.Header, in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("encode request: %w", err)
		}
		body = bytes.NewReader(b)
	}
	if h == nil {
		h = http.Header{}
	}
	h.Set("Accept", "application/json")
	if in != nil {
		h.Set("Content-Type", "application/json")
	}
	resp, err := c.send(ctx, method, target, h, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return c.read(ctx, resp, out)
}

// read reads a JSON answer into out, or the error that it is.
func (c *Client) read(ctx context.Context, resp *http.Response, out any) error {
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return c.unreachable(ctx, err)
	}
	if len(b) > maxAnswer {
		return sandbox.Errorf(sandbox.KindInternal, "is that a podspawn server?", "the answer of %s exceeds %d MiB", c.where, maxAnswer>>20)
	}
	mt, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type")) // "" is handled below
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		return c.problem(resp.StatusCode, mt, b)
	}
	if mt != "application/json" {
		return c.noServer(resp.StatusCode)
	}
	if err := json.Unmarshal(b, out); err != nil {
		return &sandbox.Error{
			Kind: sandbox.KindInternal, Msg: "the answer of " + c.where + " can't be read",
			Hint: "client and server may be of different versions", Err: err,
		}
	}
	return nil
}

// problem turns an RFC 9457 answer back into the error that it was.
func (c *Client) problem(status int, mediaType string, b []byte) error {
	var p api.Problem
	if mediaType != "application/problem+json" || json.Unmarshal(b, &p) != nil || p.Code == "" {
		return c.noServer(status)
	}
	return &sandbox.Error{Kind: sandbox.Kind(clean(string(p.Code))), Msg: clean(p.Detail), Hint: clean(p.Hint)}
}

func (c *Client) noServer(status int) error {
	return sandbox.Errorf(sandbox.KindUnavailable, "check the address; a proxy in between may have answered",
		"%s answered %d, not as a podspawn server does", c.where, status)
}

func (c *Client) unreachable(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("call %s: %w", c.where, context.Cause(ctx))
	}
	// The URL in a *url.Error repeats what the caller knows.
	if ue, ok := errors.AsType[*url.Error](err); ok {
		err = ue.Err
	}
	hint := "check the address, and that the service runs there"
	if c.socket {
		hint = "start it with podspawn daemon and podspawn serve; podspawn doctor shows what is wrong"
	}
	return &sandbox.Error{Kind: sandbox.KindUnavailable, Msg: "no podspawn service answers at " + c.where, Hint: hint, Err: err}
}

// clean makes one printable, bounded line of a server's text.
func clean(s string) string {
	const most = 1000
	if len(s) > most {
		s = s[:most] + "…"
	}
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, strings.ToValidUTF8(s, "?"))
}
