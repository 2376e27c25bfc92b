package sockets

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/podspawn/podspawn/sandbox"
	"github.com/podspawn/podspawn/sandbox/guest"
)

// nsEnv says to the test binary that it runs in a mount namespace of its own.
const nsEnv = "SOCKETS_TEST_NAMESPACE"

// TestMain runs the tests as root in a mount namespace of their own, so that
// nothing that they mount is seen, or stays.
func TestMain(m *testing.M) {
	if os.Geteuid() != 0 || os.Getenv(nsEnv) != "" {
		os.Exit(m.Run())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), nsEnv+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS} // Go makes it private
	err := cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		os.Exit(exit.ExitCode())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// needRoot skips, or fails where root is required.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if slices.Contains(strings.Split(os.Getenv("PODSPAWN_TEST_REQUIRE"), ","), "root") {
		t.Fatal("root is required")
	}
	t.Skip("needs root")
}

func open(t *testing.T) *Sockets {
	t.Helper()
	needRoot(t)
	s, err := New(filepath.Join(t.TempDir(), "guests"))
	if err != nil {
		t.Fatalf("New: %v", err)
	}
	t.Cleanup(func() {
		ids, err := s.List()
		if err != nil {
			t.Errorf("List: %v", err)
		}
		for _, id := range ids {
			if err := s.Remove(id); err != nil {
				t.Errorf("Remove(%s): %v", id, err)
			}
		}
		s.Close()
	})
	return s
}

func prepare(t *testing.T, s *Sockets) (sandbox.ID, string) {
	t.Helper()
	id := sandbox.NewID()
	dir, err := s.Prepare(id)
	if err != nil {
		t.Fatalf("Prepare: %v", err)
	}
	return id, dir
}

// listener counts connections to a socket.
type listener struct {
	l     *net.UnixListener
	conns chan net.Conn
}

func listen(t *testing.T, path string) *listener {
	t.Helper()
	ul, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatalf("listen: %v", err)
	}
	ul.SetUnlinkOnClose(false)
	l := &listener{l: ul, conns: make(chan net.Conn, 64)} // more than any test makes
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := ul.Accept()
			if err != nil {
				return
			}
			l.conns <- c
		}
	}()
	t.Cleanup(func() {
		ul.Close()
		<-done
		close(l.conns)
		for c := range l.conns {
			c.Close()
		}
	})
	return l
}

// next returns the next connection.
func (l *listener) next(t *testing.T) net.Conn {
	t.Helper()
	select {
	case c := <-l.conns:
		return c
	case <-time.After(5 * time.Second):
		t.Fatal("no connection arrived")
		return nil
	}
}

// victim is a socket of the host that no sandbox may make us connect to.
func victim(t *testing.T) (path string, untouched func()) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "docker.sock")
	l := listen(t, path)
	return path, func() {
		t.Helper()
		// A connection of our own comes after any that was made before.
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatalf("dial: %v", err)
		}
		defer c.Close()
		if _, err := io.WriteString(c, "mine"); err != nil {
			t.Fatal(err)
		}
		first := l.next(t)
		defer first.Close()
		if err := first.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
			t.Fatal(err)
		}
		var b [4]byte
		if _, err := io.ReadFull(first, b[:]); err != nil || string(b[:]) != "mine" {
			t.Errorf("docker.sock saw a connection from Dial (%q, %v)", b, err)
		}
	}
}

func seal(t *testing.T, s *Sockets, id sandbox.ID) (dev, ino uint64, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	return s.Seal(ctx, id)
}

func dial(t *testing.T, s *Sockets, id sandbox.ID) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	f, err := s.Dial(ctx, id)
	if err == nil {
		f.Close()
	}
	return err
}

