package guest

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/podspawn/podspawn/sandbox"
)

// PreambleTimeout bounds SendPreamble.
const PreambleTimeout = 2 * time.Second

// errNoAnswer is the private cause when a guest does not keep to the protocol.
var errNoAnswer = errors.New("not an answer to a preamble")

// SendPreamble writes p to a fresh connection to a guest and reads the answer:
// exactly AnswerSize bytes and not one more, since the descriptor is then handed
// on. It is called by the root daemon, so it trusts the guest with nothing: it
// ends with ctx and after PreambleTimeout at the latest, and it offers no control
// buffer, so a descriptor that the guest attaches is dropped by the kernel.
//
// conn is an *os.File or a *net.UnixConn. Whether it blocks does not matter and is
// not changed. It is not closed. A guest that refuses or misbehaves is a
// *sandbox.Error.
func SendPreamble(ctx context.Context, conn syscall.Conn, p Preamble) error {
	p.V = Version
	body, err := json.Marshal(p)
	if err != nil {
		return fmt.Errorf("encode preamble: %w", err)
	}
	if len(body) > MaxPreamble {
		return sandbox.Errorf(sandbox.KindInvalidSpec, "shorten the sandbox's env",
			"environment and settings take %d bytes, more than %d", len(body), MaxPreamble)
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return fmt.Errorf("connection to the guest: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, PreambleTimeout)
	defer cancel()
	msg := binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(body)), uint32(len(body)))
	msg = append(msg, body...)
	var answer [AnswerSize]byte
	var ioErr error
	err = raw.Control(func(fd uintptr) {
		if ioErr = transfer(ctx, int(fd), msg, unix.POLLOUT, send); ioErr == nil {
			ioErr = transfer(ctx, int(fd), answer[:], unix.POLLIN, recv)
		}
	})
	if err = errors.Join(err, ioErr); err != nil {
		return &sandbox.Error{
			Kind: sandbox.KindUnavailable,
			Msg:  "the sandbox does not answer",
			Hint: "destroy it and create another",
			Err:  fmt.Errorf("preamble: %w", err),
		}
	}
	return answerError(answer)
}

func send(fd int, b []byte) (int, error) {
	return unix.SendmsgN(fd, b, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
}

func recv(fd int, b []byte) (int, error) {
	n, _, err := unix.Recvfrom(fd, b, unix.MSG_DONTWAIT)
	if n == 0 && err == nil {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// transfer moves all of b with op. It waits with poll instead of the Go
// poller, since the file may be in either mode and has to stay in it.
func transfer(ctx context.Context, fd int, b []byte, events int16, op func(int, []byte) (int, error)) error {
	for len(b) > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := op(fd, b)
		switch err {
		case nil:
			b = b[n:]
		case unix.EINTR:
		case unix.EAGAIN:
			// Short slices, so that a canceled ctx is seen.
			if _, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: events}}, 50); err != nil && err != unix.EINTR {
				return fmt.Errorf("poll: %w", err)
			}
		default:
			return err
		}
	}
	return nil
}

// answerError says in words what a guest answered.
func answerError(b [AnswerSize]byte) error {
	unavailable := func(err error) error {
		return &sandbox.Error{
			Kind: sandbox.KindUnavailable,
			Msg:  "the sandbox does not work with this version of podspawn",
			Hint: "destroy it and create another",
			Err:  err,
		}
	}
	if string(b[:4]) != AnswerMagic {
		return unavailable(errNoAnswer)
	}
	switch a := Answer(binary.BigEndian.Uint32(b[4:])); a {
	case AnswerOK:
		return nil
	case AnswerExpired:
		return sandbox.Errorf(sandbox.KindGone, "create another with podspawn create", "the sandbox has reached its deadline")
	case AnswerBusy:
		return sandbox.Errorf(sandbox.KindCapacity, "close sessions or wait for running commands to end", "the sandbox has too many open connections")
	case AnswerNotOurDisk:
		return &sandbox.Error{
			Kind: sandbox.KindUnavailable,
			Msg:  "the sandbox's socket directory is not the one that was made for it",
			Hint: "run podspawn doctor on the host: the daemon must be in the mount namespace that Docker is in",
			Err:  fmt.Errorf("guest answered %d", a),
		}
	default:
		return unavailable(fmt.Errorf("guest answered %d", a))
	}
}

// ReadPreamble is the guest's side: it reads a preamble, and nothing behind it,
// and says what to answer. The error is the cause of any answer but AnswerOK;
// an error of the connection itself comes with AnswerMalformed.
func ReadPreamble(r io.Reader) (Preamble, Answer, error) {
	var size [4]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return Preamble{}, AnswerMalformed, fmt.Errorf("read preamble: %w", err)
	}
	n := binary.BigEndian.Uint32(size[:])
	if n > MaxPreamble {
		return Preamble{}, AnswerMalformed, fmt.Errorf("preamble of %d bytes", n)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		return Preamble{}, AnswerMalformed, fmt.Errorf("read preamble: %w", err)
	}
	// The version first and leniently: another version has other fields.
	var v struct {
		V int `json:"v"`
	}
	if err := json.Unmarshal(body, &v); err != nil {
		return Preamble{}, AnswerMalformed, fmt.Errorf("preamble: %w", err)
	}
	if v.V != Version {
		return Preamble{}, AnswerVersion, fmt.Errorf("preamble of version %d, want %d", v.V, Version)
	}
	var p Preamble
	if err := unmarshalStrict(body, &p); err != nil {
		return Preamble{}, AnswerMalformed, fmt.Errorf("preamble: %w", err)
	}
	if p.Deadline <= 0 {
		return Preamble{}, AnswerMalformed, errors.New("preamble without a deadline")
	}
	return p, AnswerOK, nil
}

// AppendAnswer appends the AnswerSize bytes that say a.
func AppendAnswer(b []byte, a Answer) []byte {
	return binary.BigEndian.AppendUint32(append(b, AnswerMagic...), uint32(a))
}

// ParseExec parses the payload of a FrameRequest and checks that it asks for
// exactly one thing.
func ParseExec(b []byte) (Exec, error) {
	var e Exec
	if err := unmarshalStrict(b, &e); err != nil {
		return Exec{}, fmt.Errorf("request: %w", err)
	}
	n := 0
	for _, set := range []bool{e.LoginShell, e.Command != "", e.Script != "", len(e.Argv) > 0, e.SFTP, e.File != nil} {
		if set {
			n++
		}
	}
	if n != 1 {
		return Exec{}, fmt.Errorf("request asks for %d things, want one", n)
	}
	return e, nil
}

func unmarshalStrict(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if d.More() {
		return errors.New("more than one value")
	}
	return nil
}
