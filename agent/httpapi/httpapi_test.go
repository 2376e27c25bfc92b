package httpapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/podspawn/podspawn/agent"
	"github.com/podspawn/podspawn/agent/agenttest"
	"github.com/podspawn/podspawn/agent/api"
	"github.com/podspawn/podspawn/agent/peersock"
	"github.com/podspawn/podspawn/agent/sshconfig"
	"github.com/podspawn/podspawn/sandbox"
	"github.com/podspawn/podspawn/sandbox/localapi"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// harness is a served API on a daemon double.
type harness struct {
	t      *testing.T
	daemon *agenttest.Daemon
	base   string
	addr   string
	log    *logBuffer
	client *http.Client
}

type logBuffer struct {
	mu sync.Mutex // guards b
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func start(t *testing.T, edit ...func(*Config)) *harness {
	t.Helper()
	h := &harness{t: t, daemon: agenttest.Start(t), log: &logBuffer{}}
	log := slog.New(slog.NewTextHandler(h.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	service, err := agent.New(agent.Config{Daemon: h.daemon.Client(), Log: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(service.Close)
	cfg := Config{Service: service, Log: log}
	for _, f := range edit {
		f(&cfg)
	}
	handler, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- Serve(ctx, handler, time.Second, log, l, peersock.Listen(h.daemon.Client()))
	}()
	h.addr, h.base = l.Addr().String(), "http://"+l.Addr().String()
	transport := &http.Transport{}
	h.client = &http.Client{Transport: transport}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve = %v", err)
		}
	})
	return h
}

type reply struct {
	status  int
	header  http.Header
	body    []byte
	problem api.Problem
}

// do sends one request as alice unless edit says otherwise, and checks of every
// answer what holds for all.
func (h *harness) do(method, path, body string, edit ...func(*http.Request)) reply {
	h.t.Helper()
	var r io.Reader
	if body != "" {
		r = strings.NewReader(body)
	}
	req, err := http.NewRequestWithContext(h.t.Context(), method, h.base+path, r)
	if err != nil {
		h.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+agenttest.Alice.Reveal())
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for _, f := range edit {
		f(req)
	}
	resp, err := h.client.Do(req)
	if err != nil {
		h.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		h.t.Fatal(err)
	}
	got := reply{status: resp.StatusCode, header: resp.Header, body: b}
	if resp.Header.Get("X-Request-Id") == "" {
		h.t.Errorf("%s %s: no request id", method, path)
	}
	if resp.StatusCode >= 400 && method != http.MethodHead {
		if ct := resp.Header.Get("Content-Type"); ct != "application/problem+json" {
			h.t.Errorf("%s %s: %d as %q, want a problem: %s", method, path, resp.StatusCode, ct, b)
		}
		if err := json.Unmarshal(b, &got.problem); err != nil {
			h.t.Fatalf("%s %s: %v: %s", method, path, err, b)
		}
		p := got.problem
		if p.Status != resp.StatusCode || p.Code == "" || p.Title == "" || p.Detail == "" || p.Hint == "" {
			h.t.Errorf("%s %s: incomplete problem %+v", method, path, p)
		}
	}
	return got
}

func header(k, v string) func(*http.Request) {
	return func(r *http.Request) { r.Header.Set(k, v) }
}

func token(t localapi.Secret) func(*http.Request) {
	return header("Authorization", "Bearer "+t.Reveal())
}

func (h *harness) create() api.Sandbox {
	h.t.Helper()
	r := h.do("POST", "/v1/sandboxes", `{}`)
	if r.status != http.StatusCreated {
		h.t.Fatalf("create = %d %s", r.status, r.body)
	}
	var s api.Sandbox
	if err := json.Unmarshal(r.body, &s); err != nil {
		h.t.Fatal(err)
	}
	return s
}

func TestLifeOverHTTP(t *testing.T) {
	h := start(t)
	key, err := sshconfig.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	body, err := json.Marshal(map[string]any{"podfile": "image: podspawn/base", "name": "web", "labels": map[string]string{"team": "a"}, "public_key": key.Public, "ttl": "30m"})
	if err != nil {
		t.Fatal(err)
	}
	r := h.do("POST", "/v1/sandboxes", string(body))
	var s api.Sandbox
	if err := json.Unmarshal(r.body, &s); err != nil || r.status != http.StatusCreated {
		t.Fatalf("create = %d %s", r.status, r.body)
	}
	if s.State != sandbox.StateReady || s.SSH == nil || r.header.Get("Location") != "/v1/sandboxes/"+string(s.ID) || r.header.Get("Cache-Control") != "no-store" {
		t.Errorf("created %+v, headers %v", s, r.header)
	}
	for _, want := range []struct {
		method, path, body string
		status             int
		contains           string
	}{
		{"GET", "/v1/sandboxes", "", 200, `"name":"web"`},
		{"GET", "/v1/sandboxes?label=team=a&limit=5", "", 200, `"name":"web"`},
		{"GET", "/v1/sandboxes?label=team=b", "", 200, `{"sandboxes":[]}`},
		{"GET", "/v1/sandboxes/web", "", 200, string(s.ID)},
		{"PATCH", "/v1/sandboxes/" + string(s.ID), `{"ttl":7200}`, 200, "expires_at"},
		{"POST", "/v1/sandboxes/web/exec", `{"command":"echo hi; exit 3"}`, 200, `"exit_code":3`},
		{"POST", "/v1/sandboxes/web/certificates", `{"public_key":"` + key.Public + `"}`, 201, `"serial":2`},
		{"GET", "/v1/ca", "", 200, `"user_ca":"ssh-ed25519 `},
		{"DELETE", "/v1/sandboxes/" + string(s.ID), "", 200, `"state":"destroyed"`},
		{"DELETE", "/v1/sandboxes/" + string(s.ID), "", 200, `"state":"destroyed"`},
		{"GET", "/v1/sandboxes/" + string(s.ID), "", 200, `"state":"destroyed"`},
		{"POST", "/v1/sandboxes/" + string(s.ID) + "/exec", `{"command":"id"}`, 410, `"code":"gone"`},
		{"GET", "/v1/sandboxes", "", 200, `{"sandboxes":[]}`},
		{"GET", "/v1/sandboxes?all=true", "", 200, string(s.ID)},
		{"GET", "/healthz", "", 200, "ok"},
		{"GET", "/readyz", "", 200, "ready"},
	} {
		if got := h.do(want.method, want.path, want.body); got.status != want.status || !strings.Contains(string(got.body), want.contains) {
			t.Errorf("%s %s = %d %s, want %d …%s…", want.method, want.path, got.status, got.body, want.status, want.contains)
		}
	}
}

func TestDestroyOfOneThatIsStillGoingIs202(t *testing.T) {
	h := start(t)
	s := h.create()
	h.daemon.DestroySlowly()
	if got := h.do("DELETE", "/v1/sandboxes/"+string(s.ID), ""); got.status != http.StatusAccepted {
		t.Errorf("DELETE = %d, want 202", got.status)
	}
}

func TestTokens(t *testing.T) {
	h := start(t)
	got := h.do("POST", "/v1/tokens", `{"subject":"ci","max_ttl":"1h"}`, token(agenttest.Admin))
	if got.status != http.StatusCreated || !strings.Contains(string(got.body), `"token":"made-token"`) {
		t.Errorf("POST /v1/tokens = %d %s", got.status, got.body)
	}
	if strings.Contains(h.log.String(), "made-token") {
		t.Error("the log has the new token")
	}
}

func TestRefusals(t *testing.T) {
	h := start(t, func(c *Config) { c.MCP = http.NotFoundHandler() })
	s := h.create()
	one := "/v1/sandboxes/" + string(s.ID)
	tests := []struct {
		name               string
		method, path, body string
		edit               func(*http.Request)
		status             int
		code               sandbox.Kind
	}{
		{"path", "GET", "/v2", "", nil, 404, sandbox.KindNotFound},
		{"path above", "GET", "/", "", nil, 404, sandbox.KindNotFound},
		{"path of a later version", "POST", one + "/transfer", "{}", nil, 404, sandbox.KindNotFound},
		{"method", "PUT", "/v1/sandboxes", "{}", nil, 405, sandbox.KindInvalidSpec},
		{"unknown sandbox", "GET", "/v1/sandboxes/" + string(sandbox.NewID()), "", nil, 404, sandbox.KindNotFound},
		{"no sandbox name", "GET", "/v1/sandboxes/..%2f..%2fetc", "", nil, 404, sandbox.KindNotFound},
		{"content type", "POST", "/v1/sandboxes", "{}", header("Content-Type", "text/plain"), 415, sandbox.KindInvalidSpec},
		{"form", "POST", "/v1/sandboxes", "a=b", header("Content-Type", "application/x-www-form-urlencoded"), 415, sandbox.KindInvalidSpec},
		{"encoding", "POST", "/v1/sandboxes", "{}", header("Content-Encoding", "gzip"), 415, sandbox.KindInvalidSpec},
		{"unknown field", "POST", "/v1/sandboxes", `{"imagee":"a"}`, nil, 400, sandbox.KindUnknownField},
		{"duplicate field", "POST", "/v1/sandboxes", `{"image":"a","image":"b"}`, nil, 400, sandbox.KindInvalidSpec},
		{"trailing data", "POST", "/v1/sandboxes", `{}{}`, nil, 400, sandbox.KindInvalidSpec},
		{"not JSON", "POST", "/v1/sandboxes", `{`, nil, 400, sandbox.KindInvalidSpec},
		{"large body", "POST", "/v1/sandboxes", `{"podfile":"` + strings.Repeat("a", api.MaxBody) + `"}`, nil, 413, sandbox.KindInvalidSpec},
		{"maker", "POST", "/v1/sandboxes", `{}`, header(api.MakerHeader, "root"), 400, sandbox.KindInvalidSpec},
		{"unknown query", "GET", "/v1/sandboxes?limt=3", "", nil, 400, sandbox.KindUnknownField},
		{"query twice", "GET", "/v1/sandboxes?limit=3&limit=4", "", nil, 400, sandbox.KindInvalidSpec},
		{"query limit", "GET", "/v1/sandboxes?limit=0", "", nil, 400, sandbox.KindInvalidSpec},
		{"query large limit", "GET", "/v1/sandboxes?limit=101", "", nil, 400, sandbox.KindInvalidSpec},
		{"query cursor", "GET", "/v1/sandboxes?cursor=x", "", nil, 400, sandbox.KindInvalidSpec},
		{"query label", "GET", "/v1/sandboxes?label=x", "", nil, 400, sandbox.KindInvalidSpec},
		{"query all", "GET", "/v1/sandboxes?all=perhaps", "", nil, 400, sandbox.KindInvalidSpec},
		{"image", "POST", "/v1/sandboxes", `{"image":"no/such"}`, nil, 422, sandbox.KindImageNotFound},
		{"egress", "POST", "/v1/sandboxes", `{"egress":"full"}`, nil, 403, sandbox.KindEgressDenied},
		{"patch without ttl", "PATCH", one, `{}`, nil, 400, sandbox.KindInvalidSpec},
		{"stream in the background", "POST", one + "/exec", `{"command":"id","background":true}`, header("Accept", "text/event-stream"), 400, sandbox.KindInvalidSpec},
		{"terminal without a stream", "POST", one + "/exec", `{"command":"id","tty":{}}`, nil, 400, sandbox.KindInvalidSpec},
		{"too long a wait", "POST", one + "/exec", `{"command":"id","wait_seconds":51}`, nil, 400, sandbox.KindInvalidSpec},
		{"poll of nothing", "GET", one + "/exec/exe_0000000000000000", "", nil, 404, sandbox.KindNotFound},
		{"bad cursor", "GET", one + "/exec/exe_0000000000000000?cursor=-1.0", "", nil, 400, sandbox.KindInvalidSpec},
		{"input for nothing", "POST", one + "/exec/exe_0000000000000000/input", `{"data":"x"}`, nil, 404, sandbox.KindNotFound},
		{"unknown signal", "POST", one + "/exec/exe_0000000000000000/signal", `{"signal":"SEGV; id"}`, nil, 400, sandbox.KindInvalidSpec},
		{"certificate as tar", "POST", one + "/certificates", `{}`, header("Accept", "application/x-tar"), 406, sandbox.KindInvalidSpec},
		{"certificate without key", "POST", one + "/certificates", `{}`, nil, 400, sandbox.KindInvalidSpec},
		{"certificate folder", "POST", one + "/certificates", `{"public_key":"` + mustKey(t) + `","config_dir":"a b\nProxyCommand id"}`, nil, 400, sandbox.KindInvalidSpec},
		{"idempotency key elsewhere", "POST", one + "/exec", `{"command":"id"}`, header("Idempotency-Key", "k"), 400, sandbox.KindInvalidSpec},
		{"scope", "POST", "/v1/sandboxes", `{}`, token(agenttest.Reader), 403, sandbox.KindInsufficientScope},
		{"admin scope", "POST", "/v1/tokens", `{"subject":"x"}`, nil, 403, sandbox.KindInsufficientScope},
		{"origin", "GET", "/v1/sandboxes", "", header("Origin", "https://evil.example"), 403, sandbox.KindPolicy},
		{"null origin", "GET", "/v1/sandboxes", "", header("Origin", "null"), 403, sandbox.KindPolicy},
		{"origin of another local port", "GET", "/v1/sandboxes", "", header("Origin", "http://127.0.0.1:1"), 403, sandbox.KindPolicy},
		{"origin on MCP", "POST", "/mcp", "{}", header("Origin", "https://evil.example"), 403, sandbox.KindPolicy},
		{"host", "GET", "/v1/sandboxes", "", func(r *http.Request) { r.Host = "evil.example" }, 403, sandbox.KindPolicy},
		{"host that looks local", "GET", "/v1/sandboxes", "", func(r *http.Request) { r.Host = "127.0.0.1.evil.example" }, 403, sandbox.KindPolicy},
		{"MCP by GET", "GET", "/mcp", "", nil, 405, sandbox.KindInvalidSpec},
		{"MCP by DELETE", "DELETE", "/mcp", "", nil, 405, sandbox.KindInvalidSpec},
		{"MCP large body", "POST", "/mcp", strings.Repeat(" ", api.MaxBody+1), nil, 413, sandbox.KindInvalidSpec},
		{"MCP content type", "POST", "/mcp", "{}", header("Content-Type", "text/plain"), 415, sandbox.KindInvalidSpec},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h.t = t
			edit := tt.edit
			if edit == nil {
				edit = func(*http.Request) {}
			}
			got := h.do(tt.method, tt.path, tt.body, edit)
			if got.status != tt.status || got.problem.Code != tt.code {
				t.Errorf("%s %s = %d %s, want %d %s", tt.method, tt.path, got.status, got.body, tt.status, tt.code)
			}
			if tt.code == sandbox.KindInsufficientScope {
				if c := got.header.Get("WWW-Authenticate"); !strings.Contains(c, `error="insufficient_scope"`) || !strings.Contains(c, `scope="sandbox:`) {
					t.Errorf("WWW-Authenticate = %q", c)
				}
			}
			if tt.name == "method" && !strings.Contains(got.header.Get("Allow"), "POST") {
				t.Errorf("Allow = %q", got.header.Get("Allow"))
			}
		})
	}
}

