package storetest

import (
	"errors"
	"testing"
	"time"

	"github.com/podspawn/podspawn/sandbox"
)

func insertTests() map[string]func(*testing.T, *suite) {
	return map[string]func(*testing.T, *suite){
		"keeps every field and gives the first uid": func(t *testing.T, s *suite) {
			want := row("t", "n")
			got := s.insert(want)
			want.UID = sandbox.MinUID
			s.equal("Insert", got, want)
			again, err := s.store.Get(s.ctx(), want.ID)
			s.must(err)
			s.equal("Get", again, want)
			if again.Spec.Digest() != want.Digest {
				t.Errorf("digest of the stored spec = %s, want %s", again.Spec.Digest(), want.Digest)
			}
			s.equal("events", s.events()[0].Event, sandbox.EventSandboxCreated)
		},
		"begins as accepted": func(t *testing.T, s *suite) {
			r := row("t", "")
			r.State = ""
			s.equal("state", s.insert(r).State, sandbox.StateAccepted)
		},
		"an id twice is a conflict": func(t *testing.T, s *suite) {
			r := row("t", "")
			s.insert(r)
			s.unchanged(func() {
				_, err := s.store.Insert(s.ctx(), r, sandbox.Quota{}, event(sandbox.EventSandboxCreated, r.ID))
				s.refused(err, sandbox.KindConflict)
			})
		},
		"a living name twice is a conflict": func(t *testing.T, s *suite) {
			s.insert(row("t", "n"))
			s.unchanged(func() {
				_, err := s.store.Insert(s.ctx(), row("t", "n"), sandbox.Quota{}, event(sandbox.EventSandboxCreated, ""))
				s.refused(err, sandbox.KindConflict)
			})
		},
		"a name is free for other tenants and after the end": func(t *testing.T, s *suite) {
			first := s.insert(row("t", "n"))
			s.insert(row("other", "n"))
			s.insert(row("t", ""))
			s.insert(row("t", ""))
			s.end(first.ID, start)
			s.insert(row("t", "n"))
		},
		"quota of the tenant counts the living": func(t *testing.T, s *suite) {
			first := s.insert(row("t", ""))
			s.insert(row("t", ""))
			s.insert(row("other", ""))
			q := sandbox.Quota{PerTenant: 2}
			s.unchanged(func() {
				_, err := s.store.Insert(s.ctx(), row("t", ""), q, event(sandbox.EventSandboxCreated, ""))
				s.refused(err, sandbox.KindQuota)
			})
			s.end(first.ID, start)
			_, err := s.store.Insert(s.ctx(), row("t", ""), q, event(sandbox.EventSandboxCreated, ""))
			s.must(err)
		},
		"quota of the host is capacity": func(t *testing.T, s *suite) {
			s.insert(row("t", ""))
			s.insert(row("other", ""))
			s.unchanged(func() {
				_, err := s.store.Insert(s.ctx(), row("t", ""), sandbox.Quota{PerTenant: 5, Total: 2}, event(sandbox.EventSandboxCreated, ""))
				s.refused(err, sandbox.KindCapacity)
			})
		},
		"memory of the host is capacity": func(t *testing.T, s *suite) {
			gone := s.insert(row("t", "")) // of 1 GiB, like all of these
			s.insert(row("other", ""))
			more := func(quota int64) error {
				_, err := s.store.Insert(s.ctx(), row("t", ""), sandbox.Quota{Memory: quota}, event(sandbox.EventSandboxCreated, ""))
				return err
			}
			s.unchanged(func() {
				s.refused(more(3<<30-1), sandbox.KindCapacity)
				s.refused(more(1), sandbox.KindCapacity)
			})
			s.must(more(3 << 30))
			s.end(gone.ID, start)
			s.must(more(3 << 30))
		},
		"a draining sandbox still counts": func(t *testing.T, s *suite) {
			first := s.insert(row("t", ""))
			s.set(first.ID, func(r *sandbox.Sandbox) { r.State = sandbox.StateDraining })
			_, err := s.store.Insert(s.ctx(), row("t", ""), sandbox.Quota{PerTenant: 1}, event(sandbox.EventSandboxCreated, ""))
			s.refused(err, sandbox.KindQuota)
		},
		"uids go round": func(t *testing.T, s *suite) {
			first, second := s.insert(row("t", "")), s.insert(row("t", ""))
			s.end(second.ID, start.Add(-48*time.Hour)) // rested, but its turn has passed
			third := s.insert(row("t", ""))
			s.equal("uids", []int{first.UID, second.UID, third.UID}, []int{sandbox.MinUID, sandbox.MinUID + 1, sandbox.MinUID + 2})
		},
	}
}

