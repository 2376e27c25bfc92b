package install

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/podspawn/podspawn/sandbox"
	"github.com/podspawn/podspawn/sandbox/guest"
	"github.com/podspawn/podspawn/sandbox/localapi"
	"github.com/podspawn/podspawn/sshhook/sshdtest"
)

const testLogin = "sbx-00000000000000zz"

// standIn is a podspawn daemon at its real place: it lets every certificate in,
// and refuses a connection that is not in a portal, as the real one does. Its
// guest answers every command with "inside: COMMAND", but for "hang", which ends
// with its connection.
type standIn struct {
	t      *testing.T
	pam    func() *localapi.Error // answers an open_session in a portal; hangs when it returns errHang
	done   chan struct{}          // closed at the end of the test
	hangs  chan struct{}          // gets a value when "hang" has started
	hungUp chan struct{}          // and when its connection has ended
}

// errHang makes the stand-in never answer.
var errHang = &localapi.Error{}

func accept() *localapi.Error { return nil }

func daemon(t *testing.T, pam func() *localapi.Error) *standIn {
	t.Helper()
	d := &standIn{
		t: t, pam: pam,
		done: make(chan struct{}), hangs: make(chan struct{}, 1), hungUp: make(chan struct{}, 1),
	}
	if err := os.MkdirAll("/run/podspawn", 0o755); err != nil {
		t.Fatal(err)
	}
	_ = os.Remove(localapi.SocketPath) // of an earlier test
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: localapi.SocketPath, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(localapi.SocketPath, 0o666); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.AcceptUnix()
			if err != nil {
				return
			}
			wg.Go(func() { d.answer(c) })
		}
	})
	t.Cleanup(func() {
		close(d.done)
		_ = l.Close()
		wg.Wait()
	})
	return d
}

func (d *standIn) answer(c *net.UnixConn) {
	t := d.t
	defer func() { _ = c.Close() }()
	var req localapi.Request
	if err := localapi.ReadFrame(c, &req); err != nil {
		return
	}
	resp := localapi.Response{V: localapi.Version, Body: json.RawMessage("{}")}
	var host *os.File
	switch req.Op {
	case localapi.OpPrincipals:
		var p localapi.PrincipalsRequest
		if err := json.Unmarshal(req.Body, &p); err != nil {
			t.Error(err)
		}
		resp.Body, _ = json.Marshal(localapi.PrincipalsResponse{Line: "restrict,pty " + p.User})
	case localapi.OpPAMOpen:
		var p localapi.PAMOpenRequest
		if err := json.Unmarshal(req.Body, &p); err != nil {
			t.Error(err)
		}
		if _, err := sandbox.ParseLogin(p.User); err != nil { // a real user's name, which the daemon does not know
			resp.Error = &localapi.Error{Kind: sandbox.KindNotFound, Msg: "no such login", Hint: "none"}
			break
		}
		if err := checkPortal(c); err != nil {
			resp.Error = &localapi.Error{Kind: sandbox.KindPolicy, Msg: err.Error(), Hint: "none"}
			break
		}
		if resp.Error = d.pam(); resp.Error == errHang {
			<-d.done
			return
		}
	case localapi.OpSession:
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Error(err)
			return
		}
		host = os.NewFile(uintptr(fds[0]), "host")
		inside := os.NewFile(uintptr(fds[1]), "guest")
		defer func() { _ = inside.Close() }()
		defer d.playGuest(inside)
		resp.Body, _ = json.Marshal(localapi.SessionResponse{})
	}
	if err := localapi.WriteFrame(c, resp, host); err != nil {
		t.Error(err)
	}
	if host != nil {
		_ = host.Close()
	}
}

func checkPortal(c *net.UnixConn) error {
	peer, err := localapi.PeerOf(c)
	if err != nil {
		return err
	}
	here, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		return err
	}
	there, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", peer.PID))
	if err != nil {
		return err
	}
	if here == there {
		return errors.New("this connection is in the host's network")
	}
	return nil
}

