package storetest

import (
	"context"
	"sync"
	"testing"

	"github.com/podspawn/podspawn/sandbox"
)

const parallel = 50

// together calls f from many goroutines at once and returns how many calls
// returned no error, and the errors of the others.
func together(f func(n int) error) (ok int, errs []error) {
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex // guards ok, errs
		begin = make(chan struct{})
	)
	for n := range parallel {
		wg.Go(func() {
			<-begin
			err := f(n)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				ok++
			} else {
				errs = append(errs, err)
			}
		})
	}
	close(begin)
	wg.Wait()
	return ok, errs
}

func contextEnded() (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx, cancel
}

func parallelTests() map[string]func(*testing.T, *suite) {
	return map[string]func(*testing.T, *suite){
		"one of many claims of a one-use certificate wins": func(t *testing.T, s *suite) {
			r := s.ready(row("t", ""))
			s.issue(r.ID, 1)
			ok, errs := together(func(n int) error {
				_, err := s.claim(connection(r.ID, 1, n))
				return err
			})
			s.equal("claims that succeeded", ok, 1)
			for _, err := range errs {
				s.refused(err, sandbox.KindPolicy)
			}
			open, err := s.store.OpenConnections(s.ctx(), r.ID)
			s.must(err)
			s.equal("open connections", len(open), 1)
		},
		"claims never pass the bound of connections": func(t *testing.T, s *suite) {
			r := s.ready(row("t", ""))
			s.issue(r.ID, 0)
			ok, errs := together(func(n int) error {
				_, err := s.claim(connection(r.ID, 1, n))
				return err
			})
			s.equal("claims that succeeded", ok, sandbox.MaxConnections)
			for _, err := range errs {
				s.refused(err, sandbox.KindQuota)
			}
		},
		"one of many closings of a connection closes it": func(t *testing.T, s *suite) {
			r := s.ready(row("t", ""))
			s.issue(r.ID, 0)
			_, err := s.claim(connection(r.ID, 1, 1))
			s.must(err)
			var mu sync.Mutex
			closings := 0
			_, errs := together(func(int) error {
				closed, err := s.store.CloseConnection(s.ctx(), connection("", 0, 1).ID, start, true, "exit", event(sandbox.EventSessionClosed, r.ID))
				mu.Lock()
				defer mu.Unlock()
				if closed {
					closings++
				}
				return err
			})
			s.equal("errors", len(errs), 0)
			s.equal("closings", closings, 1)
		},
		"inserts never pass the quota and share no uid": func(t *testing.T, s *suite) {
			ok, errs := together(func(int) error {
				_, err := s.store.Insert(s.ctx(), row("t", ""), sandbox.Quota{PerTenant: 10}, event(sandbox.EventSandboxCreated, ""))
				return err
			})
			s.equal("inserts that succeeded", ok, 10)
			for _, err := range errs {
				s.refused(err, sandbox.KindQuota)
			}
			rows, err := s.store.List(s.ctx(), sandbox.Filter{})
			s.must(err)
			uids := map[int]bool{}
			for _, r := range rows {
				uids[r.UID] = true
			}
			s.equal("different uids", len(uids), 10)
		},
		"serials and events have no gap": func(t *testing.T, s *suite) {
			r := s.ready(row("t", ""))
			_, errs := together(func(int) error {
				_, err := s.store.Issue(s.ctx(), func(serial uint64) (sandbox.Certificate, sandbox.Event, error) {
					return certificate(serial, r.ID, 0), event(sandbox.EventCertIssued, r.ID), nil
				})
				return err
			})
			s.equal("errors", len(errs), 0)
			for serial := uint64(1); serial <= parallel; serial++ {
				_, err := s.store.Certificate(s.ctx(), serial)
				s.must(err)
			}
			s.equal("events", len(s.events()), parallel+1)
		},
		"updates lose nothing": func(t *testing.T, s *suite) {
			r := s.insert(row("t", ""))
			s.set(r.ID, func(r *sandbox.Sandbox) { r.Portal = 0 })
			_, errs := together(func(int) error {
				_, err := s.store.Update(s.ctx(), r.ID, func(r *sandbox.Sandbox) ([]sandbox.Event, error) {
					r.Portal++
					return nil, nil
				})
				return err
			})
			s.equal("errors", len(errs), 0)
			got, err := s.store.Get(s.ctx(), r.ID)
			s.must(err)
			s.equal("counter", got.Portal, uint64(parallel))
		},
		"one of many requests with one key is the first": func(t *testing.T, s *suite) {
			var mu sync.Mutex
			first, values := 0, map[string]bool{}
			_, errs := together(func(n int) error {
				_, v, fresh, err := s.store.Remember(s.ctx(), "t", "k", "d", string(rune('A'+n)), start)
				mu.Lock()
				defer mu.Unlock()
				if values[v] = true; fresh {
					first++
				}
				return err
			})
			s.equal("errors", len(errs), 0)
			s.equal("first requests and values", []int{first, len(values)}, []int{1, 1})
		},
	}
}