func TestDialReachesTheGuest(t *testing.T) {
	s := open(t)
	id, dir := prepare(t, s)
	l := listen(t, filepath.Join(dir, guest.SocketName))
	dev, ino, err := seal(t, s, id)
	if err != nil || dev == 0 || ino == 0 {
		t.Fatalf("Seal = %d, %d, %v", dev, ino, err)
	}
	l.next(t).Close() // Seal's look
	f, err := s.Dial(t.Context(), id)
	if err != nil {
		t.Fatalf("Dial: %v", err)
	}
	defer f.Close()
	if _, err := io.WriteString(f, "hello"); err != nil {
		t.Fatal(err)
	}
	c := l.next(t)
	defer c.Close()
	var b [5]byte
	if _, err := io.ReadFull(c, b[:]); err != nil || string(b[:]) != "hello" {
		t.Errorf("guest got %q, %v", b, err)
	}
	if err := f.SetDeadline(time.Now().Add(time.Second)); err != nil {
		t.Errorf("the file has no deadlines: %v", err)
	}

	again, err := New(s.root) // a restarted daemon
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if err := dial(t, again, id); err == nil {
		t.Error("Dial before Reopen succeeded")
	}
	if err := again.Reopen(id, dev, ino); err != nil {
		t.Fatalf("Reopen: %v", err)
	}
	if err := dial(t, again, id); err != nil {
		t.Errorf("Dial after Reopen: %v", err)
	}
	if err := again.Reopen(id, dev, ino+1); !errors.Is(err, errChanged) {
		t.Errorf("Reopen of another inode = %v, want errChanged", err)
	}
}

func TestSealRefusesWhatIsNoSocket(t *testing.T) {
	path, untouched := victim(t)
	for name, make := range map[string]func(name string) error{
		"symlink to docker.sock": func(n string) error { return os.Symlink(path, n) },
		"relative symlink":       func(n string) error { return os.Symlink("../../../../../../.."+path, n) },
		"symlink to nowhere":     func(n string) error { return os.Symlink("nowhere", n) },
		"magic link":             func(n string) error { return os.Symlink("/proc/1/root"+path, n) },
		"file":                   func(n string) error { return os.WriteFile(n, nil, 0o600) },
		"directory":              func(n string) error { return os.Mkdir(n, 0o700) },
		"fifo":                   func(n string) error { return unix.Mkfifo(n, 0o600) },
		"bind mount of docker.sock": func(n string) error {
			return errors.Join(os.WriteFile(n, nil, 0o600), unix.Mount(path, n, "", unix.MS_BIND, ""))
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t)
			id, dir := prepare(t, s)
			socket := filepath.Join(dir, guest.SocketName)
			if err := make(socket); err != nil {
				t.Fatal(err)
			}
			defer unix.Unmount(socket, unix.MNT_DETACH)
			if _, _, err := seal(t, s, id); err == nil {
				t.Error("Seal succeeded")
			}
			if err := dial(t, s, id); err == nil {
				t.Error("Dial succeeded")
			}
			untouched()
		})
	}
}

func TestSwappedSocketIsNotFollowed(t *testing.T) {
	path, untouched := victim(t)
	s := open(t)
	id, dir := prepare(t, s)
	socket := filepath.Join(dir, guest.SocketName)
	l := listen(t, socket)
	dev, ino, err := seal(t, s, id)
	if err != nil {
		t.Fatal(err)
	}
	l.next(t).Close() // Seal's look
	if err := os.Remove(socket); !errors.Is(err, unix.EROFS) {
		t.Fatalf("remove the sealed socket = %v, want EROFS", err)
	}
	// Even if the seal were broken: what was opened stays what it is.
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|flags, options); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Rename(socket, socket+"~"), os.Symlink(path, socket)); err != nil {
		t.Fatal(err)
	}
	if err := dial(t, s, id); err != nil {
		t.Errorf("Dial: %v", err)
	}
	c := l.next(t)
	c.Close()
	for name, readOnly := range map[string]uintptr{"writable": 0, "read-only": unix.MS_RDONLY} {
		if err := unix.Mount("", dir, "", unix.MS_REMOUNT|flags|readOnly, options); err != nil {
			t.Fatal(err)
		}
		again, err := New(s.root)
		if err != nil {
			t.Fatal(err)
		}
		if err := again.Reopen(id, dev, ino); err == nil {
			t.Errorf("%s: Reopen followed the link", name)
		}
		if err := dial(t, again, id); err == nil {
			t.Errorf("%s: Dial succeeded", name)
		}
		again.Close()
	}
	untouched()
}

