package pid1_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/podspawn/podspawn/sandbox/guest"
)

// live is a process that is under way.
type live struct {
	in      *io.PipeWriter
	out     *lockedBuffer
	resize  chan guest.Window
	signals chan string
	cancel  context.CancelFunc
	done    chan struct{}
	exit    guest.Exit
	err     error
}

type lockedBuffer struct {
	mu sync.Mutex // guards b
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// start starts e and returns at once.
func (b *box) start(t *testing.T, e guest.Exec) *live {
	t.Helper()
	f, err := b.dial(preamble())
	must(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	r, w := io.Pipe()
	l := &live{
		in: w, out: new(lockedBuffer), cancel: cancel, done: make(chan struct{}),
		resize: make(chan guest.Window), signals: make(chan string),
	}
	go func() {
		defer close(l.done)
		l.exit, l.err = guest.Run(ctx, f, e, guest.Streams{Stdin: r, Stdout: l.out, Stderr: l.out, Resize: l.resize, Signals: l.signals})
	}()
	t.Cleanup(func() {
		cancel()
		w.Close()
		<-l.done
	})
	return l
}

// expect waits until the output contains s.
func (l *live) expect(t *testing.T, s string) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !strings.Contains(l.out.String(), s); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("no %q in the output %q", s, l.out.String())
		}
	}
}

func (l *live) wait(t *testing.T) guest.Exit {
	t.Helper()
	select {
	case <-l.done:
	case <-time.After(15 * time.Second):
		t.Fatalf("the session did not end; output %q", l.out.String())
	}
	if l.err != nil {
		t.Fatalf("Run: %v; output %q", l.err, l.out.String())
	}
	return l.exit
}

var terminal = &guest.Terminal{Term: "xterm-256color", Window: guest.Window{Rows: 33, Cols: 101}}

func TestGuestUnderGvisor(t *testing.T) {
	b := newBox(t, time.Now().Add(time.Hour))
	// Not parallel: they share two cores, and one sandbox whose processes they count.
	for _, c := range []struct {
		name string
		test func(*testing.T, *box)
	}{
		{"output and status", testStatus},
		{"user, directory and environment", testProcess},
		{"what can't be started", testRefusals},
		{"command is one opaque argument", testOpaque},
		{"login shell", testLoginShell},
		{"signals", testSignals},
		{"stdin is binary clean and half-closed", testStdin},
		{"stdin that nobody reads holds up no signal", testUnreadStdin},
		{"100 MB of output", testThroughput},
		{"output of children in the background", testBackground},
		{"terminal", testTerminal},
		{"terminal with children in the background", testTerminalBackground},
		{"process group is killed when the host's end closes", testDisconnect},
		{"sudo", testSudo},
		{"sudo on a terminal", testSudoTerminal},
		{"hostile preambles and requests", testHostile},
		{"descriptors from the host are dropped", testAncillary},
		{"zombies are reaped", testZombies},
		{"socket directory is sealed", testSealed},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, b) })
	}
}

func testStatus(t *testing.T, b *box) {
	r := b.run(t, guest.Exec{Script: "echo out > /dev/stdout; echo err > /dev/stderr; exit 7"}, "")
	if r.out != "out\n" || r.errOut != "err\n" || r.exit != (guest.Exit{Code: 7}) {
		t.Errorf("Run = %+v, want out, err and code 7", r)
	}
	r = b.run(t, guest.Exec{Script: "kill -USR1 $$"}, "")
	if r.exit.Signal != "USR1" {
		t.Errorf("exit = %+v, want signal USR1", r.exit)
	}
}

