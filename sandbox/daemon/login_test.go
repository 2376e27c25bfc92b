package daemon

import (
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/podspawn/podspawn/ephemeralkeys"
	"github.com/podspawn/podspawn/sandbox"
	"github.com/podspawn/podspawn/sandbox/localapi"
)

// asPrincipals and asPAM are what the hooks ask with a certificate.
func asPrincipals(login string, cert *ssh.Certificate) localapi.PrincipalsRequest {
	return localapi.PrincipalsRequest{User: login, KeyType: cert.Type(), Key: base64.StdEncoding.EncodeToString(cert.Marshal())}
}

func asPAM(login string, cert *ssh.Certificate) localapi.PAMOpenRequest {
	return localapi.PAMOpenRequest{User: login, AuthInfo: "publickey " + strings.TrimSpace(string(ssh.MarshalAuthorizedKey(cert))) + "\n", Source: "192.0.2.7"}
}

func (w *world) events(kind sandbox.EventKind) (found []sandbox.Event) {
	w.t.Helper()
	evs, err := w.store.Events(w.t.Context(), 0, 1000)
	if err != nil {
		w.t.Fatal(err)
	}
	return slices.DeleteFunc(evs, func(e sandbox.Event) bool { return e.Event != kind })
}

func (w *world) open(id sandbox.ID) []sandbox.Connection {
	w.t.Helper()
	conns, err := w.store.OpenConnections(w.t.Context(), id)
	if err != nil {
		w.t.Fatal(err)
	}
	return conns
}

func TestLogin(t *testing.T) {
	needRoot(t)
	w := open(t)
	row := w.ready()
	login := row.ID.Login()
	cert := w.issue(row, nil)
	m := w.monitor()

	for range 2 { // as sshd does
		r := m.ask(order{UID: authUID, Op: localapi.OpPrincipals}, asPrincipals(login, cert))
		if want := `{"line":"restrict,pty,port-forwarding ` + login + `"}`; string(r.Body) != want {
			t.Fatalf("principals = %s, %+v, want %s", r.Body, r.Err, want)
		}
	}
	if n := len(w.open(row.ID)); n != 0 {
		t.Errorf("%d connections before PAM's step", n)
	}
	if r := m.ask(order{UID: row.UID, Op: localapi.OpSession}, localapi.SessionRequest{}); r.Err == nil || r.File {
		t.Errorf("session before the claim = %+v, want refused", r)
	}
	if r := m.ask(order{Op: localapi.OpPAMOpen}, asPAM(login, cert)); r.Err != nil {
		t.Fatalf("pam-open: %+v", r.Err)
	}
	if n := w.relays.Load(); n != 1 {
		t.Errorf("%d relays were started, want 1", n)
	}
	conns := w.open(row.ID)
	if len(conns) != 1 || conns[0].Monitor != m.Process || conns[0].Serial != cert.Serial || conns[0].Source != "192.0.2.7" {
		t.Fatalf("connections = %+v, want one below %+v", conns, m.Process)
	}

	r := m.ask(order{UID: row.UID, Op: localapi.OpSession, Hold: true}, localapi.SessionRequest{PTY: true})
	if r.Err != nil || !r.File {
		t.Fatalf("session = %+v, want a descriptor", r)
	}
	w.guests.mu.Lock()
	p := w.guests.got[len(w.guests.got)-1]
	w.guests.mu.Unlock()
	if p.Login != login || p.Deadline != row.ExpiresAt.Unix() || fmt.Sprint(p.Rights) != "[exec pty sftp]" {
		t.Errorf("the guest was told %+v", p)
	}

	other, stranger := w.ready(), w.monitor()
	for name, r := range map[string]reply{
		"another sandbox's process in this connection": m.ask(order{UID: other.UID, Op: localapi.OpSession}, localapi.SessionRequest{}),
		"this sandbox's process in no connection":      stranger.ask(order{UID: row.UID, Op: localapi.OpSession}, localapi.SessionRequest{}),
		"one that left its connection":                 m.ask(order{UID: row.UID, Op: localapi.OpSession, Orphan: true}, localapi.SessionRequest{}),
		"a uid of no sandbox":                          m.ask(order{UID: sandbox.MaxUID, Op: localapi.OpSession}, localapi.SessionRequest{}),
	} {
		if r.Err == nil || r.File {
			t.Errorf("%s: %+v, want refused", name, r)
		}
	}

	if r := m.ask(order{Op: localapi.OpPAMClose}, localapi.PAMCloseRequest{User: login}); r.Err != nil {
		t.Errorf("pam-close: %+v", r.Err)
	}
	m.end()
	eventually(t, func() error {
		if n := len(w.open(row.ID)); n != 0 {
			return fmt.Errorf("%d connections are open", n)
		}
		return w.nothingHeld()
	})
	evs := w.events(sandbox.EventSessionClosed)
	if len(evs) != 1 || evs[0].Reason != noteLost || evs[0].Session != conns[0].ID {
		t.Errorf("session.closed = %+v, want one that was lost", evs)
	}
	if n := len(w.events(sandbox.EventSessionOpened)); n != 1 {
		t.Errorf("%d sessions opened, want 1", n)
	}
}