func mustKey(t *testing.T) string {
	t.Helper()
	key, err := sshconfig.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	return key.Public
}

func TestUnknownFieldNamesTheNearest(t *testing.T) {
	h := start(t)
	got := h.do("POST", "/v1/sandboxes", `{"idle_timout":"1m"}`)
	if !strings.Contains(got.problem.Detail, "idle_timout") || !strings.Contains(got.problem.Hint, "idle_timeout") {
		t.Errorf("problem = %+v", got.problem)
	}
}

// TestEveryKindHasItsStatus goes through the whole list of the contract: what the
// daemon says comes out with status and code, and nothing of a private cause.
func TestEveryKindHasItsStatus(t *testing.T) {
	want := map[sandbox.Kind]int{
		sandbox.KindInvalidSpec: 400, sandbox.KindUnknownField: 400, sandbox.KindUnauthorized: 401,
		sandbox.KindInsufficientScope: 403, sandbox.KindNotFound: 404, sandbox.KindGone: 410, sandbox.KindConflict: 409,
		sandbox.KindQuota: 429, sandbox.KindCapacity: 503, sandbox.KindPolicy: 403, sandbox.KindImageNotFound: 422,
		sandbox.KindEgressDenied: 403, sandbox.KindNotReady: 409, sandbox.KindTimeout: 504, sandbox.KindUnavailable: 503,
		sandbox.KindIdempotencyMismatch: 422, sandbox.KindInternal: 500,
	}
	h := start(t)
	for kind, status := range want {
		t.Run(string(kind), func(t *testing.T) {
			h.t = t
			h.daemon.Fail(localapi.OpList, &sandbox.Error{Kind: kind, Msg: "as said", Hint: "do this", Err: errors.New(agenttest.Internal)})
			got := h.do("GET", "/v1/sandboxes", "")
			if got.status != status || got.problem.Code != kind {
				t.Errorf("status = %d %s, want %d", got.status, got.body, status)
			}
			if strings.Contains(string(got.body), agenttest.Internal) {
				t.Errorf("the answer has the private cause: %s", got.body)
			}
			retry := slices.Contains([]sandbox.Kind{sandbox.KindQuota, sandbox.KindCapacity, sandbox.KindNotReady, sandbox.KindTimeout, sandbox.KindUnavailable}, kind)
			if (got.header.Get("Retry-After") != "") != retry {
				t.Errorf("Retry-After = %q, want one: %v", got.header.Get("Retry-After"), retry)
			}
		})
	}
}

