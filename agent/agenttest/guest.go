package agenttest

import (
	"cmp"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/podspawn/podspawn/sandbox"
	"github.com/podspawn/podspawn/sandbox/guest"
	"github.com/podspawn/podspawn/sandbox/guest/files"
	"github.com/podspawn/podspawn/sandbox/localapi"
)

// exec answers with one end of a socket whose other end is a guest. d.mu is held.
func (d *Daemon) exec(who sandbox.Caller, body json.RawMessage) (any, *os.File, func(), error) {
	in, err := decode[localapi.ExecRequest](body)
	if err != nil {
		return nil, nil, nil, err
	}
	s, err := d.living(who, in.Sandbox)
	if err != nil {
		return nil, nil, nil, err
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, nil, err
	}
	host, inside := os.NewFile(uintptr(fds[0]), "host"), os.NewFile(uintptr(fds[1]), "guest")
	conn, err := net.FileConn(inside)
	_ = inside.Close()
	if err != nil {
		_ = host.Close()
		return nil, nil, nil, err
	}
	work := d.work
	d.wg.Go(func() { serveGuest(conn, work) })
	out := localapi.ExecResponse{Sandbox: *s, Exec: sandbox.NewToken("exe_")}
	return out, host, func() {}, nil
}

// serveGuest runs one process of this machine as the guest would.
func serveGuest(conn net.Conn, work string) {
	defer conn.Close()
	r, w := guest.NewReader(conn), guest.NewWriter(conn)
	raw, err := r.Request()
	if err != nil {
		return
	}
	e, err := guest.ParseExec(raw)
	if err != nil {
		return
	}
	if e.File != nil {
		serveFile(conn, r, w, *e.File, work)
		return
	}
	argv := e.Argv
	if e.Script != "" {
		argv = []string{"/bin/sh", "-c", e.Script}
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir = cmp.Or(e.Dir, work)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
	for k, v := range e.Env {
		cmd.Env = append(cmd.Env, k+"="+v)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return
	}
	cmd.Stdout, cmd.Stderr = frames{w, guest.FrameStdout}, frames{w, guest.FrameStderr}
	if err := cmd.Start(); err != nil {
		exit(w, guest.Exit{Code: 127, Error: "start: " + err.Error()})
		return
	}
	_ = w.Frame(guest.FrameStarted, nil)
	var input sync.WaitGroup
	input.Go(func() { feed(r, w, stdin, cmd.Process.Pid) })
	err = cmd.Wait()
	result := guest.Exit{Code: cmd.ProcessState.ExitCode()}
	if ee, ok := errors.AsType[*exec.ExitError](err); ok {
		if ws, ok := ee.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
			result = guest.Exit{Signal: unix.SignalName(ws.Signal())[len("SIG"):]}
		}
	}
	exit(w, result)
	if uc, ok := conn.(*net.UnixConn); ok {
		_ = uc.CloseRead() // ends feed
	}
	input.Wait()
}

// serveFile carries out an operation on files as the guest's process does.
func serveFile(conn net.Conn, r *guest.Reader, w *guest.Writer, op guest.FileOp, work string) {
	in, stdin := io.Pipe()
	var input sync.WaitGroup
	input.Go(func() { feed(r, w, stdin, 0) })
	code := 0
	if files.Run(work, op, in, frames{w, guest.FrameStdout}) != nil {
		code = 1
	}
	_ = in.Close()
	exit(w, guest.Exit{Code: code})
	if uc, ok := conn.(*net.UnixConn); ok {
		_ = uc.CloseRead()
	}
	input.Wait()
}

func exit(w *guest.Writer, e guest.Exit) {
	b, err := json.Marshal(e)
	if err != nil {
		panic(err)
	}
	_ = w.Frame(guest.FrameExit, b)
}

// feed carries stdin, and kills the process group when the host's end closes.
func feed(r *guest.Reader, w *guest.Writer, stdin io.WriteCloser, pid int) {
	defer stdin.Close()
	for {
		t, b, err := r.Next()
		switch {
		case err != nil:
			if pid > 0 {
				_ = unix.Kill(-pid, unix.SIGKILL)
			}
			return
		case t == guest.FrameStdin:
			n := len(b)
			_, _ = stdin.Write(b)
			_ = w.Frame(guest.FrameCredit, binary.BigEndian.AppendUint32(nil, uint32(n)))
		case t == guest.FrameEOF:
			_ = stdin.Close()
		case t == guest.FrameSignal && pid > 0:
			_ = unix.Kill(-pid, unix.SignalNum("SIG"+string(b)))
		}
	}
}

// frames is an io.Writer into frames of one type.
type frames struct {
	w *guest.Writer
	t guest.FrameType
}

func (f frames) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0; {
		n := min(len(rest), guest.MaxPayload)
		if err := f.w.Frame(f.t, rest[:n]); err != nil {
			return 0, err
		}
		rest = rest[n:]
	}
	return len(p), nil
}

func socketpair(t testing.TB) (a, b *os.File) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fds[0]), "a"), os.NewFile(uintptr(fds[1]), "b")
}
