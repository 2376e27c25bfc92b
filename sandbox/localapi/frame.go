package localapi

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// ErrTooLarge is a frame of more than MaxFrame bytes.
var ErrTooLarge = errors.New("frame exceeds the limit")

var errManyDescriptors = errors.New("the daemon sent more descriptors than asked for")

// ReadFrame reads one frame into v. It allocates no more than what has arrived. io.EOF means that the peer closed
// between two frames.
func ReadFrame(r io.Reader, v any) error {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return err
	}
	return readBody(r, head, v)
}

func readBody(r io.Reader, head [4]byte, v any) error {
	n := binary.BigEndian.Uint32(head[:])
	if n > MaxFrame {
		return ErrTooLarge
	}
	body, err := io.ReadAll(io.LimitReader(r, int64(n)))
	if err != nil {
		return err
	}
	if len(body) < int(n) {
		return io.ErrUnexpectedEOF
	}
	return json.Unmarshal(body, v)
}

// Encode returns v as a frame's body, for Request.Body and Response.Body.
func Encode(v any) (json.RawMessage, error) { return json.Marshal(v) }

// Decode reads a body into v. Fields that v does not have are errors: a peer of
// another release must not be half understood.
func Decode(body json.RawMessage, v any) error {
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	return d.Decode(v)
}

// WriteFrame writes v as one frame, with the descriptor fd unless it is nil.
// The caller keeps fd and closes it.
func WriteFrame(c *net.UnixConn, v any, fd *os.File) error {
	body, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode frame: %w", err)
	}
	if len(body) > MaxFrame {
		return ErrTooLarge
	}
	frame := make([]byte, 4, 4+len(body))
	binary.BigEndian.PutUint32(frame, uint32(len(body)))
	frame = append(frame, body...)
	if fd == nil {
		_, err = c.Write(frame)
		return err
	}
	raw, err := fd.SyscallConn()
	if err != nil {
		return err
	}
	var n int
	var werr error
	err = raw.Control(func(f uintptr) {
		n, _, werr = c.WriteMsgUnix(frame, unix.UnixRights(int(f)), nil)
	})
	if err = errors.Join(err, werr); err != nil {
		return err
	}
	if n < len(frame) { // the descriptor went with the first byte
		_, err = c.Write(frame[n:])
	}
	return err
}

// readResponse reads one frame and the descriptor that may come with its first
// byte. More than one is an error, and all that the kernel delivered are closed.
func readResponse(c *net.UnixConn, v any) (*os.File, error) {
	var head [4]byte
	oob := make([]byte, unix.CmsgSpace(4))
	var fd *os.File
	for got := 0; got < len(head); {
		n, oobn, flags, _, err := c.ReadMsgUnix(head[got:], oob)
		if oobn > 0 {
			f, ferr := takeDescriptor(oob[:oobn])
			if fd != nil || ferr != nil || flags&unix.MSG_CTRUNC != 0 {
				closeAll(fd, f)
				return nil, errors.Join(errManyDescriptors, ferr)
			}
			fd = f
		}
		if err != nil || n == 0 {
			closeAll(fd)
			if err == nil {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
		got += n
	}
	if err := readBody(c, head, v); err != nil {
		closeAll(fd)
		return nil, err
	}
	return fd, nil
}

func takeDescriptor(oob []byte) (*os.File, error) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	var files []*os.File
	for i := range msgs {
		fds, err := unix.ParseUnixRights(&msgs[i])
		if err != nil {
			continue
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			files = append(files, os.NewFile(uintptr(fd), "passed"))
		}
	}
	switch len(files) {
	case 0:
		return nil, nil
	case 1:
		return files[0], nil
	}
	closeAll(files...)
	return nil, errManyDescriptors
}

func closeAll(files ...*os.File) {
	for _, f := range files {
		if f != nil {
			_ = f.Close() // an unused descriptor; an error changes nothing
		}
	}
}

// Peer is who is at the other end of a unix socket, by the kernel's word at the
// time of connect(2) or listen(2): SO_PEERCRED, unix(7).
type Peer struct {
	PID, UID, GID int
}

// PeerOf returns the credentials of c's peer.
func PeerOf(c *net.UnixConn) (Peer, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return Peer{}, err
	}
	var cred *unix.Ucred
	var serr error
	err = raw.Control(func(fd uintptr) {
		cred, serr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err = errors.Join(err, serr); err != nil {
		return Peer{}, fmt.Errorf("peer credentials: %w", err)
	}
	return Peer{PID: int(cred.Pid), UID: int(cred.Uid), GID: int(cred.Gid)}, nil
}
