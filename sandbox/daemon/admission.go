package daemon

import (
	"sync"

	"github.com/podspawn/podspawn/sandbox"
)

// tally counts what is in use by key. The zero value is ready; it is safe for
// concurrent use.
type tally[K comparable] struct {
	mu sync.Mutex // guards n
	n  map[K]int
}

// take counts one more for k, unless it has limit already. release gives it
// back; call it once.
func (t *tally[K]) take(k K, limit int) (release func(), ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.n[k] >= limit {
		return nil, false
	}
	if t.n == nil {
		t.n = map[K]int{}
	}
	t.n[k]++
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.n[k]--; t.n[k] == 0 {
			delete(t.n, k)
		}
	}, true
}

// class is a kind of peer on the daemon's socket, which anybody may connect to.
// Each has connections of its own, so that none can keep the others out: not a
// local user who floods the socket, nor a sandbox or an API process gone bad.
type class int

const (
	strangers class = iota // whoever has no business here; told so, a few at a time
	rootHooks
	authHooks
	sandboxHooks // of all sandboxes
	apiProcess   // its calls, its callers and the leases of their commands
)

func (c class) limit() int {
	switch c {
	case rootHooks:
		return 1024
	case authHooks:
		return 512
	case sandboxHooks, apiProcess:
		return 4096
	default:
		return 32
	}
}

// maxOfSandbox is how many connections one sandbox's hooks have: a lease for each
// channel, some that are being refused, and a burst of what is forwarded.
const maxOfSandbox = sandbox.MaxChannels + sandbox.MaxConnections + 256

// maxOfTenant is how many API calls of one tenant are under way, the leases of its
// commands included.
const maxOfTenant = 512

// maxCommands is how many commands of the API one sandbox runs at once.
const maxCommands = 64

// admission decides whether a peer may have one more connection.
type admission struct {
	classes   tally[class]
	sandboxes tally[int] // by uid
}

func (a *admission) admit(uid, authUID, apiUID int) (release func(), ok bool) {
	c := strangers
	switch {
	case uid == 0:
		c = rootHooks
	case uid == authUID:
		c = authHooks
	case uid == apiUID:
		c = apiProcess
	case uid >= sandbox.MinUID && uid <= sandbox.MaxUID:
		c = sandboxHooks
	}
	all, ok := a.classes.take(c, c.limit())
	if !ok || c != sandboxHooks {
		return all, ok
	}
	own, ok := a.sandboxes.take(uid, maxOfSandbox)
	if !ok {
		all()
		return nil, false
	}
	return func() { own(); all() }, true
}
