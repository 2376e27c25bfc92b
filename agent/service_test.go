package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/podspawn/podspawn/agent/agenttest"
	"github.com/podspawn/podspawn/agent/api"
	"github.com/podspawn/podspawn/agent/sshconfig"
	"github.com/podspawn/podspawn/sandbox"
	"github.com/podspawn/podspawn/sandbox/localapi"
)

func service(t *testing.T) (*agenttest.Daemon, *Service) {
	t.Helper()
	d := agenttest.Start(t)
	s, err := New(Config{Daemon: d.Client()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return d, s
}

func alice(t *testing.T) (*agenttest.Daemon, api.API) {
	t.Helper()
	d, s := service(t)
	return d, s.As(localapi.Auth{Bearer: agenttest.Alice})
}

func TestSpecDefaultsByMaker(t *testing.T) {
	_, s := service(t)
	tests := []struct {
		name string
		req  api.CreateRequest
		want sandbox.Lifecycle
	}{
		{"http", api.CreateRequest{Maker: api.MakerHTTP}, sandbox.Lifecycle{TTL: time.Hour, IdleTimeout: 15 * time.Minute, OnExit: "destroy", Grace: time.Minute}},
		{"mcp", api.CreateRequest{Maker: api.MakerMCP}, sandbox.Lifecycle{TTL: 2 * time.Hour, IdleTimeout: 30 * time.Minute, OnExit: "keep"}},
		{"run", api.CreateRequest{Maker: api.MakerRun}, sandbox.Lifecycle{TTL: time.Hour, IdleTimeout: 15 * time.Minute, OnExit: "destroy"}},
		{"request before maker", api.CreateRequest{Maker: api.MakerMCP, TTL: api.Duration(time.Minute), OnExit: "destroy"}, sandbox.Lifecycle{TTL: time.Minute, IdleTimeout: 30 * time.Minute, OnExit: "destroy"}},
		{"podfile before maker", api.CreateRequest{Maker: api.MakerMCP, Podfile: "lifecycle: {ttl: 5m, grace: 3s}"}, sandbox.Lifecycle{TTL: 5 * time.Minute, IdleTimeout: 30 * time.Minute, OnExit: "keep", Grace: 3 * time.Second}},
		{"request before podfile", api.CreateRequest{Maker: api.MakerHTTP, Podfile: "lifecycle: {ttl: 5m}", TTL: api.Duration(time.Minute)}, sandbox.Lifecycle{TTL: time.Minute, IdleTimeout: 15 * time.Minute, OnExit: "destroy", Grace: time.Minute}},
		{"grace of zero", api.CreateRequest{Maker: api.MakerHTTP, Grace: new(api.Duration)}, sandbox.Lifecycle{TTL: time.Hour, IdleTimeout: 15 * time.Minute, OnExit: "destroy"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := s.spec(tt.req)
			if err != nil {
				t.Fatalf("spec = %v", err)
			}
			if diff := cmp.Diff(tt.want, got.Lifecycle); diff != "" {
				t.Errorf("lifecycle differs (-want +got):\n%s", diff)
			}
			if got.Network.Egress != sandbox.EgressPublic {
				t.Errorf("egress = %q, want public", got.Network.Egress)
			}
		})
	}
}

func TestCreateRefusesBeforeItAsksTheDaemon(t *testing.T) {
	tests := []struct {
		name string
		req  api.CreateRequest
		kind sandbox.Kind
	}{
		{"two sources", api.CreateRequest{Image: "a", Podfile: "image: b"}, sandbox.KindInvalidSpec},
		{"bad image", api.CreateRequest{Image: "../x"}, sandbox.KindInvalidSpec},
		{"bad podfile", api.CreateRequest{Podfile: "image: ["}, sandbox.KindInvalidSpec},
		{"unknown key", api.CreateRequest{Podfile: "imagee: a"}, sandbox.KindUnknownField},
		{"unknown key in the spec", api.CreateRequest{Spec: map[string]any{"imagee": "a"}}, sandbox.KindUnknownField},
		{"bad name", api.CreateRequest{Name: "A B"}, sandbox.KindInvalidSpec},
		{"bad label", api.CreateRequest{Labels: map[string]string{"dev.podspawn.x": "y"}}, sandbox.KindInvalidSpec},
		{"bad env", api.CreateRequest{Env: map[string]string{"A=B": "c"}}, sandbox.KindInvalidSpec},
		{"bad on_exit", api.CreateRequest{OnExit: "explode"}, sandbox.KindInvalidSpec},
		{"egress not yet", api.CreateRequest{Egress: "full"}, sandbox.KindEgressDenied},
		{"start not yet", api.CreateRequest{Start: "on_connect"}, sandbox.KindInvalidSpec},
		{"private key", api.CreateRequest{PublicKey: "-----BEGIN OPENSSH PRIVATE KEY-----"}, sandbox.KindInvalidSpec},
		{"idempotency key", api.CreateRequest{IdempotencyKey: "a\nb"}, sandbox.KindInvalidSpec},
		{"long idempotency key", api.CreateRequest{IdempotencyKey: strings.Repeat("a", 200)}, sandbox.KindInvalidSpec},
		{"ttl", api.CreateRequest{TTL: api.Duration(100 * time.Hour)}, sandbox.KindInvalidSpec},
	}
	d, a := alice(t)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := a.Create(t.Context(), tt.req)
			if sandbox.KindOf(err) != tt.kind {
				t.Errorf("Create = %v, want %s", err, tt.kind)
			}
			if err != nil && sandbox.Public(err).Hint == "" {
				t.Errorf("%v has no hint", err)
			}
		})
	}
	if n := len(d.Requests(localapi.OpCreate)); n > 0 {
		t.Errorf("the daemon was asked %d times, want never", n)
	}
}

