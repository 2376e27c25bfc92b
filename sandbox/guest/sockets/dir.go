package sockets

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/podspawn/podspawn/sandbox"
	"github.com/podspawn/podspawn/sandbox/fault"
	"github.com/podspawn/podspawn/sandbox/guest"
)

// DefaultRoot is where the directories are.
const DefaultRoot = "/run/podspawn/guests"

const (
	options  = "size=16k,nr_inodes=8,mode=0755"
	flags    = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	maxBytes = 64 << 10
	maxFiles = 64

	// maxPending bounds the connections that wait for one guest's accept queue.
	maxPending = 8
	retryEvery = 5 * time.Millisecond
)

var (
	errNotMounted = errors.New("the tmpfs is not mounted")
	errNotSealed  = errors.New("the socket was not sealed")
	errChanged    = errors.New("the socket is not the one that was sealed")
	errNotSocket  = errors.New("not a socket")
)

// Sockets implements sandbox.Sockets under one root directory. Safe for
// concurrent use; calls for different sandboxes don't wait for each other.
type Sockets struct {
	root string

	mu   sync.Mutex // guards open
	open map[sandbox.ID]*entry
}

// entry is what is held open for one sandbox.
type entry struct {
	pending chan struct{} // a slot per Dial

	mu   sync.Mutex // guards sock; held while /proc/self/fd/N is being used
	sock *os.File   // O_PATH; nil until sealed and after Remove
}

var _ sandbox.Sockets = (*Sockets)(nil)

// New makes the root directory, which only root may enter.
func New(root string) (*Sockets, error) {
	if err := os.MkdirAll(root, 0o700); err != nil {
		return nil, fmt.Errorf("make socket directory: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Lstat(root, &st); err != nil {
		return nil, fmt.Errorf("socket directory %s: %w", root, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR || int(st.Uid) != os.Geteuid() {
		return nil, fmt.Errorf("socket directory %s: not a directory of this user", root)
	}
	if err := os.Chmod(root, 0o700); err != nil {
		return nil, fmt.Errorf("socket directory: %w", err)
	}
	return &Sockets{root: root, open: make(map[sandbox.ID]*entry)}, nil
}

// Close closes what is held open. Directories and mounts stay for the next process.
func (s *Sockets) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, e := range s.open {
		e.set(nil)
		delete(s.open, id)
	}
}

// Prepare implements sandbox.Sockets. It refuses an id that has a directory.
func (s *Sockets) Prepare(id sandbox.ID) (string, error) {
	dir, err := s.dir(id)
	if err != nil {
		return "", err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", fmt.Errorf("make socket directory: %w", err)
	}
	fault.At("sockets.prepare.made")
	err = unix.Mount("tmpfs", dir, "tmpfs", flags, options)
	if err == nil {
		err = checkMount(dir, false)
	}
	if err != nil {
		return "", errors.Join(fmt.Errorf("mount socket directory %s: %w", dir, err), s.Remove(id))
	}
	return dir, nil
}

// Seal implements sandbox.Sockets.
func (s *Sockets) Seal(ctx context.Context, id sandbox.ID) (dev, ino uint64, err error) {
	dir, err := s.dir(id)
	if err != nil {
		return 0, 0, err
	}
	notStarted := func(err error) error {
		return &sandbox.Error{
			Kind: sandbox.KindUnavailable,
			Msg:  "the sandbox did not start",
			Hint: "try again; if it happens again, run podspawn doctor on the host",
			Err:  fmt.Errorf("seal %s: wait for the guest: %w", id, err),
		}
	}
	if err := awaitName(ctx, filepath.Join(dir, guest.SocketName)); err != nil {
		return 0, 0, notStarted(err)
	}
	sock, st, err := openSocket(dir)
	if err != nil {
		return 0, 0, fmt.Errorf("seal %s: %w", id, err)
	}
	if err := awaitListener(ctx, sock); err != nil {
		sock.Close()
		return 0, 0, notStarted(err)
	}
	fault.At("sockets.seal.opened")
	// Without any other flag changed, and only this mount's tmpfs.
	err = unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY|flags, options)
	if err == nil {
		err = checkMount(dir, true)
	}
	if err == nil {
		// Until the remount the sandbox could have put something else in its place.
		err = sameSocket(dir, st)
	}
	if err != nil {
		sock.Close()
		return 0, 0, fmt.Errorf("seal %s: %w", id, err)
	}
	s.entry(id).set(sock)
	return st.Dev, st.Ino, nil
}

// Reopen implements sandbox.Sockets.
func (s *Sockets) Reopen(id sandbox.ID, dev, ino uint64) error {
	dir, err := s.dir(id)
	if err != nil {
		return err
	}
	if err := checkMount(dir, true); err != nil {
		return fmt.Errorf("reopen %s: %w", id, err)
	}
	sock, st, err := openSocket(dir)
	if err != nil {
		return fmt.Errorf("reopen %s: %w", id, err)
	}
	if st.Dev != dev || st.Ino != ino {
		sock.Close()
		return fmt.Errorf("reopen %s: %w", id, errChanged)
	}
	s.entry(id).set(sock)
	return nil
}

// Remove implements sandbox.Sockets.
func (s *Sockets) Remove(id sandbox.ID) error {
	dir, err := s.dir(id)
	if err != nil {
		return err
	}
	s.mu.Lock()
	e := s.open[id]
	delete(s.open, id)
	s.mu.Unlock()
	if e != nil {
		e.set(nil)
	}
	// More than once: a mount may lie over another after a crash in Prepare.
	for range 8 {
		err := unix.Unmount(dir, unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EBUSY) {
			err = unix.Unmount(dir, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH)
		}
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			break // nothing is mounted
		}
		if err != nil {
			return fmt.Errorf("unmount %s: %w", dir, err)
		}
	}
	fault.At("sockets.remove.unmounted")
	// Only the mount point: if the mount had not been there, what lies here is not ours to delete.
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove socket directory: %w", err)
	}
	return nil
}

