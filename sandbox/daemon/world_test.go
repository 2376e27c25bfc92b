package daemon

import (
	"bufio"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"

	"github.com/podspawn/podspawn/ephemeralkeys"
	"github.com/podspawn/podspawn/sandbox"
	"github.com/podspawn/podspawn/sandbox/guest"
	"github.com/podspawn/podspawn/sandbox/localapi"
	"github.com/podspawn/podspawn/sandbox/sqlstore"
)

// The tests run the real server over a real SQLite state and real sockets, with
// real processes as sshd's monitors and hooks. Stand-ins are the container engine
// (only the manager's starts would need it) and the sandbox's guest, which here
// is a goroutine that speaks the guest's side of the preamble.

func TestMain(m *testing.M) {
	switch os.Getenv("DAEMON_TEST_ROLE") {
	case "monitor":
		monitorMain()
	case "hook":
		hookMain()
	default:
		goleak.VerifyTestMain(m)
	}
}

func needRoot(t *testing.T) {
	t.Helper()
	// They end processes by uid: on a host in use those may be a sandbox's.
	if os.Geteuid() == 0 && os.Getenv("PODSPAWN_LAB") != "" {
		return
	}
	if slices.Contains(strings.Split(os.Getenv("PODSPAWN_TEST_REQUIRE"), ","), "root") {
		t.Fatal("root in a lab is required")
	}
	t.Skip("needs root in a lab (scripts/lab.sh), for processes of other uids")
}

// eventually polls until f returns nil.
func eventually(t *testing.T, f func() error) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after 10 s: %v", err)
		}
		time.Sleep(pause)
	}
}

// guests are sandboxes' first processes: they answer each preamble,
// but for that of the silent sandbox, which answers none.
type guests struct {
	sandbox.Sockets // nil: only Dial is used
	t               *testing.T
	mu              sync.Mutex
	silent          sandbox.ID
	got             []guest.Preamble
	wg              sync.WaitGroup
}

func (g *guests) Dial(_ context.Context, id sandbox.ID) (*os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	inside := os.NewFile(uintptr(fds[1]), "inside")
	g.mu.Lock()
	silent := g.silent == id
	g.mu.Unlock()
	g.wg.Go(func() {
		defer inside.Close()
		if !silent {
			p, a, err := guest.ReadPreamble(inside)
			if err != nil {
				return
			}
			g.mu.Lock()
			g.got = append(g.got, p)
			g.mu.Unlock()
			if _, err := inside.Write(guest.AppendAnswer(nil, a)); err != nil {
				return
			}
		}
		_, _ = io.Copy(io.Discard, inside) // until the host has gone
	})
	return os.NewFile(uintptr(fds[0]), "outside"), nil
}

type engine struct{ sandbox.Runtime }

func (engine) Check(context.Context) error { return nil }

// tokens are those whose name they are.
type tokens struct{}

func (tokens) Issue(t sandbox.APIToken) (string, error) { return t.ID, nil }
func (tokens) Verify(raw string, _ time.Time) (sandbox.APIToken, error) {
	return sandbox.APIToken{ID: raw}, nil
}
func (tokens) Keys() localapi.KeysResponse { return localapi.KeysResponse{Issuer: "here"} }

const testCommand = "/usr/libexec/podspawn/podspawn-hook session"

// uids of the tests' peers; as another user than root all are the caller's own.
const (
	authUID = 64001
	apiUID  = 64002
)

type world struct {
	*Server
	t      *testing.T
	dir    string
	store  *sqlstore.Store
	guests *guests
	portal uint64       // what NetNS says of every process
	relays atomic.Int32 // started
	stop   func()
}

