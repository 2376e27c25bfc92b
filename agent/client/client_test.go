package client

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/podspawn/podspawn/agent"
	"github.com/podspawn/podspawn/agent/agenttest"
	"github.com/podspawn/podspawn/agent/api"
	"github.com/podspawn/podspawn/agent/httpapi"
	"github.com/podspawn/podspawn/agent/sshconfig"
	"github.com/podspawn/podspawn/sandbox"
	"github.com/podspawn/podspawn/sandbox/localapi"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestNewRefuses(t *testing.T) {
	for _, server := range []string{
		"http://10.0.0.1:7722", "http://pods.example", "http://127.0.0.1.evil.example",
		"ftp://127.0.0.1", "pods.example", "unix://host/path", "unix:relative", "https://", "https://a/b",
		"https://user:pass@a", "https://a?b=c", "://",
	} {
		t.Run(server, func(t *testing.T) {
			_, err := New(Config{Server: server, Token: "secret-token"})
			if e := sandbox.Public(err); e.Kind != sandbox.KindInvalidSpec || e.Hint == "" {
				t.Errorf("New = %v, want %s with a hint", err, sandbox.KindInvalidSpec)
			}
			if err != nil && strings.Contains(err.Error(), "secret-token") {
				t.Errorf("the error has the token: %v", err)
			}
		})
	}
	for _, server := range []string{"", "unix:///run/x.sock", "http://127.0.0.1:7722", "http://localhost:7722/", "http://[::1]:7722", "https://pods.example"} {
		if _, err := New(Config{Server: server, Token: "secret-token"}); err != nil {
			t.Errorf("New(%q) = %v, want nil", server, err)
		}
	}
}

// serve is a real API process on a daemon double, on TCP and on a unix socket.
func serve(t *testing.T) (d *agenttest.Daemon, tcp, unix string) {
	t.Helper()
	d = agenttest.Start(t)
	service, err := agent.New(agent.Config{Daemon: d.Client()})
	if err != nil {
		t.Fatal(err)
	}
	handler, err := httpapi.New(httpapi.Config{Service: service})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(t.TempDir(), "s")
	u, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- httpapi.Serve(ctx, handler, time.Second, slog.New(slog.DiscardHandler), l, u) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve = %v", err)
		}
	})
	return d, "http://" + l.Addr().String(), "unix://" + socket
}