func testProcess(t *testing.T, b *box) {
	got := b.sh(t, "id -u; id -g; id -G; pwd; stat -c %u .; echo $HOME $USER $LOGNAME $SHELL $FROM_SPEC; umask; echo $PATH")
	want := "1000\n1000\n1000 10\n/workspace\n1000\n/home/dev dev dev /bin/sh spec\n0022\n" +
		"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n"
	if got != want {
		t.Errorf("process sees %q, want %q", got, want)
	}
	r := b.run(t, guest.Exec{Argv: []string{"sh", "-c", "id -u; pwd; echo $BOTH $HOME"}, User: "other", Dir: "/tmp", Env: map[string]string{"BOTH": "exec"}}, "")
	if want := "1001\n/tmp\nexec /\n"; r.out != want || r.exit.Code != 0 {
		t.Errorf("other user: %+v, want %q", r, want)
	}
	r = b.run(t, guest.Exec{Argv: []string{"id", "-u"}, User: "4242", Dir: "/"}, "")
	if r.out != "4242\n" {
		t.Errorf("uid without an entry: %+v, want 4242", r)
	}
	if got := b.sh(t, "ls -l /proc/self/fd | wc -l"); strings.TrimSpace(got) != "5" { // a head line, three streams, ls's own
		t.Errorf("open descriptors = %s, want 5 lines", got)
	}
}

func testRefusals(t *testing.T, b *box) {
	for name, c := range map[string]struct {
		exec guest.Exec
		code int
		msg  string
	}{
		"command not found":  {guest.Exec{Argv: []string{"no-such-command"}}, 127, "command not found"},
		"path not found":     {guest.Exec{Argv: []string{"/no/such"}}, 127, "does not exist"},
		"not executable":     {guest.Exec{Argv: []string{"/etc/passwd"}}, 126, "permission denied"},
		"directory":          {guest.Exec{Argv: []string{"/etc"}}, 126, "directory"},
		"missing directory":  {guest.Exec{Script: "true", Dir: "/no/such"}, 126, "working directory /no/such does not exist"},
		"closed directory":   {guest.Exec{Script: "true", Dir: "/closed"}, 126, "may not"},
		"unknown user":       {guest.Exec{Script: "true", User: "nobody-here"}, 126, "does not exist in the sandbox"},
		"bad variable":       {guest.Exec{Script: "true", Env: map[string]string{"A=B": "c"}}, 126, "not a variable's name"},
		"too long":           {guest.Exec{Command: "true " + strings.Repeat("x", 140<<10)}, 126, "too long"},
		"nothing asked for":  {guest.Exec{}, 126, "want one"},
		"two things at once": {guest.Exec{Command: "true", SFTP: true}, 126, "want one"},
	} {
		t.Run(name, func(t *testing.T) {
			b.run(t, guest.Exec{Script: "mkdir -p /closed && chmod 700 /closed", User: "root"}, "")
			r := b.run(t, c.exec, "")
			if r.exit.Code != c.code || !strings.Contains(r.exit.Error, c.msg) {
				t.Errorf("exit = %+v, want code %d and %q", r.exit, c.code, c.msg)
			}
		})
	}
	for name, c := range map[string]struct {
		rights []guest.Right
		exec   guest.Exec
	}{
		"command without exec": {[]guest.Right{guest.RightSFTP}, guest.Exec{Command: "true"}},
		"terminal without pty": {[]guest.Right{guest.RightExec}, guest.Exec{LoginShell: true, PTY: terminal}},
		"sftp without sftp":    {[]guest.Right{guest.RightExec, guest.RightPTY}, guest.Exec{SFTP: true}},
	} {
		t.Run(name, func(t *testing.T) {
			p := preamble()
			p.Rights = c.rights
			f, err := b.dial(p)
			must(t, err)
			exit, err := guest.Run(t.Context(), f, c.exec, guest.Streams{})
			if err != nil || exit.Code != 126 || !strings.Contains(exit.Error, "not allowed") {
				t.Errorf("Run = %+v, %v, want a refusal", exit, err)
			}
		})
	}
}

