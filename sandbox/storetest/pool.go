package storetest

import (
	"sync"
	"testing"
	"time"

	"github.com/podspawn/podspawn/sandbox"
)

const poolKey = "0123456789abcdef"

// pooled makes a sandbox that waits in the pool.
func (s *suite) pooled() sandbox.Sandbox {
	s.Helper()
	r := row("", "")
	r.Subject, r.Labels, r.Pool = "", nil, poolKey
	return s.set(s.insert(r).ID, func(r *sandbox.Sandbox) {
		r.State, r.ReadyAt, r.Container = sandbox.StatePooled, start, "c"
	})
}

// owner is what a claim of the sandbox asks for.
func owner(id sandbox.ID, tenant, name string) sandbox.Sandbox {
	want := row(tenant, name)
	want.ID, want.Pool, want.User = id, poolKey, "ann"
	want.CreatedAt, want.ExpiresAt, want.LastActivity = start.Add(time.Minute), start.Add(2*time.Minute), start.Add(time.Minute)
	return want
}

func (s *suite) take(want sandbox.Sandbox, quota sandbox.Quota, key string) (sandbox.Sandbox, error) {
	return s.store.ClaimPooled(s.ctx(), want, quota, key,
		event(sandbox.EventSandboxCreated, want.ID), event(sandbox.EventSandboxClaimed, want.ID))
}