func TestUnauthorized(t *testing.T) {
	h := start(t, func(c *Config) { c.MCP = http.NotFoundHandler() })
	tests := []struct {
		name      string
		edit      func(*http.Request)
		challenge string
	}{
		{"no header", func(r *http.Request) { r.Header.Del("Authorization") }, `Bearer realm="podspawn"`},
		{"basic", header("Authorization", "Basic YTpi"), `Bearer realm="podspawn", error="invalid_token"`},
		{"no token", header("Authorization", "Bearer "), `Bearer realm="podspawn", error="invalid_token"`},
		{"two tokens", func(r *http.Request) { r.Header.Add("Authorization", "Bearer x") }, `Bearer realm="podspawn", error="invalid_token"`},
		{"token with a space", header("Authorization", "Bearer a b"), `Bearer realm="podspawn", error="invalid_token"`},
		{"long token", header("Authorization", "Bearer "+strings.Repeat("a", 9000)), `Bearer realm="podspawn", error="invalid_token"`},
		{"unknown token", header("Authorization", "Bearer abc"), `Bearer realm="podspawn", error="invalid_token"`},
	}
	for _, tt := range tests {
		for _, target := range []string{"GET /v1/sandboxes", "POST /v1/sandboxes", "GET /v1/ca", "POST /v1/tokens", "POST /mcp"} {
			t.Run(tt.name+" "+target, func(t *testing.T) {
				h.t = t
				method, path, _ := strings.Cut(target, " ")
				body := ""
				if method == "POST" {
					body = `{}`
				}
				got := h.do(method, path, body, tt.edit)
				if got.status != http.StatusUnauthorized || got.problem.Code != sandbox.KindUnauthorized {
					t.Errorf("%s = %d %s, want 401", target, got.status, got.body)
				}
				if c := got.header.Get("WWW-Authenticate"); c != tt.challenge {
					t.Errorf("WWW-Authenticate = %q, want %q", c, tt.challenge)
				}
			})
		}
	}
}

