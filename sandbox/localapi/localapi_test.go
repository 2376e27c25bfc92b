package localapi

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/podspawn/podspawn/sandbox"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func frame(body string) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...)
}

func TestReadFrame(t *testing.T) {
	tooLong := binary.BigEndian.AppendUint32(nil, MaxFrame+1)
	for _, tc := range []struct {
		name string
		in   []byte
		want error // nil: any error
		ok   bool
	}{
		{"a frame", frame(`{"v":1,"op":"api.list"}`), nil, true},
		{"nothing", nil, io.EOF, false},
		{"half a length", []byte{0, 0}, io.ErrUnexpectedEOF, false},
		{"a length and no body", binary.BigEndian.AppendUint32(nil, 10), io.ErrUnexpectedEOF, false},
		{"half a body", frame(`{"v":1}`)[:8], io.ErrUnexpectedEOF, false},
		{"one byte too long", append(tooLong, make([]byte, MaxFrame+1)...), ErrTooLarge, false},
		{"4 GiB announced", []byte{255, 255, 255, 255}, ErrTooLarge, false},
		{"empty body", frame(""), nil, false},
		{"no JSON", frame("\x00\x01"), nil, false},
		{"two values", frame(`{"v":1}{"v":2}`), nil, false},
		{"another type", frame(`[1]`), nil, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var req Request
			err := ReadFrame(bytes.NewReader(tc.in), &req)
			if (err == nil) != tc.ok || tc.want != nil && !errors.Is(err, tc.want) {
				t.Errorf("ReadFrame = %v, want %v", err, tc.want)
			}
		})
	}
}

// A length that lies must not cost its memory.
func TestReadFrameAllocatesOnlyWhatArrives(t *testing.T) {
	in := binary.BigEndian.AppendUint32(nil, MaxFrame)
	got := testing.AllocsPerRun(10, func() {
		var req Request
		if err := ReadFrame(bytes.NewReader(in), &req); err == nil {
			t.Error("a body that never came was read")
		}
	})
	res := testing.Benchmark(func(b *testing.B) {
		b.ReportAllocs()
		for range b.N {
			var req Request
			_ = ReadFrame(bytes.NewReader(in), &req) // see above
		}
	})
	if res.AllocedBytesPerOp() > 16<<10 {
		t.Errorf("%d bytes in %.0f allocations for a frame of which nothing came", res.AllocedBytesPerOp(), got)
	}
}

func TestDecodeRefusesUnknownFields(t *testing.T) {
	var ref SandboxRef
	if err := Decode(json.RawMessage(`{"sandbox":"x","and":1}`), &ref); err == nil {
		t.Error("a field of another release was ignored")
	}
}

func FuzzReadFrameNeverPanics(f *testing.F) {
	f.Add(frame(`{"v":1,"op":"api.list","auth":{"bearer":"x"},"body":{}}`))
	f.Add([]byte{255, 255, 255, 255})
	f.Fuzz(func(t *testing.T, in []byte) {
		var req Request
		r := bytes.NewReader(in)
		if err := ReadFrame(r, &req); err != nil {
			return
		}
		// What was taken was exactly one frame.
		if n := binary.BigEndian.Uint32(in); r.Len() != len(in)-4-int(n) {
			t.Errorf("%d bytes left of %d after a frame of %d", r.Len(), len(in), n)
		}
	})
}

// serve answers one connection with what answer writes.
func serve(t *testing.T, answer func(t *testing.T, c *net.UnixConn)) *Client {
	t.Helper()
	dir, err := os.MkdirTemp("", "localapi") // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		c, err := l.AcceptUnix()
		if err != nil {
			return
		}
		defer c.Close()
		var req Request
		if err := ReadFrame(c, &req); err != nil {
			return // the client did not like us
		}
		answer(t, c)
	}()
	t.Cleanup(func() {
		_ = l.Close() // ends Accept, should nobody have come
		<-done
		_ = os.RemoveAll(dir)
	})
	return &Client{Path: path, ServerUID: os.Getuid()}
}

func call(t *testing.T, c *Client, limit time.Duration) (*Lease, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	var out SandboxRef
	return c.Open(ctx, OpGet, Auth{}, SandboxRef{Sandbox: "x"}, &out)
}

// descriptors counts this process's open ones.
func descriptors(t *testing.T) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

const okBody = `{"v":1,"body":{"sandbox":"x"}}`

// pass writes b with n descriptors on its first byte.
func pass(t *testing.T, c *net.UnixConn, b []byte, n int) {
	t.Helper()
	null, err := os.Open("/dev/null")
	if err != nil {
		t.Error(err)
		return
	}
	defer null.Close()
	fds := make([]int, n)
	for i := range fds {
		fds[i] = int(null.Fd())
	}
	var oob []byte
	if n > 0 {
		oob = unix.UnixRights(fds...)
	}
	if _, _, err := c.WriteMsgUnix(b, oob, nil); err != nil {
		t.Error(err)
	}
}

