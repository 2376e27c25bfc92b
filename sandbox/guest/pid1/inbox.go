package pid1

import (
	"errors"
	"sync"

	"github.com/podspawn/podspawn/sandbox/guest"
)

var errWindow = errors.New("more stdin than there was credit for")

// inbox holds the stdin that has arrived and is not yet written, at most
// guest.StdinWindow bytes. It stands between connection and process, so that a
// process that does not read never holds up a signal. Safe for concurrent use.
type inbox struct {
	mu     sync.Mutex // guards the rest
	cond   sync.Cond
	buf    []byte
	owed   int // bytes taken in and not yet given credit for
	eof    bool
	closed bool
}

func newInbox() *inbox {
	b := new(inbox)
	b.cond.L = &b.mu
	return b
}

// put appends bytes from the host.
func (b *inbox) put(p []byte) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.eof {
		return errors.New("stdin after its end")
	}
	if b.owed+len(p) > guest.StdinWindow {
		return errWindow
	}
	b.owed += len(p)
	b.buf = append(b.buf, p...)
	b.cond.Signal()
	return nil
}

// end says that no more comes.
func (b *inbox) end() {
	b.mu.Lock()
	b.eof = true
	b.mu.Unlock()
	b.cond.Signal()
}

// close makes take return at once, for good.
func (b *inbox) close() {
	b.mu.Lock()
	b.closed = true
	b.mu.Unlock()
	b.cond.Signal()
}

// take waits for bytes and moves at most len(p) of them into p. It returns 0 at the end.
func (b *inbox) take(p []byte) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	for len(b.buf) == 0 && !b.eof && !b.closed {
		b.cond.Wait()
	}
	if b.closed {
		return 0
	}
	n := copy(p, b.buf)
	b.buf = b.buf[:copy(b.buf, b.buf[n:])]
	return n
}

// consumed says that n bytes are about to be given credit for.
func (b *inbox) consumed(n int) {
	b.mu.Lock()
	b.owed -= n
	b.mu.Unlock()
}