// Each certificate is refused twice: to the principals hook, before the key is
// proved, and to PAM's, after it.
func TestCertificatesThatAreRefused(t *testing.T) {
	needRoot(t)
	w := open(t)
	row, other := w.ready(), w.ready()
	login := row.ID.Login()
	resign := func(c *ssh.Certificate) *ssh.Certificate {
		t.Helper()
		key := w.issue(row, nil) // another nonce, the same authority
		c.Nonce, c.SignatureKey, c.Signature = key.Nonce, key.SignatureKey, key.Signature
		return c
	}
	for _, c := range []struct {
		name, why string
		cert      func() *ssh.Certificate
	}{
		{"of another sandbox", "principals", func() *ssh.Certificate { return w.issue(other, nil) }},
		{"changed after it was signed", "signature", func() *ssh.Certificate { return resign(w.issue(row, nil)) }},
		{"signed, but never issued", "not the one issued", func() *ssh.Certificate {
			// Issued under the serial is another: the store keeps what sign returned.
			cert := w.issue(row, nil)
			again, err := w.UserCA.Issue(ephemeralkeys.Grant{
				Serial: cert.Serial, KeyID: cert.KeyId, Principal: login, PublicKey: cert.Key, Now: time.Now(), ForceCommand: testCommand,
				Binding: ephemeralkeys.Binding{Sandbox: string(row.ID), Spec: string(row.Digest)},
			})
			if err != nil {
				t.Fatal(err)
			}
			return again
		}},
		{"signed under a serial that nobody has", "no certificate was issued", func() *ssh.Certificate {
			cert := w.issue(row, nil)
			again, err := w.UserCA.Issue(ephemeralkeys.Grant{
				Serial: 1 << 40, KeyID: cert.KeyId, Principal: login, PublicKey: cert.Key, Now: time.Now(), ForceCommand: testCommand,
				Binding: ephemeralkeys.Binding{Sandbox: string(row.ID), Spec: string(row.Digest)},
			})
			if err != nil {
				t.Fatal(err)
			}
			return again
		}},
		{"bound to another sandbox", "another sandbox or spec", func() *ssh.Certificate { return w.foreign(row, string(other.ID), string(row.Digest)) }},
		{"bound to another spec", "another sandbox or spec", func() *ssh.Certificate {
			return w.foreign(row, string(row.ID), "sha256:"+strings.Repeat("0", 64))
		}},
		{"expired", "expired", func() *ssh.Certificate {
			return w.issue(row, func(g *ephemeralkeys.Grant) { g.Now = time.Now().Add(-time.Hour) })
		}},
		{"of a revoked token", "token", func() *ssh.Certificate {
			tok := w.token("t1")
			cert := w.issue(row, func(g *ephemeralkeys.Grant) { g.Binding.Token = tok })
			if err := w.store.RevokeToken(t.Context(), tok, time.Now(), sandbox.Event{Time: time.Now(), Event: sandbox.EventTokenIssued}); err != nil {
				t.Fatal(err)
			}
			return cert
		}},
		{"revoked", "certificate was revoked", func() *ssh.Certificate {
			cert := w.issue(row, nil)
			if err := w.store.RevokeCertificate(t.Context(), cert.Serial, time.Now(), sandbox.Event{Time: time.Now(), Event: sandbox.EventCertIssued}); err != nil {
				t.Fatal(err)
			}
			return cert
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := w.monitor()
			cert := c.cert()
			w.refused.mu.Lock()
			clear(w.refused.written) // two cases have one reason
			w.refused.mu.Unlock()
			before := len(w.events(sandbox.EventCertRefused))
			if r := m.ask(order{UID: authUID, Op: localapi.OpPrincipals}, asPrincipals(login, cert)); r.Err == nil || r.Body != nil {
				t.Errorf("principals = %+v, want refused", r)
			}
			evs := w.events(sandbox.EventCertRefused)
			if len(evs) != before+1 || !strings.Contains(evs[len(evs)-1].Reason, c.why) {
				t.Errorf("audit log has %+v, want a reason with %q", evs[before:], c.why)
			}
			m.ask(order{Op: localapi.OpPAMOpen}, asPAM(login, cert))
			if n := len(w.open(row.ID)); n != 0 {
				t.Fatalf("%d connections were claimed", n)
			}
			if r := m.ask(order{UID: row.UID, Op: localapi.OpSession}, localapi.SessionRequest{}); r.Err == nil || r.File {
				t.Errorf("session = %+v, want refused", r)
			}
		})
	}
}

