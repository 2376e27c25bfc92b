package pid1_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
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

	"golang.org/x/sys/unix"

	"github.com/podspawn/podspawn/sandbox"
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
	r := b.run(t, guest.Exec{Script: "echo out; echo err >&2; exit 7"}, "")
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
		"no sftp-server":     {guest.Exec{SFTP: true}, 127, "no sftp-server"},
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

func testSudo(t *testing.T, b *box) {
	for _, c := range []struct {
		name, script, user, want string
		code                     int
	}{
		{"root", "sudo id -u; sudo -u other id -u; pwd; cd /tmp; sudo pwd", "", "0\n1001\n/workspace\n/tmp\n", 0},
		{"environment", "FOO=1 sudo sh -c 'echo $HOME $USER $SUDO_USER $SUDO_UID [$FOO]'; FOO=2 sudo -E sh -c 'echo $FOO'; sudo FOO=3 sh -c 'echo $FOO'", "", "/root root dev 1000 []\n2\n3\n", 0},
		{"status", "sudo sh -c 'exit 42'", "", "", 42},
		{"streams", "echo in | sudo cat; sudo sh -c 'echo e >&2' 2>&1; sudo sh -c 'echo file' > /tmp/by-sudo; cat /tmp/by-sudo", "", "in\ne\nfile\n", 0},
		{"loop keeps its input", "printf 'a\\nb\\n' | while read x; do sudo echo $x; done", "", "a\nb\n", 0},
		{"login", "cd /tmp; echo 'pwd; echo $0' | sudo -i", "", "/root\n-sh\n", 0},
		{"shell with words", `sudo -s echo "two words" '$HOME'`, "", "two words $HOME\n", 0},
		{"not found", "sudo no-such-command 2>&1", "", "sudo: no-such-command: command not found\n", 1},
		{"usage", "sudo --no-such 2>/dev/null", "", "", 1},
		{"validate", "sudo -v && sudo -n true", "", "", 0},
		{"another user is refused", "sudo id -u 2>&1", "other", "sudo: uid 1001 may not use sudo: it is for the sandbox's own user\n", 1},
		{"root may", "sudo -u dev id -u", "root", "1000\n", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := b.run(t, guest.Exec{Script: c.script, User: c.user}, "")
			if r.out != c.want || r.exit.Code != c.code || r.exit.Error != "" {
				t.Errorf("%s: %+v, want %q and %d", c.script, r, c.want, c.code)
			}
		})
	}
	t.Run("signal", func(t *testing.T) {
		l := b.start(t, guest.Exec{Script: "sudo sh -c \"trap 'echo caught; exit 3' INT; echo ready; while :; do sleep 0.1; done\""})
		l.expect(t, "ready")
		l.signals <- "INT"
		l.expect(t, "caught")
		l.wait(t)
	})
	t.Run("dies with its session", func(t *testing.T) {
		l := b.start(t, guest.Exec{Script: "sudo sh -c \"trap '' HUP TERM; echo ready; sleep 1006; :\""})
		l.expect(t, "ready")
		l.cancel()
		await(t, "command of sudo is gone", func() bool { return b.count(t, "sleep 1006") == 0 })
	})
}

func testSudoTerminal(t *testing.T, b *box) {
	l := b.start(t, guest.Exec{LoginShell: true, PTY: terminal})
	say := func(s string) {
		_, err := io.WriteString(l.in, s)
		must(t, err)
	}
	say("sudo -i\n")
	say("id -u; tty; stty size; echo root-$((1+1))\n")
	l.expect(t, "33 101\r\n")
	l.expect(t, "root-2")
	l.resize <- guest.Window{Rows: 44, Cols: 55}
	await(t, "new size arrives", func() bool {
		say("stty size\n")
		time.Sleep(50 * time.Millisecond) // between two tries
		return strings.Contains(l.out.String(), "44 55\r\n")
	})
	say("sleep 1007\n")
	await(t, "sleep runs", func() bool { return b.count(t, "sleep 1007") == 1 })
	say("\x03")
	say("echo int-$?\n")
	l.expect(t, "int-130")
	if strings.Contains(l.out.String(), "job control") {
		t.Errorf("no job control under sudo: %q", l.out.String())
	}
	say("exit 8\n")
	l.expect(t, "exit 8\r\n/workspace $ ") // before, a key would be for the shell that ends
	say("echo back-$?; stty -a | grep -c -w icanon; exit\n")
	l.expect(t, "back-8\r\n1")
	l.wait(t)
}

