package sshhook

import (
	"context"
	"maps"
	"net"
	"sync"

	"github.com/podspawn/podspawn/sandbox/guest"
	"github.com/podspawn/podspawn/sandbox/localapi"
)

// maxAgents bounds the connections to the client's agent at once.
const maxAgents = 16

// agent has the guest make a socket in the sandbox, tells the process about it,
// and carries each connection that arrives there to sshd's own socket, which is
// the client's agent. The func that it returns ends that and removes the socket.
func (h *Hook) agent(ctx context.Context, req *guest.Exec) (stop func(), err error) {
	callCtx, cancel := h.withTimeout(ctx)
	defer cancel()
	want := localapi.ForwardRequest{Want: localapi.ForwardAgent}
	f, err := guestFor(callCtx, h.Daemon, want)
	if err != nil {
		return func() {}, err
	}
	l, err := guest.ListenIn(callCtx, f, guest.Listen{Agent: true})
	if err != nil {
		return func() {}, err
	}
	req.Env = maps.Clone(req.Env)
	if req.Env == nil {
		req.Env = map[string]string{}
	}
	req.Env["SSH_AUTH_SOCK"] = l.Path
	r := &relay{daemon: h.Daemon, slots: make(chan struct{}, maxAgents), opening: make(chan struct{}, maxOpening)}
	var wg sync.WaitGroup
	ctx, end := context.WithCancel(ctx)
	wg.Go(func() {
		r.in(ctx, l, want, func(ctx context.Context) (guest.Stream, error) {
			var d net.Dialer
			c, err := d.DialContext(ctx, "unix", h.Env.Agent)
			if err != nil {
				return nil, err
			}
			return c.(*net.UnixConn), nil
		})
	})
	return func() {
		end()
		_ = l.Close() // the guest removes the socket
		wg.Wait()
	}, nil
}