func TestCreateIsIdempotentByKey(t *testing.T) {
	_, a := alice(t)
	first, err := a.Create(t.Context(), api.CreateRequest{IdempotencyKey: "k1"})
	if err != nil {
		t.Fatal(err)
	}
	again, err := a.Create(t.Context(), api.CreateRequest{IdempotencyKey: "k1"})
	if err != nil || again.ID != first.ID {
		t.Errorf("second Create = %s, %v, want %s", again.ID, err, first.ID)
	}
	if _, err := a.Create(t.Context(), api.CreateRequest{IdempotencyKey: "k1", Name: "other"}); sandbox.KindOf(err) != sandbox.KindIdempotencyMismatch {
		t.Errorf("other request under the key = %v, want %s", err, sandbox.KindIdempotencyMismatch)
	}
}

func TestCreateLeavesNothingWhenItsCertificateFails(t *testing.T) {
	d, a := alice(t)
	key, err := sshconfig.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	d.Fail(localapi.OpIssue, sandbox.Errorf(sandbox.KindPolicy, "ask the administrator", "no certificates today"))
	if _, err := a.Create(t.Context(), api.CreateRequest{PublicKey: key.Public}); sandbox.KindOf(err) != sandbox.KindPolicy {
		t.Fatalf("Create = %v, want %s", err, sandbox.KindPolicy)
	}
	l, err := a.List(t.Context(), api.ListRequest{})
	if err != nil || len(l.Sandboxes) != 0 {
		t.Errorf("List = %v, %v, want nothing", l.Sandboxes, err)
	}
}

func TestCertificateBlockIsUsable(t *testing.T) {
	_, a := alice(t)
	key, err := sshconfig.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	s, err := a.Create(t.Context(), api.CreateRequest{PublicKey: key.Public})
	if err != nil {
		t.Fatal(err)
	}
	if s.SSH == nil || s.SSH.User != s.Login || !s.SSH.ExpiresAt.Equal(s.ExpiresAt) {
		t.Fatalf("ssh = %+v", s.SSH)
	}
	for _, want := range []string{"IdentitiesOnly yes", "CertificateFile ~/.ssh/podspawn/" + string(s.ID), "StrictHostKeyChecking yes", "ControlMaster auto"} {
		if !strings.Contains(s.SSH.Config, want) {
			t.Errorf("config lacks %q:\n%s", want, s.SSH.Config)
		}
	}
	if _, err := sshconfig.Install(filepath.Join(t.TempDir(), "d"), key, *s.SSH); err != nil {
		t.Errorf("a client can't use it: %v", err)
	}
}

func TestListPages(t *testing.T) {
	_, a := alice(t)
	for range 3 {
		if _, err := a.Create(t.Context(), api.CreateRequest{}); err != nil {
			t.Fatal(err)
		}
	}
	first, err := a.List(t.Context(), api.ListRequest{Limit: 2})
	if err != nil || len(first.Sandboxes) != 2 || first.Next == "" {
		t.Fatalf("List = %d, next %q, %v, want 2 and a cursor", len(first.Sandboxes), first.Next, err)
	}
	second, err := a.List(t.Context(), api.ListRequest{Limit: 2, Cursor: first.Next})
	if err != nil || len(second.Sandboxes) != 1 || second.Next != "" {
		t.Errorf("List = %d, next %q, %v, want 1 and no cursor", len(second.Sandboxes), second.Next, err)
	}
}

