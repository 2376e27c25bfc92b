package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// echoServer is a program for the sandbox that listens where sys.argv says, and
// answers each connection with its words and then everything that it gets. It
// prints "ready" once it listens.
const echoServer = `
import socket, sys, threading
def serve(c):
    c.sendall(b"inside ")
    while True:
        b = c.recv(65536)
        if not b: break
        c.sendall(b)
    c.close()
def loop(s):
    while True: threading.Thread(target=serve, args=(s.accept()[0],), daemon=True).start()
ss = []
for a in sys.argv[1:]:
    h, p = a.rsplit(":", 1)
    s = socket.socket(socket.AF_INET6 if ":" in h else socket.AF_INET)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind((h, int(p))); s.listen(200); ss.append(s)
print("ready", flush=True)
for s in ss[1:]: threading.Thread(target=loop, args=(s,), daemon=True).start()
loop(ss[0])
`

// background is a program that runs until the test ends.
type background struct {
	cmd  *exec.Cmd
	errs bytes.Buffer
	done chan struct{}
}

// start runs a program and ends it with the test. Its stdout is returned.
func start(t *testing.T, stdin io.Reader, name string, args ...string) (*background, io.Reader) {
	t.Helper()
	b := &background{cmd: exec.Command(name, args...), done: make(chan struct{})}
	b.cmd.Stdin, b.cmd.Stderr = stdin, &b.errs
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	b.cmd.Stdout = w
	b.cmd.WaitDelay = time.Second
	if err := b.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = w.Close()
	go func() { _ = b.cmd.Wait(); close(b.done) }()
	t.Cleanup(func() { b.stop(); _ = r.Close() })
	return b, r
}

func (b *background) stop() {
	_ = b.cmd.Process.Kill() // it may have ended
	<-b.done
}

// echoIn starts the echo server in the sandbox.
func echoIn(t *testing.T, c client, addrs ...string) {
	t.Helper()
	_, out := start(t, strings.NewReader(echoServer), "ssh", append(c.args(c.login, "python3", "-"), addrs...)...)
	line := make([]byte, 6)
	if _, err := io.ReadFull(out, line); err != nil || string(line) != "ready\n" {
		t.Fatalf("echo server: %q, %v", line, err)
	}
}

// freePort returns a port that nobody listens on.
func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

func local(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

// forwards runs ssh -N with forwardings and waits until each local port listens.
func forwards(t *testing.T, c client, ports []int, args ...string) *background {
	t.Helper()
	b, _ := start(t, nil, "ssh", append(c.args(append([]string{"-N", "-o", "ExitOnForwardFailure=yes"}, args...)...), c.login)...)
	for _, p := range ports {
		eventually(t, 10*time.Second, func() error { return dials(local(p)) })
	}
	return b
}

func dials(addr string) error {
	c, err := net.DialTimeout("tcp", addr, 2*time.Second)
	if err == nil {
		_ = c.Close()
	}
	return err
}

// echoes sends a word and its end, and returns the answer.
func echoes(addr, word string) (string, error) {
	c, err := net.DialTimeout("tcp", addr, 5*time.Second)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return "", err
	}
	if _, err := io.WriteString(c, word); err != nil {
		return "", err
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		return "", err
	}
	b, err := io.ReadAll(c)
	return string(b), err
}

func wantEcho(t *testing.T, addr, what string) {
	t.Helper()
	if got, err := echoes(addr, "hello"); got != "inside hello" || err != nil {
		t.Errorf("%s: %q, %v, want the sandbox's server", what, got, err)
	}
}

// onHost listens on the host's loopback and counts who comes.
func onHost(t *testing.T, addr string) (string, *atomic.Int32) {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	var n atomic.Int32
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			n.Add(1)
			_, _ = conn.Write([]byte("the host"))
			_ = conn.Close()
		}
	}()
	return l.Addr().String(), &n
}