type verifier func(raw string) error

func (v verifier) Verify(raw string, _ time.Time) error { return v(raw) }

func TestVerifierRefusesBeforeTheDaemonIsAsked(t *testing.T) {
	h := start(t, func(c *Config) {
		c.Verifier = verifier(func(string) error { return errors.New("signature of " + agenttest.Internal) })
	})
	got := h.do("GET", "/v1/sandboxes", "")
	if got.status != http.StatusUnauthorized || strings.Contains(string(got.body), agenttest.Internal) {
		t.Errorf("GET = %d %s, want 401 without the cause", got.status, got.body)
	}
	if n := len(h.daemon.Requests(localapi.OpList)); n != 0 {
		t.Errorf("the daemon was asked %d times, want never", n)
	}
}

// TestSecretsAreInNoLogAndNoError is threat 76 for this process.
func TestSecretsAreInNoLogAndNoError(t *testing.T) {
	h := start(t)
	h.create()
	h.do("POST", "/v1/sandboxes", `{"env":{"A":"hunter2-env"},"image":"no/such"}`)
	h.do("POST", "/v1/sandboxes", `{"env":{"A":"hunter2-env\u0000"}}`)
	h.do("GET", "/v1/sandboxes?token=hunter2-query", "")
	h.do("GET", "/v1/sandboxes", "", header("Authorization", "Bearer hunter2-bad"))
	h.do("GET", "/v1/sandboxes", "", header("Authorization", "hunter2-none"))
	h.daemon.Fail(localapi.OpList, errors.New("cause"))
	h.do("GET", "/v1/sandboxes", "")
	log := h.log.String()
	for _, secret := range []string{"hunter2", agenttest.Alice.Reveal(), "Bearer", "Authorization"} {
		if strings.Contains(log, secret) {
			t.Errorf("the log has %q:\n%s", secret, log)
		}
	}
	if !strings.Contains(log, "request_id=req_") {
		t.Errorf("the log has no request id:\n%s", log)
	}
}