// The guest's own socket, but another than the one that was sealed.
func TestReopenRefusesAnotherSocket(t *testing.T) {
	s := open(t)
	id, dir := prepare(t, s)
	socket := filepath.Join(dir, guest.SocketName)
	listen(t, socket)
	dev, ino, err := seal(t, s, id)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|flags, options); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(socket, socket+"~"); err != nil { // kept, or the inode number could return
		t.Fatal(err)
	}
	listen(t, socket)
	if err := s.Reopen(id, dev, ino); err == nil {
		t.Error("Reopen of a writable directory succeeded")
	}
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY|flags, options); err != nil {
		t.Fatal(err)
	}
	if err := s.Reopen(id, dev, ino); !errors.Is(err, errChanged) {
		t.Errorf("Reopen = %v, want errChanged", err)
	}
}

func TestDirectoryIsSmallAndInert(t *testing.T) {
	s := open(t)
	id, dir := prepare(t, s)
	st, err := os.Stat(s.root)
	if err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("root has mode %s, %v, want 0700", st.Mode(), err)
	}
	var fsst unix.Statfs_t
	if err := unix.Statfs(dir, &fsst); err != nil {
		t.Fatal(err)
	}
	if want := int64(unix.ST_NOSUID | unix.ST_NODEV | unix.ST_NOEXEC); int64(fsst.Flags)&want != want {
		t.Errorf("flags %#x lack some of %#x", fsst.Flags, want)
	}
	f, err := os.Create(filepath.Join(dir, "fill"))
	if err != nil {
		t.Fatal(err)
	}
	n, err := f.Write(make([]byte, 1<<20))
	f.Close()
	if !errors.Is(err, unix.ENOSPC) || n > maxBytes {
		t.Errorf("wrote %d bytes, %v, want ENOSPC", n, err)
	}
	for i := 0; ; i++ {
		if i > maxFiles {
			t.Fatalf("made %d files", i)
		}
		if err := unix.Mkfifo(filepath.Join(dir, fmt.Sprint(i)), 0o600); err != nil {
			break
		}
	}
	if err := os.Remove(filepath.Join(dir, "0")); err != nil {
		t.Fatal(err)
	}
	listen(t, filepath.Join(dir, guest.SocketName))
	if _, _, err := seal(t, s, id); err != nil {
		t.Fatalf("Seal of a full directory: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "su"), []byte("x"), 0o755); !errors.Is(err, unix.EROFS) {
		t.Errorf("write after the seal = %v, want EROFS", err)
	}
	if err := os.Chmod(filepath.Join(dir, "fill"), 0o4755); !errors.Is(err, unix.EROFS) {
		t.Errorf("chmod after the seal = %v, want EROFS", err)
	}
}

func TestDialIsBoundedWhenTheGuestDoesNotAccept(t *testing.T) {
	s := open(t)
	id, dir := prepare(t, s)
	// A backlog of one, and nobody who accepts.
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	err = errors.Join(unix.Bind(fd, &unix.SockaddrUnix{Name: filepath.Join(dir, guest.SocketName)}), unix.Listen(fd, 0))
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := seal(t, s, id); err != nil {
		t.Fatal(err)
	}
	look, _, err := unix.Accept(fd)
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(look)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	first, err := s.Dial(ctx, id)
	if err != nil {
		t.Fatalf("Dial into the queue: %v", err)
	}
	defer first.Close()
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	begin := time.Now()
	if _, err := s.Dial(short, id); sandbox.KindOf(err) != sandbox.KindUnavailable || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Dial = %v, want KindUnavailable at the deadline", err)
	}
	if took := time.Since(begin); took > 2*time.Second {
		t.Errorf("Dial took %s with a deadline of 50 ms", took)
	}
	// More than maxPending at once: the rest is refused at once.
	waiting, stop := context.WithCancel(t.Context())
	errs := make(chan error, maxPending+4)
	for range cap(errs) {
		go func() {
			f, err := s.Dial(waiting, id)
			if err == nil {
				f.Close()
			}
			errs <- err
		}()
	}
	for range 4 {
		if err := <-errs; sandbox.KindOf(err) != sandbox.KindCapacity {
			t.Errorf("Dial beyond the bound = %v, want KindCapacity", err)
		}
	}
	stop()
	for range maxPending {
		if err := <-errs; sandbox.KindOf(err) != sandbox.KindUnavailable {
			t.Errorf("canceled Dial = %v, want KindUnavailable", err)
		}
	}
}