// List implements sandbox.Sockets.
func (s *Sockets) List() ([]sandbox.ID, error) {
	entries, err := os.ReadDir(s.root)
	if err != nil {
		return nil, fmt.Errorf("list socket directories: %w", err)
	}
	var ids []sandbox.ID
	for _, e := range entries {
		if id, err := sandbox.ParseID(e.Name()); err == nil {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// dir is the only place that makes a path of an id.
func (s *Sockets) dir(id sandbox.ID) (string, error) {
	if _, err := sandbox.ParseID(string(id)); err != nil {
		return "", fmt.Errorf("socket directory: %w", err)
	}
	return filepath.Join(s.root, string(id)), nil
}

func (s *Sockets) entry(id sandbox.ID) *entry {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.open[id]
	if e == nil {
		e = &entry{pending: make(chan struct{}, maxPending)}
		s.open[id] = e
	}
	return e
}

// set replaces the descriptor.
func (e *entry) set(f *os.File) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.sock != nil {
		e.sock.Close()
	}
	e.sock = f
}

// awaitName waits until something has the name. What it is, is looked at later.
func awaitName(ctx context.Context, path string) error {
	ticker := time.NewTicker(retryEvery)
	defer ticker.Stop()
	for {
		var st unix.Stat_t
		err := unix.Lstat(path, &st)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.ENOENT) {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-ticker.C:
		}
	}
}

// awaitListener waits until sock is listened on: its name appears before that.
func awaitListener(ctx context.Context, sock *os.File) error {
	e := &entry{sock: sock}
	ticker := time.NewTicker(retryEvery)
	defer ticker.Stop()
	for {
		f, err := e.connect()
		if err == nil {
			f.Close() // the guest expects hosts that only look
			return nil
		}
		if errors.Is(err, unix.EAGAIN) {
			return nil // its queue is full: it listens
		}
		if !errors.Is(err, unix.ECONNREFUSED) {
			return err
		}
		select {
		case <-ctx.Done():
			return errors.Join(context.Cause(ctx), err)
		case <-ticker.C:
		}
	}
}

// openSocket opens the socket in dir without following or leaving anything.
func openSocket(dir string) (*os.File, unix.Stat_t, error) {
	var st unix.Stat_t
	dirfd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, st, fmt.Errorf("open socket directory: %w", err)
	}
	defer unix.Close(dirfd)
	fd, err := unix.Openat2(dirfd, guest.SocketName, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
	})
	if err != nil {
		return nil, st, fmt.Errorf("open socket: %w", err)
	}
	f := os.NewFile(uintptr(fd), guest.SocketName)
	if err := unix.Fstat(fd, &st); err != nil {
		f.Close()
		return nil, st, fmt.Errorf("identify socket: %w", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		f.Close()
		return nil, st, errNotSocket
	}
	return f, st, nil
}

// sameSocket checks that the name still leads to the socket that st describes.
func sameSocket(dir string, st unix.Stat_t) error {
	f, now, err := openSocket(dir)
	if err != nil {
		return err
	}
	f.Close()
	if now.Dev != st.Dev || now.Ino != st.Ino {
		return errChanged
	}
	return nil
}

// checkMount checks that dir is a mount of its own, a tmpfs of our size, with the
// flags that we set: mount may succeed in a namespace that nobody else sees.
func checkMount(dir string, readOnly bool) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return fmt.Errorf("statfs: %w", err)
	}
	if st.Type != unix.TMPFS_MAGIC || st.Blocks*uint64(st.Bsize) > maxBytes || st.Blocks == 0 || st.Files > maxFiles {
		return errNotMounted
	}
	const want = unix.ST_NOSUID | unix.ST_NODEV | unix.ST_NOEXEC
	if st.Flags&want != want || (st.Flags&unix.ST_RDONLY != 0) != readOnly {
		return fmt.Errorf("%w with our flags", errNotMounted)
	}
	mounted, err := mounts(dir)
	if err != nil {
		return err
	}
	if !mounted {
		return errNotMounted
	}
	return nil
}

// mounts reports whether the process's mount table has a tmpfs at dir. A root
// with characters that the table escapes does not occur: see DefaultRoot.
func mounts(dir string) (bool, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return false, err
	}
	defer f.Close()
	real, err := filepath.EvalSymlinks(filepath.Dir(dir)) // /run may be a link
	if err != nil {
		return false, err
	}
	path := filepath.Join(real, filepath.Base(dir))
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		left, right, _ := strings.Cut(sc.Text(), " - ")
		if fields := strings.Fields(left); len(fields) >= 5 && fields[4] == path && strings.HasPrefix(right, "tmpfs ") {
			return true, nil
		}
	}
	return false, sc.Err()
}
