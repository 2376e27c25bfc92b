package sshhook

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Of linux/sock_diag.h and linux/inet_diag.h, which x/sys does not have.
const (
	sockDiagByFamily = 20
	tcpListen        = 10
	diagRequestSize  = 56
	diagAnswerSize   = 72
	diagPort         = 4 // offsets in an answer
	diagUID          = 64
)

// listening returns the TCP ports that processes of uid listen on in this network
// namespace, but for the privileged ones: those are the relay's.
func listening(uid int) (map[uint16]bool, error) {
	ports := map[uint16]bool{}
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		if err := diagnose(family, func(port uint16, owner uint32) {
			if int(owner) == uid && port >= 1024 {
				ports[port] = true
			}
		}); err != nil {
			return nil, err
		}
	}
	return ports, nil
}

// diagnose asks the kernel for the listening TCP sockets of a family.
func diagnose(family byte, each func(port uint16, uid uint32)) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	timeout := unix.NsecToTimeval(int64(time.Second))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout); err != nil {
		return os.NewSyscallError("setsockopt", err)
	}
	req := make([]byte, unix.NLMSG_HDRLEN+diagRequestSize)
	binary.NativeEndian.PutUint32(req[0:], uint32(len(req)))
	binary.NativeEndian.PutUint16(req[4:], sockDiagByFamily)
	binary.NativeEndian.PutUint16(req[6:], unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	body := req[unix.NLMSG_HDRLEN:]
	body[0], body[1] = family, unix.IPPROTO_TCP
	binary.NativeEndian.PutUint32(body[4:], 1<<tcpListen)
	if err := unix.Sendto(fd, req, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return os.NewSyscallError("sendto", err)
	}
	buf := make([]byte, 64<<10)
	for {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return os.NewSyscallError("recvfrom", err)
		}
		done, err := parseDiag(buf[:n], each)
		if err != nil || done {
			return err
		}
	}
}

// parseDiag reads the messages of one datagram; done means that it was the last.
func parseDiag(b []byte, each func(port uint16, uid uint32)) (done bool, err error) {
	for len(b) >= unix.NLMSG_HDRLEN {
		n := int(binary.NativeEndian.Uint32(b))
		kind := binary.NativeEndian.Uint16(b[4:])
		if n < unix.NLMSG_HDRLEN || n > len(b) {
			return false, errors.New("netlink message of an impossible length")
		}
		body := b[unix.NLMSG_HDRLEN:n]
		switch {
		case kind == unix.NLMSG_DONE:
			return true, nil
		case kind == unix.NLMSG_ERROR && len(body) >= 4:
			if errno := -int32(binary.NativeEndian.Uint32(body)); errno != 0 {
				return false, fmt.Errorf("list listeners: %w", unix.Errno(errno))
			}
			return true, nil
		case kind == sockDiagByFamily && len(body) >= diagAnswerSize:
			each(binary.BigEndian.Uint16(body[diagPort:]), binary.NativeEndian.Uint32(body[diagUID:]))
		}
		b = b[min((n+unix.NLMSG_ALIGNTO-1)&^(unix.NLMSG_ALIGNTO-1), len(b)):]
	}
	return false, nil
}