// open starts a server with one ready sandbox's worth of everything.
func open(t *testing.T, change ...func(*Config)) *world {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "daemon") // short, and for every uid
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	store, err := sqlstore.Open(t.Context(), filepath.Join(dir, "state.db"))
	if err != nil {
		t.Fatal(err)
	}
	ca, _, err := ephemeralkeys.LoadOrCreateCA(filepath.Join(dir, "ca"), "test")
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, dir: dir, store: store, guests: &guests{t: t}, portal: 42}
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	sessions := NewSessions(store, func() {}, log)
	open := NewGuests(w.guests)
	manager := sandbox.NewManager(sandbox.Config{Store: store, Runtime: engine{}, Guest: open, Sessions: sessions, Log: log})
	c := Config{
		Store: store, Runtime: engine{}, Manager: manager, Guests: open, Sessions: sessions,
		AuthUID: authUID, APIUID: apiUID, UserCA: ca, ForceCommand: testCommand, HostName: "host",
		SFTPCommand: func() string { return "sftp" }, Tokens: tokens{},
		NetNS:       func(int) (uint64, error) { return w.portal, nil },
		Relay:       func(context.Context, string, int) error { w.relays.Add(1); return nil },
		SetupIntact: func() error { return nil }, HostRule: func() error { return nil },
		Limits: Limits{PerTenant: 5, TTLMax: time.Hour, CertTTLMax: 15 * time.Minute}, Log: log,
	}
	if os.Geteuid() != 0 {
		c.APIUID = os.Getuid()
	}
	for _, f := range change {
		f(&c)
	}
	w.Server = New(c)
	w.stop = sync.OnceFunc(w.serve())
	t.Cleanup(func() {
		w.stop()
		sessions.Close()
		manager.Close()
		w.guests.wg.Wait()
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

// serve runs the server until the function it returns is called.
func (w *world) serve() (stop func()) {
	w.t.Helper()
	var ls []*net.UnixListener
	for _, name := range []string{DaemonSocket, CallerSocket} {
		l, err := listen(filepath.Join(w.dir, name))
		if err != nil {
			w.t.Fatal(err)
		}
		ls = append(ls, l)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.Server.Serve(ctx, ls[0], ls[1]) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Errorf("Serve = %v", err)
		}
	}
}

// ready adds a sandbox that is ready.
func (w *world) ready() sandbox.Sandbox {
	w.t.Helper()
	spec := sandbox.Spec{}.WithDefaults(sandbox.BuiltinDefaults())
	now := time.Now()
	row, err := w.store.Insert(w.t.Context(), sandbox.Sandbox{
		ID: sandbox.NewID(), Tenant: "t1", Subject: "ann", Spec: spec, Digest: spec.Digest(), State: sandbox.StateAccepted,
		CreatedAt: now, ExpiresAt: now.Add(time.Hour), LastActivity: now,
	}, sandbox.Quota{}, sandbox.Event{Time: now, Event: sandbox.EventSandboxCreated})
	if err != nil {
		w.t.Fatal(err)
	}
	return w.change(row.ID, func(s *sandbox.Sandbox) { s.State, s.Portal = sandbox.StateReady, 42 })
}

func (w *world) change(id sandbox.ID, f func(*sandbox.Sandbox)) sandbox.Sandbox {
	w.t.Helper()
	row, err := w.store.Update(w.t.Context(), id, func(s *sandbox.Sandbox) ([]sandbox.Event, error) { f(s); return nil, nil })
	if err != nil {
		w.t.Fatal(err)
	}
	return row
}

// token registers an API token of a tenant and returns it.
func (w *world) token(tenant string) string {
	w.t.Helper()
	tok := sandbox.APIToken{
		ID: sandbox.NewToken("tok_"), Tenant: tenant, Subject: "ann", IssuedAt: time.Now(), ExpiresAt: time.Now().Add(time.Hour),
		Scopes: []sandbox.Scope{sandbox.ScopeRead, sandbox.ScopeRun},
	}
	if err := w.store.AddToken(w.t.Context(), tok, sandbox.Event{Time: time.Now(), Event: sandbox.EventTokenIssued}); err != nil {
		w.t.Fatal(err)
	}
	return tok.ID
}

// issue stores and returns a certificate for the sandbox.
func (w *world) issue(row sandbox.Sandbox, change func(*ephemeralkeys.Grant)) *ssh.Certificate {
	w.t.Helper()
	pub, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		w.t.Fatal(err)
	}
	key, err := ssh.NewPublicKey(pub)
	if err != nil {
		w.t.Fatal(err)
	}
	var cert *ssh.Certificate
	_, err = w.store.Issue(w.t.Context(), func(serial uint64) (sandbox.Certificate, sandbox.Event, error) {
		g := ephemeralkeys.Grant{Serial: serial, PublicKey: key, Now: time.Now()}
		if change != nil {
			change(&g)
		}
		stored, ev, err := w.sign(serial, row, sandbox.Caller{Tenant: row.Tenant, Subject: "ann", Token: g.Binding.Token}, localapi.IssueRequest{Uses: g.Binding.Uses}, g)
		if err != nil {
			return stored, ev, err
		}
		signed, err := ssh.ParsePublicKey(stored.Blob)
		if err != nil {
			return stored, ev, err
		}
		cert = signed.(*ssh.Certificate)
		return stored, ev, nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return cert
}

func (w *world) client() *localapi.Client {
	return &localapi.Client{Path: filepath.Join(w.dir, DaemonSocket), ServerUID: os.Getuid()}
}

// asUID runs f on a thread that has the uid, so that the connections it makes are
// that user's. Only root can have another.
func asUID(t *testing.T, uid int, f func()) {
	t.Helper()
	if os.Geteuid() != 0 {
		f()
		return
	}
	done := make(chan error, 1)
	go func() {
		// Not unlocked: the thread ends with the goroutine.
		runtime.LockOSThread()
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), uintptr(uid), ^uintptr(0)); errno != 0 {
			done <- errno
			return
		}
		f()
		done <- nil
	}()
	if err := <-done; err != nil {
		t.Fatalf("become uid %d: %v", uid, err)
	}
}

