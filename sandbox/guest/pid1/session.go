package pid1

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/podspawn/podspawn/sandbox/fault"
	"github.com/podspawn/podspawn/sandbox/guest"
)

const chunk = 32 << 10

// After a terminal's main process has ended, others may still hold it open.
// What they have written is sent, within these bounds.
const (
	ptyQuiet = 100 * time.Millisecond
	ptyTail  = 256 << 10
)

// session is one process with its connection.
type session struct {
	conn net.Conn
	fr   *guest.Reader
	fw   *guest.Writer
	io   *stdio
	p    *process
	in   *inbox
	// survive is deferred in every goroutine that sees foreign input.
	survive func()
}

// serveExec runs a command over a connection until the process has ended and
// its output is complete, or the peer is gone. It closes nothing of conn.
func (s *server) serveExec(ctx context.Context, conn net.Conn, fr *guest.Reader, c *command, own *[3]int) error {
	ses := &session{conn: conn, fr: fr, fw: guest.NewWriter(conn), in: newInbox(), survive: s.survive}
	var err error
	switch {
	case own != nil && c.pty == nil:
		ses.io = &stdio{child: *own}
		*own = [3]int{-1, -1, -1}
	case c.pty != nil:
		ses.io, err = newTerminal(c.account, c.pty.Window)
	default:
		ses.io, err = newPipes(c.account)
	}
	if err != nil {
		return ses.refuse(err)
	}
	defer ses.io.close()
	if ses.p, err = s.start(c, ses.io); err != nil {
		return ses.refuse(err)
	}
	return ses.run(ctx)
}

// refuse tells the peer that nothing was started.
func (ses *session) refuse(err error) error {
	e := guest.Exit{Code: codeCannotRun, Error: err.Error()}
	if r, ok := errors.AsType[*refusal](err); ok {
		e.Code = r.code
	}
	return ses.exit(e)
}

func (ses *session) exit(e guest.Exit) error {
	b, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("encode exit: %w", err)
	}
	return ses.fw.Frame(guest.FrameExit, b)
}

// run carries the streams. Whatever happens, the process's session is ended
// before it returns unless the process ended by itself.
func (ses *session) run(ctx context.Context) error {
	gone := make(chan struct{}) // the peer, or its manners
	var frames, output sync.WaitGroup
	frames.Go(func() {
		defer close(gone)
		defer ses.survive()
		ses.readFrames()
	})
	frames.Go(func() {
		defer ses.survive()
		ses.pumpStdin()
	})
	drained := make(chan struct{})
	for t, f := range map[guest.FrameType]*os.File{guest.FrameStdout: ses.io.out, guest.FrameStderr: ses.io.err} {
		if f != nil {
			output.Go(func() {
				defer ses.survive()
				ses.pumpOutput(t, f)
			})
		}
	}
	go func() {
		output.Wait()
		close(drained)
	}()
	fault.At("guest.started")
	_ = ses.fw.Frame(guest.FrameStarted, nil) // readFrames sees a broken connection

	exited := false
	select {
	case <-ses.p.done:
		exited = true
	case <-gone:
	case <-ctx.Done():
	}
	if exited {
		select {
		case <-drained: // as sshd: also what children in the background still write
		case <-gone:
			exited = false
		case <-ctx.Done():
			exited = false
		}
	}
	var err error
	if exited {
		err = ses.exit(exitOf(ses.p.status))
	} else {
		ses.p.end()
		err = errors.New("the peer is gone")
	}
	ses.in.close()
	ses.io.close()
	// Ends readFrames, and a write to a peer that does not read.
	if uc, ok := ses.conn.(*net.UnixConn); ok {
		_ = uc.CloseRead()
	}
	if !exited {
		ses.conn.Close()
	}
	frames.Wait()
	<-drained
	return err
}

// readFrames carries what the peer sends. It returns when the peer is gone or
// does not keep to the protocol.
func (ses *session) readFrames() {
	for {
		t, b, err := ses.fr.Next()
		if err != nil {
			return
		}
		switch t {
		case guest.FrameStdin:
			if ses.in.put(b) != nil {
				return
			}
		case guest.FrameEOF:
			// A terminal has no end of input but the character for it: as sshd.
			if ses.io.master == nil {
				ses.in.end()
			}
		case guest.FrameResize:
			var w guest.Window
			if json.Unmarshal(b, &w) != nil {
				return
			}
			_ = ses.io.resize(w) // the terminal may just have gone
		case guest.FrameSignal:
			if sig, ok := signalNumber(b); ok {
				select {
				case <-ses.p.done:
				default:
					_ = ses.p.signalGroup(ses.io.foreground(), sig) // it may just have ended
				}
			}
		default:
			return
		}
	}
}

// signalNumber accepts the signals that SSH names, and the usual others.
func signalNumber(name []byte) (syscall.Signal, bool) {
	if len(name) > 16 {
		return 0, false
	}
	sig := unix.SignalNum("SIG" + string(name))
	return sig, sig != 0
}

// pumpStdin writes what has arrived to the process, and gives credit for it.
func (ses *session) pumpStdin() {
	buf := make([]byte, chunk)
	var credit [4]byte
	broken := ses.io.in == nil
	for {
		n := ses.in.take(buf)
		if n == 0 {
			break
		}
		if !broken {
			_, err := ses.io.in.Write(buf[:n])
			// A process that closed its stdin gets no more, but the peer must not wait.
			broken = err != nil
		}
		ses.in.consumed(n)
		binary.BigEndian.PutUint32(credit[:], uint32(n))
		if ses.fw.Frame(guest.FrameCredit, credit[:]) != nil {
			break
		}
	}
	if ses.io.in != nil && ses.io.master == nil {
		ses.io.in.Close()
	}
}

// pumpOutput sends one stream of the process until its end.
func (ses *session) pumpOutput(t guest.FrameType, f *os.File) {
	buf := make([]byte, guest.HeaderSize+chunk)
	over, tail := make(chan struct{}), 0
	if ses.io.master != nil {
		// A read that is under way when the process ends must be given its bound.
		watch := make(chan struct{})
		defer func() { <-watch }()
		defer close(over)
		go func() {
			defer close(watch)
			select {
			case <-ses.p.done:
				_ = f.SetReadDeadline(time.Now().Add(ptyQuiet))
			case <-over:
			}
		}()
	}
	for {
		n, err := f.Read(buf[guest.HeaderSize:])
		if n > 0 && ses.fw.InPlace(t, buf[:guest.HeaderSize+n]) != nil {
			return
		}
		if err != nil { // EOF; EIO of a terminal; its deadline; closed
			return
		}
		if ses.io.master != nil {
			select {
			case <-ses.p.done:
				if tail += n; tail > ptyTail {
					return
				}
				_ = f.SetReadDeadline(time.Now().Add(ptyQuiet))
			default:
			}
		}
	}
}

// exitOf says how a process ended.
func exitOf(status syscall.WaitStatus) guest.Exit {
	if status.Signaled() {
		return guest.Exit{Code: 128 + int(status.Signal()), Signal: signalName(status.Signal())}
	}
	return guest.Exit{Code: status.ExitStatus()}
}
