package daemon

import (
	"context"
	"errors"
	"os"
	"sync"
	"time"

	"github.com/podspawn/podspawn/sandbox"
	"github.com/podspawn/podspawn/sandbox/guest"
)

// Guests opens connections to guests and says on each what it is for. It
// implements sandbox.Guest and is safe for concurrent use.
type Guests struct {
	sockets sandbox.Sockets

	mu    sync.Mutex // guards gates
	gates map[sandbox.ID]*gate
}

// gate lets through those that may wait for one guest's answer.
type gate struct {
	slots chan struct{}
	users int // who hold or wait for a slot
}

// maxUnanswered bounds the connections that wait for one guest's answer: each
// takes a thread, and a guest that is paused, or hostile, answers none.
const maxUnanswered = 8

var _ sandbox.Guest = (*Guests)(nil)

// NewGuests returns a Guests.
func NewGuests(s sandbox.Sockets) *Guests {
	return &Guests{sockets: s, gates: map[sandbox.ID]*gate{}}
}

// pass waits for one of the sandbox's slots.
func (g *Guests) pass(ctx context.Context, id sandbox.ID) (leave func(), err error) {
	g.mu.Lock()
	e := g.gates[id]
	if e == nil {
		e = &gate{slots: make(chan struct{}, maxUnanswered)}
		g.gates[id] = e
	}
	e.users++
	g.mu.Unlock()
	forget := func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		if e.users--; e.users == 0 {
			delete(g.gates, id)
		}
	}
	t := time.NewTimer(guest.PreambleTimeout)
	defer t.Stop()
	select {
	case e.slots <- struct{}{}:
		return func() { <-e.slots; forget() }, nil
	case <-ctx.Done():
		err = context.Cause(ctx)
	case <-t.C:
		err = errors.New("too many connections wait for its answer")
	}
	forget()
	return nil, &sandbox.Error{
		Kind: sandbox.KindUnavailable, Msg: "sandbox " + string(id) + " does not answer",
		Hint: "destroy it and create another", Err: err,
	}
}

// Open returns a connected descriptor whose preamble the guest has accepted.
// The daemon reads nothing more from it.
func (g *Guests) Open(ctx context.Context, row sandbox.Sandbox, session string, rights ...guest.Right) (*os.File, error) {
	leave, err := g.pass(ctx, row.ID)
	if err != nil {
		return nil, err
	}
	defer leave()
	f, err := g.sockets.Dial(ctx, row.ID)
	if err != nil {
		return nil, &sandbox.Error{
			Kind: sandbox.KindUnavailable, Msg: "sandbox " + string(row.ID) + " does not answer",
			Hint: "destroy it and create another", Err: err,
		}
	}
	err = guest.SendPreamble(ctx, f, guest.Preamble{
		V: guest.Version, Login: row.ID.Login(), Session: session, Rights: rights,
		Deadline: row.ExpiresAt.Unix(), User: row.User, Shell: row.Spec.Shell,
		Work: row.Spec.Workspace, Env: row.Spec.Env,
	})
	if err != nil {
		_ = f.Close() // the preamble's error is the one to report
		return nil, &sandbox.Error{
			Kind: sandbox.KindUnavailable, Msg: "sandbox " + string(row.ID) + " does not answer as it should",
			Hint: "destroy it and create another", Err: err,
		}
	}
	return f, nil
}

// Shutdown implements sandbox.Guest.
func (g *Guests) Shutdown(ctx context.Context, row sandbox.Sandbox) error {
	f, err := g.Open(ctx, row, "", guest.RightShutdown)
	if err != nil {
		return err
	}
	return f.Close()
}

// Greet implements sandbox.Guest.
func (g *Guests) Greet(ctx context.Context, row sandbox.Sandbox) error {
	f, err := g.Open(ctx, row, "")
	if err != nil {
		return err
	}
	return f.Close()
}