func testHostile(t *testing.T, b *box) {
	good := `{"v":1,"login":"x","rights":[],"deadline":99999999999,"user":"","shell":"","home":"","work":""`
	frame := func(body string) []byte {
		return append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...)
	}
	for name, c := range map[string]struct {
		send []byte
		want guest.Answer
	}{
		"another version": {frame(`{"v":2,"new":true}`), guest.AnswerVersion},
		"not JSON":        {frame("\x00\xff"), guest.AnswerMalformed},
		"unknown field":   {frame(good + `,"root":true}`), guest.AnswerMalformed},
		"no deadline":     {frame(`{"v":1}`), guest.AnswerMalformed},
		"past deadline":   {frame(`{"v":1,"deadline":1}`), guest.AnswerExpired},
		"4 GiB":           {[]byte{0xff, 0xff, 0xff, 0xff}, guest.AnswerMalformed},
		"nested deep":     {frame(strings.Repeat("[", 100000)), guest.AnswerMalformed},
	} {
		t.Run(name, func(t *testing.T) {
			if got := answer(t, b, c.send); got != c.want {
				t.Errorf("answer %d, want %d", got, c.want)
			}
		})
	}
	t.Run("garbage after the preamble", func(t *testing.T) {
		for _, garbage := range []string{"R\x7f\xff\xff\xff", "x\x00\x00\x00\x00", "R\x00\x00\x00\x01{", "R\x00\x00"} {
			f, err := b.dial(preamble())
			must(t, err)
			_, err = f.WriteString(garbage)
			must(t, err)
			must(t, f.Close())
		}
	})
	t.Run("more stdin than credit", func(t *testing.T) {
		f, err := b.dial(preamble())
		must(t, err)
		defer f.Close()
		w := guest.NewWriter(f)
		must(t, w.Frame(guest.FrameRequest, []byte(`{"script":"sleep 1008"}`)))
		must(t, f.SetDeadline(time.Now().Add(10*time.Second)))
		for range 2 * guest.StdinWindow / guest.MaxPayload {
			if err := w.Frame(guest.FrameStdin, make([]byte, guest.MaxPayload)); err != nil {
				break // hung up, as it should
			}
		}
		if _, err := io.Copy(io.Discard, f); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error("the guest did not hang up")
		}
	})
	t.Run("connections that say nothing", func(t *testing.T) {
		var open []*os.File
		defer func() {
			for _, f := range open {
				f.Close()
			}
		}()
		var err error
		for range 140 {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			var f *os.File
			f, err = b.socks.Dial(ctx, b.id)
			cancel()
			must(t, err)
			open = append(open, f)
		}
		f, err := b.dial(preamble())
		if err == nil {
			f.Close()
			t.Fatal("a connection beyond the bound was served")
		}
		if sandbox.KindOf(err) != sandbox.KindCapacity {
			t.Errorf("error %v, want KindCapacity", err)
		}
	})
	await(t, "the guest still serves", func() bool {
		f, err := b.dial(preamble())
		if err != nil {
			return false
		}
		f.Close()
		return true
	})
}

// answer sends raw bytes as a preamble and returns the code that comes back.
func answer(t *testing.T, b *box, send []byte) guest.Answer {
	t.Helper()
	f, err := b.socks.Dial(t.Context(), b.id)
	must(t, err)
	defer f.Close()
	must(t, f.SetDeadline(time.Now().Add(10*time.Second)))
	_, err = f.Write(send)
	must(t, err)
	var got [guest.AnswerSize]byte
	if _, err := io.ReadFull(f, got[:]); err != nil {
		t.Fatalf("read answer: %v", err)
	}
	if string(got[:4]) != guest.AnswerMagic {
		t.Fatalf("answer %q", got)
	}
	return guest.Answer(binary.BigEndian.Uint32(got[4:]))
}

func testAncillary(t *testing.T, b *box) {
	descriptors := func() string {
		return b.run(t, guest.Exec{Script: "ls /proc/1/fd | wc -l", User: "root"}, "").out
	}
	before := descriptors()
	secret := filepath.Join(t.TempDir(), "secret")
	must(t, os.WriteFile(secret, []byte("host"), 0o600))
	s, err := os.Open(secret)
	must(t, err)
	defer s.Close()
	var held []*os.File
	for range 4 {
		f, err := b.dial(preamble())
		must(t, err)
		held = append(held, f)
		raw, err := f.SyscallConn()
		must(t, err)
		var sendErr error
		must(t, raw.Control(func(fd uintptr) {
			sendErr = unix.Sendmsg(int(fd), []byte("R\x00\x00"), unix.UnixRights(int(s.Fd())), nil, 0)
		}))
		must(t, sendErr)
	}
	out := b.run(t, guest.Exec{Script: "grep -l host /proc/1/fd/* 2>/dev/null | wc -l; ls -l /proc/1/fd", User: "root"}, "")
	if !strings.HasPrefix(out.out, "0\n") || strings.Contains(out.out, "secret") {
		t.Errorf("the guest holds a descriptor of the host: %s", out.out)
	}
	for _, f := range held {
		f.Close()
	}
	await(t, "descriptors are as before", func() bool { return descriptors() == before })
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
