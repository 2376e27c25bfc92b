package storetest

import (
	"testing"
	"time"

	"github.com/podspawn/podspawn/sandbox"
)

func (s *suite) user(name string) sandbox.User {
	s.Helper()
	u, err := s.store.AddUser(s.ctx(), sandbox.User{Name: name, CreatedAt: start}, event(sandbox.EventSetupChanged, ""))
	s.must(err)
	return u
}

func entering(u sandbox.User, id string, in sandbox.ID) sandbox.Connection {
	return sandbox.Connection{
		ID: id, Sandbox: in, User: u.Name, Key: "SHA256:x", Source: "192.0.2.1", Monitor: sandbox.Process{PID: 7, Start: 8}, OpenedAt: start,
	}
}

// usersRow is a sandbox that has its user's uid.
func usersRow(u sandbox.User) sandbox.Sandbox {
	r := row(u.Name, "")
	r.UID, r.Alias = u.UID, u.Name
	return r
}

func userTests() map[string]func(*testing.T, *suite) {
	return map[string]func(*testing.T, *suite){
		"a user has a uid of the users' range and is found by it": func(t *testing.T, s *suite) {
			spec := row("alice", "").Spec
			got, err := s.store.AddUser(s.ctx(), sandbox.User{Name: "alice", Spec: &spec, CreatedAt: start}, event(sandbox.EventSetupChanged, ""))
			s.must(err)
			s.equal("AddUser", got, sandbox.User{Name: "alice", UID: sandbox.MinUserUID, Spec: &spec, CreatedAt: start})
			byName, err := s.store.UserByName(s.ctx(), "alice")
			s.must(err)
			s.equal("UserByName", byName, got)
			byUID, err := s.store.UserByUID(s.ctx(), got.UID)
			s.must(err)
			s.equal("UserByUID", byUID, got)
			got.Portal, got.Spec = 1<<64-1, nil
			s.must(s.store.ChangeUser(s.ctx(), got))
			all, err := s.store.Users(s.ctx())
			s.must(err)
			s.equal("Users", all, []sandbox.User{got})
			s.unchanged(func() {
				_, err := s.store.AddUser(s.ctx(), sandbox.User{Name: "alice", CreatedAt: start}, event(sandbox.EventSetupChanged, ""))
				s.refused(err, sandbox.KindConflict)
			})
		},
		"a removed user is gone and her uid rests": func(t *testing.T, s *suite) {
			u := s.user("alice")
			s.must(s.store.RemoveUser(s.ctx(), "alice", start, event(sandbox.EventSetupChanged, "")))
			_, err := s.store.UserByName(s.ctx(), "alice")
			s.refused(err, sandbox.KindNotFound)
			_, err = s.store.UserByUID(s.ctx(), u.UID)
			s.refused(err, sandbox.KindNotFound)
			s.unchanged(func() {
				s.refused(s.store.RemoveUser(s.ctx(), "alice", start, event(sandbox.EventSetupChanged, "")), sandbox.KindNotFound)
				s.refused(s.store.ChangeUser(s.ctx(), u, event(sandbox.EventSetupChanged, "")), sandbox.KindNotFound)
				s.refused(s.store.Enter(s.ctx(), entering(u, "con_1", ""), event(sandbox.EventCertAccepted, "")), sandbox.KindNotFound)
			})
			if again := s.user("alice"); again.UID == u.UID {
				t.Errorf("the uid %d was given again at once", u.UID)
			}
			later, err := s.store.AddUser(s.ctx(), sandbox.User{Name: "bob", CreatedAt: start.Add(sandbox.UIDQuarantine)}, event(sandbox.EventSetupChanged, ""))
			s.must(err)
			s.equal("uid after its rest", later.UID, u.UID)
		},
		"a user has one sandbox with her uid": func(t *testing.T, s *suite) {
			u := s.user("alice")
			r := s.ready(usersRow(u))
			s.equal("uid", r.UID, u.UID)
			s.equal("alias", r.Alias, "alice")
			s.unchanged(func() {
				_, err := s.store.Insert(s.ctx(), usersRow(u), sandbox.Quota{}, event(sandbox.EventSandboxCreated, ""))
				s.refused(err, sandbox.KindConflict)
			})
		},
		"a connection enters a sandbox once": func(t *testing.T, s *suite) {
			u := s.user("alice")
			s.must(s.store.Enter(s.ctx(), entering(u, "con_1", ""), event(sandbox.EventCertAccepted, "")))
			open, err := s.store.OpenConnections(s.ctx(), "")
			s.must(err)
			s.equal("open connections", open, []sandbox.Connection{entering(u, "con_1", "")})
			r := s.ready(usersRow(u))
			for range 2 {
				got, err := s.store.Bind(s.ctx(), "con_1", r.ID)
				s.must(err)
				s.equal("state", got.State, sandbox.StateRunning)
			}
			other := s.ready(row("alice", "web"))
			s.unchanged(func() {
				_, err := s.store.Bind(s.ctx(), "con_1", other.ID)
				s.refused(err, sandbox.KindConflict)
				_, err = s.store.Bind(s.ctx(), "con_2", r.ID)
				s.refused(err, sandbox.KindNotFound)
			})
			_, err = s.store.CloseConnection(s.ctx(), "con_1", start.Add(time.Second), true, "exit", event(sandbox.EventSessionClosed, r.ID))
			s.must(err)
			got, err := s.store.Get(s.ctx(), r.ID)
			s.must(err)
			s.equal("state after the last exit", got.State, sandbox.StateReady)
			s.equal("grace", got.GraceUntil, start.Add(time.Second+r.Spec.Lifecycle.Grace))
			s.unchanged(func() {
				_, err := s.store.Bind(s.ctx(), "con_1", r.ID)
				s.refused(err, sandbox.KindGone)
			})
		},
		"a connection in no sandbox closes without one": func(t *testing.T, s *suite) {
			u := s.user("alice")
			s.must(s.store.Enter(s.ctx(), entering(u, "con_1", ""), event(sandbox.EventCertAccepted, "")))
			closed, err := s.store.CloseConnection(s.ctx(), "con_1", start, false, "lost", event(sandbox.EventSessionClosed, ""))
			s.must(err)
			s.equal("closed", closed, true)
		},
		"a sandbox that becomes ready under a connection is running": func(t *testing.T, s *suite) {
			u := s.user("alice")
			r, err := s.store.Insert(s.ctx(), usersRow(u), sandbox.Quota{}, event(sandbox.EventSandboxCreated, ""))
			s.must(err)
			s.must(s.store.Enter(s.ctx(), entering(u, "con_1", r.ID), event(sandbox.EventCertAccepted, r.ID)))
			got, err := s.store.Update(s.ctx(), r.ID, func(r *sandbox.Sandbox) ([]sandbox.Event, error) {
				r.State = sandbox.StateReady
				return nil, nil
			})
			s.must(err)
			s.equal("state", got.State, sandbox.StateRunning)
		},
		"one that is ending is not entered": func(t *testing.T, s *suite) {
			u := s.user("alice")
			r := s.ready(usersRow(u))
			s.must(s.store.Enter(s.ctx(), entering(u, "con_1", ""), event(sandbox.EventCertAccepted, "")))
			_, err := s.store.Update(s.ctx(), r.ID, func(r *sandbox.Sandbox) ([]sandbox.Event, error) {
				r.State, r.Reason = sandbox.StateDraining, sandbox.ReasonExited
				return nil, nil
			})
			s.must(err)
			s.unchanged(func() {
				_, err := s.store.Bind(s.ctx(), "con_1", r.ID)
				s.refused(err, sandbox.KindGone)
				s.refused(s.store.Enter(s.ctx(), entering(u, "con_2", r.ID), event(sandbox.EventCertAccepted, r.ID)), sandbox.KindGone)
			})
		},
		"a user has no more than MaxConnections": func(t *testing.T, s *suite) {
			u := s.user("alice")
			for i := range sandbox.MaxConnections {
				s.must(s.store.Enter(s.ctx(), entering(u, "con_"+string(rune('a'+i)), ""), event(sandbox.EventCertAccepted, "")))
			}
			s.unchanged(func() {
				s.refused(s.store.Enter(s.ctx(), entering(u, "con_z", ""), event(sandbox.EventCertAccepted, "")), sandbox.KindQuota)
			})
			s.must(s.store.Enter(s.ctx(), entering(s.user("bob"), "con_y", ""), event(sandbox.EventCertAccepted, "")))
		},
	}
}
