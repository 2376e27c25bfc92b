package daemon

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/podspawn/podspawn/sandbox"
)

// Names in the run directory.
const (
	DaemonSocket = "daemon.sock"
	CallerSocket = "podspawn.sock"
	lockFile     = "daemon.lock"
)

// Listeners are the daemon's two sockets, and the lock that keeps a second daemon
// from replacing them.
type Listeners struct {
	Daemon, Callers *net.UnixListener
	lock            *os.File
}

// Listen binds both sockets in dir, which must be root's. Anybody may connect: who
// may do what is decided by peer credentials. It fails with KindConflict when
// another daemon runs, and leaves that one's sockets alone.
func Listen(dir string) (_ *Listeners, err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	if err := rootOnly(dir); err != nil {
		return nil, err
	}
	l := &Listeners{}
	defer func() {
		if err != nil {
			l.Close()
		}
	}()
	if l.lock, err = takeLock(dir); err != nil {
		return nil, err
	}
	if l.Daemon, err = listen(filepath.Join(dir, DaemonSocket)); err != nil {
		return nil, err
	}
	if l.Callers, err = listen(filepath.Join(dir, CallerSocket)); err != nil {
		return nil, err
	}
	return l, nil
}

// takeLock fails with KindConflict while another process has the lock of dir.
func takeLock(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(sandbox.Errorf(sandbox.KindConflict, "stop it first, or use that one", "another podspawn daemon runs on %s", dir), f.Close())
	}
	return f, nil
}

// Lock keeps every daemon of dir from running until unlock, or fails with
// KindConflict when one runs.
func Lock(dir string) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	if err := rootOnly(dir); err != nil {
		return nil, err
	}
	f, err := takeLock(dir)
	if err != nil {
		return nil, err
	}
	return func() { _ = f.Close() }, nil // nothing is written to it
}

func listen(path string) (*net.UnixListener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) { // of a daemon that died
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o666); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// Close closes the sockets and lets another daemon start.
func (l *Listeners) Close() {
	for _, s := range []*net.UnixListener{l.Daemon, l.Callers} {
		if s != nil {
			_ = s.Close() // closed already when Serve ended
		}
	}
	if l.lock != nil {
		_ = l.lock.Close() // nothing is written to it
	}
}

// maxFiles is enough for every connection that admission and the callers' socket
// let in, and half as many descriptors more for what is done for them.
const maxFiles = 16 << 10

// RaiseFileLimit gives this process the descriptors that its limits of
// connections assume, where what started it gave it fewer.
func RaiseFileLimit() error {
	var r unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &r); err != nil {
		return fmt.Errorf("read the limit of descriptors: %w", err)
	}
	if r.Cur >= maxFiles {
		return nil
	}
	r.Cur, r.Max = maxFiles, max(r.Max, maxFiles)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &r); err != nil {
		return fmt.Errorf("raise the limit of descriptors to %d: %w", maxFiles, err)
	}
	return nil
}

func rootOnly(dir string) error {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return &os.PathError{Op: "stat", Path: dir, Err: err}
	}
	if st.Uid != 0 || st.Mode&0o022 != 0 {
		return sandbox.Errorf(sandbox.KindUnavailable, "chown root "+dir+"; chmod 755 "+dir, "%s can be written by others than root", dir)
	}
	return nil
}

// CheckMountNamespace returns an error unless this process is in the mount
// namespace of process 1. In another one, the guests' socket directories that it
// mounts would be missing where Docker looks, and Docker would silently bind the
// host's disk into the sandboxes instead.
func CheckMountNamespace() error {
	mine, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		return err
	}
	first, err := os.Readlink("/proc/1/ns/mnt")
	if err != nil {
		return err
	}
	if mine != first {
		return sandbox.Errorf(sandbox.KindUnavailable,
			"start it without PrivateTmp, ProtectSystem or other settings that give it mounts of its own",
			"the daemon must run in the host's mount namespace")
	}
	return nil
}
