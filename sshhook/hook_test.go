package sshhook

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/podspawn/podspawn/sandbox"
	"github.com/podspawn/podspawn/sandbox/localapi"
)

// childVar makes the test binary a hook that asks the daemon at its value.
const childVar = "SSHHOOK_TEST_DAEMON"

func TestMain(m *testing.M) {
	if path := os.Getenv(childVar); path != "" {
		h := &Hook{
			Daemon: &localapi.Client{Path: path, ServerUID: os.Getuid()},
			Env:    ParseEnv(os.Environ()),
			Stdin:  os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		}
		os.Exit(h.Run(context.Background(), []string{"podspawn-hook", "session"}))
	}
	goleak.VerifyTestMain(m)
}

const login = "sbx-0123456789abcdef"

// double is a daemon for tests: a real socket that speaks the real protocol.
type double struct {
	client *localapi.Client
	answer func(localapi.Request) (body any, fd *os.File, err *localapi.Error)

	guests sync.WaitGroup // those that withGuest plays
	drop   bool           // close every connection once it is answered, as a daemon does that ends
	leases chan struct{}  // gets a value when a session's connection was closed by its hook

	mu       sync.Mutex // guards requests
	requests []localapi.Request
}

// newDouble serves answer until the test ends. A nil answer hangs.
func newDouble(t *testing.T, answer func(localapi.Request) (any, *os.File, *localapi.Error)) *double {
	t.Helper()
	dir, err := os.MkdirTemp("", "hook") // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	d := &double{client: &localapi.Client{Path: path, ServerUID: os.Getuid()}, answer: answer, leases: make(chan struct{}, 1)}
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.AcceptUnix()
			if err != nil {
				return
			}
			wg.Go(func() { d.serve(t, c, done) })
		}
	})
	t.Cleanup(func() {
		close(done)
		_ = l.Close()
		wg.Wait()
		_ = os.RemoveAll(dir)
	})
	return d
}

func (d *double) serve(t *testing.T, c *net.UnixConn, done <-chan struct{}) {
	defer func() { _ = c.Close() }()
	var req localapi.Request
	if err := localapi.ReadFrame(c, &req); err != nil {
		return
	}
	d.mu.Lock()
	d.requests = append(d.requests, req)
	d.mu.Unlock()
	if d.answer == nil {
		<-done
		return
	}
	body, fd, rerr := d.answer(req)
	resp := localapi.Response{V: localapi.Version, Error: rerr}
	if rerr == nil {
		b, err := json.Marshal(body)
		if err != nil {
			t.Error(err)
		}
		resp.Body = b
	}
	// A hook that ends while it asks again hangs up on the answer.
	if err := localapi.WriteFrame(c, resp, fd); err != nil && !errors.Is(err, syscall.EPIPE) {
		t.Error(err)
	}
	if fd != nil {
		_ = fd.Close()
	}
	if req.Op == localapi.OpSession && !d.drop { // the lease ends with the hook
		_, _ = io.Copy(io.Discard, c)
		select {
		case d.leases <- struct{}{}:
		default: // nobody counts
		}
	}
}

func (d *double) got() []localapi.Request {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.requests
}

// run is one hook as a function: files for streams, since that is what it gets.
type run struct {
	client  *localapi.Client
	env     Env
	end     func() // EndConnection
	stdin   string
	timeout time.Duration

	inPortal bool
}

func (r run) do(t *testing.T, argv ...string) (code int, stdout, stderr string) {
	t.Helper()
	in, inW := pipe(t)
	_, err := inW.WriteString(r.stdin)
	if err = errors.Join(err, inW.Close()); err != nil {
		t.Fatal(err)
	}
	outR, out := pipe(t)
	errR, errW := pipe(t)
	var o, e bytes.Buffer
	var wg sync.WaitGroup
	wg.Go(func() { _, _ = io.Copy(&o, outR) })
	wg.Go(func() { _, _ = io.Copy(&e, errR) })
	h := &Hook{
		Daemon: r.client, Env: r.env, Stdin: in, Stdout: out, Stderr: errW, EndConnection: r.end, Timeout: r.timeout,
		InPortal: func() bool { return r.inPortal },
	}
	code = h.Run(context.Background(), argv)
	_, _ = out.Close(), errW.Close()
	wg.Wait()
	return code, o.String(), e.String()
}

func pipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = r.Close(), w.Close() })
	return r, w
}