func TestPanicIsAnInternalError(t *testing.T) {
	h := start(t, func(c *Config) {
		c.MCP = http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("boom " + agenttest.Internal) })
	})
	got := h.do("POST", "/mcp", `{}`)
	if got.status != 500 || strings.Contains(string(got.body), "boom") {
		t.Errorf("POST = %d %s", got.status, got.body)
	}
	if got := h.do("GET", "/healthz", ""); got.status != 200 {
		t.Errorf("after the panic: %d", got.status)
	}
}

func TestMCPGate(t *testing.T) {
	seen := make(chan http.Header, 1)
	h := start(t, func(c *Config) {
		c.MCP = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			a, err := APIFrom(r.Context())
			if err != nil {
				t.Errorf("APIFrom = %v", err)
				return
			}
			if _, err := a.List(r.Context(), api.ListRequest{}); err != nil {
				t.Errorf("List = %v", err)
			}
			seen <- r.Header
			w.WriteHeader(http.StatusAccepted)
		})
		c.MCPScope = func(b []byte) sandbox.Scope {
			if bytes.Contains(b, []byte("make")) {
				return sandbox.ScopeRun
			}
			return ""
		}
	})
	if got := h.do("POST", "/mcp", `{}`, header("Mcp-Session-Id", "someone-elses")); got.status != http.StatusAccepted {
		t.Fatalf("POST /mcp = %d %s", got.status, got.body)
	}
	if hd := <-seen; hd.Get("Authorization") != "" {
		t.Error("the MCP handler got the credential")
	}
	got := h.do("POST", "/mcp", `{"x":"make"}`, token(agenttest.Reader))
	if got.status != 403 || got.header.Get("WWW-Authenticate") != `Bearer realm="podspawn", error="insufficient_scope", scope="sandbox:run"` {
		t.Errorf("low scope = %d, %q, want 403", got.status, got.header.Get("WWW-Authenticate"))
	}
	h.daemon.Revoke(agenttest.Alice)
	if got := h.do("POST", "/mcp", `{}`); got.status != 401 {
		t.Errorf("revoked token = %d, want 401 although the session id is known", got.status)
	}
}

