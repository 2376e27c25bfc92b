package sshhook

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/podspawn/podspawn/sandbox"
	"github.com/podspawn/podspawn/sandbox/guest"
	"github.com/podspawn/podspawn/sandbox/localapi"
)

// peer plays a guest behind the preamble, frame by frame.
type peer struct {
	t *testing.T
	f *os.File
}

func (p *peer) send(kind guest.FrameType, payload []byte) {
	head := append([]byte{byte(kind)}, binary.BigEndian.AppendUint32(nil, uint32(len(payload)))...)
	if _, err := p.f.Write(append(head, payload...)); err != nil && !errors.Is(err, syscall.EPIPE) {
		p.t.Error(err)
	}
}

func (p *peer) exit(e guest.Exit) {
	b, err := json.Marshal(e)
	if err != nil {
		p.t.Error(err)
	}
	p.send(guest.FrameExit, b)
}

func (p *peer) next() (guest.FrameType, []byte, error) {
	var head [5]byte
	if _, err := io.ReadFull(p.f, head[:]); err != nil {
		return 0, nil, err
	}
	b := make([]byte, binary.BigEndian.Uint32(head[1:]))
	_, err := io.ReadFull(p.f, b)
	return guest.FrameType(head[0]), b, err
}

// request reads the Exec that opens every connection.
func (p *peer) request() guest.Exec {
	var e guest.Exec
	kind, b, err := p.next()
	if err != nil || kind != guest.FrameRequest || json.Unmarshal(b, &e) != nil {
		p.t.Errorf("first frame is %q %q, %v", kind, b, err)
	}
	p.send(guest.FrameStarted, nil)
	return e
}

// drain reads until the hook's end closes and returns all stdin and whether its
// end was announced.
func (p *peer) drain() (stdin string, eof bool) {
	var b bytes.Buffer
	for {
		kind, payload, err := p.next()
		switch {
		case err != nil:
			return b.String(), eof
		case kind == guest.FrameStdin:
			b.Write(payload)
			p.send(guest.FrameCredit, binary.BigEndian.AppendUint32(nil, uint32(len(payload))))
		case kind == guest.FrameEOF:
			return b.String(), true
		}
	}
}

// withGuest is a daemon that grants every session a connection to play.
func withGuest(t *testing.T, resp localapi.SessionResponse, play func(*peer)) *double {
	t.Helper()
	var d *double
	d = newDouble(t, func(localapi.Request) (any, *os.File, *localapi.Error) {
		host, inside := socketpair(t)
		d.guests.Go(func() { play(&peer{t: t, f: inside}) })
		t.Cleanup(func() {
			_ = inside.Close()
			d.guests.Wait()
		})
		return resp, host, nil
	})
	return d
}

func TestSessionCarriesACommand(t *testing.T) {
	var req guest.Exec
	var stdin string
	d := withGuest(t, localapi.SessionResponse{}, func(p *peer) {
		req = p.request()
		stdin, _ = p.drain()
		p.send(guest.FrameStdout, []byte("out\x00\xff"))
		p.send(guest.FrameStderr, []byte("err"))
		p.exit(guest.Exit{Code: 7})
	})
	env := Env{Command: "cat; exit 7", HasCommand: true, Term: "xterm", Locale: map[string]string{"LANG": "C"}}
	code, stdout, stderr := run{client: d.client, env: env, stdin: "in"}.do(t, "podspawn-hook", "-c", "/usr/libexec/podspawn/podspawn-hook session")
	d.guests.Wait()
	if code != 7 || stdout != "out\x00\xff" || stderr != "err" || stdin != "in" {
		t.Errorf("exit %d, stdout %q, stderr %q, stdin inside %q", code, stdout, stderr, stdin)
	}
	if diff := cmp.Diff(guest.Exec{Command: "cat; exit 7", Env: map[string]string{"LANG": "C"}}, req); diff != "" {
		t.Error(diff)
	}
}

func TestSessionHoldsItsLeaseToTheEnd(t *testing.T) {
	var d *double
	d = withGuest(t, localapi.SessionResponse{}, func(p *peer) {
		p.request()
		p.drain()
		select {
		case <-d.leases:
			t.Error("the lease ended before the session")
		default:
		}
		p.exit(guest.Exit{})
	})
	if code, _, stderr := (run{client: d.client}).do(t, "-podspawn-hook"); code != 0 {
		t.Errorf("exit %d, stderr %q", code, stderr)
	}
	select {
	case <-d.leases:
	case <-time.After(5 * time.Second):
		t.Error("the lease is still open after the session")
	}
}

func TestSessionGoesOnWithoutItsDaemon(t *testing.T) {
	gone := make(chan struct{})
	d := withGuest(t, localapi.SessionResponse{}, func(p *peer) {
		p.request()
		<-gone
		p.send(guest.FrameStdout, []byte("still here"))
		p.exit(guest.Exit{Code: 9})
	})
	d.drop = true
	answer := d.answer
	d.answer = func(r localapi.Request) (any, *os.File, *localapi.Error) {
		if r.Op != localapi.OpSession {
			return nil, nil, &localapi.Error{Kind: sandbox.KindUnavailable, Msg: "starting"}
		}
		defer time.AfterFunc(50*time.Millisecond, func() { close(gone) }) // some time after the answer; any is right
		return answer(r)
	}
	code, stdout, stderr := run{client: d.client}.do(t, "-podspawn-hook")
	if code != 9 || stdout != "still here" || stderr != "" {
		t.Errorf("exit %d, stdout %q, stderr %q", code, stdout, stderr)
	}
}

