package pid1

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/podspawn/podspawn/sandbox/fault"
	"github.com/podspawn/podspawn/sandbox/guest"
)

// Bounds of a guest.
const (
	maxHost      = 512              // connections of the host: sessions, commands and what is forwarded
	maxInside    = 32               // of processes in the sandbox
	preambleTime = 10 * time.Second // for the preamble, and for what sudo asks
	requestTime  = 30 * time.Second // from the preamble to the request
	maxDisk      = 64 << 10         // size of what the host mounts as the socket directory
	maxDiskFiles = 64
)

// server is the guest. Its fields are set before serve.
type server struct {
	log     *slog.Logger
	users   users
	dir     string // the socket directory
	reaper  *reaper
	expires *deadline
	end     func() // ends the sandbox when the host says so; it returns at once

	// For tests, which run as an ordinary process on an ordinary kernel.
	isHost   func(unix.Ucred) bool
	ourDisk  func(dir string) error
	sameUser bool // start every process as ourselves

	inbound inbound // connections that were accepted for the host

	mu    sync.Mutex // guards latest
	known bool
	// latest is the newest preamble: sudo is for the user that it names.
	latest guest.Preamble
}

// hostPeer reports whether a peer is outside the sandbox. gVisor's kernel gives
// those no process and no user; nothing inside can have the uid −1.
func hostPeer(c unix.Ucred) bool { return c.Pid == 0 && c.Uid == ^uint32(0) }

// checkDisk refuses a socket directory that is not the small tmpfs that the
// host makes: when that mount went wrong, what is written here would land on the
// host's disk. gVisor shows a 9p mount, but passes on the size of what is behind.
func checkDisk(dir string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return fmt.Errorf("statfs %s: %w", dir, err)
	}
	size := st.Blocks * uint64(max(st.Bsize, 1))
	if st.Blocks == 0 || size > maxDisk || st.Files == 0 || st.Files > maxDiskFiles {
		return fmt.Errorf("%s holds %d bytes in %d files: not the directory that the host makes", dir, size, st.Files)
	}
	return nil
}

// listen makes the socket. Its mode is what the umask leaves: by the time of a
// chmod the host may already have made the directory read-only.
func listen(dir string) (*net.UnixListener, error) {
	path := filepath.Join(dir, guest.SocketName)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	// The directory is read-only by the time that we end, and gone with the sandbox.
	l.SetUnlinkOnClose(false)
	return l, nil
}

// serve accepts connections until ctx ends, and then waits for what runs.
func (s *server) serve(ctx context.Context, l *net.UnixListener) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	host, inside := make(chan struct{}, maxHost), make(chan struct{}, maxInside)
	for {
		conn, err := l.AcceptUnix()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			if errors.Is(err, net.ErrClosed) {
				return fmt.Errorf("accept: %w", err)
			}
			// Out of descriptors or memory, which the sandbox can bring about.
			s.log.Warn("accept", "error", err)
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
			continue
		}
		cred, err := peer(conn)
		if err != nil {
			s.log.Warn("peer credentials", "error", err)
			conn.Close()
			continue
		}
		slots, handle := inside, s.serveInside
		if s.isHost(*cred) {
			slots, handle = host, s.serveHost
		}
		select {
		case slots <- struct{}{}:
		default:
			_ = conn.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
			_, _ = conn.Write(guest.AppendAnswer(nil, guest.AnswerBusy)) // a courtesy
			conn.Close()
			continue
		}
		wg.Go(func() {
			defer func() { <-slots }()
			defer conn.Close()
			defer s.survive()
			stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
			defer stop()
			if err := handle(ctx, conn, *cred); err != nil {
				s.log.Info("connection", "error", err)
			}
		})
	}
}

// survive keeps PID 1 alive when a handler panics on foreign input.
func (s *server) survive() {
	if r := recover(); r != nil {
		s.log.Error("panic in a connection", "panic", r, "stack", string(debug.Stack()))
	}
}

func peer(conn *net.UnixConn) (*unix.Ucred, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return nil, err
	}
	return cred, credErr
}

// serveHost serves a connection of the host: preamble, answer, request. It reads
// without a control buffer, so a descriptor that somebody attached is dropped.
func (s *server) serveHost(ctx context.Context, conn *net.UnixConn, _ unix.Ucred) error {
	_ = conn.SetDeadline(time.Now().Add(preambleTime))
	p, answer, err := guest.ReadPreamble(conn)
	if err == nil {
		answer, err = s.accept(p)
	}
	if errors.Is(err, io.EOF) {
		return nil // it connected and left: how a host sees whether we live
	}
	_, werr := conn.Write(guest.AppendAnswer(nil, answer))
	if err == nil && slices.Contains(p.Rights, guest.RightShutdown) {
		s.log.Info("the host ends the sandbox")
		s.end() // whether the answer arrived or not
		return werr
	}
	if err != nil || werr != nil {
		return errors.Join(err, werr)
	}
	fault.At("guest.accepted")
	_ = conn.SetDeadline(time.Now().Add(requestTime))
	fr := guest.NewReader(conn)
	t, b, err := fr.Opening()
	if err == io.EOF {
		return nil // only the preamble mattered
	}
	if err != nil {
		return fmt.Errorf("read request: %w", err)
	}
	_ = conn.SetDeadline(time.Time{})
	if t != guest.FrameRequest {
		return s.forward(ctx, conn, fr, p, t, b)
	}
	e, err := guest.ParseExec(b)
	refuser := &session{fw: guest.NewWriter(conn)}
	if err != nil {
		return refuser.refuse(err)
	}
	c, err := s.resolve(p, e)
	if err != nil {
		return refuser.refuse(err)
	}
	return s.serveExec(ctx, conn, fr, c, nil)
}

// accept decides on a preamble, and takes over what it says for the sandbox as a whole.
func (s *server) accept(p guest.Preamble) (guest.Answer, error) {
	if slices.Contains(p.Rights, guest.RightShutdown) {
		return guest.AnswerOK, nil // whatever else is wrong
	}
	if err := s.ourDisk(s.dir); err != nil {
		return guest.AnswerNotOurDisk, err
	}
	if p.Deadline <= time.Now().Unix() {
		return guest.AnswerExpired, errors.New("preamble of a past deadline")
	}
	s.expires.set(p.Deadline)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.latest, s.known = p, true
	return guest.AnswerOK, nil
}
