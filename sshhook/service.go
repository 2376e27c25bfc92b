package sshhook

import (
	"context"
	"errors"
	"io"
	"net"

	"golang.org/x/sys/unix"

	"github.com/podspawn/podspawn/sandbox"
)

// serviceCommand is the one command of a user's login that is not for her sandbox:
// it speaks HTTP with the service on stdin and stdout. Only this very text means it.
const serviceCommand = "podspawn api"

// serviceSocket is where the service's local callers connect; the daemon knows the
// user by her uid and by the claimed connection that this process runs in.
const serviceSocket = "/run/podspawn/podspawn.sock"

// isService reports whether the channel is a user's and asks for the service.
func (h *Hook) isService() bool {
	return h.Env.HasCommand && h.Env.Command == serviceCommand && sandbox.IsUserUID(unix.Getuid())
}

// service carries bytes between the channel and the service until either ends. It
// looks at none of them.
func (h *Hook) service(ctx context.Context) int {
	ctx, cancel := h.withTimeout(ctx)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", serviceSocket)
	if err != nil {
		h.complain(refusalLine(&sandbox.Error{Kind: sandbox.KindUnavailable, Msg: "the service does not answer", Hint: "the administrator can start it with podspawn serve", Err: err}))
		return exitTemp
	}
	// Not waited for: a read of stdin may last for ever, and ends with the process.
	go func() {
		_, err := io.Copy(conn, h.Stdin)
		if err == nil {
			err = conn.(*net.UnixConn).CloseWrite()
		}
		if err != nil {
			_ = conn.Close() // ends the copy below
		}
	}()
	_, err = io.Copy(h.Stdout, conn)
	_ = conn.Close() // the service has closed its side, or the client has gone
	if err != nil && !errors.Is(err, net.ErrClosed) {
		return exitLost
	}
	return exitOK
}
