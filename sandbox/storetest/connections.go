package storetest

import (
	"errors"
	"testing"
	"time"

	"github.com/podspawn/podspawn/sandbox"
)

func certificateTests() map[string]func(*testing.T, *suite) {
	return map[string]func(*testing.T, *suite){
		"serials are contiguous from 1 and a failed signature uses none": func(t *testing.T, s *suite) {
			r := s.ready(row("t", ""))
			first := s.issue(r.ID, 1)
			s.equal("Issue", first, certificate(1, r.ID, 1))
			want := errors.New("no")
			s.unchanged(func() {
				_, err := s.store.Issue(s.ctx(), func(uint64) (sandbox.Certificate, sandbox.Event, error) {
					return sandbox.Certificate{}, event(sandbox.EventCertIssued, r.ID), want
				})
				if err != want { //nolint:errorlint // exactly that error
					t.Errorf("Issue = %v, want exactly the error of sign", err)
				}
			})
			s.equal("serial", s.issue(r.ID, 0).Serial, uint64(2))
			got, err := s.store.Certificate(s.ctx(), 1)
			s.must(err)
			s.equal("Certificate", got, first)
		},
		"a certificate with another serial is refused": func(t *testing.T, s *suite) {
			r := s.ready(row("t", ""))
			s.unchanged(func() {
				_, err := s.store.Issue(s.ctx(), func(serial uint64) (sandbox.Certificate, sandbox.Event, error) {
					return certificate(serial+1, r.ID, 0), event(sandbox.EventCertIssued, r.ID), nil
				})
				if err == nil {
					t.Error("Issue succeeded, want an error")
				}
			})
		},
		"for no sandbox is not found": func(t *testing.T, s *suite) {
			_, err := s.store.Issue(s.ctx(), func(serial uint64) (sandbox.Certificate, sandbox.Event, error) {
				return certificate(serial, sandbox.NewID(), 0), event(sandbox.EventCertIssued, ""), nil
			})
			s.refused(err, sandbox.KindNotFound)
		},
		"serials at the edges are not found": func(t *testing.T, s *suite) {
			s.issue(s.ready(row("t", "")).ID, 0)
			for _, serial := range []uint64{0, 2, 1 << 63, 1<<64 - 1} {
				_, err := s.store.Certificate(s.ctx(), serial)
				s.refused(err, sandbox.KindNotFound)
				s.refused(s.store.RevokeCertificate(s.ctx(), serial, start, event(sandbox.EventCertRevoked, "")), sandbox.KindNotFound)
			}
		},
		"revocation is idempotent and its first time stays": func(t *testing.T, s *suite) {
			s.issue(s.ready(row("t", "")).ID, 0)
			s.must(s.store.RevokeCertificate(s.ctx(), 1, start, event(sandbox.EventCertRevoked, "")))
			s.unchanged(func() {
				s.must(s.store.RevokeCertificate(s.ctx(), 1, start.Add(1), event(sandbox.EventCertRevoked, "")))
			})
			got, err := s.store.Certificate(s.ctx(), 1)
			s.must(err)
			s.equal("RevokedAt", got.RevokedAt, start)
		},
	}
}

