package guest

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// guestEnd returns a connection as the daemon hands it over, and the guest's end.
func guestEnd(t *testing.T) (*os.File, net.Conn) {
	t.Helper()
	p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(p[1]), "guest")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return os.NewFile(uintptr(p[0]), "host"), c
}

func exitFrame(t *testing.T, e Exit) []byte {
	t.Helper()
	b, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestDialInAgainstEveryAnswer(t *testing.T) {
	tests := map[string]struct {
		frame   FrameType
		payload []byte
		want    error
	}{
		"accepted":             {FrameStarted, nil, nil},
		"refused/closed port":  {FrameExit, exitFrame(t, Exit{Code: 126, Error: "connect: connection refused"}), ErrRefused},
		"refused/with escapes": {FrameExit, exitFrame(t, Exit{Code: 126, Error: "\x1b[2J"}), ErrRefused},
		"hostile/no exit":      {FrameExit, []byte("{"), ErrEnded},
		"hostile/other frame":  {FrameStdout, []byte("x"), ErrUnknown},
		"hostile/too long":     {FrameStarted, make([]byte, maxOpening+1), ErrTooLong},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			f, g := guestEnd(t)
			go func() {
				if kind, b, err := NewReader(g).Opening(); err != nil || kind != FrameDial || string(b) != "127.0.0.1:80" {
					t.Errorf("Opening = %q, %q, %v", kind, b, err)
				}
				_ = NewWriter(g).Frame(tt.frame, tt.payload) // the host may have hung up
				_, _ = io.WriteString(g, "stream")
				_ = g.Close()
			}()
			c, err := DialIn(t.Context(), f, "127.0.0.1:80")
			if !errors.Is(err, tt.want) {
				t.Fatalf("DialIn = %v, want %v", err, tt.want)
			}
			if err != nil {
				return
			}
			defer c.Close()
			if b, err := io.ReadAll(c); string(b) != "stream" || err != nil {
				t.Errorf("the stream is %q, %v: not a byte of it may be lost", b, err)
			}
		})
	}
}

func TestDialInEndsWithItsContext(t *testing.T) {
	f, _ := guestEnd(t) // which never answers
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := DialIn(ctx, f, "127.0.0.1:80"); !errors.Is(err, context.Canceled) {
		t.Errorf("DialIn = %v, want canceled", err)
	}
}

func TestListenerAgainstEveryFrame(t *testing.T) {
	for name, tt := range map[string]struct {
		path string
		send func(*Writer) error
		want error
	}{
		"accepted":         {"/tmp/a.sock", func(w *Writer) error { return w.Frame(FrameAccepted, binary.BigEndian.AppendUint64(nil, 7)) }, nil},
		"hostile/path":     {"agent\n", nil, ErrEnded},
		"hostile/length":   {"/tmp/a.sock", func(w *Writer) error { return w.Frame(FrameAccepted, []byte("1234567")) }, ErrUnknown},
		"hostile/unknown":  {"/tmp/a.sock", func(w *Writer) error { return w.Frame(FrameStdout, make([]byte, 8)) }, ErrUnknown},
		"hostile/too long": {"/tmp/a.sock", func(w *Writer) error { return w.Frame(FrameAccepted, make([]byte, 9)) }, ErrTooLong},
	} {
		t.Run(name, func(t *testing.T) {
			f, g := guestEnd(t)
			go func() {
				if kind, _, err := NewReader(g).Opening(); err != nil || kind != FrameListen {
					t.Errorf("Opening = %q, %v", kind, err)
				}
				w := NewWriter(g)
				_ = w.Frame(FrameStarted, []byte(tt.path)) // the host may have hung up
				if tt.send != nil {
					_ = tt.send(w)
				}
			}()
			l, err := ListenIn(t.Context(), f, Listen{Agent: true})
			if err == nil {
				defer l.Close()
				var id uint64
				if id, err = l.Next(); err == nil && id != 7 {
					t.Errorf("Next = %d, want 7", id)
				}
			}
			if !errors.Is(err, tt.want) {
				t.Errorf("err = %v, want %v", err, tt.want)
			}
		})
	}
}

func TestSplitTarget(t *testing.T) {
	for in, ok := range map[string]bool{
		"127.0.0.1:80": true, "[::1]:65535": true, "db:5432": true, "": false, "host": false, ":80": false, "host:0": false,
		"host:65536": false, "host:-1": false, "host:http": false, "a b:80": false, "a/b:80": false, "a\nb:80": false, "::1:80": false,
	} {
		if _, _, err := SplitTarget(in); (err == nil) != ok {
			t.Errorf("SplitTarget(%q) = %v, want ok %v", in, err, ok)
		}
	}
}

func FuzzOpeningNeverPanics(f *testing.F) {
	for _, t := range []FrameType{FrameRequest, FrameDial, FrameListen, FrameAccept} {
		f.Add(byte(t), []byte(`{"port":80}`))
	}
	f.Add(byte(FrameDial), []byte("[::1]:80"))
	f.Fuzz(func(t *testing.T, kind byte, b []byte) {
		if host, port, err := SplitTarget(string(b)); err == nil && (host == "" || port < 1 || port > 65535) {
			t.Errorf("SplitTarget(%q) = %q, %d", b, host, port)
		}
		if l, err := ParseListen(b); err == nil && l.Agent == (l.Port != 0) {
			t.Errorf("ParseListen(%q) = %+v", b, l)
		}
		wire := append([]byte{kind, 0, 0, byte(len(b) >> 8), byte(len(b))}, b...)
		r, w := io.Pipe()
		go func() { _, _ = w.Write(wire); _ = w.Close() }()
		fr := NewReader(r)
		if _, _, err := fr.Opening(); err == nil {
			_, _ = fr.Rest()
		}
		_ = r.Close()
	})
}