// asAPI asks as podspawn-api.
func (w *world) asAPI(op localapi.Op, auth localapi.Auth, in, out any) (lease *localapi.Lease, err error) {
	w.t.Helper()
	asUID(w.t, apiUID, func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		lease, err = w.client().Open(ctx, op, auth, in, out)
	})
	return lease, err
}

// dial connects to one of the sockets.
func (w *world) dial(name string, uid int) *net.UnixConn {
	w.t.Helper()
	var conn *net.UnixConn
	asUID(w.t, uid, func() {
		var err error
		conn, err = net.DialUnix("unix", nil, &net.UnixAddr{Name: filepath.Join(w.dir, name), Net: "unix"})
		if err != nil {
			w.t.Error(err)
		}
	})
	if conn == nil {
		w.t.FailNow()
	}
	w.t.Cleanup(func() { _ = conn.Close() }) // some tests close it themselves
	return conn
}

// monitor is a process that stands where sshd's monitor stands: what it is told to
// ask, it has a child ask, which is where sshd's hooks are.
type monitor struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
	sandbox.Process
}

type order struct {
	UID     int
	Op      localapi.Op
	In      json.RawMessage
	Hold    bool // keep the connection until the monitor ends
	Orphan  bool // let the child's parent end before it asks
	Sleeper bool // only start a process of the uid
}

type reply struct {
	PID  int
	Err  *localapi.Error
	Body json.RawMessage `json:",omitempty"`
	File bool
}

func (w *world) monitor() *monitor {
	w.t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0", "DAEMON_TEST_ROLE=monitor", "DAEMON_TEST_SOCKET="+filepath.Join(w.dir, DaemonSocket))
	cmd.Stderr = os.Stderr
	in, err1 := cmd.StdinPipe()
	out, err2 := cmd.StdoutPipe()
	if err := errors.Join(err1, err2, cmd.Start()); err != nil {
		w.t.Fatal(err)
	}
	st, err := statProc(cmd.Process.Pid)
	if err != nil {
		w.t.Fatal(err)
	}
	m := &monitor{t: w.t, cmd: cmd, in: in, out: bufio.NewScanner(out), Process: st.Process}
	w.t.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Process.Kill() // most have ended
		_ = cmd.Wait()
	})
	return m
}