// A connection whose certificate is spent lives until its client has read why.
func TestRefusedConnectionHearsWhyAndEnds(t *testing.T) {
	needRoot(t)
	w := open(t)
	row := w.ready()
	login := row.ID.Login()
	cert := w.issue(row, func(g *ephemeralkeys.Grant) { g.Binding.Uses = 1 })
	first, second := w.monitor(), w.monitor()
	if r := first.ask(order{Op: localapi.OpPAMOpen}, asPAM(login, cert)); r.Err != nil {
		t.Fatalf("first login: %+v", r.Err)
	}
	if r := second.ask(order{Op: localapi.OpPAMOpen}, asPAM(login, cert)); r.Err != nil {
		t.Fatalf("second login: %+v, want it let in to be told", r.Err)
	}
	began := time.Now()
	r := second.ask(order{UID: row.UID, Op: localapi.OpSession, Hold: true}, localapi.SessionRequest{})
	if r.Err == nil || r.File || !strings.Contains(r.Err.Msg, "used up") {
		t.Errorf("session = %+v, want the reason", r)
	}
	eventually(t, func() error {
		if alive(second.Process) {
			return errors.New("the refused connection is alive")
		}
		return nil
	})
	if took := time.Since(began); took > 4*time.Second {
		t.Errorf("the refused connection lived for %s", took)
	}
	if !alive(first.Process) || len(w.open(row.ID)) != 1 {
		t.Error("the first connection did not survive")
	}
}

// N logins with a certificate for one: one wins, also in the state.
func TestParallelClaimsOfOneUse(t *testing.T) {
	needRoot(t)
	w := open(t)
	row := w.ready()
	cert := w.issue(row, func(g *ephemeralkeys.Grant) { g.Binding.Uses = 1 })
	var wg sync.WaitGroup
	for range 8 {
		m := w.monitor()
		wg.Go(func() { m.ask(order{Op: localapi.OpPAMOpen}, asPAM(row.ID.Login(), cert)) })
	}
	wg.Wait()
	if n := len(w.open(row.ID)); n != 1 {
		t.Errorf("%d connections, want 1", n)
	}
}

// What a login stands on is missing: nobody gets in, whatever they hold.
func TestNoLoginOnBrokenGround(t *testing.T) {
	needRoot(t)
	broken := errors.New("broken")
	for name, change := range map[string]func(*Config){
		"set-up":    func(c *Config) { c.SetupIntact = func() error { return broken } },
		"host rule": func(c *Config) { c.HostRule = func() error { return broken } },
		"namespace of both": func(c *Config) {
			c.NetNS = func(int) (uint64, error) { return 41, nil }
		},
		"namespace of the hook alone": func(c *Config) {
			n := 0
			c.NetNS = func(int) (uint64, error) { n++; return 41 + uint64(n)%2, nil }
		},
		"namespace of sshd alone": func(c *Config) {
			n := 0
			c.NetNS = func(int) (uint64, error) { n++; return 42 - uint64(n)%2, nil }
		},
		"namespace unknown": func(c *Config) { c.NetNS = func(int) (uint64, error) { return 0, broken } },
	} {
		t.Run(name, func(t *testing.T) {
			w := open(t, change)
			row := w.ready()
			cert := w.issue(row, nil)
			m := w.monitor()
			if r := m.ask(order{Op: localapi.OpPAMOpen}, asPAM(row.ID.Login(), cert)); r.Err == nil {
				t.Error("pam-open succeeds")
			}
			if n := len(w.open(row.ID)); n != 0 {
				t.Errorf("%d connections were claimed", n)
			}
			if strings.HasPrefix(name, "namespace") {
				return
			}
			if r := m.ask(order{UID: authUID, Op: localapi.OpPrincipals}, asPrincipals(row.ID.Login(), cert)); r.Err == nil || r.Body != nil {
				t.Errorf("principals = %+v, want refused", r)
			}
		})
	}
	t.Run("no portal", func(t *testing.T) {
		w := open(t, func(c *Config) { c.NetNS = func(int) (uint64, error) { return 0, nil } })
		row := w.ready()
		w.change(row.ID, func(s *sandbox.Sandbox) { s.Portal = 0 })
		if r := w.monitor().ask(order{Op: localapi.OpPAMOpen}, asPAM(row.ID.Login(), w.issue(row, nil))); r.Err == nil || len(w.open(row.ID)) != 0 {
			t.Errorf("pam-open = %+v, want refused", r)
		}
	})
	t.Run("a hook that is not root's", func(t *testing.T) {
		w := open(t)
		row := w.ready()
		if _, err := w.monitorOf(w.monitor().ask(order{UID: 1000, Sleeper: true, Hold: true}, nil).PID, row.Portal); err == nil {
			t.Error("a hook that is not root's may claim")
		}
	})
}