func TestSealWaitsForTheGuest(t *testing.T) {
	s := open(t)
	id, dir := prepare(t, s)
	short, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, _, err := s.Seal(short, id); sandbox.KindOf(err) != sandbox.KindUnavailable {
		t.Errorf("Seal without a guest = %v, want KindUnavailable", err)
	}
	// Bound is not listening yet.
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: filepath.Join(dir, guest.SocketName)}); err != nil {
		t.Fatal(err)
	}
	short, cancel = context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, _, err := s.Seal(short, id); sandbox.KindOf(err) != sandbox.KindUnavailable {
		t.Errorf("Seal with a guest that does not listen yet = %v, want KindUnavailable", err)
	}
	done := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_, _, err := s.Seal(ctx, id)
		done <- err
	}()
	if err := unix.Listen(fd, 1); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Errorf("Seal: %v", err)
	}
}

func TestRemove(t *testing.T) {
	s := open(t)
	id, dir := prepare(t, s)
	if _, err := s.Prepare(id); !errors.Is(err, fs.ErrExist) {
		t.Errorf("second Prepare = %v, want exists", err)
	}
	listen(t, filepath.Join(dir, guest.SocketName))
	if _, _, err := seal(t, s, id); err != nil {
		t.Fatal(err)
	}
	busy, err := os.Open(dir) // as a runtime that is slow to end
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	ids, err := s.List()
	if err != nil || !slices.Equal(ids, []sandbox.ID{id}) {
		t.Errorf("List = %v, %v", ids, err)
	}
	for _, what := range []string{"first", "second"} {
		if err := s.Remove(id); err != nil {
			t.Errorf("%s Remove: %v", what, err)
		}
	}
	if err := s.Remove(sandbox.NewID()); err != nil {
		t.Errorf("Remove of an unknown id: %v", err)
	}
	if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("directory after Remove: %v", err)
	}
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || strings.Contains(string(table), string(id)) {
		t.Errorf("mounted after Remove (%v)", err)
	}
	if err := dial(t, s, id); err == nil {
		t.Error("Dial after Remove succeeded")
	}
}

func TestOnlyIDsBecomePaths(t *testing.T) {
	s := open(t)
	for _, id := range []sandbox.ID{"", "..", "../x", "sbx_", "sbx_0123456789abcdef/..", "sbx_0123456789abcde\x00"} {
		_, prepareErr := s.Prepare(id)
		_, _, sealErr := s.Seal(t.Context(), id)
		_, dialErr := s.Dial(t.Context(), id)
		for what, err := range map[string]error{
			"Prepare": prepareErr, "Seal": sealErr, "Dial": dialErr, "Reopen": s.Reopen(id, 1, 1), "Remove": s.Remove(id),
		} {
			if err == nil {
				t.Errorf("%s(%q) succeeded", what, id)
			}
		}
	}
}

// A directory that is not our mount is the host's disk.
func TestSealRefusesADirectoryThatIsNotMounted(t *testing.T) {
	s := open(t)
	id := sandbox.NewID()
	dir := filepath.Join(s.root, string(id))
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, guest.SocketName)
	listen(t, socket)
	defer os.Remove(socket)
	if _, _, err := seal(t, s, id); err == nil {
		t.Error("Seal succeeded")
	}
	if err := s.Reopen(id, 1, 1); !errors.Is(err, errNotMounted) {
		t.Errorf("Reopen = %v, want errNotMounted", err)
	}
	if err := os.Remove(socket); err != nil {
		t.Error(err)
	}
}