func (m *monitor) ask(o order, in any) reply {
	m.t.Helper()
	var err error
	if o.In, err = json.Marshal(in); err != nil {
		m.t.Fatal(err)
	}
	b, err := json.Marshal(o)
	if err != nil {
		m.t.Fatal(err)
	}
	if _, err := fmt.Fprintf(m.in, "%s\n", b); err != nil {
		m.t.Fatal(err)
	}
	if !m.out.Scan() {
		m.t.Fatalf("the monitor ended: %v", m.out.Err())
	}
	var r reply
	if err := json.Unmarshal(m.out.Bytes(), &r); err != nil {
		m.t.Fatal(err)
	}
	return r
}

// end lets the monitor end, and everything below it.
func (m *monitor) end() {
	m.t.Helper()
	_ = m.in.Close() // its end is checked below
	_ = m.cmd.Wait()
}

func monitorMain() {
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		var o order
		if err := json.Unmarshal(in.Bytes(), &o); err != nil {
			panic(err)
		}
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), "DAEMON_TEST_ROLE=hook", "DAEMON_TEST_ORDER="+in.Text())
		cmd.Stderr = os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(o.UID), Gid: 65534}}
		if os.Geteuid() != 0 {
			cmd.SysProcAttr = nil
		}
		hold, err1 := cmd.StdinPipe() // ends with this process
		out, err2 := cmd.StdoutPipe()
		if err := errors.Join(err1, err2, cmd.Start()); err != nil {
			panic(err)
		}
		line, err := bufio.NewReader(out).ReadString('\n')
		if err != nil {
			line = `{"Err":{"msg":"the hook ended"}}` + "\n"
		}
		fmt.Print(line)
		if !o.Hold {
			_ = hold.Close()
			_ = cmd.Wait() // its answer is what counts
		}
	}
}

func hookMain() {
	text := os.Getenv("DAEMON_TEST_ORDER")
	var o order
	if err := json.Unmarshal([]byte(text), &o); err != nil {
		panic(err)
	}
	if o.Orphan {
		o.Orphan = false
		b, _ := json.Marshal(o)
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), "DAEMON_TEST_ORDER="+string(b), "DAEMON_TEST_ORPHAN=1")
		cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		if err := cmd.Start(); err != nil {
			panic(err)
		}
		os.Exit(0)
	}
	r := reply{PID: os.Getpid()}
	if os.Getenv("DAEMON_TEST_ORPHAN") != "" {
		for st, err := statProc(os.Getpid()); err == nil && exeOf(st.parent) == exeOf(os.Getpid()); st, err = statProc(os.Getpid()) {
			time.Sleep(time.Millisecond) // until its parent has ended
		}
	}
	if !o.Sleeper {
		c := localapi.Client{Path: os.Getenv("DAEMON_TEST_SOCKET")}
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		var out any
		if o.Op != localapi.OpPAMOpen && o.Op != localapi.OpPAMClose { // their answer has no body
			out = &r.Body
		}
		lease, err := c.Open(ctx, o.Op, localapi.Auth{}, o.In, out)
		if err != nil {
			pub := sandbox.Public(err)
			r.Err = &localapi.Error{Kind: pub.Kind, Msg: pub.Msg, Hint: pub.Hint}
		} else {
			r.File = lease.File != nil
		}
	}
	b, err := json.Marshal(r)
	if err != nil {
		panic(err)
	}
	fmt.Println(string(b))
	if o.Hold {
		_, _ = io.Copy(io.Discard, os.Stdin) // until the monitor ends
	}
}

func exeOf(pid int) string {
	s, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)) // "" is nobody's
	return s
}