func (d *standIn) playGuest(f *os.File) {
	t := d.t
	var head [5]byte
	if _, err := io.ReadFull(f, head[:]); err != nil {
		t.Error(err)
		return
	}
	b := make([]byte, binary.BigEndian.Uint32(head[1:]))
	var e guest.Exec
	if _, err := io.ReadFull(f, b); err != nil || json.Unmarshal(b, &e) != nil {
		t.Error(err)
		return
	}
	if e.Command == "hang" {
		d.hangs <- struct{}{}
		_, _ = io.Copy(io.Discard, f) // until the hook goes away
		d.hungUp <- struct{}{}
		return
	}
	exit, err := json.Marshal(guest.Exit{Code: 5})
	if err != nil {
		t.Error(err)
	}
	send(t, f, guest.FrameStdout, []byte("inside: "+e.Command))
	send(t, f, guest.FrameExit, exit)
}

func send(t *testing.T, f *os.File, kind guest.FrameType, payload []byte) {
	frame := append([]byte{byte(kind)}, binary.BigEndian.AppendUint32(nil, uint32(len(payload)))...)
	if _, err := f.Write(append(frame, payload...)); err != nil {
		t.Error(err)
	}
}

// sandboxLogin makes what the daemon makes of a sandbox on the host, and returns
// a key with a certificate for it.
func sandboxLogin(t *testing.T) (key string) {
	t.Helper()
	sshdtest.Write(t, extraPasswd, testLogin+":x:70001:69999::/var/lib/podspawn/home:"+HookPath+"\n", 0o644)
	sshdtest.Write(t, extraShadow, testLogin+":*:::::::\n", 0o600)
	sshdtest.Run(t, "mkdir", "-p", "/etc/netns/"+testLogin)
	sshdtest.Run(t, "ip", "netns", "add", testLogin)
	t.Cleanup(func() { sshdtest.Run(t, "ip", "netns", "del", testLogin) })
	key = sshdtest.Key(t)
	sshdtest.Run(t, "ssh-keygen", "-q", "-s", UserCAKey, "-I", "test", "-n", testLogin, "-V", "-1m:+5m", "-z", "42", key+".pub")
	return key
}

// logins is a lab with sshd running, set up, with a real user and a sandbox.
type logins struct {
	*sshdtest.Server
	real, sandbox string // keys
	pam           func() *localapi.Error
	daemon        *standIn
}

func newLogins(t *testing.T) logins {
	t.Helper()
	fresh(t)
	l := logins{real: sshdtest.Key(t), pam: accept}
	sshdtest.AddUser(t, "alice")
	for _, u := range []string{"alice", "root"} {
		sshdtest.Authorize(t, u, l.real)
	}
	l.Server = sshdtest.Start(t)
	return l
}

// checkReal logs in as the real users, as they did before set-up.
func (l logins) checkReal(t *testing.T) {
	t.Helper()
	for _, u := range []string{"root", "alice"} {
		out, words, code := l.SSH(t, l.real, u+"@127.0.0.1", "id -un; exit 3")
		if out != u+"\n" || code != 3 {
			t.Errorf("login as %s: exit %d, stdout %q, stderr %q", u, code, out, words)
		}
	}
}

// checkSandboxRefused logs in as a sandbox, which must fail without a byte of output.
func (l logins) checkSandboxRefused(t *testing.T) {
	t.Helper()
	out, words, code := l.SSH(t, l.sandbox, testLogin+"@127.0.0.1", "id")
	if code == 0 || code == 5 || strings.Contains(out, "inside") || strings.Contains(out, "uid=") {
		t.Errorf("sandbox login got in: exit %d, stdout %q, stderr %q", code, out, words)
	}
}