func testOpaque(t *testing.T, b *box) {
	for _, c := range []struct{ command, want string }{
		{"echo one\necho two", "one\ntwo\n"},
		{`printf '%s|' "$0" "it's" '$(id)' \; `, "sh|it's|$(id)|;|"},
		{"printf '\\377\\001'; printf '\u00e9'", "\xff\x01\u00e9"},
	} {
		if r := b.run(t, guest.Exec{Command: c.command}, ""); r.out != c.want || r.exit.Code != 0 {
			t.Errorf("%q: %+v, want %q", c.command, r, c.want)
		}
	}
	// A shell takes a leading dash behind -c as an option or as a command, but never
	// does the guest.
	if r := b.run(t, guest.Exec{Command: "-no-such-option"}, ""); r.exit.Code == 0 {
		t.Errorf("leading dash: %+v, want a failure", r)
	}
}

func testLoginShell(t *testing.T, b *box) {
	b.run(t, guest.Exec{Script: "echo 'FROM_PROFILE=yes; export FROM_PROFILE' > /etc/profile", User: "root"}, "")
	r := b.run(t, guest.Exec{LoginShell: true}, "echo $0 $FROM_PROFILE; exit 3\n")
	if r.out != "-sh yes\n" || r.exit.Code != 3 {
		t.Errorf("login shell: %+v, want -sh yes and code 3", r)
	}
}

func testSignals(t *testing.T, b *box) {
	l := b.start(t, guest.Exec{Script: "trap 'echo got; exit 9' USR2; echo ready; while :; do sleep 0.1; done"})
	l.expect(t, "ready")
	l.signals <- "NONSENSE"
	l.signals <- "USR2"
	if exit := l.wait(t); exit.Code != 9 || !strings.Contains(l.out.String(), "got") {
		t.Errorf("trapped signal: %+v, %q", exit, l.out.String())
	}
	// The group gets it, not just the shell.
	l = b.start(t, guest.Exec{Script: "sleep 1000; echo survived"})
	await(t, "sleep runs", func() bool { return b.count(t, "sleep 1000") == 1 })
	l.signals <- "TERM"
	if exit := l.wait(t); exit.Signal != "TERM" {
		t.Errorf("exit = %+v, want TERM", exit)
	}
	if n := b.count(t, "sleep 1000"); n != 0 {
		t.Errorf("%d processes of the group survived", n)
	}
}

// count returns how many processes have the command line.
func (b *box) count(t *testing.T, cmdline string) int {
	t.Helper()
	out := b.sh(t, fmt.Sprintf(`n=0; for f in /proc/[0-9]*/cmdline; do
		c=$(tr '\0' ' ' < $f 2>/dev/null); [ "$c" = '%s ' ] && n=$((n+1)); done; echo $n`, cmdline))
	n, err := strconv.Atoi(strings.TrimSpace(out))
	must(t, err)
	return n
}

func testStdin(t *testing.T, b *box) {
	data := make([]byte, 20<<20+13)
	rand.Read(data)
	r := b.run(t, guest.Exec{Script: "sha256sum; wc -c"}, string(data))
	sum := sha256.Sum256(data)
	if want := hex.EncodeToString(sum[:]) + "  -\n0\n"; r.out != want {
		t.Errorf("hash = %q, want %q", r.out, want)
	}
	if r = b.run(t, guest.Exec{Argv: []string{"cat"}}, string(data)); r.out != string(data) {
		t.Errorf("cat returned %d bytes that differ from the %d sent", len(r.out), len(data))
	}
	// A process that closes its input early does not make the host wait.
	if r = b.run(t, guest.Exec{Script: "head -c 4 >/dev/null; exec <&-; sleep 0.2; echo done"}, string(data)); r.out != "done\n" {
		t.Errorf("closed input: %+v", r)
	}
}

func testUnreadStdin(t *testing.T, b *box) {
	l := b.start(t, guest.Exec{Script: "trap 'exit 5' TERM; echo ready; while :; do sleep 0.1; done"})
	l.expect(t, "ready")
	full := make(chan struct{})
	go func() {
		defer close(full)
		_, _ = l.in.Write(make([]byte, 4<<20)) // ends with the session
	}()
	select {
	case <-full:
		t.Error("4 MB were taken from the host with nobody to read them")
	case <-time.After(300 * time.Millisecond): // long enough for what is bounded to be full
	}
	l.signals <- "TERM"
	if exit := l.wait(t); exit.Code != 5 {
		t.Errorf("exit = %+v, want code 5", exit)
	}
	l.in.Close()
	<-full
}