func poolTests() map[string]func(*testing.T, *suite) {
	return map[string]func(*testing.T, *suite){
		"a claim gives it an owner and keeps what was made": func(t *testing.T, s *suite) {
			has := s.pooled()
			want := owner(has.ID, "t", "n")
			got, err := s.take(want, sandbox.Quota{}, "")
			s.must(err)
			want.UID, want.State, want.Pool, want.ReadyAt = has.UID, sandbox.StateReady, "", want.CreatedAt
			want.Container, want.Portal, want.SocketDev, want.SocketIno, want.ImageID = has.Container, has.Portal, has.SocketDev, has.SocketIno, has.ImageID
			s.equal("claimed", got, want)
			named, err := s.store.ByName(s.ctx(), "t", "n")
			s.must(err)
			s.equal("by name", named.ID, has.ID)
			evs := s.events()
			s.equal("last events", []sandbox.EventKind{evs[1].Event, evs[2].Event}, []sandbox.EventKind{sandbox.EventSandboxCreated, sandbox.EventSandboxClaimed})
		},
		"the pool is nobody's": func(t *testing.T, s *suite) {
			has := s.pooled()
			own, err := s.store.List(s.ctx(), sandbox.Filter{Tenant: "t"})
			s.must(err)
			s.equal("the tenant's list", len(own), 0)
			all, err := s.store.Pooled(s.ctx())
			s.must(err)
			s.equal("pooled", all, []sandbox.Sandbox{has})
			_, err = s.take(owner(has.ID, "t", ""), sandbox.Quota{}, "")
			s.must(err)
			all, err = s.store.Pooled(s.ctx())
			s.must(err)
			s.equal("pooled after the claim", len(all), 0)
		},
		"a sandbox is claimed once, in its state and under its key": func(t *testing.T, s *suite) {
			claimed, other, draining := s.pooled(), s.pooled(), s.pooled()
			mine := s.ready(row("t", ""))
			_, err := s.take(owner(claimed.ID, "t", ""), sandbox.Quota{}, "")
			s.must(err)
			s.set(draining.ID, func(r *sandbox.Sandbox) { r.State = sandbox.StateDraining })
			s.unchanged(func() {
				for _, id := range []sandbox.ID{claimed.ID, draining.ID, mine.ID, sandbox.NewID()} {
					_, err := s.take(owner(id, "u", ""), sandbox.Quota{}, "")
					s.refused(err, sandbox.KindNotFound)
				}
				want := owner(other.ID, "u", "")
				want.Pool = "another key"
				_, err := s.take(want, sandbox.Quota{}, "")
				s.refused(err, sandbox.KindNotFound)
				for _, want := range []sandbox.Sandbox{owner(other.ID, "", ""), {ID: other.ID, Tenant: "u"}} {
					if _, err := s.take(want, sandbox.Quota{}, ""); err == nil {
						t.Errorf("claim of %+v succeeded, want an error", want)
					}
				}
			})
		},
		"quotas and names hold for claims": func(t *testing.T, s *suite) {
			has := s.pooled()
			s.insert(row("t", "n"))
			s.unchanged(func() {
				_, err := s.take(owner(has.ID, "t", ""), sandbox.Quota{PerTenant: 1}, "")
				s.refused(err, sandbox.KindQuota)
				_, err = s.take(owner(has.ID, "u", ""), sandbox.Quota{Total: 1}, "")
				s.refused(err, sandbox.KindCapacity)
				_, err = s.take(owner(has.ID, "u", ""), sandbox.Quota{Memory: 2<<30 - 1}, "")
				s.refused(err, sandbox.KindCapacity)
				_, err = s.take(owner(has.ID, "t", "n"), sandbox.Quota{}, "")
				s.refused(err, sandbox.KindConflict)
			})
			_, err := s.take(owner(has.ID, "u", ""), sandbox.Quota{PerTenant: 1, Total: 2, Memory: 2 << 30}, "")
			s.must(err)
		},
		"the pool keeps no tenant from a sandbox, and stays within the host": func(t *testing.T, s *suite) {
			s.pooled()
			s.pooled()
			_, err := s.store.Insert(s.ctx(), row("t", ""), sandbox.Quota{Total: 1, Memory: 1 << 30}, event(sandbox.EventSandboxCreated, ""))
			s.must(err)
			more := row("", "")
			more.Pool = poolKey
			s.unchanged(func() {
				_, err := s.store.Insert(s.ctx(), more, sandbox.Quota{Total: 3}, event(sandbox.EventSandboxPooled, more.ID))
				s.refused(err, sandbox.KindCapacity)
				_, err = s.store.Insert(s.ctx(), more, sandbox.Quota{Memory: 4<<30 - 1}, event(sandbox.EventSandboxPooled, more.ID))
				s.refused(err, sandbox.KindCapacity)
			})
			_, err = s.store.Insert(s.ctx(), more, sandbox.Quota{Total: 4, Memory: 4 << 30}, event(sandbox.EventSandboxPooled, more.ID))
			s.must(err)
		},
		"what the idempotency key stood for becomes the claimed one": func(t *testing.T, s *suite) {
			has := s.pooled()
			_, _, fresh, err := s.store.Remember(s.ctx(), "t", "k", "d", "planned", start)
			s.must(err)
			s.equal("fresh", fresh, true)
			_, err = s.take(owner(has.ID, "t", ""), sandbox.Quota{}, "k")
			s.must(err)
			_, value, _, err := s.store.Remember(s.ctx(), "t", "k", "d", "again", start)
			s.must(err)
			s.equal("value", value, string(has.ID))
		},
		"one of many claims wins": func(t *testing.T, s *suite) {
			has := s.pooled()
			ok, errs := together(func(int) error {
				_, err := s.take(owner(has.ID, "t", ""), sandbox.Quota{}, "")
				return err
			})
			s.equal("claims that succeeded", ok, 1)
			for _, err := range errs {
				s.refused(err, sandbox.KindNotFound)
			}
		},
		"a claim or a retirement wins, never both": func(t *testing.T, s *suite) {
			has := s.pooled()
			var mu sync.Mutex
			retired := 0
			ok, _ := together(func(n int) error {
				if n%2 == 0 {
					_, err := s.take(owner(has.ID, "t", ""), sandbox.Quota{}, "")
					return err
				}
				_, err := s.store.Update(s.ctx(), has.ID, func(r *sandbox.Sandbox) ([]sandbox.Event, error) {
					if r.State != sandbox.StatePooled {
						return nil, sandbox.Errorf(sandbox.KindNotFound, "none", "not pooled")
					}
					r.State = sandbox.StateDraining
					return nil, nil
				})
				if err == nil {
					mu.Lock()
					retired++
					mu.Unlock()
				}
				return err
			})
			s.equal("winners", ok, 1)
			got, err := s.store.Get(s.ctx(), has.ID)
			s.must(err)
			s.equal("retired", got.State == sandbox.StateDraining && got.Tenant == "", retired == 1)
		},
		"no update touches the key": func(t *testing.T, s *suite) {
			has := s.pooled()
			s.unchanged(func() {
				if _, err := s.store.Update(s.ctx(), has.ID, func(r *sandbox.Sandbox) ([]sandbox.Event, error) {
					r.Pool = ""
					return nil, nil
				}); err == nil {
					t.Error("Update changed Pool, want an error")
				}
			})
		},
	}
}
