package sockets

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/podspawn/podspawn/sandbox"
)

// Dial implements sandbox.Sockets. The file is non-blocking and in the poller.
// A guest that does not accept (stopped, paused, hostile) fills its queue; then
// connect says EAGAIN and is tried again until ctx ends.
func (s *Sockets) Dial(ctx context.Context, id sandbox.ID) (*os.File, error) {
	if _, err := s.dir(id); err != nil {
		return nil, err
	}
	s.mu.Lock()
	e := s.open[id]
	s.mu.Unlock()
	if e == nil {
		return nil, unavailable(id, errNotSealed)
	}
	select {
	case e.pending <- struct{}{}:
		defer func() { <-e.pending }()
	default:
		return nil, sandbox.Errorf(sandbox.KindCapacity, "try again in a few seconds",
			"the sandbox does not keep up with its connections")
	}
	ticker := time.NewTicker(retryEvery)
	defer ticker.Stop()
	for {
		f, err := e.connect()
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, unix.EAGAIN) {
			return nil, unavailable(id, err)
		}
		select {
		case <-ctx.Done():
			return nil, unavailable(id, errors.Join(context.Cause(ctx), err))
		case <-ticker.C:
		}
	}
}

func unavailable(id sandbox.ID, err error) error {
	return &sandbox.Error{
		Kind: sandbox.KindUnavailable,
		Msg:  "the sandbox does not answer",
		Hint: "destroy it and create another",
		Err:  fmt.Errorf("connect to guest of %s: %w", id, err),
	}
}

// connect makes one attempt. The lock keeps the descriptor from being closed,
// and its number from standing for another file, while the path is in use.
func (e *entry) connect() (*os.File, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	e.mu.Lock()
	if e.sock == nil {
		err = errNotSealed
	} else {
		err = unix.Connect(fd, &unix.SockaddrUnix{Name: fmt.Sprintf("/proc/self/fd/%d", e.fd())})
	}
	e.mu.Unlock()
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("connect: %w", err)
	}
	return os.NewFile(uintptr(fd), "guest"), nil
}

// fd returns the number of the descriptor, with mu held. An O_PATH descriptor has no mode to disturb.
func (e *entry) fd() int { return int(e.sock.Fd()) }
