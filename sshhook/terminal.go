package sshhook

import (
	"os"

	"golang.org/x/sys/unix"

	"github.com/podspawn/podspawn/sandbox/guest"
)

// isTerminal reports whether f is one: sshd gave the channel a pty.
func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// rawMode lets every byte through the terminal as it is, since the line
// discipline that the user works with is the one inside. restore puts back what
// was set before.
func rawMode(f *os.File) (restore func(), err error) {
	fd := int(f.Fd())
	old, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return nil, err
	}
	raw := *old
	raw.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP | unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IXON
	raw.Oflag &^= unix.OPOST
	raw.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
	raw.Cflag &^= unix.CSIZE | unix.PARENB
	raw.Cflag |= unix.CS8
	raw.Cc[unix.VMIN], raw.Cc[unix.VTIME] = 1, 0
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, &raw); err != nil {
		return nil, err
	}
	return func() { _ = unix.IoctlSetTermios(fd, unix.TCSETS, old) }, nil // the terminal may be gone already
}

// windowOf returns the terminal's size; zeros when it has none.
func windowOf(f *os.File) guest.Window {
	ws, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return guest.Window{}
	}
	return guest.Window{Rows: ws.Row, Cols: ws.Col, X: ws.Xpixel, Y: ws.Ypixel}
}

// hungUp blocks until nobody can read what is written to f any more, or until
// the other end of wake is closed, and reports whether it was the first. A client
// that was killed without a pty leaves its forced command running, and the end of
// stdin does not tell: half-closed is normal.
func hungUp(f, wake *os.File) bool {
	fds := []unix.PollFd{{Fd: int32(f.Fd())}, {Fd: int32(wake.Fd())}} // POLLERR and POLLHUP are always reported
	for {
		_, err := unix.Poll(fds, -1)
		switch {
		case err == unix.EINTR:
		case err != nil || fds[1].Revents != 0:
			return false
		case fds[0].Revents != 0:
			return true
		}
	}
}

// gone reports whether nobody can read what is written to f now.
func gone(f *os.File) bool {
	fds := []unix.PollFd{{Fd: int32(f.Fd())}} // POLLERR and POLLHUP are always reported
	n, err := unix.Poll(fds, 0)
	return err == nil && n > 0
}