func TestTenantsDoNotSeeEachOther(t *testing.T) {
	_, s := service(t)
	mine, err := s.As(localapi.Auth{Bearer: agenttest.Alice}).Create(t.Context(), api.CreateRequest{Name: "web"})
	if err != nil {
		t.Fatal(err)
	}
	bob := s.As(localapi.Auth{Bearer: agenttest.Bob})
	for _, ref := range []string{string(mine.ID), "web"} {
		if _, err := bob.Get(t.Context(), ref); sandbox.KindOf(err) != sandbox.KindNotFound {
			t.Errorf("Get(%s) by another tenant = %v, want %s", ref, err, sandbox.KindNotFound)
		}
		if _, err := bob.Exec(t.Context(), ref, api.ExecRequest{Command: "id"}); sandbox.KindOf(err) != sandbox.KindNotFound {
			t.Errorf("Exec(%s) by another tenant = %v, want %s", ref, err, sandbox.KindNotFound)
		}
	}
}

func TestNothingWithoutACredential(t *testing.T) {
	_, s := service(t)
	for _, auth := range []localapi.Auth{{}, {Bearer: "wrong"}, {Peer: "wrong"}, {Bearer: agenttest.Alice, Peer: "both"}} {
		if _, err := s.As(auth).List(t.Context(), api.ListRequest{}); sandbox.KindOf(err) != sandbox.KindUnauthorized {
			t.Errorf("List = %v, want %s", err, sandbox.KindUnauthorized)
		}
	}
}

func TestExec(t *testing.T) {
	tests := []struct {
		name string
		req  api.ExecRequest
		want api.ExecResult
	}{
		{"command", api.ExecRequest{Command: "echo out; echo err >&2"}, api.ExecResult{Stdout: "out\n", Stderr: "err\n"}},
		{"exit code is data", api.ExecRequest{Command: "exit 7"}, api.ExecResult{ExitCode: 7}},
		{"signal", api.ExecRequest{Command: "kill -TERM $$"}, api.ExecResult{Signal: "TERM"}},
		{"argv is no shell", api.ExecRequest{Argv: []string{"printf", "%s|", "a b", "$(id)", ""}}, api.ExecResult{Stdout: "a b|$(id)||"}},
		{"stdin", api.ExecRequest{Command: "cat", Stdin: strings.Repeat("x", 300<<10), MaxOutputBytes: 1 << 20}, api.ExecResult{Stdout: strings.Repeat("x", 300<<10)}},
		{"env", api.ExecRequest{Command: "echo $A", Env: map[string]string{"A": "b c"}}, api.ExecResult{Stdout: "b c\n"}},
		{"cwd", api.ExecRequest{Command: "pwd", Cwd: "/usr"}, api.ExecResult{Stdout: "/usr\n"}},
		{"cut", api.ExecRequest{Command: "printf 0123456789", MaxOutputBytes: 4}, api.ExecResult{Stdout: "01\n[podspawn: 6 bytes left out]\n89", Truncated: true}},
		{"flood", api.ExecRequest{Command: "head -c 20000000 /dev/zero | tr '\\0' x", MaxOutputBytes: 2}, api.ExecResult{Stdout: "x\n[podspawn: 19999998 bytes left out]\nx", Truncated: true}},
	}
	_, a := alice(t)
	s, err := a.Create(t.Context(), api.CreateRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := a.Exec(t.Context(), string(s.ID), tt.req)
			if err != nil {
				t.Fatalf("Exec = %v", err)
			}
			if got.Signal != "" {
				got.ExitCode = 0 // which number goes with a signal is the guest's to say
			}
			got.ExecID, got.DurationMS, got.ExpiresAt = "", 0, time.Time{}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("result differs (-want +got):\n%s", diff)
			}
		})
	}
	t.Run("not found is data", func(t *testing.T) {
		got, err := a.Exec(t.Context(), string(s.ID), api.ExecRequest{Argv: []string{"/no/such"}})
		if err != nil || got.ExitCode != 127 || !strings.HasPrefix(got.Stderr, "podspawn: error: ") {
			t.Errorf("Exec = %+v, %v", got, err)
		}
	})
}

