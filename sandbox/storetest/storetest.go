package storetest

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/podspawn/podspawn/sandbox"

	"github.com/google/go-cmp/cmp"
)

// Run tests a Store. open returns an empty one that is closed when t ends.
func Run(t *testing.T, open func(t *testing.T) sandbox.Store) {
	groups := []struct {
		name  string
		tests map[string]func(*testing.T, *suite)
	}{
		{"insert", insertTests()},
		{"read", readTests()},
		{"update", updateTests()},
		{"certificate", certificateTests()},
		{"connection", connectionTests()},
		{"pool", poolTests()},
		{"token", tokenTests()},
		{"user", userTests()},
		{"revocation", revocationTests()},
		{"events", eventTests()},
		{"parallel", parallelTests()},
	}
	for _, g := range groups {
		for name, test := range g.tests {
			t.Run(g.name+"/"+name, func(t *testing.T) { test(t, &suite{T: t, store: open(t)}) })
		}
	}
}

// start is the suite's own time: a store never asks for the present.
var start = time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)

// suite is one test with its store.
type suite struct {
	*testing.T
	store sandbox.Store
}

func (s *suite) ctx() context.Context { return s.Context() }

// must fails the test when err is not nil.
func (s *suite) must(err error) {
	s.Helper()
	if err != nil {
		s.Fatalf("got %v, want no error", err)
	}
}

// refused fails the test unless err is an *Error of the kind, with a hint.
func (s *suite) refused(err error, kind sandbox.Kind) {
	s.Helper()
	if err == nil || sandbox.KindOf(err) != kind {
		s.Fatalf("got %v, want %s", err, kind)
	}
	if sandbox.Public(err).Hint == "" {
		s.Errorf("%v has no hint", err)
	}
}

func (s *suite) equal(what string, got, want any) {
	s.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		s.Fatalf("%s (-want +got):\n%s", what, diff)
	}
}

// row is a sandbox to insert, all of whose fields are set that Insert keeps.
func row(tenant, name string) sandbox.Sandbox {
	spec := sandbox.Spec{Name: name, Image: "podspawn/base", Env: map[string]string{"A": "b\n\"'"}, User: "dev"}.
		WithDefaults(sandbox.BuiltinDefaults())
	return sandbox.Sandbox{
		ID: sandbox.NewID(), Tenant: tenant, Subject: tenant + "-subject", Name: name,
		Labels: map[string]string{"team": "a", "x.y/z": "1"}, Spec: spec, Digest: spec.Digest(), State: sandbox.StateAccepted,
		User: "dev", ImageID: "sha256:1", Portal: 1<<64 - 1, SocketDev: 7, SocketIno: 1 << 63,
		CreatedAt: start, ExpiresAt: start.Add(time.Hour), LastActivity: start.Add(time.Nanosecond),
	}
}

func event(kind sandbox.EventKind, id sandbox.ID) sandbox.Event {
	return sandbox.Event{Time: start, Event: kind, Sandbox: id, Actor: sandbox.ActorSystem}
}

// insert makes a sandbox without quotas.
func (s *suite) insert(r sandbox.Sandbox) sandbox.Sandbox {
	s.Helper()
	got, err := s.store.Insert(s.ctx(), r, sandbox.Quota{}, event(sandbox.EventSandboxCreated, r.ID))
	s.must(err)
	return got
}

// ready makes a sandbox that can be connected to.
func (s *suite) ready(r sandbox.Sandbox) sandbox.Sandbox {
	s.Helper()
	return s.set(s.insert(r).ID, func(r *sandbox.Sandbox) { r.State, r.ReadyAt = sandbox.StateReady, start })
}

func (s *suite) set(id sandbox.ID, change func(*sandbox.Sandbox)) sandbox.Sandbox {
	s.Helper()
	got, err := s.store.Update(s.ctx(), id, func(r *sandbox.Sandbox) ([]sandbox.Event, error) {
		change(r)
		return nil, nil
	})
	s.must(err)
	return got
}

func (s *suite) end(id sandbox.ID, at time.Time) {
	s.Helper()
	s.set(id, func(r *sandbox.Sandbox) { r.State, r.EndedAt = sandbox.StateDestroyed, at })
}

// issue makes a certificate for the sandbox.
func (s *suite) issue(id sandbox.ID, uses int) sandbox.Certificate {
	s.Helper()
	c, err := s.store.Issue(s.ctx(), func(serial uint64) (sandbox.Certificate, sandbox.Event, error) {
		return certificate(serial, id, uses), event(sandbox.EventCertIssued, id), nil
	})
	s.must(err)
	return c
}

func certificate(serial uint64, id sandbox.ID, uses int) sandbox.Certificate {
	return sandbox.Certificate{
		Serial: serial, Sandbox: id, Tenant: "t", Subject: "s", Token: "tok_x", KeyID: "podspawn:h:l:s",
		Blob: []byte{0, 1, 0xff, byte(serial)}, Fingerprint: "SHA256:x", Uses: uses,
		IssuedAt: start, ValidBefore: start.Add(5 * time.Minute),
	}
}

func connection(id sandbox.ID, serial uint64, n int) sandbox.Connection {
	return sandbox.Connection{
		ID: fmt.Sprintf("con_%016d", n), Sandbox: id, Serial: serial, Source: "192.0.2.1",
		Monitor: sandbox.Process{PID: 100 + n, Start: 1<<63 + uint64(n)}, OpenedAt: start.Add(time.Duration(n)),
	}
}

func (s *suite) claim(c sandbox.Connection) (sandbox.Sandbox, error) {
	return s.store.Claim(s.ctx(), c, event(sandbox.EventSessionOpened, c.Sandbox))
}

// events returns the whole log and checks that it is one unbroken chain.
func (s *suite) events() []sandbox.Event {
	s.Helper()
	got, err := s.store.Events(s.ctx(), 0, 1000)
	s.must(err)
	prev := sandbox.GenesisHash
	for i, e := range got {
		line, err := e.Line()
		s.must(err)
		if _, err := sandbox.ParseLine(line); err != nil {
			s.Fatalf("event %d: %v", i+1, err)
		}
		if e.Seq != int64(i+1) || e.Prev != prev {
			s.Fatalf("event %d has seq %d and prev %s, want prev %s", i+1, e.Seq, e.Prev, prev)
		}
		prev = e.Hash
	}
	return got
}

// unchanged runs f, which fails, and checks that the store is as it was.
func (s *suite) unchanged(f func()) {
	s.Helper()
	before := s.snapshot()
	f()
	s.equal("the state after an error", s.snapshot(), before)
}

func (s *suite) snapshot() any {
	s.Helper()
	rows, err := s.store.List(s.ctx(), sandbox.Filter{Limit: 1000})
	s.must(err)
	conns, err := s.store.OpenConnections(s.ctx(), "")
	s.must(err)
	tokens, err := s.store.Tokens(s.ctx(), "")
	s.must(err)
	var certs []sandbox.Certificate
	for serial := uint64(1); ; serial++ {
		c, err := s.store.Certificate(s.ctx(), serial)
		if err != nil {
			break
		}
		certs = append(certs, c)
	}
	return []any{rows, conns, tokens, certs, s.events()}
}
