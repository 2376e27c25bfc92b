package storetest

import (
	"testing"
	"time"

	"github.com/podspawn/podspawn/sandbox"
)

func revocationTests() map[string]func(*testing.T, *suite) {
	return map[string]func(*testing.T, *suite){
		"certificates are selected by each field and all of them": func(t *testing.T, s *suite) {
			a, b := s.ready(row("t", "")), s.ready(row("t", ""))
			one, two := s.issue(a.ID, 0), s.issue(a.ID, 0)
			three := s.issue(b.ID, 1)
			s.must(s.store.RevokeCertificate(s.ctx(), two.Serial, start, event(sandbox.EventCertRevoked, a.ID)))
			for name, tc := range map[string]struct {
				f    sandbox.CertificateFilter
				want []uint64
			}{
				"everything":           {sandbox.CertificateFilter{}, []uint64{one.Serial, two.Serial, three.Serial}},
				"of a sandbox":         {sandbox.CertificateFilter{Sandbox: a.ID}, []uint64{one.Serial, two.Serial}},
				"of a token":           {sandbox.CertificateFilter{Token: "tok_x"}, []uint64{one.Serial, two.Serial, three.Serial}},
				"of no such token":     {sandbox.CertificateFilter{Token: "tok_none"}, nil},
				"of a key id":          {sandbox.CertificateFilter{KeyID: "podspawn:h:l:s", Sandbox: b.ID}, []uint64{three.Serial}},
				"of another tenant":    {sandbox.CertificateFilter{Tenant: "other"}, nil},
				"revoked":              {sandbox.CertificateFilter{Revoked: true}, []uint64{two.Serial}},
				"still valid":          {sandbox.CertificateFilter{ValidAfter: start}, []uint64{one.Serial, two.Serial, three.Serial}},
				"expired":              {sandbox.CertificateFilter{ValidAfter: start.Add(5 * time.Minute)}, nil},
				"revoked in a sandbox": {sandbox.CertificateFilter{Revoked: true, Sandbox: b.ID}, nil},
			} {
				got, err := s.store.Certificates(s.ctx(), tc.f)
				s.must(err)
				var serials []uint64
				for _, c := range got {
					serials = append(serials, c.Serial)
				}
				s.equal(name, serials, tc.want)
			}
		},
	}
}

func tokenTests() map[string]func(*testing.T, *suite) {
	token := func(id, tenant string) sandbox.APIToken {
		return sandbox.APIToken{
			ID: id, Tenant: tenant, Subject: "s", Scopes: []sandbox.Scope{sandbox.ScopeRead, sandbox.ScopeRun},
			Caps: sandbox.Caps{MaxSandboxes: 3, MaxTTL: time.Hour}, IssuedAt: start, ExpiresAt: start.Add(time.Hour),
		}
	}
	issued := event(sandbox.EventTokenIssued, "")
	return map[string]func(*testing.T, *suite){
		"keeps every field and lists newest first": func(t *testing.T, s *suite) {
			a, b, c := token("tok_a", "t"), token("tok_b", "other"), token("tok_c", "t")
			for _, tok := range []sandbox.APIToken{a, b, c} {
				s.must(s.store.AddToken(s.ctx(), tok, issued))
			}
			got, err := s.store.Token(s.ctx(), "tok_b")
			s.must(err)
			s.equal("Token", got, b)
			all, err := s.store.Tokens(s.ctx(), "")
			s.must(err)
			s.equal("Tokens of all", all, []sandbox.APIToken{c, b, a})
			own, err := s.store.Tokens(s.ctx(), "t")
			s.must(err)
			s.equal("Tokens of t", own, []sandbox.APIToken{c, a})
			s.equal("events", len(s.events()), 3)
		},
		"an id twice is a conflict": func(t *testing.T, s *suite) {
			s.must(s.store.AddToken(s.ctx(), token("tok_a", "t"), issued))
			s.unchanged(func() { s.refused(s.store.AddToken(s.ctx(), token("tok_a", "other"), issued), sandbox.KindConflict) })
		},
		"revocation is idempotent and its first time stays": func(t *testing.T, s *suite) {
			revoked := event(sandbox.EventTokenRevoked, "")
			s.must(s.store.AddToken(s.ctx(), token("tok_a", "t"), issued))
			s.must(s.store.RevokeToken(s.ctx(), "tok_a", start, revoked))
			s.unchanged(func() { s.must(s.store.RevokeToken(s.ctx(), "tok_a", start.Add(1), revoked)) })
			got, err := s.store.Token(s.ctx(), "tok_a")
			s.must(err)
			s.equal("RevokedAt", got.RevokedAt, start)
		},
		"what does not exist is not found": func(t *testing.T, s *suite) {
			_, err := s.store.Token(s.ctx(), "tok_none")
			s.refused(err, sandbox.KindNotFound)
			s.refused(s.store.RevokeToken(s.ctx(), "tok_none", start, issued), sandbox.KindNotFound)
		},
	}
}

