package daemon

import (
	"log/slog"
	"testing"

	"github.com/podspawn/podspawn/sandbox"
)

// What a connection's channels were like decides whether it was left or lost.
func TestHowAConnectionEnded(t *testing.T) {
	const yes, no = true, false
	for _, tc := range []struct {
		name string
		ends []bool // of channels one after another: did the command end by itself
		note string // why we ended it ourselves
		want string
	}{
		{"exit/one command that ended", []bool{yes}, "", noteExit},
		{"exit/several, each ended", []bool{yes, yes, yes}, "", noteExit},
		{"exit/one cut off, the last one ended", []bool{no, yes}, "", noteExit},
		{"lost/no channel at all, as ssh -N", nil, "", noteLost},
		{"lost/the only one cut off", []bool{no}, "", noteLost},
		{"lost/the last one cut off", []bool{yes, no}, "", noteLost},
		{"revoked/also when a command had ended", []bool{yes}, noteRevoked, noteRevoked},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := NewSessions(nil, func() {}, slog.New(slog.DiscardHandler))
			defer s.Close()
			for _, finished := range tc.ends {
				done, err := s.openChannel("sbx_0123456789abcdef", "con_1")
				if err != nil {
					t.Fatal(err)
				}
				done(finished)
			}
			if tc.note != "" {
				s.notes["con_1"] = tc.note
			}
			if got := s.howItEnded("con_1"); got != tc.want {
				t.Errorf("howItEnded = %q, want %q", got, tc.want)
			}
			if len(s.conns)+len(s.notes)+len(s.channels) != 0 {
				t.Errorf("something is remembered of an ended connection: %v %v %v", s.conns, s.notes, s.channels)
			}
		})
	}
}

// A hook says its last word just before it ends: the word counts although the
// connection's end was noticed first.
func TestLastWordOnItsWay(t *testing.T) {
	s := NewSessions(nil, func() {}, slog.New(slog.DiscardHandler))
	defer s.Close()
	done, err := s.openChannel("sbx_0123456789abcdef", "con_1")
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan string)
	go func() { got <- s.howItEnded("con_1") }()
	done(true)
	if note := <-got; note != noteExit {
		t.Errorf("howItEnded = %q, want %q", note, noteExit)
	}
}

func TestChannelsAreCapped(t *testing.T) {
	s := NewSessions(nil, func() {}, slog.New(slog.DiscardHandler))
	defer s.Close()
	var dones []func(bool)
	for range sandbox.MaxChannels {
		done, err := s.openChannel("sbx_0123456789abcdef", "con_1")
		if err != nil {
			t.Fatal(err)
		}
		dones = append(dones, done)
	}
	if _, err := s.openChannel("sbx_0123456789abcdef", "con_2"); sandbox.KindOf(err) != sandbox.KindQuota {
		t.Errorf("one channel too many: %v, want quota", err)
	}
	for _, done := range dones {
		done(true)
	}
	if _, err := s.openChannel("sbx_0123456789abcdef", "con_2"); err != nil {
		t.Errorf("after all were closed: %v", err)
	}
}