func TestPrincipals(t *testing.T) {
	line := func(s string) func(localapi.Request) (any, *os.File, *localapi.Error) {
		return func(localapi.Request) (any, *os.File, *localapi.Error) {
			return localapi.PrincipalsResponse{Line: s}, nil, nil
		}
	}
	tests := []struct {
		name   string
		user   string
		answer func(localapi.Request) (any, *os.File, *localapi.Error)
		want   string
	}{
		{"accepted", login, line("restrict " + login), "restrict " + login + "\n"},
		{"accepted/pty", login, line("restrict,pty " + login + "\n"), "restrict,pty " + login + "\n"},
		{"denied/refused by the daemon", login, func(localapi.Request) (any, *os.File, *localapi.Error) {
			return nil, nil, &localapi.Error{Kind: sandbox.KindPolicy, Msg: "expired"}
		}, ""},
		{"denied/empty line", login, line(""), ""},
		{"denied/another login", login, line("restrict sbx-zzzzzzzzzzzzzzzz"), ""},
		{"denied/another real account", "root", line("restrict root"), ""},
		{"denied/second line", login, line("restrict " + login + "\ncommand=\"sh\" " + login), ""},
		{"denied/two line breaks", login, line("restrict " + login + "\n\n"), ""},
		{"accepted/forwarding", login, line("restrict,port-forwarding " + login), "restrict,port-forwarding " + login + "\n"},
		{"accepted/everything", login, line("restrict,pty,port-forwarding,agent-forwarding " + login), "restrict,pty,port-forwarding,agent-forwarding " + login + "\n"},
		{"denied/an option of no known kind", login, line("restrict,X11-forwarding " + login), ""},
		{"denied/an option twice", login, line("restrict,pty,pty " + login), ""},
		{"denied/an option with a value", login, line("restrict,pty,permitopen=\"*:*\" " + login), ""},
		{"denied/no restriction", login, line(login), ""},
		{"denied/pty alone", login, line("pty " + login), ""},
		{"denied/two names", login, line("restrict " + login + " root"), ""},
		{"denied/leading blank", login, line(" restrict " + login), ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := newDouble(t, tt.answer)
			code, stdout, stderr := run{client: d.client}.do(t, "podspawn-hook", "principals", tt.user, "ssh-ed25519-cert-v01@openssh.com", "AAAA")
			if stdout != tt.want || stderr != "" || (code == 0) != (tt.want != "") {
				t.Errorf("principals %s: exit %d, stdout %q, stderr %q; want stdout %q", tt.user, code, stdout, stderr, tt.want)
			}
		})
	}
}