func testThroughput(t *testing.T, b *box) {
	f, err := b.dial(preamble())
	must(t, err)
	var n counter
	begin := time.Now()
	exit, err := guest.Run(t.Context(), f, guest.Exec{Script: "dd if=/dev/zero bs=64k count=1600 2>/dev/null"}, guest.Streams{Stdout: &n})
	if err != nil || exit.Code != 0 || n != 1600*64<<10 {
		t.Errorf("Run = %+v, %v after %d bytes", exit, err, n)
	}
	took := time.Since(begin)
	t.Logf("%.0f MB/s", float64(n)/1e6/took.Seconds())
}

type counter int

func (c *counter) Write(p []byte) (int, error) { *c += counter(len(p)); return len(p), nil }

func testBackground(t *testing.T, b *box) {
	// Its output belongs to the session, as with sshd.
	r := b.run(t, guest.Exec{Script: "(sleep 0.3; echo late) & exit 4"}, "")
	if r.out != "late\n" || r.exit.Code != 4 {
		t.Errorf("background output: %+v, want late and code 4", r)
	}
	// One that holds no stream ends nothing and stays.
	begin := time.Now()
	b.run(t, guest.Exec{Script: "sleep 1001 >/dev/null 2>&1 </dev/null &"}, "")
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("a detached process held the session for %s", took)
	}
	await(t, "the detached process runs", func() bool { return b.count(t, "sleep 1001") == 1 })
	b.run(t, guest.Exec{Script: "pkill -f 'sleep 1001'"}, "")
}

func testTerminal(t *testing.T, b *box) {
	l := b.start(t, guest.Exec{LoginShell: true, PTY: terminal})
	say := func(s string) {
		t.Helper()
		if _, err := io.WriteString(l.in, s); err != nil {
			t.Fatalf("write to the terminal: %v", err)
		}
	}
	say("stty size; tty; echo T=$TERM; id -u > /dev/tty\n")
	l.expect(t, "33 101\r\n")
	l.expect(t, "/dev/pts/")
	l.expect(t, "T=xterm-256color")
	l.expect(t, "1000\r\n")
	l.resize <- guest.Window{Rows: 50, Cols: 132}
	say("stty size\n")
	l.expect(t, "50 132\r\n")
	say("trap '' USR1; sleep 1002\n")
	await(t, "sleep runs", func() bool { return b.count(t, "sleep 1002") == 1 })
	say("\x03")
	say("echo after-$?\n")
	l.expect(t, "after-130")
	say("sleep 1003\n")
	await(t, "sleep runs", func() bool { return b.count(t, "sleep 1003") == 1 })
	say("\x1a")
	say("jobs; echo stopped-$((1+1))\n")
	l.expect(t, "stopped-2")
	say("kill -9 %1; exit 6\n")
	say("exit 6\n")
	if exit := l.wait(t); exit.Code != 6 {
		t.Errorf("exit = %+v, want code 6; output %q", exit, l.out.String())
	}
}

func testTerminalBackground(t *testing.T, b *box) {
	l := b.start(t, guest.Exec{Script: "trap '' HUP; sleep 1004 & echo last words", PTY: terminal})
	if exit := l.wait(t); exit.Code != 0 || !strings.Contains(l.out.String(), "last words") {
		t.Errorf("exit = %+v, output %q", exit, l.out.String())
	}
	b.run(t, guest.Exec{Script: "pkill -9 -f 'sleep 1004'"}, "")
}