func TestSessionRefusals(t *testing.T) {
	refuse := func(e localapi.Error) func(localapi.Request) (any, *os.File, *localapi.Error) {
		return func(localapi.Request) (any, *os.File, *localapi.Error) { return nil, nil, &e }
	}
	granted := func(localapi.Request) (any, *os.File, *localapi.Error) {
		host, inside := socketpair(t)
		_ = inside.Close()
		return localapi.SessionResponse{}, host, nil
	}
	long := Env{HasCommand: true, Command: strings.Repeat("x", 140<<10)}
	bulky := Env{HasCommand: true, Command: strings.Repeat("\x01", 120<<10)} // six bytes each in JSON
	tests := []struct {
		name   string
		answer func(localapi.Request) (any, *os.File, *localapi.Error)
		env    Env
		code   int
		want   string
	}{
		{
			"spent", refuse(localapi.Error{Kind: sandbox.KindPolicy, Msg: "the certificate was used already", Hint: "get another with podspawn cert"}),
			Env{},
			exitTemp, "podspawn: error: the certificate was used already; get another with podspawn cert\n",
		},
		{
			"gone", refuse(localapi.Error{Kind: sandbox.KindGone, Msg: "sandbox sbx_x is gone", Hint: "it reached its deadline"}),
			Env{},
			exitTemp, "podspawn: error: sandbox sbx_x is gone; it reached its deadline\n",
		},
		{
			"no descriptor", func(localapi.Request) (any, *os.File, *localapi.Error) { return localapi.SessionResponse{}, nil, nil },
			Env{},
			exitTemp, "podspawn: error: something went wrong on the server; the daemon's log has the cause; run podspawn doctor on the host\n",
		},
		{"140 KB command", granted, long, exitTemp, "podspawn: error: the command is longer than 128 KiB; put it into a file in the sandbox and run that\n"},
		{"command too long for the guest", granted, bulky, exitTemp, "podspawn: error: the command is too long; put it into a file in the sandbox and run that\n"},
		{"guest gone at once", granted, Env{}, exitLost, "podspawn: error: the connection to the sandbox was lost; podspawn get says whether it still runs\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := newDouble(t, tt.answer)
			code, stdout, stderr := run{client: d.client, env: tt.env}.do(t, "-podspawn-hook")
			if code != tt.code || stdout != "" || stderr != tt.want {
				t.Errorf("exit %d, stdout %q, stderr %q; want exit %d, stderr %q", code, stdout, stderr, tt.code, tt.want)
			}
		})
	}
}

func TestSessionThatCouldNotStart(t *testing.T) {
	d := withGuest(t, localapi.SessionResponse{}, func(p *peer) {
		p.request()
		p.exit(guest.Exit{Code: 127, Error: "no such shell\x1b]0;evil\a\n"})
	})
	code, stdout, stderr := run{client: d.client}.do(t, "-podspawn-hook")
	if want := "podspawn: error: no such shell?]0;evil??\n"; code != 127 || stdout != "" || stderr != want {
		t.Errorf("exit %d, stdout %q, stderr %q; want 127, %q", code, stdout, stderr, want)
	}
}

// child makes a command that is a hook in a process of its own, since these
// tests are about how the process ends.
func child(t *testing.T, d *double, env ...string) *exec.Cmd {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, os.Args[0])
	cmd.Env = append([]string{childVar + "=" + d.client.Path}, env...)
	return cmd
}

func TestSessionDiesByTheRemoteSignal(t *testing.T) {
	for name, sig := range map[string]syscall.Signal{"TERM": unix.SIGTERM, "KILL": unix.SIGKILL, "SEGV": unix.SIGSEGV, "ABRT": unix.SIGABRT, "PIPE": unix.SIGPIPE} {
		t.Run(name, func(t *testing.T) {
			d := withGuest(t, localapi.SessionResponse{}, func(p *peer) {
				p.request()
				p.exit(guest.Exit{Signal: name})
			})
			cmd := child(t, d, "SSH_ORIGINAL_COMMAND=x")
			out, err := cmd.CombinedOutput()
			ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus)
			if !ok || !ws.Signaled() || ws.Signal() != sig || ws.CoreDump() || len(out) != 0 {
				t.Errorf("ended with %v (%q), want death by %v", err, out, sig)
			}
		})
	}
}

// A guest may not stop or confuse its hook with a signal that ends nothing.
func TestSessionIgnoresSignalsThatEndNothing(t *testing.T) {
	for _, name := range []string{"STOP", "TSTP", "CHLD", "CONT", "nonsense", ""} {
		d := withGuest(t, localapi.SessionResponse{}, func(p *peer) {
			p.request()
			p.exit(guest.Exit{Signal: name, Code: 3})
		})
		cmd := child(t, d, "SSH_ORIGINAL_COMMAND=x")
		err := cmd.Run()
		want := exitLost
		if name == "" {
			want = 3
		}
		if got := cmd.ProcessState.ExitCode(); got != want {
			t.Errorf("signal %q: %v (exit %d), want exit %d", name, err, got, want)
		}
	}
}

