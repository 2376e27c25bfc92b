package pid1

import (
	"context"
	"sync"
	"time"
)

// deadline is the wall-clock time at which the sandbox ends. Safe for
// concurrent use.
type deadline struct {
	mu      sync.Mutex // guards at
	at      int64      // unix seconds
	changed chan struct{}
}

func newDeadline(at int64) *deadline {
	return &deadline{at: at, changed: make(chan struct{}, 1)}
}

func (d *deadline) set(at int64) {
	d.mu.Lock()
	d.at = at
	d.mu.Unlock()
	select {
	case d.changed <- struct{}{}:
	default:
	}
}

func (d *deadline) left() time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	// Round strips the monotonic clock: what counts is what the host's clock says.
	return time.Until(time.Unix(d.at, 0).Round(0))
}

// wait returns true at the deadline, and false when ctx ends before.
func (d *deadline) wait(ctx context.Context) bool {
	for {
		left := d.left()
		if left <= 0 {
			return true
		}
		// At least every minute: the clock may be set, or the machine suspended.
		timer := time.NewTimer(min(left, time.Minute))
		select {
		case <-ctx.Done():
			timer.Stop()
			return false
		case <-d.changed:
			timer.Stop()
		case <-timer.C:
		}
	}
}