func connectionTests() map[string]func(*testing.T, *suite) {
	return map[string]func(*testing.T, *suite){
		"a claim counts, runs and clears the grace period": func(t *testing.T, s *suite) {
			r := s.ready(row("t", ""))
			s.set(r.ID, func(r *sandbox.Sandbox) { r.GraceUntil = start.Add(time.Minute) })
			s.issue(r.ID, 2)
			want := connection(r.ID, 1, 1)
			got, err := s.claim(want)
			s.must(err)
			r.State, r.GraceUntil = sandbox.StateRunning, time.Time{}
			s.equal("Claim", got, r)
			stored, err := s.store.Get(s.ctx(), r.ID)
			s.must(err)
			s.equal("Get", stored, r)
			cert, err := s.store.Certificate(s.ctx(), 1)
			s.must(err)
			s.equal("Used", cert.Used, 1)
			open, err := s.store.OpenConnections(s.ctx(), r.ID)
			s.must(err)
			s.equal("OpenConnections", open, []sandbox.Connection{want})
		},
		"a claim of nothing is not found": func(t *testing.T, s *suite) {
			r := s.ready(row("t", ""))
			s.issue(r.ID, 0)
			s.refusedClaim(connection(r.ID, 2, 1), sandbox.KindNotFound)
			s.refusedClaim(connection(sandbox.NewID(), 1, 1), sandbox.KindNotFound)
		},
		"a spent certificate is refused, also after its connections closed": func(t *testing.T, s *suite) {
			r := s.ready(row("t", ""))
			s.issue(r.ID, 1)
			_, err := s.claim(connection(r.ID, 1, 1))
			s.must(err)
			s.refusedClaim(connection(r.ID, 1, 2), sandbox.KindPolicy)
			s.close(1, start, true)
			s.refusedClaim(connection(r.ID, 1, 2), sandbox.KindPolicy)
		},
		"a revoked certificate is refused": func(t *testing.T, s *suite) {
			r := s.ready(row("t", ""))
			s.issue(r.ID, 0)
			s.must(s.store.RevokeCertificate(s.ctx(), 1, start, event(sandbox.EventCertRevoked, "")))
			s.refusedClaim(connection(r.ID, 1, 1), sandbox.KindPolicy)
		},
		"another sandbox's certificate is refused": func(t *testing.T, s *suite) {
			s.issue(s.ready(row("t", "")).ID, 0)
			s.refusedClaim(connection(s.ready(row("t", "")).ID, 1, 1), sandbox.KindPolicy)
		},
		"only ready and running sandboxes are claimed": func(t *testing.T, s *suite) {
			r := s.insert(row("t", ""))
			s.issue(r.ID, 0)
			for _, state := range []sandbox.State{
				sandbox.StateAccepted, sandbox.StateStarting, sandbox.StateDraining,
				sandbox.StateDestroyed,
			} {
				s.set(r.ID, func(r *sandbox.Sandbox) {
					if r.State = state; state.Final() {
						r.EndedAt = start
					}
				})
				s.refusedClaim(connection(r.ID, 1, 1), sandbox.KindGone)
			}
		},
		"connections are bounded": func(t *testing.T, s *suite) {
			r := s.ready(row("t", ""))
			s.issue(r.ID, 0)
			for n := range sandbox.MaxConnections {
				_, err := s.claim(connection(r.ID, 1, n))
				s.must(err)
			}
			s.refusedClaim(connection(r.ID, 1, 99), sandbox.KindQuota)
			s.close(3, start, true)
			_, err := s.claim(connection(r.ID, 1, 99))
			s.must(err)
		},
		"a connection's id twice is a conflict": func(t *testing.T, s *suite) {
			r := s.ready(row("t", ""))
			s.issue(r.ID, 0)
			_, err := s.claim(connection(r.ID, 1, 1))
			s.must(err)
			s.refusedClaim(connection(r.ID, 1, 1), sandbox.KindConflict)
		},
		"the last exit starts the grace period": func(t *testing.T, s *suite) {
			r := s.twoConnections(sandbox.OnExitDestroy)
			at := start.Add(time.Minute)
			s.close(1, start, true)
			got, err := s.store.Get(s.ctx(), r.ID)
			s.must(err)
			s.equal("after the first", got, r)
			s.close(2, at, true)
			got, err = s.store.Get(s.ctx(), r.ID)
			s.must(err)
			r.State, r.LastActivity, r.GraceUntil = sandbox.StateReady, at, at.Add(r.Spec.Lifecycle.Grace)
			s.equal("after the last", got, r)
		},
		"a loss starts no grace period": func(t *testing.T, s *suite) {
			r := s.twoConnections(sandbox.OnExitDestroy)
			s.close(1, start, true)
			s.close(2, start.Add(time.Second), false)
			s.afterLast(r)
		},
		"nor does an exit of a sandbox to keep": func(t *testing.T, s *suite) {
			r := s.twoConnections(sandbox.OnExitKeep)
			s.close(1, start, true)
			s.close(2, start.Add(time.Second), true)
			s.afterLast(r)
		},
		"closing is idempotent": func(t *testing.T, s *suite) {
			s.twoConnections(sandbox.OnExitDestroy)
			s.close(1, start, true)
			s.unchanged(func() {
				closed, err := s.store.CloseConnection(s.ctx(), connection("", 0, 1).ID, start.Add(1), false, "lost", event(sandbox.EventSessionClosed, ""))
				if closed || err != nil {
					t.Errorf("CloseConnection again = %t, %v, want false and no error", closed, err)
				}
			})
			_, err := s.store.CloseConnection(s.ctx(), "con_none", start, false, "lost", event(sandbox.EventSessionClosed, ""))
			s.refused(err, sandbox.KindNotFound)
		},
		"closing leaves a draining sandbox draining": func(t *testing.T, s *suite) {
			r := s.twoConnections(sandbox.OnExitDestroy)
			r = s.set(r.ID, func(r *sandbox.Sandbox) { r.State = sandbox.StateDraining })
			s.close(1, start, true)
			s.close(2, start, true)
			got, err := s.store.Get(s.ctx(), r.ID)
			s.must(err)
			s.equal("Get", got, r)
		},
		"open connections are listed for one sandbox and for all": func(t *testing.T, s *suite) {
			a, b := s.ready(row("t", "")), s.ready(row("t", ""))
			s.issue(a.ID, 0)
			s.issue(b.ID, 0)
			conns := []sandbox.Connection{connection(a.ID, 1, 1), connection(b.ID, 2, 2), connection(a.ID, 1, 3)}
			for _, c := range conns {
				_, err := s.claim(c)
				s.must(err)
			}
			s.close(3, start, true)
			for _, tt := range []struct {
				id   sandbox.ID
				want []sandbox.Connection
			}{{"", conns[:2]}, {a.ID, conns[:1]}, {b.ID, conns[1:2]}, {sandbox.NewID(), nil}} {
				got, err := s.store.OpenConnections(s.ctx(), tt.id)
				s.must(err)
				s.equal("OpenConnections", got, tt.want)
			}
		},
	}
}