func open(t *testing.T, server string, token localapi.Secret) *Client {
	t.Helper()
	c, err := New(Config{Server: server, Token: token, UserAgent: "podspawn-test"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func TestEveryCallOverBothTransports(t *testing.T) {
	_, tcp, unix := serve(t)
	for _, server := range []string{tcp, unix} {
		scheme, _, _ := strings.Cut(server, ":")
		t.Run(scheme, func(t *testing.T) {
			c := open(t, server, agenttest.Alice)
			key, err := sshconfig.NewKey()
			if err != nil {
				t.Fatal(err)
			}
			grace := api.Duration(0)
			s, err := c.Create(t.Context(), api.CreateRequest{
				Name: "web-" + scheme, Labels: map[string]string{"a": "b c&d"}, PublicKey: key.Public,
				Grace: &grace, Maker: api.MakerRun, IdempotencyKey: "k" + scheme,
			})
			if err != nil || s.SSH == nil || s.Lifecycle.Grace != 0 {
				t.Fatalf("Create = %+v, %v", s, err)
			}
			again, err := c.Create(t.Context(), api.CreateRequest{
				Name: "web-" + scheme, Labels: map[string]string{"a": "b c&d"}, PublicKey: key.Public,
				Grace: &grace, Maker: api.MakerRun, IdempotencyKey: "k" + scheme,
			})
			if err != nil || again.ID != s.ID {
				t.Errorf("repeated Create = %s, %v, want %s", again.ID, err, s.ID)
			}
			if got, err := c.Get(t.Context(), s.Name); err != nil || got.ID != s.ID {
				t.Errorf("Get = %+v, %v", got, err)
			}
			if l, err := c.List(t.Context(), api.ListRequest{Labels: map[string]string{"a": "b c&d"}, Limit: 1}); err != nil || len(l.Sandboxes) != 1 {
				t.Errorf("List = %+v, %v", l, err)
			}
			if got, err := c.Extend(t.Context(), string(s.ID), 3*time.Hour); err != nil || !got.ExpiresAt.After(s.ExpiresAt) {
				t.Errorf("Extend = %+v, %v", got, err)
			}
			if got, err := c.Exec(t.Context(), string(s.ID), api.ExecRequest{Argv: []string{"sh", "-c", "cat; exit 4"}, Stdin: "hi"}); err != nil || got.ExitCode != 4 || got.Stdout != "hi" {
				t.Errorf("Exec = %+v, %v", got, err)
			}
			if got, err := c.Certificate(t.Context(), string(s.ID), api.CertificateRequest{PublicKey: key.Public}); err != nil || got.Serial == 0 {
				t.Errorf("Certificate = %+v, %v", got, err)
			}
			if got, err := c.CA(t.Context()); err != nil || got.UserCA == "" {
				t.Errorf("CA = %+v, %v", got, err)
			}
			if got, err := c.Destroy(t.Context(), string(s.ID)); err != nil || !got.State.Final() {
				t.Errorf("Destroy = %+v, %v", got, err)
			}
			if got, err := open(t, server, agenttest.Admin).CreateToken(t.Context(), api.TokenRequest{Subject: "x"}); err != nil || got.Token == "" {
				t.Errorf("CreateToken = %+v, %v", got, err)
			}
		})
	}
}

func TestErrorsComeBackAsTheyWere(t *testing.T) {
	d, tcp, _ := serve(t)
	c := open(t, tcp, agenttest.Alice)
	for _, kind := range []sandbox.Kind{sandbox.KindQuota, sandbox.KindGone, sandbox.KindPolicy, sandbox.KindInternal, sandbox.KindUnavailable} {
		d.Fail(localapi.OpList, sandbox.Errorf(kind, "the hint", "the message"))
		_, err := c.List(t.Context(), api.ListRequest{})
		if e := sandbox.Public(err); e.Kind != kind || e.Msg != "the message" || e.Hint != "the hint" {
			t.Errorf("List = %+v, want %s", e, kind)
		}
	}
}

func TestCancelEndsTheCall(t *testing.T) {
	d, tcp, _ := serve(t)
	c := open(t, tcp, agenttest.Alice)
	s, err := c.Create(t.Context(), api.CreateRequest{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := c.Exec(ctx, string(s.ID), api.ExecRequest{Command: "sleep 600"})
		done <- err
	}()
	for deadline := time.Now().Add(10 * time.Second); len(d.Requests(localapi.OpExec)) == 0 && time.Now().Before(deadline); {
		time.Sleep(5 * time.Millisecond)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("Exec = %v, want canceled", err)
	}
}

func TestUnreachable(t *testing.T) {
	for _, server := range []string{"http://127.0.0.1:1", "unix:///nonexistent/podspawn.sock"} {
		c := open(t, server, "secret-token")
		_, err := c.CA(t.Context())
		if e := sandbox.Public(err); e.Kind != sandbox.KindUnavailable || e.Hint == "" || strings.Contains(err.Error(), "secret-token") {
			t.Errorf("CA at %s = %v, want %s with a hint", server, err, sandbox.KindUnavailable)
		}
	}
}

// TestForeignAnswers is what may sit at the address instead of podspawn.
func TestForeignAnswers(t *testing.T) {
	tests := []struct {
		name string
		h    http.HandlerFunc
		kind sandbox.Kind
	}{
		{"HTML", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html>") }, sandbox.KindUnavailable},
		{"error page", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "bad gateway", http.StatusBadGateway) }, sandbox.KindUnavailable},
		{"broken JSON", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			_, _ = io.WriteString(w, "{")
		}, sandbox.KindInternal},
		{"endless", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			b := make([]byte, 1<<20)
			for range maxAnswer>>20 + 2 {
				if _, err := w.Write(b); err != nil {
					return
				}
			}
		}, sandbox.KindInternal},
		{"escapes in a problem", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/problem+json")
			w.WriteHeader(409)
			_, _ = io.WriteString(w, `{"code":"conflict","detail":"a\u001b[31mb\nc","hint":"h"}`)
		}, sandbox.KindConflict},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			srv := httptest.NewServer(tt.h)
			defer srv.Close()
			c := open(t, srv.URL, "t")
			_, err := c.CA(t.Context())
			c.Close()
			e := sandbox.Public(err)
			if e.Kind != tt.kind || e.Hint == "" {
				t.Errorf("CA = %v, want %s with a hint", err, tt.kind)
			}
			if strings.ContainsAny(e.Msg, "\x1b\n") {
				t.Errorf("message %q has control characters", e.Msg)
			}
		})
	}
}

func TestRedirectsDoNotCarryTheToken(t *testing.T) {
	var got string
	other := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got = r.Header.Get("Authorization") }))
	defer other.Close()
	first := httptest.NewServer(http.RedirectHandler(other.URL, http.StatusTemporaryRedirect))
	defer first.Close()
	c := open(t, first.URL, "secret-token")
	if _, err := c.CA(t.Context()); err == nil {
		t.Error("CA = nil, want an error")
	}
	c.Close()
	if got != "" {
		t.Errorf("the redirect's target got %q", got)
	}
}