func (l *logins) setUp(t *testing.T) {
	t.Helper()
	if _, out := apply(t, Options{}); !strings.Contains(out, "reloaded sshd") {
		t.Errorf("sshd was not reloaded:\n%s", out)
	}
	l.daemon = daemon(t, l.pam)
	l.sandbox = sandboxLogin(t)
}

func TestLoginsAfterSetUp(t *testing.T) {
	l := newLogins(t)
	l.checkReal(t)
	l.setUp(t)
	l.checkReal(t)
	out, words, code := l.SSH(t, l.sandbox, testLogin+"@127.0.0.1", "echo $HOME; id")
	if out != "inside: echo $HOME; id" || code != 5 || words != "" {
		t.Errorf("sandbox login: exit %d, stdout %q, stderr %q", code, out, words)
	}
	// The same certificate authority is nobody's for everyone else.
	for _, u := range []string{"root", "alice"} {
		key := sshdtest.Key(t)
		sshdtest.Run(t, "ssh-keygen", "-q", "-s", UserCAKey, "-I", "evil", "-n", u, "-V", "+5m", key+".pub")
		if out, _, code := l.SSH(t, key, u+"@127.0.0.1", "id"); code != 255 || out != "" {
			t.Errorf("a certificate of the sandboxes' CA logs in as %s: exit %d, %q", u, code, out)
		}
	}
	// A plain key, be it in a file that sshd reads for others.
	sshdtest.Authorize(t, testLogin, l.real)
	if out, _, code := l.SSH(t, l.real, testLogin+"@127.0.0.1", "id"); code != 255 || out != "" {
		t.Errorf("a plain key logs in as a sandbox: exit %d, %q", code, out)
	}
	// Forwarding would be on the host's network here: these hooks don't grant it.
	for _, args := range [][]string{{"-W", "127.0.0.1:22"}, {"-o", "ExitOnForwardFailure=yes", "-R", "9100:127.0.0.1:22"}} {
		if out, _, _ := l.SSH(t, l.sandbox, append(args, testLogin+"@127.0.0.1")...); strings.Contains(out, "SSH-2.0") {
			t.Errorf("%v reached sshd on the host: %q", args, out)
		}
	}
	// The host certificate is good for clients that know the CA.
	ca, err := os.ReadFile(hostCAPub)
	if err != nil {
		t.Fatal(err)
	}
	known := t.TempDir() + "/known_hosts"
	sshdtest.Write(t, known, "@cert-authority 127.0.0.1 "+string(ca), 0o600)
	out, words, code = l.SSH(t, l.sandbox, "-o", "UserKnownHostsFile="+known, "-o", "StrictHostKeyChecking=yes", testLogin+"@127.0.0.1", "x")
	if out != "inside: x" || code != 5 {
		t.Errorf("with the host CA only: exit %d, stdout %q, stderr %q", code, out, words)
	}
	if _, err := Uninstall(context.Background(), Options{}); err != nil {
		t.Fatal(err)
	}
	l.checkReal(t)
	l.checkSandboxRefused(t)
}

// Threat 94: global lists of others are cured inside our Match block.
func TestLoginsUnderForeignSettings(t *testing.T) {
	for name, lines := range map[string]string{
		"AllowUsers":           "AllowUsers root alice\n",
		"AllowGroups":          "AllowGroups root alice\n",
		"AuthorizedKeysCmd":    "AuthorizedKeysCommand /bin/cat /etc/ssh/keys/alice\nAuthorizedKeysCommandUser nobody\n",
		"ForceCommand in all":  "Match all\n ForceCommand /bin/echo forced\nMatch all\n",
		"later Match for ours": "Match Group podspawn\n ForceCommand /bin/sh\n PasswordAuthentication yes\nMatch all\n",
	} {
		t.Run(name, func(t *testing.T) {
			l := newLogins(t)
			sshdtest.Write(t, "/etc/ssh/sshd_config.d/95-foreign.conf", lines, 0o644)
			l.setUp(t)
			out, words, code := l.SSH(t, l.sandbox, testLogin+"@127.0.0.1", "x")
			if out != "inside: x" || code != 5 {
				t.Errorf("sandbox login: exit %d, stdout %q, stderr %q", code, out, words)
			}
			if out, _, code := l.SSH(t, l.real, testLogin+"@127.0.0.1", "id"); code != 255 || out != "" {
				t.Errorf("a plain key logs in as a sandbox: exit %d, %q", code, out)
			}
		})
	}
}