func (s *suite) refusedClaim(c sandbox.Connection, kind sandbox.Kind) {
	s.Helper()
	s.unchanged(func() {
		_, err := s.claim(c)
		s.refused(err, kind)
	})
}

func (s *suite) close(n int, at time.Time, exited bool) {
	s.Helper()
	closed, err := s.store.CloseConnection(s.ctx(), connection("", 0, n).ID, at, exited, "exit", event(sandbox.EventSessionClosed, ""))
	s.must(err)
	s.equal("closed", closed, true)
}

// twoConnections makes a running sandbox with the connections 1 and 2.
func (s *suite) twoConnections(onExit sandbox.OnExit) sandbox.Sandbox {
	s.Helper()
	r := row("t", "")
	r.Spec.Lifecycle.OnExit = onExit
	r.Digest = r.Spec.Digest()
	r = s.ready(r)
	s.issue(r.ID, 0)
	var err error
	for n := 1; n <= 2; n++ {
		r, err = s.claim(connection(r.ID, 1, n))
		s.must(err)
	}
	return r
}

// afterLast checks that the sandbox waits for its idle timeout only.
func (s *suite) afterLast(r sandbox.Sandbox) {
	s.Helper()
	got, err := s.store.Get(s.ctx(), r.ID)
	s.must(err)
	r.State, r.LastActivity = sandbox.StateReady, start.Add(time.Second)
	s.equal("after the last", got, r)
}
