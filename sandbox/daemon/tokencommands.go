package daemon

import (
	"context"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/podspawn/podspawn/sandbox"
)

// tokenCommands knows the commands that tokens have running, so that they end with
// their token. The API process holds a copy of each descriptor, but a shutdown
// acts on the connection: it can't go on with it. Safe for concurrent use.
type tokenCommands struct {
	mu sync.Mutex // guards by and n
	by map[string]map[int]*os.File
	n  int
}

func newTokenCommands() *tokenCommands { return &tokenCommands{by: map[string]map[int]*os.File{}} }

// add keeps a copy of a guest connection until the returned function is called.
func (r *tokenCommands) add(token string, f *os.File) (remove func(), err error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("dup", err)
	}
	c := os.NewFile(uintptr(fd), "guest")
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.by[token] == nil {
		r.by[token] = map[int]*os.File{}
	}
	r.n++
	n := r.n
	r.by[token][n] = c
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if delete(r.by[token], n); len(r.by[token]) == 0 {
			delete(r.by, token)
		}
		_ = c.Close() // nothing was written to it
	}, nil
}

// end cuts the connections of a token's commands and returns how many there were.
func (r *tokenCommands) end(token string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, f := range r.by[token] {
		_ = unix.Shutdown(int(f.Fd()), unix.SHUT_RDWR) // fails only for one that has ended
	}
	return len(r.by[token])
}

// watchToken ties a guest connection to the token that asked for it: revoking the
// token cuts it.
func (s *Server) watchToken(ctx context.Context, c call, by sandbox.Caller, f *os.File) error {
	if by.Token == "" {
		return nil
	}
	remove, err := s.ofTokens.add(by.Token, f)
	if err != nil {
		return err
	}
	c.atEnd(remove)
	// Once more, now that a revocation would find the command.
	_, err = s.authenticate(ctx, c.req.Auth)
	return err
}
