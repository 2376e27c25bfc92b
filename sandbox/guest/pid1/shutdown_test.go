package pid1

import (
	"testing"
	"time"

	"github.com/podspawn/podspawn/sandbox/guest"
)

// The host's shutdown ends the sandbox whatever else its preamble says, is
// answered before it does, and needs no request.
func TestShutdownEndsTheSandbox(t *testing.T) {
	for _, tc := range []struct {
		name  string
		p     guest.Preamble
		ended bool
	}{
		{"shutdown", guest.Preamble{Rights: []guest.Right{guest.RightShutdown}, Deadline: time.Now().Add(time.Hour).Unix()}, true},
		{"shutdown past the deadline", guest.Preamble{Rights: []guest.Right{guest.RightShutdown}, Deadline: 1}, true},
		{"every other right", guest.Preamble{Rights: []guest.Right{guest.RightExec, guest.RightPTY, guest.RightSFTP}, Deadline: time.Now().Add(time.Hour).Unix()}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ended := make(chan struct{}, 1)
			f := newFixture(t, func(s *server) { s.end = func() { ended <- struct{}{} } })
			conn := f.dial(t)
			err := guest.SendPreamble(t.Context(), conn, tc.p)
			if err != nil {
				t.Fatalf("SendPreamble = %v, want accepted", err)
			}
			if !tc.ended {
				// A request that is carried out is past the point where the guest would end.
				if exit, err := guest.Run(t.Context(), conn, guest.Exec{Script: "exit 3"}, guest.Streams{}); err != nil || exit.Code != 3 {
					t.Errorf("Run = %+v, %v, want exit 3", exit, err)
				}
				if len(ended) != 0 {
					t.Error("the sandbox was ended")
				}
				return
			}
			defer conn.Close()
			select {
			case <-ended:
			case <-time.After(10 * time.Second):
				t.Error("the sandbox goes on")
			}
		})
	}
}
