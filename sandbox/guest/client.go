package guest

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"unicode"

	"golang.org/x/sys/unix"
)

// ErrEnded means that the connection ended before the process did: the sandbox
// was destroyed or reached its deadline, or its guest does not keep to the
// protocol, which comes to the same.
var ErrEnded = errors.New("the sandbox ended")

const chunk = 32 << 10

// Streams are what a process's streams and controls are connected to. All may
// be nil: no input at once ends, output is thrown away.
//
// Run reads Stdin in a goroutine of its own, which it does not wait for: a
// reader that blocks for ever must not keep a finished session open. That
// goroutine ends with the Read that is under way when Run returns, and what that
// Read returns is lost. Whoever needs Stdin afterwards must give a reader that
// can be ended. Resize and Signals are received from only while Run runs: whoever
// sends on them selects with its end.
type Streams struct {
	Stdin   io.Reader
	Stdout  io.Writer
	Stderr  io.Writer
	Resize  <-chan Window
	Signals <-chan string // names without SIG
}

// Run starts a process over a connection that the guest has accepted, and
// carries its streams until it has ended and its output is complete. It owns f and
// closes it. When ctx ends, or when an output can't be written, the connection is
// closed, at which the guest kills the process, and Run returns the cause.
//
// A process that could not be started is no error: see Exit.Error. A guest that
// breaks off, or breaks the protocol, is ErrEnded.
func Run(ctx context.Context, f *os.File, e Exec, s Streams) (Exit, error) {
	defer f.Close()
	// A copy in the poller, whatever mode f is in, so that a Read can be ended.
	c, err := net.FileConn(f)
	if err != nil {
		return Exit{}, fmt.Errorf("connection to the guest: %w", err)
	}
	defer c.Close()
	conn, ok := c.(*net.UnixConn)
	if !ok {
		return Exit{}, fmt.Errorf("connection to the guest is a %s", c.LocalAddr().Network())
	}
	defer hangUp(conn)
	request, err := json.Marshal(e)
	if err != nil {
		return Exit{}, fmt.Errorf("encode request: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { hangUp(conn) })
	defer stop()
	r := &runner{fw: NewWriter(conn), credit: StdinWindow}
	r.cond = sync.NewCond(&r.mu)
	if err := r.fw.Frame(FrameRequest, request); err != nil {
		if errors.Is(err, ErrTooLong) {
			return Exit{}, fmt.Errorf("request: %w", err)
		}
		return Exit{}, ended(ctx, err)
	}
	go r.pumpStdin(s.Stdin)
	over := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { r.controls(over, s) })
	exit, err := r.frames(NewReader(conn), s)
	if err != nil {
		err = ended(ctx, err)
	}
	r.finish()
	close(over)
	hangUp(conn) // ends a control frame that is being written
	wg.Wait()
	return exit, err
}

// hangUp ends the connection also for whoever else still has a descriptor of it.
// Its errors say that it has ended already.
func hangUp(conn *net.UnixConn) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) { _ = unix.Shutdown(int(fd), unix.SHUT_RDWR) })
}

// outputError is a failure of the caller's own writer.
type outputError struct{ err error }

func (e *outputError) Error() string { return "write output: " + e.err.Error() }
func (e *outputError) Unwrap() error { return e.err }

// ended says why a session broke off.
func ended(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	if _, ours := errors.AsType[*outputError](err); ours {
		return err
	}
	return fmt.Errorf("%w: %w", ErrEnded, err)
}

// runner is one Run.
type runner struct {
	fw *Writer

	mu     sync.Mutex // guards credit and done
	cond   *sync.Cond // credit or done has changed
	credit int
	done   bool
}

// finish ends the stdin goroutine unless it is in the caller's Read.
func (r *runner) finish() {
	r.mu.Lock()
	r.done = true
	r.mu.Unlock()
	r.cond.Broadcast()
}

// take waits for credit and takes at most limit bytes of it; 0 means that the session is over.
func (r *runner) take(limit int) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	for r.credit == 0 && !r.done {
		r.cond.Wait()
	}
	if r.done {
		return 0
	}
	n := min(limit, r.credit)
	r.credit -= n
	return n
}

