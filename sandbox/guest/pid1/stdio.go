package pid1

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"github.com/podspawn/podspawn/sandbox/guest"
)

// stdio is our side of a process's streams, and until it is started also its own.
type stdio struct {
	in     *os.File // what we write its input to; nil when it has its own
	out    *os.File // what we read; nil when it has its own
	err    *os.File // nil with a terminal
	master *os.File // in and out are this terminal; nil without

	child [3]int // descriptors for the process; closed by closeChild
}

// newPipes makes three pipes. Only our ends are non-blocking: a program is
// entitled to blocking streams.
func newPipes(a account) (s *stdio, err error) {
	s = &stdio{child: [3]int{-1, -1, -1}}
	defer func() {
		if err != nil {
			s.close()
			s.closeChild()
		}
	}()
	for i, ours := range []**os.File{&s.in, &s.out, &s.err} {
		var p [2]int
		if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
			return nil, fmt.Errorf("make a pipe: %w", err)
		}
		mine, theirs := p[0], p[1]
		if i == 0 {
			mine, theirs = theirs, mine
		}
		s.child[i] = theirs
		if err := unix.SetNonblock(mine, true); err != nil {
			unix.Close(mine)
			return nil, fmt.Errorf("make a pipe: %w", err)
		}
		*ours = os.NewFile(uintptr(mine), "pipe")
		// So that the process can open /dev/stdout by name.
		if err := unix.Fchown(theirs, int(a.uid), int(a.gid)); err != nil && !errors.Is(err, unix.EPERM) {
			return nil, fmt.Errorf("make a pipe: %w", err)
		}
	}
	return s, nil
}

// newTerminal makes a terminal that belongs to the user.
func newTerminal(a account, w guest.Window) (*stdio, error) {
	master, slave, err := pty.Open()
	if err != nil {
		return nil, fmt.Errorf("open a terminal: %w", err)
	}
	defer master.Close()
	defer slave.Close()
	s := &stdio{child: [3]int{-1, -1, -1}}
	err = func() error {
		// The owner as sshd sets it; nobody else may write to it.
		if err := slave.Chown(int(a.uid), int(a.gid)); err != nil {
			return err
		}
		if err := slave.Chmod(0o600); err != nil {
			return err
		}
		fd, err := dup(master)
		if err != nil {
			return err
		}
		// pty.Open leaves it blocking and out of the poller: then a read could be
		// neither bounded nor ended.
		if err := unix.SetNonblock(fd, true); err != nil {
			unix.Close(fd)
			return err
		}
		s.master = os.NewFile(uintptr(fd), "ptmx")
		s.in, s.out = s.master, s.master
		if err := s.resize(w); err != nil {
			return err
		}
		s.child[0], err = dup(slave)
		s.child[1], s.child[2] = s.child[0], s.child[0]
		if err != nil {
			return err
		}
		return unix.SetNonblock(s.child[0], false)
	}()
	if err != nil {
		s.close()
		s.closeChild()
		return nil, fmt.Errorf("set up a terminal: %w", err)
	}
	return s, nil
}

// dup returns a copy of f's descriptor, or -1 with an error.
func dup(f *os.File) (int, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return -1, err
	}
	fd, dupErr := -1, error(nil)
	err = raw.Control(func(old uintptr) { fd, dupErr = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 3) })
	return fd, errors.Join(err, dupErr)
}

// ioctl calls op with the terminal's descriptor, without changing its mode.
func (s *stdio) ioctl(op func(fd int) error) error {
	raw, err := s.master.SyscallConn()
	if err != nil {
		return err
	}
	var opErr error
	err = raw.Control(func(fd uintptr) { opErr = op(int(fd)) })
	return errors.Join(err, opErr)
}

// resize sets the terminal's size; without one it does nothing.
func (s *stdio) resize(w guest.Window) error {
	if s.master == nil || w.Rows == 0 || w.Cols == 0 {
		return nil
	}
	return s.ioctl(func(fd int) error {
		return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: w.Rows, Col: w.Cols, Xpixel: w.X, Ypixel: w.Y})
	})
}

// foreground returns the process group that has the terminal, or 0 where the
// kernel does not say: gVisor's tells only the session itself. Then a signal goes
// to the main process's group, as with sshd; keys pass through the line discipline.
func (s *stdio) foreground() int {
	if s.master == nil {
		return 0
	}
	pgrp := 0
	err := s.ioctl(func(fd int) (err error) {
		pgrp, err = unix.IoctlGetInt(fd, unix.TIOCGPGRP)
		return err
	})
	if err != nil {
		return 0
	}
	return pgrp
}

// close closes our ends. It ends reads and writes that are under way.
func (s *stdio) close() {
	for _, f := range []*os.File{s.in, s.out, s.err} {
		if f != nil {
			f.Close() // twice for a terminal: harmless
		}
	}
}

// closeChild closes the process's ends. It may be called twice.
func (s *stdio) closeChild() {
	if s.child[1] == s.child[0] {
		s.child[1], s.child[2] = -1, -1
	}
	for i, fd := range s.child {
		if fd >= 0 {
			unix.Close(fd)
		}
		s.child[i] = -1
	}
}

// start executes c with the streams.
func (s *server) start(c *command, io *stdio) (*process, error) {
	defer io.closeChild()
	attr := &syscall.ProcAttr{
		Dir:   c.dir,
		Env:   c.env,
		Files: []uintptr{uintptr(io.child[0]), uintptr(io.child[1]), uintptr(io.child[2])},
		Sys:   &syscall.SysProcAttr{Setsid: true, Setctty: io.master != nil, Ctty: 0},
	}
	if !s.sameUser {
		attr.Sys.Credential = &syscall.Credential{Uid: c.account.uid, Gid: c.account.gid, Groups: c.account.groups}
	}
	p, err := s.reaper.start(c.path, c.argv, attr)
	switch {
	case err == nil:
		return p, nil
	case errors.Is(err, syscall.E2BIG):
		return nil, refusef(codeCannotRun, "the command and its environment are too long")
	case errors.Is(err, syscall.ENOENT): // it was there: its interpreter is missing, or the directory was removed
		return nil, refusef(codeNotFound, "%s: it, its interpreter or %s does not exist", clip(c.path), clip(c.dir))
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM):
		return nil, refusef(codeCannotRun, "%s may not execute %s in %s", clip(c.account.name), clip(c.path), clip(c.dir))
	default:
		return nil, refusef(codeCannotRun, "start %s: %v", clip(c.path), err)
	}
}