func TestPrincipalsTellsTheDaemonWhatSSHDSaid(t *testing.T) {
	d := newDouble(t, func(localapi.Request) (any, *os.File, *localapi.Error) {
		return localapi.PrincipalsResponse{Line: "restrict " + login}, nil, nil
	})
	run{client: d.client}.do(t, "podspawn-hook", "principals", login, "type", "key")
	var got localapi.PrincipalsRequest
	if err := json.Unmarshal(d.got()[0].Body, &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(localapi.PrincipalsRequest{User: login, KeyType: "type", Key: "key"}, got); diff != "" {
		t.Error(diff)
	}
}

// Threats 34 and 35: a daemon that hangs, is gone, or is somebody else's.
func TestEveryHookRefusesWithoutItsDaemon(t *testing.T) {
	hang := newDouble(t, nil)
	foreign := newDouble(t, func(localapi.Request) (any, *os.File, *localapi.Error) {
		return localapi.PrincipalsResponse{Line: "restrict " + login}, nil, nil
	})
	daemons := map[string]*localapi.Client{
		"hangs":       hang.client,
		"is gone":     {Path: "/nonexistent/daemon.sock", ServerUID: os.Getuid()},
		"is not root": {Path: foreign.client.Path, ServerUID: os.Getuid() + 1},
	}
	hooks := []struct {
		name   string
		argv   []string
		env    Env
		code   int
		stdout bool // the one line is on stdout (PAM) instead of stderr
		silent bool
	}{
		{"principals", []string{"podspawn-hook", "principals", login, "t", "k"}, Env{}, exitRefused, false, true},
		{"pam", []string{"podspawn-hook", "pam-session"}, Env{PAMType: "open_session", PAMUser: login, AuthInfo: "publickey x"}, exitRefused, true, false},
		{"session", []string{"podspawn-hook", "session"}, Env{}, exitTemp, false, false},
		{"shell -c", []string{"podspawn-hook", "-c", "/bin/sh"}, Env{HasCommand: true, Command: "id"}, exitTemp, false, false},
		{"login shell", []string{"-podspawn-hook"}, Env{}, exitTemp, false, false},
	}
	for state, client := range daemons {
		for _, tt := range hooks {
			t.Run(state+"/"+tt.name, func(t *testing.T) {
				t.Parallel()
				begin := time.Now()
				code, stdout, stderr := run{client: client, env: tt.env, timeout: 200 * time.Millisecond}.do(t, tt.argv...)
				if code != tt.code {
					t.Errorf("exit %d, want %d", code, tt.code)
				}
				if d := time.Since(begin); d > 4*time.Second {
					t.Errorf("took %v", d)
				}
				words, quiet := stderr, stdout
				if tt.stdout {
					words, quiet = stdout, stderr
				}
				if quiet != "" || tt.silent && words != "" {
					t.Errorf("stdout %q, stderr %q", stdout, stderr)
				}
				if !tt.silent && (!strings.HasPrefix(words, "podspawn: error: ") || !strings.Contains(words, "; ") || strings.Count(words, "\n") != 1) {
					t.Errorf("refusal %q is not one line with a hint", words)
				}
			})
		}
	}
}

func TestPAMSession(t *testing.T) {
	refuse := func(localapi.Request) (any, *os.File, *localapi.Error) {
		return nil, nil, &localapi.Error{Kind: sandbox.KindPolicy, Msg: "this certificate was used up\x1b[31m\nroot:x", Hint: "ask for another"}
	}
	accept := func(localapi.Request) (any, *os.File, *localapi.Error) { return struct{}{}, nil, nil }
	unknown := func(localapi.Request) (any, *os.File, *localapi.Error) {
		return nil, nil, &localapi.Error{Kind: sandbox.KindNotFound, Msg: "no such login"}
	}
	tests := []struct {
		name   string
		env    Env
		answer func(localapi.Request) (any, *os.File, *localapi.Error)
		code   int
		stdout string
		op     localapi.Op
	}{
		{"open/accepted", Env{PAMType: "open_session", PAMUser: login, AuthInfo: "publickey x", PAMHost: "::1"}, accept, 0, "", localapi.OpPAMOpen},
		{"open/refused", Env{PAMType: "open_session", PAMUser: login, AuthInfo: "publickey x"}, refuse, 1, "podspawn: error: this certificate was used up[31m root:x; ask for another\n", localapi.OpPAMOpen},
		{"open/a real user", Env{PAMType: "open_session", PAMUser: "root"}, refuse, 0, "", ""},
		{"open/a real user whose name could be ours", Env{PAMType: "open_session", PAMUser: "alice"}, unknown, 0, "", localapi.OpPAMOpen},
		{"open/a user", Env{PAMType: "open_session", PAMUser: "alice", AuthInfo: "publickey x"}, accept, 0, "", localapi.OpPAMOpen},
		{"open/a user refused", Env{PAMType: "open_session", PAMUser: "alice", AuthInfo: "publickey x"}, refuse, 1, "podspawn: error: this certificate was used up[31m root:x; ask for another\n", localapi.OpPAMOpen},
		{"open/no certificate", Env{PAMType: "open_session", PAMUser: login}, accept, 1, "podspawn: error: sshd did not say who logs in with which certificate; podspawn doctor on the host checks sshd's settings\n", ""},
		{"close", Env{PAMType: "close_session", PAMUser: login}, accept, 0, "", localapi.OpPAMClose},
		{"close/refused", Env{PAMType: "close_session", PAMUser: login}, refuse, 0, "", localapi.OpPAMClose},
		{"neither", Env{PAMType: "auth", PAMUser: login}, accept, 1, "", ""},
		{"not called by PAM", Env{PAMUser: login}, accept, 1, "", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := newDouble(t, tt.answer)
			ended := 0
			code, stdout, stderr := run{client: d.client, env: tt.env, end: func() { ended++ }}.do(t, "podspawn-hook", "pam-session")
			if refused := strings.HasPrefix(tt.name, "open/") && tt.code != 0; (ended == 1) != refused {
				t.Errorf("ended the connection %d times", ended)
			}
			if code != tt.code || stdout != tt.stdout || stderr != "" {
				t.Errorf("exit %d, stdout %q, stderr %q; want exit %d, stdout %q", code, stdout, stderr, tt.code, tt.stdout)
			}
			var op localapi.Op
			if r := d.got(); len(r) > 0 {
				op = r[0].Op
			}
			if op != tt.op {
				t.Errorf("asked the daemon for %q, want %q", op, tt.op)
			}
		})
	}
}

