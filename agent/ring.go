package agent

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"

	"github.com/podspawn/podspawn/sandbox"
)

// ringSize is how much of a stream is kept for those who ask later, in bytes.
const (
	ringSize = 1 << 20
	headSize = 8 << 10
)

// ring keeps the last ringSize bytes of a stream, by their offset in it. It is safe
// for concurrent use.
type ring struct {
	changed func() // called without mu after each change

	mu    sync.Mutex // guards what follows
	cond  *sync.Cond
	buf   []byte
	start int64  // offset of buf[0]
	head  []byte // the first headSize bytes: where a command says what it does
	// attached makes Write wait for a reader that is behind by more than the ring,
	// instead of losing what it did not read.
	attached bool
	read     int64 // up to where the attached reader has come
}

func newRing(attached bool, changed func()) *ring {
	r := &ring{changed: changed, attached: attached}
	r.cond = sync.NewCond(&r.mu)
	return r
}

func (r *ring) Write(p []byte) (int, error) {
	r.mu.Lock()
	for r.attached && r.start+int64(len(r.buf))-r.read > ringSize-int64(min(len(p), ringSize)) {
		r.cond.Wait()
	}
	r.buf = append(r.buf, p...)
	if room := headSize - len(r.head); room > 0 {
		r.head = append(r.head, p[:min(room, len(p))]...)
	}
	// Trimmed by a quarter at a time, not with each write.
	if over := len(r.buf) - ringSize; over > ringSize/4 {
		r.start += int64(over)
		r.buf = append(r.buf[:0], r.buf[over:]...)
	}
	r.mu.Unlock()
	r.changed()
	return len(p), nil
}

// detach lets a waiting Write go on, for good.
func (r *ring) detach() {
	r.mu.Lock()
	r.attached = false
	r.mu.Unlock()
	r.cond.Broadcast()
}

// from returns at most limit bytes from an offset on, where they end, and how many
// bytes before them are lost. The bytes are a copy.
func (r *ring) from(offset int64, limit int) (b []byte, next, lost int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	// What waits to be trimmed is gone already, so that all that is left fits into ringSize.
	if first := r.start + int64(max(0, len(r.buf)-ringSize)); offset < first {
		lost, offset = first-offset, first
	}
	i := int(min(offset-r.start, int64(len(r.buf))))
	b = append([]byte(nil), r.buf[i:min(len(r.buf), i+limit)]...)
	next = r.start + int64(i+len(b))
	if next > r.read {
		r.read = next
		r.cond.Broadcast()
	}
	return b, next, lost
}

// beginning returns what the head has from an offset on, of what from lost.
func (r *ring) beginning(offset int64) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if offset >= int64(len(r.head)) {
		return ""
	}
	return valid(r.head[offset:])
}

func (r *ring) total() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.start + int64(len(r.buf))
}

// cursor is how far somebody has read a command's streams.
type cursor struct{ out, err int64 }

func (c cursor) String() string { return fmt.Sprintf("%d.%d", c.out, c.err) }

func parseCursor(s string) (cursor, error) {
	if s == "" {
		return cursor{}, nil
	}
	bad := sandbox.Errorf(sandbox.KindInvalidSpec, "use the cursor of an earlier answer for this exec_id", "that is no cursor")
	o, e, ok := strings.Cut(s, ".")
	if !ok || len(s) > 40 {
		return cursor{}, bad
	}
	out, err1 := strconv.ParseUint(o, 10, 62)
	errs, err2 := strconv.ParseUint(e, 10, 62)
	if err1 != nil || err2 != nil {
		return cursor{}, bad
	}
	return cursor{int64(out), int64(errs)}, nil
}

// inbox is a process's stdin while it may still come in pieces. It is safe for
// concurrent use; Read by one goroutine.
type inbox struct {
	mu     sync.Mutex // guards what follows
	cond   *sync.Cond
	buf    []byte
	ended  bool
	closed bool
}

// inboxSize bounds what waits for a process that does not read.
const inboxSize = 1 << 20

func newInbox(first string, more bool) *inbox {
	b := &inbox{buf: []byte(first), ended: !more}
	b.cond = sync.NewCond(&b.mu)
	return b
}

// put appends p, and the end when eof is set.
func (b *inbox) put(p []byte, eof bool) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.closed:
		return sandbox.Errorf(sandbox.KindConflict, "poll it for its result", "the command has ended")
	case b.ended && (len(p) > 0 || !eof):
		return sandbox.Errorf(sandbox.KindConflict, "start it with background to write to it", "the command's input has ended")
	case len(b.buf)+len(p) > inboxSize:
		return sandbox.Errorf(sandbox.KindConflict, "wait until it reads", "the command does not read its input: %d bytes are waiting", len(b.buf))
	}
	b.buf = append(b.buf, p...)
	b.ended = b.ended || eof
	b.cond.Broadcast()
	return nil
}

func (b *inbox) close() {
	b.mu.Lock()
	b.closed = true
	b.mu.Unlock()
	b.cond.Broadcast()
}

// Read implements io.Reader.
func (b *inbox) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for len(b.buf) == 0 && !b.ended && !b.closed {
		b.cond.Wait()
	}
	if len(b.buf) == 0 || b.closed {
		return 0, io.EOF
	}
	n := copy(p, b.buf)
	b.buf = b.buf[:copy(b.buf, b.buf[n:])]
	return n, nil
}