// give returns credit. More than was ever taken is an attack.
func (r *runner) give(n int) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if n > StdinWindow-r.credit {
		return fmt.Errorf("%w: credit of %d bytes", ErrTooLong, n)
	}
	r.credit += n
	r.cond.Broadcast()
	return nil
}

// pumpStdin copies stdin as far as there is credit. Errors of the connection
// are seen by frames; an error of the reader ends the input like its end.
func (r *runner) pumpStdin(stdin io.Reader) {
	if stdin != nil {
		buf := make([]byte, HeaderSize+chunk)
		for {
			room := r.take(chunk)
			if room == 0 {
				return
			}
			n, err := stdin.Read(buf[HeaderSize : HeaderSize+room])
			if n < room && r.give(room-n) != nil {
				return
			}
			if n > 0 && r.fw.InPlace(FrameStdin, buf[:HeaderSize+n]) != nil {
				return
			}
			if err != nil {
				break
			}
		}
	}
	_ = r.fw.Frame(FrameEOF, nil) // frames sees a broken connection
}

// controls carries resizes and signals.
func (r *runner) controls(over <-chan struct{}, s Streams) {
	for {
		var err error
		select {
		case <-over:
			return
		case w, ok := <-s.Resize:
			if !ok {
				s.Resize = nil
				continue
			}
			var b []byte
			if b, err = json.Marshal(w); err == nil {
				err = r.fw.Frame(FrameResize, b)
			}
		case name, ok := <-s.Signals:
			if !ok {
				s.Signals = nil
				continue
			}
			err = r.fw.Frame(FrameSignal, []byte(name))
		}
		if err != nil {
			return // frames sees a broken connection
		}
	}
}

// frames reads what the guest sends until the process has ended.
func (r *runner) frames(fr *Reader, s Streams) (Exit, error) {
	for {
		t, b, err := fr.Next()
		if err != nil {
			return Exit{}, err
		}
		switch t {
		case FrameStdout:
			err = output(s.Stdout, b)
		case FrameStderr:
			err = output(s.Stderr, b)
		case FrameCredit:
			if len(b) != 4 {
				return Exit{}, fmt.Errorf("credit frame of %d bytes", len(b))
			}
			err = r.give(int(min(binary.BigEndian.Uint32(b), StdinWindow+1)))
		case FrameStarted:
		case FrameExit:
			return parseExit(b)
		default:
			err = fmt.Errorf("%w: %q", ErrUnknown, byte(t))
		}
		if err != nil {
			return Exit{}, err
		}
	}
}

func output(w io.Writer, b []byte) error {
	if w == nil || len(b) == 0 {
		return nil
	}
	if _, err := w.Write(b); err != nil {
		return &outputError{err}
	}
	return nil
}

// parseExit makes an Exit that callers may print and exit with.
func parseExit(b []byte) (Exit, error) {
	var e Exit
	if err := json.Unmarshal(b, &e); err != nil {
		return Exit{}, fmt.Errorf("exit frame: %w", err)
	}
	if e.Code < 0 || e.Code > 255 {
		return Exit{}, fmt.Errorf("exit frame: code %d", e.Code)
	}
	for _, c := range e.Signal {
		if (c < 'A' || c > 'Z') && (c < '0' || c > '9') {
			return Exit{}, errors.New("exit frame: not a signal's name")
		}
	}
	if len(e.Signal) > 16 {
		return Exit{}, errors.New("exit frame: not a signal's name")
	}
	e.Error = printable(e.Error)
	return e, nil
}

// printable makes one short line of foreign text, without control characters:
// it ends up on terminals.
func printable(s string) string {
	const limit = 512
	if len(s) > limit {
		s = s[:limit]
	}
	return strings.Map(func(c rune) rune {
		if !unicode.IsPrint(c) {
			return '?'
		}
		return c
	}, strings.ToValidUTF8(s, "?"))
}