// Threats 50, 53-56: what a client forwards lands on the sandbox's loopback,
// also where the host has a listener on the same port.
func TestForwardingLandsInTheSandbox(t *testing.T) {
	s := create(t)
	c := connectable(t, s)
	target, reached := onHost(t, "127.0.0.1:0")
	_, port, _ := net.SplitHostPort(target)
	echoIn(t, c, "0.0.0.0:"+port)
	l, d, six, closed := freePort(t), freePort(t), freePort(t), freePort(t)
	forwards(t, c, []int{l, d, six, closed},
		"-L", fmt.Sprintf("%d:%s", l, target), "-L", fmt.Sprintf("%d:[::1]:%s", six, port), "-L", fmt.Sprintf("%d:127.0.0.1:9", closed), "-D", strconv.Itoa(d))
	wantEcho(t, local(l), "-L")
	wantEcho(t, local(six), "-L to the IPv6 loopback, of which the sandbox has none")
	if r := run(t, strings.NewReader("hello"), "nc", "-N", "-w", "10", "-X", "5", "-x", local(d), "127.0.0.1", port); r.stdout != "inside hello" {
		t.Errorf("-D: %v", r)
	}
	if r := run(t, strings.NewReader("hello"), "nc", "-N", "-w", "10", "-X", "5", "-x", local(d), "localhost", port); r.stdout != "inside hello" {
		t.Errorf("-D by name: %v", r)
	}
	if r := run(t, strings.NewReader("hello"), "ssh", append(c.args("-W", target), c.login)...); r.stdout != "inside hello" {
		t.Errorf("-W: %v", r)
	}
	// Names are the sandbox's: sshd asks the relay, and the guest resolves. With the
	// dot the name is in no hosts file of the host's.
	if r := run(t, strings.NewReader("hello"), "nc", "-N", "-w", "10", "-X", "5", "-x", local(d), "localhost.", port); r.stdout != "inside hello" {
		t.Errorf("-D to a name that the sandbox resolves: %v", r)
	}
	if r := run(t, strings.NewReader("hello"), "ssh", append(c.args("-W", "localhost.:"+port), c.login)...); r.stdout != "inside hello" {
		t.Errorf("-W to a name that the sandbox resolves: %v", r)
	}
	if r := run(t, strings.NewReader("hello"), "ssh", append(c.args("-W", "no-such-name.invalid:"+port), c.login)...); r.stdout != "" {
		t.Errorf("-W to a name that nobody has: %v", r)
	}
	began := time.Now()
	if got, err := echoes(local(closed), "x"); err == nil && got != "" || time.Since(began) > 5*time.Second {
		t.Errorf("-L to a closed port: %q, %v after %s, want an end at once", got, err, time.Since(began))
	}
	// Nothing private is reached, the relay itself included.
	for _, other := range []string{"198.51.100.1:80", "127.0.0.1:1", "[::1]:1", "0.0.0.0:1", "169.254.169.254:80"} {
		if r := run(t, strings.NewReader("hello"), "ssh", append(c.args("-W", other), c.login)...); r.stdout != "" {
			t.Errorf("-W %s: %v", other, r)
		}
	}
	if n := reached.Load(); n != 0 {
		t.Errorf("the host's loopback was reached %d times", n)
	}
	for _, want := range []string{"127.0.0.1:" + port, "localhost:" + port} {
		eventually(t, 5*time.Second, func() error {
			return command("grep", "-q", `"forward.opened".*"`+s.ID+`".*"target":"`+want+`"`, "/var/log/podspawn/audit.jsonl")
		})
	}
}

// A hundred connections at once, each with half a megabyte both ways, and no
// descriptor or process more afterwards (threat 61).
func TestManyForwardedConnections(t *testing.T) {
	s := create(t)
	c := connectable(t, s)
	echoIn(t, c, "127.0.0.1:9100")
	l := freePort(t)
	forwards(t, c, []int{l}, "-L", fmt.Sprintf("%d:127.0.0.1:9100", l))
	wantEcho(t, local(l), "-L")
	relay := relayOf(t, s)
	eventually(t, 10*time.Second, func() error { return atMost(relay, 16) })
	for range 3 {
		var wg sync.WaitGroup
		var failed atomic.Int32
		for range 100 {
			wg.Go(func() {
				word := strings.Repeat("0123456789abcdef", 4<<10)
				if got, err := echoes(local(l), word); got != "inside "+word {
					if failed.Add(1) == 1 {
						t.Errorf("one of a hundred: %d bytes, %v", len(got), err)
					}
				}
			})
		}
		wg.Wait()
		if n := failed.Load(); n != 0 {
			t.Fatalf("%d of 100 connections failed", n)
		}
	}
	eventually(t, 15*time.Second, func() error { return atMost(relay, 16) })
	eventually(t, 10*time.Second, func() error {
		if got := relayOf(t, s); got != relay {
			return fmt.Errorf("relay is %d now, was %d", got, relay)
		}
		return nil
	})
}

