package pid1

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/podspawn/podspawn/sandbox/guest"
)

// serveInside serves a process of the sandbox: sudo and nothing else. Who it is
// was said by the kernel.
func (s *server) serveInside(ctx context.Context, conn *net.UnixConn, cred unix.Ucred) error {
	_ = conn.SetDeadline(time.Now().Add(preambleTime))
	own, err := readHello(conn)
	defer func() {
		for _, fd := range own {
			if fd >= 0 {
				unix.Close(fd)
			}
		}
	}()
	if err != nil {
		return fmt.Errorf("sudo: %w", err)
	}
	fr := guest.NewReader(conn)
	b, err := fr.Request()
	if err != nil {
		return fmt.Errorf("sudo: read request: %w", err)
	}
	_ = conn.SetDeadline(time.Time{})
	refuser := &session{fw: guest.NewWriter(conn)}
	if err := s.maySudo(cred); err != nil {
		return refuser.refuse(err)
	}
	e, err := guest.ParseExec(b)
	if err != nil {
		return refuser.refuse(err)
	}
	if e.Env == nil {
		e.Env = make(map[string]string)
	}
	e.Env["SUDO_UID"] = strconv.FormatUint(uint64(cred.Uid), 10)
	e.Env["SUDO_GID"] = strconv.FormatUint(uint64(cred.Gid), 10)
	if a, err := s.users.lookup(e.Env["SUDO_UID"]); err == nil {
		e.Env["SUDO_USER"] = a.name
	}
	c, err := s.resolve(guest.Preamble{Rights: []guest.Right{guest.RightExec, guest.RightPTY}}, e)
	if err != nil {
		return refuser.refuse(err)
	}
	return s.serveExec(ctx, conn, fr, c, &own)
}

// maySudo allows root, and the user that the sandbox is for.
func (s *server) maySudo(cred unix.Ucred) error {
	if cred.Uid == 0 {
		return nil
	}
	s.mu.Lock()
	p, known := s.latest, s.known
	s.mu.Unlock()
	if known {
		if a, err := s.users.lookup(p.User); err == nil && a.uid == cred.Uid {
			return nil
		}
	}
	return refusef(codeCannotRun, "uid %d may not use sudo: it is for the sandbox's own user", cred.Uid)
}

// readHello reads sudoHello and the three descriptors that come with it. It
// returns what it got also with an error.
func readHello(conn *net.UnixConn) ([3]int, error) {
	own := [3]int{-1, -1, -1}
	buf := make([]byte, len(sudoHello))
	// Room for three: the kernel drops what is more.
	oob := make([]byte, unix.CmsgSpace(len(own)*4))
	n, oobn, _, _, err := conn.ReadMsgUnix(buf, oob)
	if err != nil {
		return own, err
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return own, fmt.Errorf("control message: %w", err)
	}
	got := 0
	for _, m := range msgs {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			continue // credentials, which nobody asked for
		}
		for _, fd := range fds {
			if got == len(own) { // padding left room for one more
				unix.Close(fd)
				continue
			}
			own[got] = fd
			got++
		}
	}
	if _, err := io.ReadFull(conn, buf[n:]); err != nil {
		return own, err
	}
	if string(buf) != sudoHello || got != len(own) {
		return own, errors.New("not a greeting of sudo")
	}
	return own, nil
}