func readTests() map[string]func(*testing.T, *suite) {
	return map[string]func(*testing.T, *suite){
		"what does not exist is not found": func(t *testing.T, s *suite) {
			gone := s.insert(row("t", "gone"))
			s.end(gone.ID, start)
			_, err := s.store.Get(s.ctx(), sandbox.NewID())
			s.refused(err, sandbox.KindNotFound)
			_, err = s.store.ByUID(s.ctx(), gone.UID)
			s.refused(err, sandbox.KindNotFound)
			_, err = s.store.ByName(s.ctx(), "t", "gone")
			s.refused(err, sandbox.KindNotFound)
			_, err = s.store.List(s.ctx(), sandbox.Filter{Before: sandbox.NewID()})
			s.refused(err, sandbox.KindNotFound)
			if _, err = s.store.Get(s.ctx(), gone.ID); err != nil {
				t.Errorf("Get of a final sandbox = %v, want it", err)
			}
		},
		"by uid and name": func(t *testing.T, s *suite) {
			want := s.insert(row("t", "n"))
			s.insert(row("other", "n"))
			s.insert(row("t", ""))
			got, err := s.store.ByUID(s.ctx(), want.UID)
			s.must(err)
			s.equal("ByUID", got, want)
			got, err = s.store.ByName(s.ctx(), "t", "n")
			s.must(err)
			s.equal("ByName", got, want)
			_, err = s.store.ByName(s.ctx(), "t", "")
			s.refused(err, sandbox.KindNotFound)
		},
		"list filters and pages": func(t *testing.T, s *suite) {
			var ids []sandbox.ID // oldest first; the last two at the same time
			for i, at := range []time.Duration{1, 2, 3, 3} {
				r := row([]string{"t", "other", "t", "t"}[i], "")
				r.CreatedAt = start.Add(at * time.Second)
				r.Labels = map[string]string{"n": string(rune('0' + i)), "a.b": "x"}
				ids = append(ids, s.insert(r).ID)
			}
			s.end(ids[0], start)
			list := func(f sandbox.Filter, want ...sandbox.ID) {
				t.Helper()
				rows, err := s.store.List(s.ctx(), f)
				s.must(err)
				var got []sandbox.ID
				for _, r := range rows {
					got = append(got, r.ID)
				}
				s.equal("List", got, want)
			}
			list(sandbox.Filter{}, ids[3], ids[2], ids[1], ids[0])
			list(sandbox.Filter{Tenant: "t"}, ids[3], ids[2], ids[0])
			list(sandbox.Filter{Living: true}, ids[3], ids[2], ids[1])
			list(sandbox.Filter{Limit: 2}, ids[3], ids[2])
			list(sandbox.Filter{Limit: 1, Before: ids[3]}, ids[2])
			list(sandbox.Filter{Before: ids[2]}, ids[1], ids[0])
			list(sandbox.Filter{Labels: map[string]string{"a.b": "x", "n": "2"}}, ids[2])
			list(sandbox.Filter{Labels: map[string]string{"a.b": "y"}})
			list(sandbox.Filter{Labels: map[string]string{"$.n": "2"}})
			list(sandbox.Filter{Tenant: "t'; --"})
			_, err := s.store.List(s.ctx(), sandbox.Filter{Tenant: "t", Before: ids[1]})
			s.refused(err, sandbox.KindNotFound) // another tenant's id is no cursor
		},
		"list has a limit of its own": func(t *testing.T, s *suite) {
			for range 101 {
				s.insert(row("t", ""))
			}
			rows, err := s.store.List(s.ctx(), sandbox.Filter{})
			s.must(err)
			s.equal("rows", len(rows), 100)
		},
	}
}