func TestUsage(t *testing.T) {
	for _, argv := range [][]string{nil, {"podspawn-hook"}, {"podspawn-hook", "daemon"}, {"podspawn-hook", "principals", "a"}} {
		code, stdout, stderr := run{client: &localapi.Client{Path: "/nonexistent"}}.do(t, argv...)
		if code != exitUsage || stdout != "" || !strings.HasPrefix(stderr, "podspawn: error: ") {
			t.Errorf("%q: exit %d, stdout %q, stderr %q", argv, code, stdout, stderr)
		}
	}
}

// A user whose name a real account could have: without an answer, only where PAM
// has put the connection tells them apart.
func TestPAMSessionOfUserWithoutDaemon(t *testing.T) {
	for _, tt := range []struct {
		where    string
		inPortal bool
		code     int
	}{{"on the host's network", false, exitOK}, {"in a portal", true, exitRefused}} {
		env := Env{PAMType: "open_session", PAMUser: "alice", AuthInfo: "publickey x"}
		code, stdout, _ := run{client: &localapi.Client{Path: "/nonexistent"}, env: env, inPortal: tt.inPortal}.do(t, "podspawn-hook", "pam-session")
		if code != tt.code || (stdout != "") != (code != exitOK) {
			t.Errorf("%s: exit %d, stdout %q, want exit %d", tt.where, code, stdout, tt.code)
		}
	}
}

func TestKeysPrintsOnlyTheKeyThatWasAskedAbout(t *testing.T) {
	const kind, key = "ssh-ed25519", "AAAAC3NzaC1lZDI1NTE5AAAAIHhh"
	tests := []struct {
		name, user, kind, key, line string
		printed, asked              bool
	}{
		{"a key", "alice", kind, key, "restrict,pty " + kind + " " + key, true, true},
		{"a key that must be verified", "alice", kind, key, "restrict,pty,verify-required " + kind + " " + key, true, true},
		{"all options", "alice", kind, key, "restrict,pty,port-forwarding,agent-forwarding,verify-required " + kind + " " + key, true, true},
		{"an option twice", "alice", kind, key, "restrict,pty,port-forwarding,port-forwarding " + kind + " " + key, false, true},
		{"a named sandbox", "alice+web", kind, key, "restrict,pty " + kind + " " + key, true, true},
		{"another key", "alice", kind, key, "restrict,pty " + kind + " AAAA", false, true},
		{"another option", "alice", kind, key, "pty " + kind + " " + key, false, true},
		{"a command", "alice", kind, key, `restrict,command="id" ` + kind + " " + key, false, true},
		{"a second line", "alice", kind, key, "restrict,pty " + kind + " " + key + "\nssh-ed25519 AAAA", false, true},
		{"nothing", "alice", kind, key, "", false, true},
		{"a sandbox's own login", login, kind, key, "restrict,pty " + kind + " " + key, false, false},
		{"root", "root", kind, key, "restrict,pty " + kind + " " + key, false, false},
		{"a path", "../x", kind, key, "restrict,pty " + kind + " " + key, false, false},
		{"a shell's words", "$(id)", kind, key, "restrict,pty " + kind + " " + key, false, false},
		{"a path behind a plus", "alice+../../etc", kind, key, "restrict,pty " + kind + " " + key, false, false},
		{"a key with a line break", "alice", kind, "AAAA\nx", "restrict,pty " + kind + " AAAA\nx", false, false},
		{"a type with options", "alice", `command="id" ssh-ed25519`, key, "", false, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := newDouble(t, func(localapi.Request) (any, *os.File, *localapi.Error) {
				return localapi.LoginKeyResponse{Line: tt.line}, nil, nil
			})
			code, stdout, stderr := run{client: d.client}.do(t, "podspawn-hook", "keys", tt.user, tt.kind, tt.key)
			want := ""
			if tt.printed {
				want = tt.line + "\n"
			}
			if stdout != want || stderr != "" || (code == exitOK) != tt.printed {
				t.Errorf("exit %d, stdout %q, stderr %q, want stdout %q", code, stdout, stderr, want)
			}
			if asked := len(d.got()) > 0; asked != tt.asked {
				t.Errorf("asked the daemon: %v, want %v", asked, tt.asked)
			}
		})
	}
}

// socketpair is a guest connection: host is the end that a hook gets.
func socketpair(t *testing.T) (host, guest *os.File) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fds[0]), "host"), os.NewFile(uintptr(fds[1]), "guest")
}