func TestOwnOriginAndPublicURLPass(t *testing.T) {
	h := start(t, func(c *Config) { c.PublicURL = "https://pods.example/" })
	for name, edit := range map[string]func(*http.Request){
		"own origin":    header("Origin", h.base),
		"localhost":     func(r *http.Request) { r.Host = "localhost:7722" },
		"IPv6 loopback": func(r *http.Request) { r.Host = "[::1]:7722" },
		"public host":   func(r *http.Request) { r.Host = "pods.example" },
		"public origin": func(r *http.Request) { r.Host = "pods.example"; r.Header.Set("Origin", "https://pods.example") },
	} {
		if got := h.do("GET", "/v1/sandboxes", "", edit); got.status != 200 {
			t.Errorf("%s = %d %s, want 200", name, got.status, got.body)
		}
	}
}

func TestCallerOfTheSocketNeedsNoToken(t *testing.T) {
	h := start(t)
	conn := h.daemon.Connect(t, "carol")
	defer conn.Close()
	c := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(context.Context, string, string) (net.Conn, error) { return conn, nil },
	}}
	req, err := http.NewRequestWithContext(t.Context(), "POST", "http://anything/v1/sandboxes", strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusCreated {
		b, err := io.ReadAll(resp.Body)
		t.Fatalf("POST = %d %s %v, want 201", resp.StatusCode, b, err)
	}
	got := h.daemon.Requests(localapi.OpCreate)
	if len(got) != 1 || got[0].Auth.Peer == "" || got[0].Auth.Bearer != "" {
		t.Errorf("the daemon saw %+v, want the peer's handle alone", got)
	}
}