func testDisconnect(t *testing.T, b *box) {
	for name, e := range map[string]guest.Exec{
		"pipes":    {Script: "trap '' HUP TERM; echo ready; (sleep 1005) & sleep 1005; :"},
		"terminal": {Script: "trap '' HUP TERM; echo ready; (sleep 1005) & sleep 1005; :", PTY: terminal},
		"jobs":     {Script: "set -m; trap '' HUP TERM; sleep 1005 & sleep 1005 & echo ready; wait; sleep 100", PTY: terminal},
	} {
		t.Run(name, func(t *testing.T) {
			l := b.start(t, e)
			l.expect(t, "ready")
			await(t, "sleeps run", func() bool { return b.count(t, "sleep 1005") == 2 })
			begin := time.Now()
			l.cancel()
			<-l.done
			if !errors.Is(l.err, context.Canceled) {
				t.Errorf("Run = %v, want canceled", l.err)
			}
			await(t, "all are killed", func() bool { return b.count(t, "sleep 1005") == 0 })
			if took := time.Since(begin); took > 3*time.Second {
				t.Errorf("it took %s", took)
			}
		})
	}
}

func testZombies(t *testing.T, b *box) {
	b.sh(t, "for i in 1 2 3 4 5; do (sh -c 'sleep 0.1 & exit') ; done")
	await(t, "no zombie is left", func() bool {
		return strings.TrimSpace(b.sh(t, "cat /proc/[0-9]*/stat 2>/dev/null | grep -c ') Z ' || :")) == "0"
	})
}

func testSealed(t *testing.T, b *box) {
	for _, script := range []string{
		"touch /.podspawn/run/x", "rm /.podspawn/run/guest.sock", "mv /.podspawn/run/guest.sock /.podspawn/run/g",
		"ln -s /etc/passwd /.podspawn/run/l", "cp /bin/busybox /.podspawn/run/su",
		"mkdir /.podspawn/run/d", "mount -o remount,rw /.podspawn/run",
	} {
		if r := b.run(t, guest.Exec{Script: script, User: "root"}, ""); r.exit.Code == 0 {
			t.Errorf("%q as root in the sandbox succeeded", script)
		}
	}
	entries, err := os.ReadDir(b.dir)
	must(t, err)
	if len(entries) != 1 || entries[0].Name() != guest.SocketName {
		t.Errorf("socket directory holds %v", entries)
	}
	// gVisor answers chmod from its cache; what counts is the host.
	b.run(t, guest.Exec{Script: "chmod 4777 /.podspawn/run/guest.sock /.podspawn/run", User: "root"}, "")
	for _, path := range []string{b.dir, filepath.Join(b.dir, guest.SocketName)} {
		st, err := os.Lstat(path)
		must(t, err)
		if st.Mode()&os.ModeSetuid != 0 {
			t.Errorf("%s has mode %s on the host", path, st.Mode())
		}
	}
}

func TestGuestEndsAtDeadline(t *testing.T) {
	t.Run("of its start", func(t *testing.T) {
		b := newBox(t, time.Now().Add(2*time.Second))
		b.ends(t, 8*time.Second)
	})
	t.Run("of the latest preamble", func(t *testing.T) {
		b := newBox(t, time.Now().Add(time.Hour))
		l := b.start(t, guest.Exec{Script: "trap '' HUP TERM INT; echo ready; while :; do sleep 1; done"})
		l.expect(t, "ready")
		p := preamble()
		p.Deadline = time.Now().Add(2 * time.Second).Unix()
		f, err := b.dial(p)
		must(t, err)
		f.Close()
		b.ends(t, 8*time.Second)
		<-l.done
		if !errors.Is(l.err, guest.ErrEnded) {
			t.Errorf("Run = %v, want ErrEnded", l.err)
		}
	})
	t.Run("or when it is told to", func(t *testing.T) {
		b := newBox(t, time.Now().Add(time.Hour))
		must(t, b.command("kill", string(b.id), "TERM").Run())
		b.ends(t, 5*time.Second)
	})
}

// ends waits for the end of the sandbox.
func (b *box) ends(t *testing.T, within time.Duration) {
	t.Helper()
	select {
	case <-b.done:
	case <-time.After(within):
		t.Fatalf("the sandbox runs on after %s", within)
	}
}
