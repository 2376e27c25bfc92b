package daemon

import (
	"context"
	"os"

	"github.com/podspawn/podspawn/sandbox"
	"github.com/podspawn/podspawn/sandbox/guest"
)

// Guests opens connections to guests and says on each what it is for. It
// implements sandbox.Guest and is safe for concurrent use.
type Guests struct {
	sockets sandbox.Sockets
}

var _ sandbox.Guest = (*Guests)(nil)

// NewGuests returns a Guests.
func NewGuests(s sandbox.Sockets) *Guests { return &Guests{sockets: s} }

// Open returns a connected descriptor whose preamble the guest has accepted.
// The daemon reads nothing more from it.
func (g *Guests) Open(ctx context.Context, row sandbox.Sandbox, session string, rights ...guest.Right) (*os.File, error) {
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
