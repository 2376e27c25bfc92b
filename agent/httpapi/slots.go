package httpapi

import (
	"sync"

	"github.com/podspawn/podspawn/sandbox"
	"github.com/podspawn/podspawn/sandbox/localapi"
)

// How many requests are served at a time. A command holds its slot, a
// connection to the daemon and its output in memory for as long as it runs, so
// one caller with many of them must not keep the others out.
const (
	maxRequests   = 512
	maxPerCaller  = 32
	slotsFullHint = "wait for one of your requests to end"
)

// slots counts the requests being served. It is safe for concurrent use.
type slots struct {
	mu     sync.Mutex // guards all below
	total  int
	caller map[localapi.Auth]int
}

func newSlots() *slots { return &slots{caller: map[localapi.Auth]int{}} }

// take takes a slot for the caller until release is called.
func (s *slots) take(by localapi.Auth) (release func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.caller[by] >= maxPerCaller {
		return nil, sandbox.Errorf(sandbox.KindQuota, slotsFullHint, "%d of your requests are being served already", maxPerCaller)
	}
	if s.total >= maxRequests {
		return nil, sandbox.Errorf(sandbox.KindCapacity, "try again in a while", "the service is serving %d requests already", maxRequests)
	}
	s.total++
	s.caller[by]++
	return func() { s.give(by) }, nil
}

func (s *slots) give(by localapi.Auth) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.total--
	if s.caller[by]--; s.caller[by] == 0 {
		delete(s.caller, by)
	}
}
