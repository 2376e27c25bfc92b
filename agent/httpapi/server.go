package httpapi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"golang.org/x/sync/errgroup"
)

// Timeouts of the server. Handlers that take long replace the write timeout by
// their own: see longAnswer.
const (
	headerTimeout = 5 * time.Second
	readTimeout   = 30 * time.Second
	writeTimeout  = 60 * time.Second
	idleTimeout   = 2 * time.Minute
	maxHeader     = 16 << 10
)

// Serve serves h on all listeners until ctx ends. Then it stops accepting, gives
// requests under way grace to finish, and cuts off the rest, at which their
// contexts end. It returns nil after a shutdown by ctx. It closes the listeners.
func Serve(ctx context.Context, h http.Handler, grace time.Duration, log *slog.Logger, listeners ...net.Listener) error {
	srv := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ConnContext:       connContext,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug), // what clients do to connections
	}
	group, ctx := errgroup.WithContext(ctx)
	for _, l := range listeners {
		group.Go(func() error {
			if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				return fmt.Errorf("serve on %s: %w", l.Addr(), err)
			}
			return nil
		})
	}
	group.Go(func() error {
		<-ctx.Done()
		stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
		defer cancel()
		if err := srv.Shutdown(stopping); err != nil {
			if err := srv.Close(); err != nil {
				return fmt.Errorf("close the HTTP server: %w", err)
			}
		}
		return nil
	})
	return group.Wait()
}

// peerKey is the context key of a connection's peer handle.
type peerKey struct{}

// connContext keeps the handle of a connection that came through podspawn.sock.
func connContext(ctx context.Context, c net.Conn) context.Context {
	if p, ok := c.(interface{ PeerHandle() string }); ok {
		return context.WithValue(ctx, peerKey{}, p.PeerHandle())
	}
	return ctx
}
