package sshhook

import (
	"encoding/json"
	"os"
	"slices"
	"testing"

	"github.com/podspawn/podspawn/sandbox"
	"github.com/podspawn/podspawn/sandbox/guest"
	"github.com/podspawn/podspawn/sandbox/localapi"
)

// asked returns what the daemon was asked about the channel.
func (d *double) asked(t *testing.T) []localapi.ChannelDo {
	t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	var all []localapi.ChannelDo
	for _, r := range d.requests {
		if r.Op != localapi.OpChannel {
			continue
		}
		var in localapi.ChannelRequest
		if err := json.Unmarshal(r.Body, &in); err != nil {
			t.Fatal(err)
		}
		all = append(all, in.Do)
	}
	return all
}

// A daemon that was replaced while the session ran learns of the channel, and of
// its end.
func TestSessionRegistersWithTheNextDaemon(t *testing.T) {
	held := make(chan struct{}, 16)
	d := withGuest(t, localapi.SessionResponse{}, func(p *peer) {
		p.request()
		<-held // no sooner does the session end
		p.exit(guest.Exit{})
	})
	d.drop = true // each answered connection closes: no lease lasts
	open := d.answer
	d.answer = func(r localapi.Request) (any, *os.File, *localapi.Error) {
		if r.Op == localapi.OpSession {
			return open(r)
		}
		select {
		case held <- struct{}{}:
		default:
		}
		return localapi.ChannelResponse{}, nil, nil
	}
	if code, _, stderr := (run{client: d.client}).do(t, "-podspawn-hook"); code != 0 || stderr != "" {
		t.Errorf("exit %d, stderr %q", code, stderr)
	}
	asked := d.asked(t)
	if !slices.Contains(asked, localapi.ChannelHold) || asked[len(asked)-1] != localapi.ChannelFinish {
		t.Errorf("the daemon was asked to %q, want hold and at last finish", asked)
	}
}

// Without a daemon the end can't be told, and the session does not hang on that.
func TestSessionEndsWhenItsEndCannotBeTold(t *testing.T) {
	d := withGuest(t, localapi.SessionResponse{}, func(p *peer) {
		p.request()
		p.exit(guest.Exit{Code: 3})
	})
	d.drop = true
	open := d.answer
	d.answer = func(r localapi.Request) (any, *os.File, *localapi.Error) {
		if r.Op == localapi.OpSession {
			return open(r)
		}
		return nil, nil, &localapi.Error{Kind: sandbox.KindUnauthorized, Msg: "no such connection"}
	}
	if code, _, _ := (run{client: d.client}).do(t, "-podspawn-hook"); code != 3 {
		t.Errorf("exit %d, want the command's 3", code)
	}
}