// Whatever the other side sends, at most one descriptor stays open, and only with
// an answer that was understood.
func TestAnswersAndTheirDescriptors(t *testing.T) {
	for _, tc := range []struct {
		name   string
		answer func(t *testing.T, c *net.UnixConn)
		ok     bool
		file   bool
	}{
		{"no descriptor", func(t *testing.T, c *net.UnixConn) { pass(t, c, frame(okBody), 0) }, true, false},
		{"one", func(t *testing.T, c *net.UnixConn) { pass(t, c, frame(okBody), 1) }, true, true},
		{"two at once", func(t *testing.T, c *net.UnixConn) { pass(t, c, frame(okBody), 2) }, false, false},
		{"200 at once", func(t *testing.T, c *net.UnixConn) { pass(t, c, frame(okBody), 200) }, false, false},
		{"one with each byte of the length", func(t *testing.T, c *net.UnixConn) {
			f := frame(okBody)
			pass(t, c, f[:1], 1)
			pass(t, c, f[1:2], 1)
			_, _ = c.Write(f[2:]) // the client may have had enough
		}, false, false},
		{"one with an error", func(t *testing.T, c *net.UnixConn) { pass(t, c, frame(`{"v":1,"error":{"kind":"gone","msg":"m"}}`), 1) }, false, false},
		{"one with a body of another type", func(t *testing.T, c *net.UnixConn) { pass(t, c, frame(`{"v":1,"body":[]}`), 1) }, false, false},
		{"one with a frame too long", func(t *testing.T, c *net.UnixConn) { pass(t, c, []byte{255, 255, 255, 255}, 1) }, false, false},
		{"one, and cut off", func(t *testing.T, c *net.UnixConn) { pass(t, c, frame(okBody)[:9], 1) }, false, false},
		{"one, and cut off in the length", func(t *testing.T, c *net.UnixConn) { pass(t, c, frame(okBody)[:2], 1) }, false, false},
		{"closed", func(*testing.T, *net.UnixConn) {}, false, false},
		{"in pieces", func(t *testing.T, c *net.UnixConn) {
			for _, b := range frame(okBody) {
				if _, err := c.Write([]byte{b}); err != nil {
					t.Error(err)
				}
			}
		}, true, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			client := serve(t, tc.answer)
			before := descriptors(t)
			lease, err := call(t, client, 10*time.Second)
			if (err == nil) != tc.ok {
				t.Fatalf("Open = %v", err)
			}
			if err == nil {
				if (lease.File != nil) != tc.file {
					t.Errorf("descriptor = %v, want one: %v", lease.File, tc.file)
				}
				if lease.File != nil {
					flags, err := unix.FcntlInt(lease.File.Fd(), unix.F_GETFD, 0)
					if err != nil || flags&unix.FD_CLOEXEC == 0 {
						t.Errorf("flags = %x, %v, want close-on-exec", flags, err)
					}
					_ = lease.File.Close() // only read
				}
				if err := lease.Close(); err != nil {
					t.Error(err)
				}
			}
			// The server's own end closes a moment later.
			deadline := time.Now().Add(5 * time.Second)
			for descriptors(t) > before && time.Now().Before(deadline) {
				time.Sleep(time.Millisecond)
			}
			if n := descriptors(t); n > before {
				t.Errorf("%d descriptors more than before", n-before)
			}
		})
	}
}

func TestWriteFramePassesADescriptorBehindAnyBody(t *testing.T) {
	client := serve(t, func(t *testing.T, c *net.UnixConn) {
		null, err := os.Open("/dev/null")
		if err != nil {
			t.Error(err)
			return
		}
		defer null.Close()
		body, err := Encode(SandboxRef{Sandbox: strings.Repeat("x", MaxFrame/2)}) // more than a socket's buffer
		if err != nil {
			t.Error(err)
		}
		if err := WriteFrame(c, Response{V: Version, Body: body}, null); err != nil {
			t.Error(err)
		}
		if err := WriteFrame(c, strings.Repeat("x", MaxFrame), nil); !errors.Is(err, ErrTooLarge) {
			t.Errorf("WriteFrame of too much = %v, want ErrTooLarge", err)
		}
	})
	lease, err := call(t, client, 10*time.Second)
	if err != nil || lease.File == nil {
		t.Fatalf("Open = %+v, %v, want a descriptor", lease, err)
	}
	_ = lease.File.Close() // only passed
	if err := lease.Close(); err != nil {
		t.Error(err)
	}
}

// A socket that anybody may have put there is not the daemon's.
func TestSocketOfAnotherUserIsRefused(t *testing.T) {
	asked := false
	client := serve(t, func(*testing.T, *net.UnixConn) { asked = true })
	client.ServerUID++
	if _, err := call(t, client, 10*time.Second); err == nil || !strings.Contains(err.Error(), "belongs to uid") {
		t.Errorf("Open = %v, want refused", err)
	}
	if asked {
		t.Error("a request, perhaps with a token, was sent")
	}
}

func TestSilentDaemon(t *testing.T) {
	hold := make(chan struct{})
	client := serve(t, func(*testing.T, *net.UnixConn) { <-hold })
	defer close(hold)
	began := time.Now()
	_, err := call(t, client, 50*time.Millisecond)
	if sandbox.KindOf(err) != sandbox.KindUnavailable || sandbox.Public(err).Hint == "" {
		t.Errorf("Open = %v, want %s with a hint", err, sandbox.KindUnavailable)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("it took %s", took)
	}
	if _, err := (&Client{Path: filepath.Join(t.TempDir(), "none"), ServerUID: os.Getuid()}).Open(t.Context(), OpGet, Auth{}, nil, nil); sandbox.KindOf(err) != sandbox.KindUnavailable {
		t.Errorf("Open without a daemon = %v, want %s", err, sandbox.KindUnavailable)
	}
}

func TestErrorsKeepTheirKindAndHint(t *testing.T) {
	client := serve(t, func(t *testing.T, c *net.UnixConn) {
		if err := WriteFrame(c, Response{V: Version, Error: &Error{Kind: sandbox.KindQuota, Msg: "m", Hint: "h"}}, nil); err != nil {
			t.Error(err)
		}
	})
	_, err := call(t, client, 10*time.Second)
	if e := sandbox.Public(err); e.Kind != sandbox.KindQuota || e.Msg != "m" || e.Hint != "h" {
		t.Errorf("Open = %+v, want the daemon's error", e)
	}
}