func TestExecRefuses(t *testing.T) {
	tests := []struct {
		name string
		req  api.ExecRequest
	}{
		{"nothing", api.ExecRequest{}},
		{"both", api.ExecRequest{Command: "id", Argv: []string{"id"}}},
		{"empty program", api.ExecRequest{Argv: []string{"", "x"}}},
		{"NUL", api.ExecRequest{Command: "a\x00b"}},
		{"long", api.ExecRequest{Command: strings.Repeat("a", 200<<10)}},
		{"long once it is encoded", api.ExecRequest{Command: strings.Repeat("\x01", 100<<10)}},
		{"relative cwd", api.ExecRequest{Command: "id", Cwd: "a"}},
		{"env name", api.ExecRequest{Command: "id", Env: map[string]string{"": "x"}}},
		{"user", api.ExecRequest{Command: "id", User: "a b"}},
		{"timeout", api.ExecRequest{Command: "id", Timeout: api.Duration(25 * time.Hour)}},
		{"output", api.ExecRequest{Command: "id", MaxOutputBytes: 1 << 30}},
		{"negative output", api.ExecRequest{Command: "id", MaxOutputBytes: -1}},
	}
	d, a := alice(t)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := a.Exec(t.Context(), string(sandbox.NewID()), tt.req)
			if e := sandbox.Public(err); e.Kind != sandbox.KindInvalidSpec || e.Hint == "" {
				t.Errorf("Exec = %v, want %s with a hint", err, sandbox.KindInvalidSpec)
			}
		})
	}
	if n := len(d.Requests(localapi.OpExec)); n > 0 {
		t.Errorf("the daemon was asked %d times, want never", n)
	}
}

func TestExecTimeoutKillsAndKeepsTheOutputSoFar(t *testing.T) {
	_, a := alice(t)
	s, err := a.Create(t.Context(), api.CreateRequest{})
	if err != nil {
		t.Fatal(err)
	}
	pidFile := filepath.Join(t.TempDir(), "pid")
	command := fmt.Sprintf("echo $$ > %s.new; mv %s.new %s; echo begun; sleep 600", pidFile, pidFile, pidFile)
	got, err := a.Exec(t.Context(), string(s.ID), api.ExecRequest{Command: command, Timeout: api.Duration(700 * time.Millisecond)})
	if err != nil {
		t.Fatal(err)
	}
	if !got.TimedOut || got.ExitCode != 124 || got.Stdout != "begun\n" {
		t.Errorf("Exec = %+v, want timed out, 124, output so far", got)
	}
	awaitDeath(t, readPID(t, pidFile))
}

func TestExecCancelKills(t *testing.T) {
	_, a := alice(t)
	s, err := a.Create(t.Context(), api.CreateRequest{})
	if err != nil {
		t.Fatal(err)
	}
	pidFile := filepath.Join(t.TempDir(), "pid")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := a.Exec(ctx, string(s.ID), api.ExecRequest{Command: fmt.Sprintf("echo $$ > %s.new; mv %s.new %s; sleep 600", pidFile, pidFile, pidFile)})
		done <- err
	}()
	pid := readPID(t, pidFile)
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("Exec = %v, want canceled", err)
	}
	awaitDeath(t, pid)
}

func TestDaemonDownIsUnavailable(t *testing.T) {
	s, err := New(Config{Daemon: &localapi.Client{Path: filepath.Join(t.TempDir(), "none"), ServerUID: os.Getuid()}})
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.As(localapi.Auth{Bearer: agenttest.Alice}).List(t.Context(), api.ListRequest{})
	if e := sandbox.Public(err); e.Kind != sandbox.KindUnavailable || e.Hint == "" {
		t.Errorf("List = %v, want %s with a hint", err, sandbox.KindUnavailable)
	}
}

// readPID waits for a file that a command writes in one step.
func readPID(t *testing.T, path string) int {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		b, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		var pid int
		if _, err := fmt.Sscan(string(b), &pid); err != nil {
			t.Fatal(err)
		}
		return pid
	}
	t.Fatal("the command did not start")
	return 0
}

func awaitDeath(t *testing.T, pid int) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if errors.Is(unix.Kill(pid, 0), unix.ESRCH) {
			return
		}
	}
	t.Errorf("process %d lives on", pid)
}