func TestChannelsOfOneSandboxAreBounded(t *testing.T) {
	needRoot(t)
	w := open(t)
	row := w.ready()
	m := w.monitor()
	if r := m.ask(order{Op: localapi.OpPAMOpen}, asPAM(row.ID.Login(), w.issue(row, nil))); r.Err != nil {
		t.Fatal(r.Err)
	}
	for range sandbox.MaxChannels - 1 {
		if _, err := w.Sessions.openChannel(row.ID, "con_1"); err != nil {
			t.Fatal(err)
		}
	}
	if r := m.ask(order{UID: row.UID, Op: localapi.OpSession, Hold: true}, localapi.SessionRequest{}); r.Err != nil {
		t.Fatalf("the last session: %+v", r.Err)
	}
	if r := m.ask(order{UID: row.UID, Op: localapi.OpSession}, localapi.SessionRequest{}); r.Err == nil || r.Err.Kind != sandbox.KindQuota {
		t.Errorf("one session more = %+v, want quota_exceeded", r)
	}
}

func TestSandboxThatEndsTakesNoSession(t *testing.T) {
	needRoot(t)
	w := open(t)
	row := w.ready()
	m := w.monitor()
	if r := m.ask(order{Op: localapi.OpPAMOpen}, asPAM(row.ID.Login(), w.issue(row, nil))); r.Err != nil {
		t.Fatal(r.Err)
	}
	w.change(row.ID, func(s *sandbox.Sandbox) { s.State, s.Reason = sandbox.StateDraining, sandbox.ReasonRequested })
	if r := m.ask(order{UID: row.UID, Op: localapi.OpSession}, localapi.SessionRequest{}); r.Err == nil || r.Err.Kind != sandbox.KindGone || r.File {
		t.Errorf("session = %+v, want gone", r)
	}
}

// The audit log and the memory hold whoever fails to log in a thousand times.
func TestRefusalsAreBounded(t *testing.T) {
	r, now := newRefusals(), time.Now()
	if !r.worthWriting("a", now) || r.worthWriting("a", now) || !r.worthWriting("b", now) || !r.worthWriting("a", now.Add(2*refusalEvery)) {
		t.Error("a reason is not written once a second")
	}
	why := sandbox.Errorf(sandbox.KindPolicy, "hint", "why")
	const many = maxRefusals + 200
	for i := range many {
		r.worthWriting(fmt.Sprint(i, strings.Repeat("x", 2000)), now)
		r.add(sandbox.Process{PID: i, Start: 1}, why, now)
	}
	if len(r.written) > maxRefusals+1 || len(r.byProc) > maxRefusals+1 {
		t.Errorf("%d and %d refusals are kept, want at most %d", len(r.written), len(r.byProc), maxRefusals)
	}
	for k := range r.written {
		if len(k) > 1000 {
			t.Fatalf("a key of %d bytes is kept", len(k))
		}
	}
	last := sandbox.Process{PID: many - 1, Start: 1}
	if r.of([]sandbox.Process{{PID: 1, Start: 9}, last}) == nil || r.of([]sandbox.Process{{PID: last.PID, Start: 2}}) != nil {
		t.Error("a refusal is not its process's")
	}
	r.add(sandbox.Process{PID: 1}, why, now.Add(2*refusalKept))
	if len(r.byProc) != 1 {
		t.Errorf("%d old refusals are kept", len(r.byProc)-1)
	}
}

// foreign returns a certificate that is stored as issued to row under its serial,
// but says that it is bound to another sandbox or spec.
func (w *world) foreign(row sandbox.Sandbox, id, spec string) *ssh.Certificate {
	w.t.Helper()
	good := w.issue(row, nil)
	var cert *ssh.Certificate
	_, err := w.store.Issue(w.t.Context(), func(serial uint64) (sandbox.Certificate, sandbox.Event, error) {
		var err error
		cert, err = w.UserCA.Issue(ephemeralkeys.Grant{
			Serial: serial, KeyID: good.KeyId, Principal: row.ID.Login(), PublicKey: good.Key, Now: time.Now(), ForceCommand: testCommand,
			Binding: ephemeralkeys.Binding{Sandbox: id, Spec: spec},
		})
		if err != nil {
			return sandbox.Certificate{}, sandbox.Event{}, err
		}
		return sandbox.Certificate{Serial: serial, Sandbox: row.ID, Tenant: row.Tenant, Blob: cert.Marshal(), IssuedAt: time.Now(), ValidBefore: time.Now().Add(time.Minute)},
			sandbox.Event{Time: time.Now(), Event: sandbox.EventCertIssued}, nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return cert
}
