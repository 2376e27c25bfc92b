package guest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"testing"
	"testing/iotest"
)

func TestFramesRoundTrip(t *testing.T) {
	big := bytes.Repeat([]byte("0123456789abcdef"), MaxPayload/16)
	frames := []struct {
		t FrameType
		b []byte
	}{{FrameStdout, []byte("out")}, {FrameEOF, nil}, {FrameStderr, big}, {FrameStdin, []byte{0, 255}}}
	var wire bytes.Buffer
	w := NewWriter(&wire)
	for i, f := range frames {
		var err error
		if i%2 == 0 {
			err = w.Frame(f.t, f.b)
		} else {
			err = w.InPlace(f.t, append(make([]byte, HeaderSize), f.b...))
		}
		if err != nil {
			t.Fatalf("write frame %d: %v", i, err)
		}
	}
	for name, in := range map[string]io.Reader{
		"whole":          bytes.NewReader(wire.Bytes()),
		"byte by byte":   iotest.OneByteReader(bytes.NewReader(wire.Bytes())),
		"data with EOF":  iotest.DataErrReader(bytes.NewReader(wire.Bytes())),
		"half at a time": iotest.HalfReader(bytes.NewReader(wire.Bytes())),
	} {
		t.Run(name, func(t *testing.T) {
			r := NewReader(in)
			for i, f := range frames {
				typ, b, err := r.Next()
				if err != nil || typ != f.t || !bytes.Equal(b, f.b) {
					t.Fatalf("frame %d = %q, %d bytes, %v; want %q, %d bytes", i, byte(typ), len(b), err, byte(f.t), len(f.b))
				}
			}
			if _, _, err := r.Next(); err != io.EOF {
				t.Errorf("after the last frame: %v, want EOF", err)
			}
		})
	}
}

func TestReaderRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		wire string
		want error
	}{
		"half a header":   {"o\x00", io.ErrUnexpectedEOF},
		"half a payload":  {"o\x00\x00\x00\x02x", io.ErrUnexpectedEOF},
		"a byte too long": {"o\x00\x01\x00\x01" + string(make([]byte, MaxPayload+1)), ErrTooLong},
		"4 GiB":           {"o\xff\xff\xff\xff", ErrTooLong},
	} {
		t.Run(name, func(t *testing.T) {
			if _, _, err := NewReader(bytes.NewReader([]byte(c.wire))).Next(); !errors.Is(err, c.want) {
				t.Errorf("Next = %v, want %v", err, c.want)
			}
		})
	}
	for name, c := range map[string]struct {
		wire string
		want error
	}{
		"another frame first": {"i\x00\x00\x00\x00", ErrUnknown},
		"too long":            {"R\x00\x04\x00\x01", ErrTooLong},
		"cut":                 {"R\x00\x04\x00\x00{", io.ErrUnexpectedEOF},
		"nothing":             {"", io.EOF},
	} {
		t.Run("request/"+name, func(t *testing.T) {
			if _, err := NewReader(bytes.NewReader([]byte(c.wire))).Request(); !errors.Is(err, c.want) {
				t.Errorf("Request = %v, want %v", err, c.want)
			}
		})
	}
}

func TestReaderDoesNotAllocatePerFrame(t *testing.T) {
	var wire bytes.Buffer
	w := NewWriter(&wire)
	for range 2000 {
		if err := w.Frame(FrameStdout, make([]byte, 1000)); err != nil {
			t.Fatal(err)
		}
	}
	r := NewReader(&wire)
	if n := testing.AllocsPerRun(1000, func() {
		if _, _, err := r.Next(); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations a frame, want 0", n)
	}
}

func TestWriterStaysBroken(t *testing.T) {
	if err := NewWriter(io.Discard).Frame(FrameStdout, make([]byte, MaxPayload+1)); !errors.Is(err, ErrTooLong) {
		t.Errorf("oversize frame = %v, want ErrTooLong", err)
	}
	w := NewWriter(failing{})
	for range 2 {
		if err := w.Frame(FrameEOF, nil); !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("Frame = %v, want the first error", err)
		}
	}
}

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }

func FuzzReadFrameNeverPanics(f *testing.F) {
	f.Add([]byte("o\x00\x00\x00\x03abcx\x00\x00\x00\x02{}"))
	f.Add([]byte("R\x00\x00\x00\x02{}"))
	f.Add([]byte("o\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, wire []byte) {
		r := NewReader(bytes.NewReader(wire))
		total := 0
		for {
			_, b, err := r.Next()
			if err != nil {
				break
			}
			if len(b) > MaxPayload {
				t.Fatalf("payload of %d bytes", len(b))
			}
			total += HeaderSize + len(b)
		}
		if total > len(wire) {
			t.Fatalf("%d bytes out of %d", total, len(wire))
		}
		b, err := NewReader(bytes.NewReader(wire)).Request()
		if err == nil {
			if len(b) > MaxRequest {
				t.Fatalf("request of %d bytes", len(b))
			}
			_, _ = ParseExec(b)
		}
		_, _ = parseExit(wire)
	})
}

func FuzzReadPreambleNeverPanics(f *testing.F) {
	f.Add([]byte(`{"v":1,"deadline":9,"rights":["exec"]}`))
	f.Add([]byte(`{"v":2}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		wire := binary.BigEndian.AppendUint32(nil, uint32(len(body)))
		r := bytes.NewReader(append(append(wire, body...), "rest"...))
		p, answer, err := ReadPreamble(r)
		if (err == nil) != (answer == AnswerOK) {
			t.Fatalf("answer %d with error %v", answer, err)
		}
		if err == nil && (p.V != Version || p.Deadline <= 0 || r.Len() != len("rest")) {
			t.Fatalf("accepted %+v with %d bytes left", p, r.Len())
		}
		if _, _, err := ReadPreamble(bytes.NewReader(body)); err == nil && len(body) < 4 {
			t.Fatal("accepted without a length")
		}
	})
}
