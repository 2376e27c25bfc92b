package resolver

import (
	"net/netip"
	"sync"
	"time"
)

// maxKnown bounds the sources that are remembered.
const maxKnown = 4096

// quota bounds what each source has under way and how often it asks. It is safe
// for concurrent use.
type quota struct {
	mu   sync.Mutex // guards what follows
	uses map[netip.Addr]*use
}

type use struct {
	now    int     // under way
	tokens float64 // what may be asked at once
	at     time.Time
}

func newQuota() *quota { return &quota{uses: map[netip.Addr]*use{}} }

// take counts one question, or reports that it is one too many.
func (q *quota) take(who netip.Addr, now time.Time) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	u := q.uses[who]
	if u == nil {
		if len(q.uses) >= maxKnown && !q.forget(now) {
			return false
		}
		u = &use{tokens: burst, at: now}
		q.uses[who] = u
	}
	u.tokens = min(burst, u.tokens+now.Sub(u.at).Seconds()*perSecond)
	u.at = now
	if u.now >= ofOne || u.tokens < 1 {
		return false
	}
	u.now++
	u.tokens--
	return true
}

// give ends what take counted.
func (q *quota) give(who netip.Addr) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.uses[who].now--
}

// forget drops the sources that are as good as new, and reports whether there were any.
func (q *quota) forget(now time.Time) bool {
	n := len(q.uses)
	for who, u := range q.uses {
		if u.now == 0 && u.tokens+now.Sub(u.at).Seconds()*perSecond >= burst {
			delete(q.uses, who)
		}
	}
	return len(q.uses) < n
}
