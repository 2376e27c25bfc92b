package guest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/podspawn/podspawn/sandbox"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// pair returns the host's end, blocking or not, and the guest's.
func pair(t *testing.T, nonblock bool) (host *os.File, peer *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.SetNonblock(fds[0], nonblock); err != nil {
		t.Fatal(err)
	}
	host = os.NewFile(uintptr(fds[0]), "host")
	f := os.NewFile(uintptr(fds[1]), "guest")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { host.Close(); c.Close() })
	return host, c.(*net.UnixConn)
}

// play runs the guest's part and waits for its end.
func play(t *testing.T, part func() error) {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- part() }()
	t.Cleanup(func() {
		if err := <-done; err != nil {
			t.Errorf("guest: %v", err)
		}
	})
}

func isNonblocking(t *testing.T, f *os.File) bool {
	t.Helper()
	raw, err := f.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var flags int
	var fcntlErr error
	err = raw.Control(func(fd uintptr) { flags, fcntlErr = unix.FcntlInt(fd, unix.F_GETFL, 0) })
	if err = errors.Join(err, fcntlErr); err != nil {
		t.Fatal(err)
	}
	return flags&unix.O_NONBLOCK != 0
}

func TestSendPreambleLeavesTheFileAsItWas(t *testing.T) {
	for _, nonblock := range []bool{false, true} {
		t.Run(fmt.Sprintf("nonblocking=%t", nonblock), func(t *testing.T) {
			host, peer := pair(t, nonblock)
			want := Preamble{
				Login: "sbx-x", Rights: []Right{RightExec}, Deadline: time.Now().Unix() + 60,
				Env: map[string]string{"A": strings.Repeat("b", 100<<10)},
			}
			play(t, func() error {
				p, answer, err := ReadPreamble(peer)
				if err == nil && (p.Login != want.Login || p.Env["A"] != want.Env["A"]) {
					err = fmt.Errorf("got %+v", p)
				}
				// More than the answer: it is for whoever gets the descriptor.
				_, werr := peer.Write(append(AppendAnswer(nil, answer), "behind"...))
				return errors.Join(err, werr)
			})
			if err := SendPreamble(t.Context(), host, want); err != nil {
				t.Fatalf("SendPreamble: %v", err)
			}
			b := make([]byte, 6)
			if _, err := io.ReadFull(host, b); err != nil || string(b) != "behind" {
				t.Errorf("left on the connection: %q, %v", b, err)
			}
			if got := isNonblocking(t, host); got != nonblock {
				t.Errorf("non-blocking = %t after, %t before", got, nonblock)
			}
		})
	}
}

func TestSendPreambleRefusesHostileGuest(t *testing.T) {
	for name, c := range map[string]struct {
		answer []byte
		kind   sandbox.Kind
	}{
		"garbage":         {[]byte("HTTP/1.1 200 OK\r\n"), sandbox.KindUnavailable},
		"half an answer":  {[]byte("PSG1"), sandbox.KindUnavailable},
		"nothing":         {nil, sandbox.KindUnavailable},
		"1 GiB":           {bytes.Repeat([]byte("x"), 100<<10), sandbox.KindUnavailable},
		"unknown code":    {AppendAnswer(nil, 77), sandbox.KindUnavailable},
		"another version": {AppendAnswer(nil, AnswerVersion), sandbox.KindUnavailable},
		"not our disk":    {AppendAnswer(nil, AnswerNotOurDisk), sandbox.KindUnavailable},
		"expired":         {AppendAnswer(nil, AnswerExpired), sandbox.KindGone},
		"busy":            {AppendAnswer(nil, AnswerBusy), sandbox.KindCapacity},
	} {
		t.Run(name, func(t *testing.T) {
			host, peer := pair(t, true)
			play(t, func() error {
				_, _, err := ReadPreamble(peer)
				_, _ = peer.Write(c.answer) // the host may have hung up
				return errors.Join(err, peer.CloseWrite())
			})
			err := SendPreamble(t.Context(), host, Preamble{Deadline: 1})
			e, ok := errors.AsType[*sandbox.Error](err)
			if !ok || e.Kind != c.kind || e.Hint == "" {
				t.Errorf("SendPreamble = %#v, want %s with a hint", err, c.kind)
			}
			host.Close()
		})
	}
}

