package pid1_test

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/podspawn/podspawn/sandbox"
	"github.com/podspawn/podspawn/sandbox/guest"
)

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
		for range 512 + 12 { // maxHost, and some
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
