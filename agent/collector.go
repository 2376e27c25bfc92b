package agent

import (
	"fmt"
	"strings"
	"sync"
)

// collector keeps the head and the tail of a stream, at most limit bytes of it,
// however much is written. The zero value keeps nothing; it is safe for
// concurrent use.
type collector struct {
	mu    sync.Mutex // guards all below
	limit int
	head  []byte
	tail  []byte // a ring once it has its full size
	next  int    // where the ring continues
	total int64
}

func newCollector(limit int) *collector { return &collector{limit: limit} }

func (c *collector) headLimit() int { return c.limit - c.limit/2 }
func (c *collector) tailLimit() int { return c.limit / 2 }

func (c *collector) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := len(p)
	c.total += int64(n)
	if room := c.headLimit() - len(c.head); room > 0 {
		k := min(room, len(p))
		c.head = append(c.head, p[:k]...)
		p = p[k:]
	}
	size := c.tailLimit()
	if len(p) > size {
		p = p[len(p)-size:]
		c.tail, c.next = c.tail[:0], 0
	}
	if room := size - len(c.tail); room > 0 {
		k := min(room, len(p))
		c.tail = append(c.tail, p[:k]...)
		p = p[k:]
	}
	for len(p) > 0 {
		k := copy(c.tail[c.next:], p)
		c.next = (c.next + k) % size
		p = p[k:]
	}
	return n, nil
}

func (c *collector) truncated() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.left() > 0
}

func (c *collector) left() int64 { return c.total - int64(len(c.head)+len(c.tail)) }

// String returns what was kept as valid UTF-8, with a mark where bytes are missing.
func (c *collector) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	tail := string(c.tail[c.next:]) + string(c.tail[:c.next])
	text := string(c.head) + tail
	if n := c.left(); n > 0 {
		text = fmt.Sprintf("%s\n[podspawn: %d bytes left out]\n%s", c.head, n, tail)
	}
	return valid([]byte(text))
}

// valid is foreign bytes as text.
func valid(b []byte) string { return strings.ToValidUTF8(string(b), "\uFFFD") }