func TestSendPreambleIsBoundedInTime(t *testing.T) {
	t.Run("by ctx", func(t *testing.T) {
		host, _ := pair(t, false)
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
		defer cancel()
		begin := time.Now()
		err := SendPreamble(ctx, host, Preamble{Deadline: 1})
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(begin) > time.Second {
			t.Errorf("SendPreamble = %v after %s", err, time.Since(begin))
		}
	})
	t.Run("by itself, with a peer that does not even read", func(t *testing.T) {
		host, peer := pair(t, false)
		if err := peer.SetReadBuffer(1); err != nil {
			t.Fatal(err)
		}
		raw, err := host.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		if err := raw.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUF, 1) }); err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		err = SendPreamble(t.Context(), host, Preamble{Deadline: 1, Env: map[string]string{"A": strings.Repeat("b", 100<<10)}})
		if took := time.Since(begin); !errors.Is(err, context.DeadlineExceeded) || took < time.Second || took > 2*PreambleTimeout {
			t.Errorf("SendPreamble = %v after %s", err, took)
		}
	})
}

// Threat 102: the descriptors of a hostile guest never arrive.
func TestDescriptorsFromTheGuestAreDropped(t *testing.T) {
	secret, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer secret.Close()
	rights := unix.UnixRights(int(secret.Fd()))
	host, peer := pair(t, true)
	before := openDescriptors(t)
	play(t, func() error {
		_, answer, err := ReadPreamble(peer)
		if err != nil {
			return err
		}
		for _, b := range AppendAnswer(nil, answer) {
			if _, _, err := peer.WriteMsgUnix([]byte{b}, rights, nil); err != nil {
				return err
			}
		}
		_, _, err = peer.WriteMsgUnix([]byte("o\x00\x00\x00\x01xx\x00\x00\x00\x02{}"), rights, nil)
		return err
	})
	if err := SendPreamble(t.Context(), host, Preamble{Deadline: 1}); err != nil {
		t.Fatal(err)
	}
	if got := openDescriptors(t); got != before {
		t.Errorf("%d open descriptors after the preamble, %d before", got, before)
	}
	var during int
	exit, err := Run(t.Context(), host, Exec{Command: "x"}, Streams{Stdout: writerFunc(func(p []byte) (int, error) {
		during = openDescriptors(t)
		return len(p), nil
	})})
	if err != nil || exit != (Exit{}) {
		t.Errorf("Run = %+v, %v", exit, err)
	}
	if during > before+1 { // Run's own copy
		t.Errorf("%d open descriptors during Run, %d before", during, before)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func openDescriptors(t *testing.T) int {
	t.Helper()
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(d)
}

func TestRunSaysThatTheSandboxEnded(t *testing.T) {
	exit := func(s string) string {
		return string(append(binary.BigEndian.AppendUint32([]byte{'x'}, uint32(len(s))), s...))
	}
	for name, wire := range map[string]string{
		"nothing":          "",
		"cut":              "o\x00\x00\x00\x05ab",
		"unknown frame":    "?\x00\x00\x00\x00",
		"host's frame":     "i\x00\x00\x00\x01x",
		"oversize":         "o\x7f\xff\xff\xff",
		"too much credit":  "c\x00\x00\x00\x01",
		"huge credit":      "c\xff\xff\xff\xff",
		"short credit":     "c\x00\x00\x00\x01x",
		"exit is no JSON":  exit("nope"),
		"exit is negative": exit(`{"code":-1}`),
		"exit is too big":  exit(`{"code":256}`),
		"signal is a path": exit(`{"signal":"../X"}`),
	} {
		t.Run(name, func(t *testing.T) {
			host, peer := pair(t, true)
			play(t, func() error {
				if _, err := NewReader(peer).Request(); err != nil {
					return err
				}
				_, err := io.WriteString(peer, wire)
				return errors.Join(err, peer.CloseWrite())
			})
			// A reader without an end: its credit is all taken or given back.
			r, w := io.Pipe()
			defer w.Close()
			if _, err := Run(t.Context(), host, Exec{Command: "x"}, Streams{Stdin: r}); !errors.Is(err, ErrEnded) {
				t.Errorf("Run = %v, want ErrEnded", err)
			}
		})
	}
}

func TestRunCleansWhatTheGuestSays(t *testing.T) {
	host, peer := pair(t, true)
	play(t, func() error {
		if _, err := NewReader(peer).Request(); err != nil {
			return err
		}
		return NewWriter(peer).Frame(FrameExit, []byte(`{"code":127,"error":"\u001b]0;x\u0007not\nfound`+strings.Repeat("x", 1000)+`"}`))
	})
	exit, err := Run(t.Context(), host, Exec{Command: "x"}, Streams{})
	if err != nil || strings.ContainsAny(exit.Error, "\x1b\a\n") || len(exit.Error) > 512 || !strings.Contains(exit.Error, "not?found") {
		t.Errorf("Run = %+v, %v", exit, err)
	}
}

func TestRunKeepsToTheCredit(t *testing.T) {
	host, peer := pair(t, true)
	const total = 5 * StdinWindow
	play(t, func() error {
		fr, fw := NewReader(peer), NewWriter(peer)
		if _, err := fr.Request(); err != nil {
			return err
		}
		got, owed := 0, 0
		for {
			// Credit only once no more comes without.
			if owed == StdinWindow || got == total {
				if err := fw.Frame(FrameCredit, binary.BigEndian.AppendUint32(nil, uint32(owed))); err != nil {
					return err
				}
				owed = 0
			}
			typ, b, err := fr.Next()
			if err != nil {
				return err
			}
			if typ == FrameEOF {
				break
			}
			got, owed = got+len(b), owed+len(b)
			if owed > StdinWindow {
				return fmt.Errorf("%d bytes without credit", owed)
			}
		}
		if got != total {
			return fmt.Errorf("got %d bytes, want %d", got, total)
		}
		return fw.Frame(FrameExit, []byte(`{"code":0}`))
	})
	_, err := Run(t.Context(), host, Exec{Command: "x"}, Streams{Stdin: io.LimitReader(zeros{}, total)})
	if err != nil {
		t.Errorf("Run: %v", err)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestRunEndsWithContext(t *testing.T) {
	host, peer := pair(t, false)
	// Somebody else holds a copy, as the daemon may: the guest has to see the end all the same.
	raw, err := host.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var copied int
	if err := raw.Control(func(fd uintptr) { copied, _ = syscall.Dup(int(fd)) }); err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(copied)
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("revoked")
	play(t, func() error {
		fr := NewReader(peer)
		if _, err := fr.Request(); err != nil {
			return err
		}
		cancel(why)
		for {
			if _, _, err := fr.Next(); err == io.EOF {
				return nil
			} else if err != nil {
				return err
			}
		}
	})
	r, w := io.Pipe()
	defer w.Close()
	if _, err := Run(ctx, host, Exec{Command: "x"}, Streams{Stdin: r}); !errors.Is(err, why) {
		t.Errorf("Run = %v, want %v", err, why)
	}
}

func TestRunReportsAFailingOutput(t *testing.T) {
	host, peer := pair(t, true)
	play(t, func() error {
		if _, err := NewReader(peer).Request(); err != nil {
			return err
		}
		return NewWriter(peer).Frame(FrameStdout, []byte("x"))
	})
	_, err := Run(t.Context(), host, Exec{Command: "x"}, Streams{Stdout: failing{}})
	if !errors.Is(err, io.ErrClosedPipe) || errors.Is(err, ErrEnded) {
		t.Errorf("Run = %v, want the writer's error", err)
	}
}

func TestRunSendsControls(t *testing.T) {
	host, peer := pair(t, true)
	seen := make(chan string)
	resize, signals := make(chan Window), make(chan string)
	play(t, func() error {
		fr := NewReader(peer)
		if _, err := fr.Request(); err != nil {
			return err
		}
		for range 3 {
			typ, b, err := fr.Next()
			if err != nil {
				return err
			}
			seen <- string(rune(typ)) + string(b)
		}
		return NewWriter(peer).Frame(FrameExit, []byte(`{"code":3}`))
	})
	done := make(chan error, 1)
	go func() {
		exit, err := Run(context.Background(), host, Exec{LoginShell: true}, Streams{Resize: resize, Signals: signals})
		if err == nil && exit.Code != 3 {
			err = fmt.Errorf("exit %+v", exit)
		}
		done <- err
	}()
	if got := <-seen; got != "e" {
		t.Errorf("no stdin: %q, want its end", got)
	}
	resize <- Window{Rows: 1, Cols: 2}
	if got := <-seen; got != `w{"rows":1,"cols":2}` {
		t.Errorf("resize: %q", got)
	}
	close(resize)
	signals <- "INT"
	if got := <-seen; got != "sINT" {
		t.Errorf("signal: %q", got)
	}
	if err := <-done; err != nil {
		t.Errorf("Run: %v", err)
	}
}