func eventTests() map[string]func(*testing.T, *suite) {
	return map[string]func(*testing.T, *suite){
		"are numbered and chained and keep every field": func(t *testing.T, s *suite) {
			want := sandbox.Event{
				Time: start, Event: sandbox.EventCommandStarted, Tenant: "t", Subject: "s", Actor: sandbox.ActorAgent,
				Sandbox: "sbx_x", SpecDigest: "sha256:x", Token: "tok_x", Serial: 1<<64 - 1, Source: "192.0.2.1", Session: "con_x",
				Reason: "r", Detail: map[string]string{"command": "a <b> \"c\" \u2028 ü"},
			}
			s.must(s.store.Append(s.ctx(), want, event(sandbox.EventCommandFinished, "sbx_x")))
			s.must(s.store.Append(s.ctx()))
			got := s.events()
			s.equal("number of events", len(got), 2)
			want.Seq, want.Prev, want.Hash = 1, sandbox.GenesisHash, got[0].Hash
			s.equal("the first event", got[0], want)
		},
		"hold a chain also with bytes that are no text": func(t *testing.T, s *suite) {
			s.must(s.store.Append(s.ctx(), sandbox.Event{Time: start.In(time.FixedZone("x", 3600)), Reason: "\xff\x00\n", Detail: map[string]string{"\xfe": "\xed\xa0\x80"}}))
			s.equal("number of events", len(s.events()), 1)
		},
		"one that is too large changes nothing": func(t *testing.T, s *suite) {
			s.unchanged(func() {
				big := sandbox.Event{Time: start, Reason: string(make([]byte, sandbox.MaxEventLine))}
				if err := s.store.Append(s.ctx(), event(sandbox.EventSetupChanged, ""), big); err == nil {
					t.Error("Append succeeded, want an error")
				}
			})
		},
		"are paged": func(t *testing.T, s *suite) {
			for range 5 {
				s.must(s.store.Append(s.ctx(), event(sandbox.EventSetupChanged, "")))
			}
			got, err := s.store.Events(s.ctx(), 2, 2)
			s.must(err)
			s.equal("seqs", []int64{got[0].Seq, got[1].Seq}, []int64{3, 4})
			got, err = s.store.Events(s.ctx(), 5, 2)
			s.must(err)
			s.equal("events after the last", len(got), 0)
		},
		"refusals are a sandbox's own, newest first": func(t *testing.T, s *suite) {
			refusal := func(id sandbox.ID, reason string) sandbox.Event {
				e := event(sandbox.EventCertRefused, id)
				e.Reason = reason
				return e
			}
			s.must(s.store.Append(s.ctx(), refusal("sbx_a", "1"), refusal("sbx_b", "2"), event(sandbox.EventCertAccepted, "sbx_a"),
				refusal("sbx_a", "3"), refusal("sbx_a", "4"), refusal("", "5")))
			got, err := s.store.RefusalsOf(s.ctx(), "sbx_a", 2)
			s.must(err)
			s.equal("reasons", []string{got[0].Reason, got[1].Reason}, []string{"4", "3"})
			got, err = s.store.RefusalsOf(s.ctx(), "sbx_c", 2)
			s.must(err)
			s.equal("refusals of another", len(got), 0)
		},
		"a request is remembered for 24 hours": func(t *testing.T, s *suite) {
			remember := func(tenant, key, digest, value string, at time.Time, wantDigest, wantValue string, wantFresh bool) {
				t.Helper()
				d, v, fresh, err := s.store.Remember(s.ctx(), tenant, key, digest, value, at)
				s.must(err)
				if d != wantDigest || v != wantValue || fresh != wantFresh {
					t.Errorf("Remember(%s, %s) = %s, %s, %t, want %s, %s, %t", tenant, key, d, v, fresh, wantDigest, wantValue, wantFresh)
				}
			}
			day := 24 * time.Hour
			remember("t", "k", "d1", "v1", start, "d1", "v1", true)
			remember("t", "k", "d2", "v2", start.Add(day-1), "d1", "v1", false)
			remember("other", "k", "d3", "v3", start, "d3", "v3", true)
			remember("t", "l", "d4", "v4", start, "d4", "v4", true)
			remember("t", "k", "d5", "v5", start.Add(day), "d5", "v5", true)
			s.equal("events", len(s.events()), 0)
		},
		"an ended ctx changes nothing": func(t *testing.T, s *suite) {
			r := s.insert(row("t", ""))
			s.unchanged(func() {
				ctx, cancel := contextEnded()
				defer cancel()
				if err := s.store.Append(ctx, event(sandbox.EventSetupChanged, "")); err == nil {
					t.Error("Append with an ended ctx succeeded")
				}
				if _, err := s.store.Update(ctx, r.ID, func(r *sandbox.Sandbox) ([]sandbox.Event, error) {
					r.State = sandbox.StateReady
					return nil, nil
				}); err == nil {
					t.Error("Update with an ended ctx succeeded")
				}
			})
		},
	}
}