func updateTests() map[string]func(*testing.T, *suite) {
	tests := map[string]func(*testing.T, *suite){
		"keeps every field": func(t *testing.T, s *suite) {
			want := s.insert(row("t", "n"))
			edit := func(r *sandbox.Sandbox) {
				at := func(n int) time.Time { return start.Add(time.Duration(n) * time.Hour) }
				r.Subject, r.Name, r.Labels = "s2", "n2", nil
				r.State, r.Reason = sandbox.StateDestroyed, sandbox.ReasonRequested
				r.User, r.ImageID, r.Container, r.Portal, r.SocketDev, r.SocketIno = "u2", "i2", "c2", 1, 2, 3
				r.ReadyAt, r.ExpiresAt, r.LastActivity, r.GraceUntil, r.DrainingAt, r.EndedAt = at(1), at(2), at(3), at(4), at(5), at(6)
			}
			got := s.set(want.ID, edit)
			edit(&want)
			s.equal("Update", got, want)
			got, err := s.store.Get(s.ctx(), want.ID)
			s.must(err)
			s.equal("Get", got, want)
		},
		"commits its events": func(t *testing.T, s *suite) {
			r := s.insert(row("t", ""))
			_, err := s.store.Update(s.ctx(), r.ID, func(r *sandbox.Sandbox) ([]sandbox.Event, error) {
				r.State = sandbox.StateStarting
				return []sandbox.Event{event(sandbox.EventSandboxStarted, r.ID), event(sandbox.EventSandboxDraining, r.ID)}, nil
			})
			s.must(err)
			got := s.events()
			s.equal("events", []sandbox.EventKind{got[1].Event, got[2].Event}, []sandbox.EventKind{sandbox.EventSandboxStarted, sandbox.EventSandboxDraining})
		},
		"returns the error of change as it is": func(t *testing.T, s *suite) {
			r := s.insert(row("t", ""))
			want := errors.New("no")
			s.unchanged(func() {
				_, err := s.store.Update(s.ctx(), r.ID, func(r *sandbox.Sandbox) ([]sandbox.Event, error) {
					r.State, r.Labels["x"], r.Spec.Env["x"] = sandbox.StateReady, "y", "z"
					return []sandbox.Event{event(sandbox.EventSandboxStarted, r.ID)}, want
				})
				if err != want { //nolint:errorlint // exactly that error
					t.Errorf("Update = %v, want exactly the error of change", err)
				}
			})
		},
		"of nothing is not found": func(t *testing.T, s *suite) {
			_, err := s.store.Update(s.ctx(), sandbox.NewID(), func(*sandbox.Sandbox) ([]sandbox.Event, error) {
				t.Error("change was called")
				return nil, nil
			})
			s.refused(err, sandbox.KindNotFound)
		},
		"to a living name is a conflict": func(t *testing.T, s *suite) {
			s.insert(row("t", "n"))
			r := s.insert(row("t", "m"))
			s.unchanged(func() {
				_, err := s.store.Update(s.ctx(), r.ID, func(r *sandbox.Sandbox) ([]sandbox.Event, error) {
					r.Name = "n"
					return nil, nil
				})
				s.refused(err, sandbox.KindConflict)
			})
		},
		"keeps a final state": func(t *testing.T, s *suite) {
			r := s.insert(row("t", ""))
			s.end(r.ID, start)
			s.failsToChange(r.ID, func(r *sandbox.Sandbox) { r.State = sandbox.StateReady })
		},
		"wants the time of the end with a final state": func(t *testing.T, s *suite) {
			// Without it the uid would not rest.
			r := s.insert(row("t", ""))
			s.failsToChange(r.ID, func(r *sandbox.Sandbox) { r.State = sandbox.StateFailed })
		},
	}
	frozen := map[string]func(*sandbox.Sandbox){
		"id":         func(r *sandbox.Sandbox) { r.ID = sandbox.NewID() },
		"tenant":     func(r *sandbox.Sandbox) { r.Tenant = "x" },
		"spec":       func(r *sandbox.Sandbox) { r.Spec.Image = "x" },
		"spec's env": func(r *sandbox.Sandbox) { r.Spec.Env["A"] = "x" },
		"digest":     func(r *sandbox.Sandbox) { r.Digest = "x" },
		"uid":        func(r *sandbox.Sandbox) { r.UID++ },
		"created":    func(r *sandbox.Sandbox) { r.CreatedAt = start.Add(1) },
	}
	for name, change := range frozen {
		tests["refuses to change the "+name] = func(t *testing.T, s *suite) {
			s.failsToChange(s.insert(row("t", "")).ID, change)
		}
	}
	return tests
}

func (s *suite) failsToChange(id sandbox.ID, change func(*sandbox.Sandbox)) {
	s.Helper()
	s.unchanged(func() {
		_, err := s.store.Update(s.ctx(), id, func(r *sandbox.Sandbox) ([]sandbox.Event, error) {
			change(r)
			return []sandbox.Event{event(sandbox.EventSandboxStarted, id)}, nil
		})
		if err == nil {
			s.Error("Update succeeded, want an error")
		}
	})
}