// Threat 34: LoginGraceTime does not bound the PAM step, and "ssh -N" opens no
// channel whose end would end it.
func TestConnectionEndsWhenPAMRefuses(t *testing.T) {
	for name, pam := range map[string]func() *localapi.Error{
		"refused": func() *localapi.Error { return &localapi.Error{Kind: sandbox.KindPolicy, Msg: "spent", Hint: "none"} },
		"hangs":   func() *localapi.Error { return errHang },
	} {
		t.Run(name, func(t *testing.T) {
			l := newLogins(t)
			l.pam = pam
			l.setUp(t)
			begin := time.Now()
			out, words, code := l.SSH(t, l.sandbox, "-N", testLogin+"@127.0.0.1")
			if code == 0 || out != "" {
				t.Errorf("ssh -N: exit %d, stdout %q, stderr %q", code, out, words)
			}
			if took := time.Since(begin); took > 9*time.Second {
				t.Errorf("the connection ended after %v", took)
			}
			if name == "refused" { // a command gets the reason
				out, words, code := l.SSH(t, l.sandbox, testLogin+"@127.0.0.1", "x")
				if code != 254 || out != "podspawn: error: spent; none\n" {
					t.Errorf("ssh with a command: exit %d, stdout %q, stderr %q", code, out, words)
				}
			}
			sshdtest.Await(t, "the end of every hook", func() bool { return exec.Command("pgrep", "-x", "podspawn-hook").Run() != nil })
			l.checkReal(t)
		})
	}
}

// Threat 47, with sshd itself between client and hook.
func TestHookEndsWithItsClient(t *testing.T) {
	l := newLogins(t)
	l.setUp(t)
	for name, args := range map[string][]string{"no terminal": {"-T"}, "terminal": {"-tt"}} {
		t.Run(name, func(t *testing.T) {
			cmd := l.Client(l.sandbox, append(args, testLogin+"@127.0.0.1", "hang")...)
			if _, err := cmd.StdinPipe(); err != nil { // stays open
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			select {
			case <-l.daemon.hangs:
			case <-time.After(sshdtest.Patience):
				t.Fatal("the command did not start")
			}
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait() // killed
			select {
			case <-l.daemon.hungUp:
			case <-time.After(5 * time.Second):
				t.Error("the hook still holds its guest 5 s after its client was killed")
			}
		})
	}
}

// What every hook gives up before it does anything, seen from outside.
func TestHookConfinesItself(t *testing.T) {
	l := newLogins(t)
	l.setUp(t)
	cmd := l.Client(l.sandbox, "-o", "SetEnv=LANG=C LC_EVIL=x BASH_ENV=x", testLogin+"@127.0.0.1", "hang")
	if _, err := cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = cmd.Process.Kill(), cmd.Wait() }()
	select {
	case <-l.daemon.hangs:
	case <-time.After(sshdtest.Patience):
		t.Fatal("the command did not start")
	}
	pid := strings.TrimSpace(sshdtest.Run(t, "pgrep", "-n", "-x", "-u", "70001", "podspawn-hook"))
	limits := strings.Join(strings.Fields(sshdtest.Run(t, "cat", "/proc/"+pid+"/limits")), " ")
	for _, want := range []string{"Max core file size 0 0", "Max open files 256 256", "Max file size 0 0"} {
		if !strings.Contains(limits, want) {
			t.Errorf("limits do not say %q: %s", want, limits)
		}
	}
	status := sshdtest.Run(t, "sh", "-c", "cat /proc/"+pid+"/task/*/status")
	if strings.Contains(status, "NoNewPrivs:\t0") || !strings.Contains(status, "NoNewPrivs:\t1") {
		t.Errorf("a thread may gain privileges:\n%s", status)
	}
	if owner := sshdtest.Run(t, "stat", "-c", "%u", "/proc/"+pid+"/mem"); owner != "0\n" {
		t.Errorf("/proc/%s/mem belongs to uid %s: another process of the sandbox's uid may look into the hook", pid, owner)
	}
	if env := sshdtest.Run(t, "cat", "/proc/"+pid+"/environ"); strings.Contains(env, "EVIL") || strings.Contains(env, "BASH_ENV") {
		t.Errorf("sshd accepted variables: %q", env)
	}
}