// Threat 47: a client that was killed leaves the forced command running; the
// hook must notice by its stdout, though stdin stays open and nothing is written.
func TestSessionEndsWhenNobodyReadsItsOutput(t *testing.T) {
	closed := make(chan struct{})
	started := make(chan struct{})
	d := withGuest(t, localapi.SessionResponse{}, func(p *peer) {
		p.request()
		close(started)
		p.drain()
		close(closed)
	})
	cmd := child(t, d, "SSH_ORIGINAL_COMMAND=sleep 1000")
	if _, err := cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	<-started
	_ = out.Close()
	select {
	case <-closed:
	case <-time.After(5 * time.Second):
		t.Error("the guest's connection is still open 5 s after the client went")
	}
	_ = cmd.Wait() // an error: it exits 255
	if got := cmd.ProcessState.ExitCode(); got != exitLost {
		t.Errorf("exit %d, want %d", got, exitLost)
	}
}

func TestSessionEndsOnHangUpAndTerm(t *testing.T) {
	for _, sig := range []os.Signal{unix.SIGHUP, unix.SIGTERM} {
		started := make(chan struct{})
		d := withGuest(t, localapi.SessionResponse{}, func(p *peer) {
			p.request()
			p.send(guest.FrameStdout, []byte("on\n"))
			close(started)
			p.drain()
		})
		cmd := child(t, d, "SSH_ORIGINAL_COMMAND=sleep 1000")
		if _, err := cmd.StdinPipe(); err != nil {
			t.Fatal(err)
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		<-started
		if line, err := bufio.NewReader(out).ReadString('\n'); line != "on\n" {
			t.Fatalf("read %q, %v", line, err)
		}
		if err := cmd.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait() // an error: it exits 255
		if got := cmd.ProcessState.ExitCode(); got != exitLost {
			t.Errorf("%v: exit %d, want %d", sig, got, exitLost)
		}
	}
}

func TestSessionOnATerminal(t *testing.T) {
	var req guest.Exec
	resized := make(chan guest.Window, 1)
	var typed string
	d := withGuest(t, localapi.SessionResponse{ExpiresAt: time.Now().Add(time.Hour)}, func(p *peer) {
		req = p.request()
		p.send(guest.FrameStdout, []byte("$ \n"))
		for {
			kind, b, err := p.next()
			switch {
			case err != nil:
				return
			case kind == guest.FrameResize:
				var w guest.Window
				if err := json.Unmarshal(b, &w); err != nil {
					t.Error(err)
				}
				resized <- w
			case kind == guest.FrameStdin:
				typed += string(b)
				if strings.HasSuffix(typed, "\x04") { // as bytes: the host's line discipline must leave them alone
					p.exit(guest.Exit{Code: 4})
				}
			}
		}
	})
	cmd := child(t, d, "TERM=xterm-256color")
	tty, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 24, Cols: 80})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tty.Close() }()
	out := bufio.NewReader(tty)
	if line, err := out.ReadString('\n'); !strings.HasPrefix(line, "podspawn: this sandbox ends at ") || !strings.HasSuffix(line, " UTC, in 1h0m0s\r\n") {
		t.Errorf("first line is %q, %v; want the deadline", line, err)
	}
	if line, err := out.ReadString('\n'); line != "$ \n" {
		t.Errorf("the guest's output came as %q, %v; want it unchanged", line, err)
	}
	if err := pty.Setsize(tty, &pty.Winsize{Rows: 50, Cols: 132}); err != nil {
		t.Fatal(err)
	}
	if got, want := <-resized, (guest.Window{Rows: 50, Cols: 132}); got != want {
		t.Errorf("resized to %+v, want %+v", got, want)
	}
	if _, err := tty.WriteString("\x03\r\x11\x04"); err != nil {
		t.Fatal(err)
	}
	rest, _ := io.ReadAll(out) // EIO once the child has ended
	_ = cmd.Wait()             // an error: it exits 4
	d.guests.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 4 || len(rest) != 0 || typed != "\x03\r\x11\x04" {
		t.Errorf("exit %d, echo %q, typed %q", code, rest, typed)
	}
	want := guest.Exec{LoginShell: true, PTY: &guest.Terminal{Term: "xterm-256color", Window: guest.Window{Rows: 24, Cols: 80}}}
	if diff := cmp.Diff(want, req); diff != "" {
		t.Error(diff)
	}
}

func TestDeadlineLine(t *testing.T) {
	now := time.Date(2026, 1, 2, 13, 0, 20, 0, time.FixedZone("", 3600))
	got := deadlineLine(now.Add(90*time.Minute), now)
	if want := "podspawn: this sandbox ends at 13:30 UTC, in 1h30m0s"; got != want {
		t.Errorf("deadlineLine = %q, want %q", got, want)
	}
}