// relayOf returns the pid of the sandbox's relay, 0 for none.
func relayOf(t *testing.T, s sandbox) int {
	t.Helper()
	r := run(t, nil, "pgrep", "-f", "-x", "/usr/libexec/podspawn/podspawn-hook relay "+s.Login)
	pids := strings.Fields(r.stdout)
	if len(pids) > 1 {
		t.Fatalf("relays: %v", pids)
	}
	if len(pids) == 0 {
		return 0
	}
	pid, err := strconv.Atoi(pids[0])
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

func atMost(pid, limit int) error {
	fds, err := os.ReadDir(filepath.Join("/proc", strconv.Itoa(pid), "fd"))
	if err == nil && len(fds) > limit {
		err = fmt.Errorf("process %d has %d descriptors open", pid, len(fds))
	}
	return err
}

var errNoRelay = errors.New("no relay")

// Threat 100, and design §3: a daemon's end cuts no forward, and new ones work
// with the next daemon; a relay's end is that sandbox's only, and the next
// connection has another.
func TestForwardsOutliveTheDaemon(t *testing.T) {
	h := need(t)
	s, other := create(t), create(t)
	c, oc := connectable(t, s), connectable(t, other)
	echoIn(t, c, "127.0.0.1:9100")
	echoIn(t, oc, "127.0.0.1:9100")
	l, o := freePort(t), freePort(t)
	forwards(t, c, []int{l}, "-L", fmt.Sprintf("%d:127.0.0.1:9100", l))
	forwards(t, oc, []int{o}, "-L", fmt.Sprintf("%d:127.0.0.1:9100", o))
	conn, err := net.Dial("tcp", local(l))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	say := func(word string) {
		t.Helper()
		b := make([]byte, len(word))
		if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(conn, word); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(conn, b); err != nil {
			t.Fatalf("live forward: %v", err)
		}
	}
	say("12345678901") // longer than the greeting
	if err := h.end("daemon", syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	say("while no daemon runs")
	if err := errors.Join(h.start("daemon", podspawn, "daemon"), h.awaitReady()); err != nil {
		t.Fatal(err)
	}
	say("with the next one")
	wantEcho(t, local(l), "-L after a restart")
	relay := relayOf(t, s)
	if relay == 0 {
		t.Fatal(errNoRelay)
	}
	if err := command("kill", "-9", strconv.Itoa(relay)); err != nil {
		t.Fatal(err)
	}
	eventually(t, 5*time.Second, func() error {
		if got, err := echoes(local(l), "x"); err == nil && got != "" {
			return fmt.Errorf("%q comes through a dead relay", got)
		}
		return nil
	})
	wantEcho(t, local(o), "another sandbox's forward")
	n := freePort(t)
	forwards(t, c, []int{n}, "-L", fmt.Sprintf("%d:127.0.0.1:9100", n))
	wantEcho(t, local(n), "the next connection's")
	wantEcho(t, local(l), "and the first one's again")
}

// Threats 53, 54: -R listens in the sandbox and nowhere on the host.
func TestRemoteForwarding(t *testing.T) {
	s := create(t)
	c := connectable(t, s)
	target, reached := onHost(t, "127.0.0.1:0") // the client's own, here
	const fetch = `import socket,sys
s=socket.create_connection((sys.argv[1],int(sys.argv[2])),5); print(s.recv(99).decode())`
	r := run(t, strings.NewReader(fetch), "ssh", append(c.args("-o", "ExitOnForwardFailure=yes", "-R", "9201:"+target, "-R", "9202:"+target), c.login,
		"cat > /tmp/fetch.py; for a in 127.0.0.1 localhost; do python3 /tmp/fetch.py $a 9201; done; python3 /tmp/fetch.py localhost 9202")...)
	if strings.Count(r.stdout, "the host\n") != 3 || reached.Load() != 3 {
		t.Errorf("-R from the sandbox: %v, client reached %d times", r, reached.Load())
	}
	// Port 0: sshd chooses, in the portal, and the sandbox has the same.
	_, out := start(t, nil, "sh", "-c", `exec ssh "$@" 2>&1`, "sh", "-F", filepath.Join(c.dir, "ssh_config"), "-o", "ControlMaster=no", "-o", "ControlPath=none",
		"-N", "-R", "0:"+target, c.login)
	line := make([]byte, 256)
	n, err := out.Read(line)
	var port int
	if _, serr := fmt.Sscanf(string(line[:n]), "Allocated port %d for remote forward", &port); err != nil || serr != nil {
		t.Fatalf("-R 0: %q, %v, %v", line[:n], err, serr)
	}
	eventually(t, 10*time.Second, func() error {
		if r := c.ssh(t, nil, "python3", "/tmp/fetch.py", "localhost", strconv.Itoa(port)); r.stdout != "the host\n" {
			return fmt.Errorf("-R 0, port %d: %v", port, r)
		}
		return nil
	})
	if err := dials(local(port)); err == nil {
		t.Errorf("port %d listens on the host", port)
	}
	for _, bad := range []string{"80:" + target, "1:" + target, "0.0.0.0:22:" + target} {
		if r := run(t, nil, "ssh", append(c.args("-o", "ExitOnForwardFailure=yes", "-R", bad), c.login, "true")...); r.code == 0 {
			t.Errorf("-R %s: %v", bad, r)
		}
	}
	many := []string{"-o", "ExitOnForwardFailure=no"}
	for p := 10000; p < 10200; p++ {
		many = append(many, "-R", fmt.Sprintf("%d:%s", p, target))
	}
	r = run(t, nil, "ssh", append(c.args(many...), c.login, "grep -c ' 0A ' /proc/net/tcp; echo still")...)
	if n, _, _ := strings.Cut(r.stdout, "\n"); !strings.Contains(r.stdout, "still") || len(n) > 2 {
		t.Errorf("200 ports: %v, want at most 64 of them", r)
	}
}

// Threat 60: the agent comes along only when the spec says so.
func TestAgentForwarding(t *testing.T) {
	dir := shortDir(t)
	sock := filepath.Join(dir, "agent")
	agent, _ := start(t, nil, "ssh-agent", "-D", "-a", sock)
	defer agent.stop()
	key := filepath.Join(dir, "key")
	eventually(t, 5*time.Second, func() error {
		_, err := os.Stat(sock)
		return err
	})
	t.Setenv("SSH_AUTH_SOCK", sock)
	for _, cmd := range [][]string{{"ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "of-the-client", "-f", key}, {"ssh-add", "-q", key}} {
		if err := command(cmd[0], cmd[1:]...); err != nil {
			t.Fatal(err)
		}
	}
	podfile := filepath.Join(dir, "podfile.yaml")
	if err := os.WriteFile(podfile, []byte("image: podspawn/base\nssh: {agent: true}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := create(t, "-f", podfile)
	c := connectable(t, s)
	r := run(t, nil, "ssh", append(c.args("-A"), c.login, "ssh-add -l; stat -c '%a %U' $SSH_AUTH_SOCK; echo data > f; ssh-keygen -q -Y sign -n file -f /dev/stdin f < <(ssh-add -L) && echo signed")...)
	if !strings.Contains(r.stdout, "of-the-client") || !strings.Contains(r.stdout, "600 dev\n") || !strings.Contains(r.stdout, "signed") {
		t.Errorf("ssh -A: %v", r)
	}
	eventually(t, 5*time.Second, func() error {
		if r := c.ssh(t, nil, "ls -d /tmp/podspawn-agent-* 2>/dev/null; echo agent=$SSH_AUTH_SOCK"); r.stdout != "agent=\n" {
			return fmt.Errorf("without -A, afterwards: %v", r)
		}
		return nil
	})
	plain := create(t)
	pc := connectable(t, plain)
	if r := run(t, nil, "ssh", append(pc.args("-A"), pc.login, "echo agent=$SSH_AUTH_SOCK")...); r.stdout != "agent=\n" {
		t.Errorf("ssh -A to a sandbox that does not allow it: %v", r)
	}
}

// Forwarding that the spec does not grant is refused by sshd.
func TestForwardingNotGranted(t *testing.T) {
	podfile := filepath.Join(t.TempDir(), "podfile.yaml")
	if err := os.WriteFile(podfile, []byte("image: podspawn/base\nssh: {forwarding: false}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := create(t, "-f", podfile)
	c := connectable(t, s)
	if r := run(t, nil, "ssh", append(c.args("-W", "127.0.0.1:22"), c.login)...); r.code == 0 || !strings.Contains(r.stderr, "prohibited") {
		t.Errorf("-W: %v", r)
	}
	if r := run(t, nil, "ssh", append(c.args("-o", "ExitOnForwardFailure=yes", "-R", "9100:127.0.0.1:22"), c.login, "true")...); r.code == 0 {
		t.Errorf("-R: %v", r)
	}
	if pid := relayOf(t, s); pid != 0 {
		t.Errorf("relay %d runs for a sandbox without forwarding", pid)
	}
}

// The shape of VS Code Remote-SSH: a dynamic forwarding, and an install script on
// stdin that starts a server on the sandbox's loopback and prints its port.
func TestEditorsServerIsReachedThroughSOCKS(t *testing.T) {
	s := create(t)
	c := connectable(t, s)
	d := freePort(t)
	script := "cat > /tmp/server.py <<'EOF'\n" + echoServer + "\nEOF\nsetsid python3 /tmp/server.py 127.0.0.1:9300 > /tmp/server.log 2>&1 &\n" +
		"for i in $(seq 200); do grep -q ready /tmp/server.log && break; sleep 0.05; done; echo listeningOn=9300; cat >/dev/null\n"
	in, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	defer in.Close()
	_, out := start(t, in, "ssh", append(c.args("-T", "-D", strconv.Itoa(d)), c.login, "bash")...)
	if _, err := io.WriteString(w, script); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len("listeningOn=9300\n"))
	if _, err := io.ReadFull(out, got); err != nil || string(got) != "listeningOn=9300\n" {
		t.Fatalf("install script: %q, %v", got, err)
	}
	if r := run(t, strings.NewReader("hello"), "nc", "-N", "-w", "10", "-X", "5", "-x", local(d), "127.0.0.1", "9300"); r.stdout != "inside hello" {
		t.Errorf("the editor's server: %v", r)
	}
}

// Ten channels over one ControlMaster are one connection, forwards included.
func TestMultiplexed(t *testing.T) {
	s := create(t)
	c := connectable(t, s, "--uses", "1")
	control := filepath.Join(c.dir, "m")
	base := []string{"-F", filepath.Join(c.dir, "ssh_config"), "-o", "BatchMode=yes", "-o", "ControlPath=" + control}
	if r := run(t, nil, "ssh", append(base, "-o", "ControlMaster=yes", "-o", "ControlPersist=60", "-N", "-f", c.login)...); r.code != 0 {
		t.Fatalf("master: %v", r)
	}
	defer run(t, nil, "ssh", append(base, "-O", "exit", c.login)...)
	var wg sync.WaitGroup
	for i := range 10 {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			out, err := exec.CommandContext(ctx, "ssh", append(base, c.login, "echo", strconv.Itoa(i))...).Output()
			if string(out) != strconv.Itoa(i)+"\n" {
				t.Errorf("channel %d: %q, %v", i, out, err)
			}
		})
	}
	wg.Wait()
	l := freePort(t)
	if r := run(t, nil, "ssh", append(base, "-O", "forward", "-L", fmt.Sprintf("%d:127.0.0.1:9100", l), c.login)...); r.code != 0 {
		t.Errorf("-O forward: %v", r)
	}
	_, out := start(t, strings.NewReader(echoServer), "ssh", append(base, c.login, "python3", "-", "127.0.0.1:9100")...)
	if _, err := io.ReadFull(out, make([]byte, 6)); err != nil {
		t.Fatal(err)
	}
	wantEcho(t, local(l), "-L over the master")
}