// Threat 95: whatever of ours is lost or broken, real users log in as before and
// sandbox logins are refused.
func TestRealUsersLogInWhateverOfOursIsBroken(t *testing.T) {
	cut := func(path, from, to string) func(*testing.T) {
		return func(t *testing.T) {
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			text := strings.Replace(string(b), from, to, 1)
			if text == string(b) {
				t.Fatalf("%s does not hold %q", path, from)
			}
			sshdtest.Write(t, path, text, 0o644)
			t.Cleanup(func() { sshdtest.Write(t, path, string(b), 0o644) })
		}
	}
	lost := func(path string) func(*testing.T) {
		return func(t *testing.T) {
			if err := os.Rename(path, path+".lost"); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := os.Rename(path+".lost", path); err != nil {
					t.Error(err)
				}
			})
		}
	}
	broken := func(m module) func(*testing.T) { return func(t *testing.T) { sshdtest.Break(t, m.find()) } }
	hang := func(t *testing.T) { // the process is there and says nothing
		lost(localapi.SocketPath)(t)
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: localapi.SocketPath, Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(localapi.SocketPath, 0o666); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
	}
	pam := strings.SplitAfter(strings.TrimSuffix(pamLines(), "\n"), "\n")
	tests := []struct {
		name string
		lose func(*testing.T)
		open bool // sandbox logins are not refused by it: another layer is lost, not the decision
	}{
		{"hook lost", lost(HookPath), false},
		{"daemon gone", lost(localapi.SocketPath), false},
		{"daemon hangs", hang, false},
		{"libpam-net", broken(modules[0]), false},
		{"pam_succeed_if", broken(modules[1]), true},
		{"pam_exec", broken(modules[2]), false},
		{"libnss-extrausers", broken(modules[4]), false},
		{"PAM line 1 lost", cut(pamPath, pam[0], ""), true},
		{"PAM line 2 lost", cut(pamPath, pam[1], ""), false},
		{"PAM line 3 lost", cut(pamPath, pam[2], ""), true}, // no claim: the daemon refuses the session
		{"PAM line 4 lost", cut(pamPath, pam[3], ""), true},
		{"PAM line 5 lost", cut(pamPath, pam[4], ""), true},
		{"CA file lost", lost(userCAPub), false},
		{"revocation list lost", lost(revokedKRL), false},
		{"home lost", lost("/var/lib/podspawn/home"), true},
		{"host certificate lost", lost(hostCert), true},
		{"passwd of sandboxes lost", lost(extraPasswd), false},
		{"namespace lost", func(t *testing.T) { sshdtest.Run(t, "umount", "/run/netns/"+testLogin) }, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l := newLogins(t)
			l.setUp(t)
			tt.lose(t)
			l.checkReal(t)
			if !tt.open {
				l.checkSandboxRefused(t)
			}
			if err := syscall.Kill(l.PID, 0); err != nil {
				t.Errorf("sshd died: %v", err)
			}
		})
	}
}