func TestDisconnectKillsTheCommand(t *testing.T) {
	h := start(t)
	s := h.create()
	pidFile := filepath.Join(t.TempDir(), "pid")
	body, err := json.Marshal(map[string]string{"command": fmt.Sprintf("echo $$ > %[1]s.new; mv %[1]s.new %[1]s; sleep 600", pidFile)})
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp", h.addr)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(conn, "POST /v1/sandboxes/%s/exec HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s",
		s.ID, h.addr, agenttest.Alice.Reveal(), len(body), body)
	var pid int
	eventually(t, "the command runs", func() bool {
		b, err := os.ReadFile(pidFile)
		if err != nil {
			return false
		}
		_, err = fmt.Sscan(string(b), &pid)
		return err == nil
	})
	_ = conn.Close()
	eventually(t, "the command is dead", func() bool { return errors.Is(unix.Kill(pid, 0), unix.ESRCH) })
}

func TestSlowBodyIsCutOff(t *testing.T) {
	d := agenttest.Start(t)
	service, err := agent.New(agent.Config{Daemon: d.Client()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(service.Close)
	handler, err := New(Config{Service: service})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: handler, ReadTimeout: 200 * time.Millisecond} // as Serve's, but shorter
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(l) }()
	defer func() { _ = srv.Close(); <-done }()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "POST /v1/sandboxes HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{", agenttest.Alice.Reveal())
	if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(conn)
	if err != nil || !strings.HasPrefix(string(b), "HTTP/1.1 408 ") {
		t.Errorf("answer = %q, %v, want 408", b, err)
	}
}

func TestShutdownEndsAListeningServerAndItsCommands(t *testing.T) {
	h := start(t) // the cleanup asserts that Serve returns nil; goleak that nothing is left
	s := h.create()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, "POST", h.base+"/v1/sandboxes/"+string(s.ID)+"/exec", strings.NewReader(`{"command":"sleep 600"}`))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+agenttest.Alice.Reveal())
	req.Header.Set("Content-Type", "application/json")
	done := make(chan struct{})
	go func() {
		defer close(done)
		if resp, err := h.client.Do(req); err == nil {
			_ = resp.Body.Close()
		}
	}()
	eventually(t, "the command was asked for", func() bool { return len(h.daemon.Requests(localapi.OpExec)) == 1 })
	t.Cleanup(func() { <-done })
}

func TestReadyzSaysWhatIsMissing(t *testing.T) {
	h := start(t)
	h.daemon.NotReady("runsc is not registered with Docker")
	got := h.do("GET", "/readyz", "")
	if got.status != 503 || !strings.Contains(got.problem.Detail, "runsc") {
		t.Errorf("GET /readyz = %d %s", got.status, got.body)
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("not in 10 s: %s", what)
}
