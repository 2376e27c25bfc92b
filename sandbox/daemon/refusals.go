package daemon

import (
	"sync"
	"time"

	"github.com/podspawn/podspawn/sandbox"
)

// refusals remembers, for the few seconds until they are ended, the connections
// that PAM let through only so that their session can print why it is refused.
// It also keeps one login's many attempts from flooding the audit log.
type refusals struct {
	mu      sync.Mutex // guards both maps
	byProc  map[sandbox.Process]refusal
	written map[string]time.Time
}

type refusal struct {
	err *sandbox.Error
	at  time.Time
}

const (
	refusalKept  = time.Minute
	refusalEvery = time.Second // of the same kind, in the audit log
	maxRefusals  = 4096
)

func newRefusals() *refusals {
	return &refusals{byProc: map[sandbox.Process]refusal{}, written: map[string]time.Time{}}
}

func (r *refusals) add(p sandbox.Process, err *sandbox.Error, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for k, v := range r.byProc {
		if now.Sub(v.at) > refusalKept || len(r.byProc) > maxRefusals {
			delete(r.byProc, k)
		}
	}
	r.byProc[p] = refusal{err: err, at: now}
}

// of returns the refusal of the first process that has one.
func (r *refusals) of(procs []sandbox.Process) *sandbox.Error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range procs {
		if v, ok := r.byProc[p]; ok {
			return v.err
		}
	}
	return nil
}

// worthWriting reports whether an entry with this key was not written within the
// last second.
func (r *refusals) worthWriting(key string, now time.Time) bool {
	key = clip(key, 512) // it has the login of whoever asks in it
	r.mu.Lock()
	defer r.mu.Unlock()
	for k, at := range r.written {
		if now.Sub(at) > refusalEvery || len(r.written) > maxRefusals {
			delete(r.written, k)
		}
	}
	if _, ok := r.written[key]; ok {
		return false
	}
	r.written[key] = now
	return true
}
