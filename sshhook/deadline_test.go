package sshhook

import (
	"bufio"
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/podspawn/podspawn/sandbox/localapi"
)

// warned runs warn for a sandbox that ends in `in`, with a daemon that says what
// the end is, and returns the first line that the terminal gets.
func warned(t *testing.T, in time.Duration, answer func(localapi.Request) (any, *os.File, *localapi.Error)) (string, *double) {
	t.Helper()
	d := newDouble(t, answer)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	h := &Hook{Daemon: d.client, Stderr: w}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		h.warn(ctx, time.Now().Add(in))
		_ = w.Close()
	}()
	defer func() { cancel(); <-done }()
	if err := r.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(r)
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			return "", d
		}
		if line = strings.TrimSpace(line); line != "" {
			return line, d
		}
	}
}

func TestWarnings(t *testing.T) {
	const soon = 300 * time.Millisecond
	same := func(localapi.Request) (any, *os.File, *localapi.Error) { return localapi.ChannelResponse{}, nil, nil }
	t.Run("10 minutes before", func(t *testing.T) {
		if line, _ := warned(t, 10*time.Minute+soon, same); !strings.HasPrefix(line, "podspawn: this sandbox ends in 10 minutes, at ") {
			t.Errorf("the terminal is told %q", line)
		}
	})
	t.Run("1 minute before, when it never had 10", func(t *testing.T) {
		if line, _ := warned(t, time.Minute+soon, same); !strings.HasPrefix(line, "podspawn: this sandbox ends in 1 minute, at ") {
			t.Errorf("the terminal is told %q", line)
		}
	})
	t.Run("no daemon to ask", func(t *testing.T) {
		down := func(localapi.Request) (any, *os.File, *localapi.Error) {
			return nil, nil, &localapi.Error{Kind: "unavailable", Msg: "starting"}
		}
		if line, _ := warned(t, time.Minute+soon, down); !strings.Contains(line, "ends in 1 minute") {
			t.Errorf("the terminal is told %q", line)
		}
	})
	t.Run("moved by extend", func(t *testing.T) {
		began := time.Now()
		later := began.Add(time.Minute + 3*time.Second)
		line, d := warned(t, time.Minute+soon, func(localapi.Request) (any, *os.File, *localapi.Error) {
			return localapi.ChannelResponse{ExpiresAt: later}, nil, nil
		})
		if took := time.Since(began); !strings.Contains(line, "ends in 1 minute") || took < 2*time.Second {
			t.Errorf("the terminal is told %q after %s, want the warning 1 minute before the new end", line, took)
		}
		if n := len(d.asked(t)); n != 2 {
			t.Errorf("the daemon was asked %d times, want before the old end and before the new", n)
		}
	})
	t.Run("less than a minute from the beginning", func(t *testing.T) {
		if line, _ := warned(t, 30*time.Second, same); line != "" {
			t.Errorf("the terminal is told %q", line)
		}
	})
}
