package pid1

import (
	"context"
	"golang.org/x/sys/unix"
	"net"
)

func (s *server) serveInside(ctx context.Context, conn *net.UnixConn, cred unix.Ucred) error {
	return nil
}
