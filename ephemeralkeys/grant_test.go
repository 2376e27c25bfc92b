package ephemeralkeys

import (
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/crypto/ssh"
)

func TestIssueFillsEveryField(t *testing.T) {
	ca := NewCA(newSigner(t))
	g := testGrant(t)
	g.SourceAddress = "192.0.2.7/24, 2001:db8::1,198.51.100.9"
	g.PortForwarding, g.Agent, g.X11 = true, true, true
	g.Binding.V = 0
	cert := issue(t, ca, g)

	if got, want := cert.CriticalOptions, map[string]string{
		"force-command":  testCommand,
		"source-address": "192.0.2.0/24,2001:db8::1/128,198.51.100.9/32",
	}; !cmp.Equal(got, want) {
		t.Errorf("critical options: %s", cmp.Diff(want, got))
	}
	if got, want := cert.Extensions, map[string]string{
		"permit-pty": "", "permit-port-forwarding": "", "permit-agent-forwarding": "", "permit-X11-forwarding": "",
		"permit@podspawn.dev": `{"v":1,"sandbox":"sbx_0123456789abcdef","spec":"sha256:` + strings.Repeat("0a", 32) + `","uses":1,"token":"tok_0123456789abcdef"}`,
	}; !cmp.Equal(got, want) {
		t.Errorf("extensions: %s", cmp.Diff(want, got))
	}
	if cert.CertType != ssh.UserCert || cert.Serial != 7 || cert.KeyId != "podspawn:host.example:"+testLogin+":alice" ||
		!cmp.Equal(cert.ValidPrincipals, []string{testLogin}) {
		t.Errorf("certificate = %+v", cert)
	}
	if after, before := int64(cert.ValidAfter), int64(cert.ValidBefore); after != testNow.Unix()-60 || before != testNow.Unix()+300 {
		t.Errorf("validity = %d…%d, want -60…+300 of %d", after, before, testNow.Unix())
	}
	parsed, err := ParseCertificate(cert.Type(), b64(cert))
	if err != nil {
		t.Fatal(err)
	}
	b, err := Verify(parsed, testLogin, []ssh.PublicKey{ca.PublicKey()}, testNow, testPolicy)
	if err != nil || b != testBinding() {
		t.Errorf("Verify = %+v, %v, want %+v", b, err, testBinding())
	}
}

func TestIssueGrantsNothingByDefault(t *testing.T) {
	g := testGrant(t)
	g.PTY = false
	cert := issue(t, NewCA(newSigner(t)), g)
	if len(cert.Extensions) != 1 || len(cert.CriticalOptions) != 1 {
		t.Errorf("extensions %v, options %v, want the binding and the forced command alone", cert.Extensions, cert.CriticalOptions)
	}
}

// TestGrantRefusals looks at what is signed, before Issue's own Verify could hide
// a missing check.
func TestGrantRefusals(t *testing.T) {
	tests := []struct {
		name string
		edit func(*Grant)
		want string // in the error; "" is accepted
	}{
		{"ok/plain", func(*Grant) {}, ""},
		{"serial/0", func(g *Grant) { g.Serial = 0 }, "serial 0 is never issued"},
		{"serial/1", func(g *Grant) { g.Serial = 1 }, ""},
		{"serial/largest but one", func(g *Grant) { g.Serial = math.MaxUint64 - 1 }, ""},
		{"serial/largest", func(g *Grant) { g.Serial = math.MaxUint64 }, "is never issued"},

		{"key id/empty", func(g *Grant) { g.KeyID = "" }, "key id"},
		{"key id/newline", func(g *Grant) { g.KeyID = "a\nb" }, "key id"},
		{"key id/newline at the end", func(g *Grant) { g.KeyID = "a\n" }, "key id"},
		{"key id/quotes", func(g *Grant) { g.KeyID = `a"b` }, "key id"},
		{"key id/command", func(g *Grant) { g.KeyID = "$(reboot)" }, "key id"},
		{"key id/space", func(g *Grant) { g.KeyID = "a b" }, "key id"},
		{"key id/not ASCII", func(g *Grant) { g.KeyID = "é" }, "key id"},
		{"key id/256", func(g *Grant) { g.KeyID = strings.Repeat("a", 256) }, ""},
		{"key id/257", func(g *Grant) { g.KeyID = strings.Repeat("a", 257) }, "key id"},

		{"principal/empty", func(g *Grant) { g.Principal = "" }, "principal"},
		{"principal/star", func(g *Grant) { g.Principal = "*" }, "principal"},
		{"principal/comma", func(g *Grant) { g.Principal = "a,root" }, "principal"},
		{"principal/newline", func(g *Grant) { g.Principal = "a\nroot" }, "principal"},
		{"principal/upper case", func(g *Grant) { g.Principal = "Root" }, "principal"},
		{"principal/dash first", func(g *Grant) { g.Principal = "-a" }, "principal"},
		{"principal/64", func(g *Grant) { g.Principal = strings.Repeat("a", 64) }, "principal"},

		{"ttl/0 is the default", func(g *Grant) { g.TTL = 0 }, ""},
		{"ttl/negative", func(g *Grant) { g.TTL = -time.Minute }, "lifetime"},
		{"ttl/under a second", func(g *Grant) { g.TTL = time.Second - 1 }, "lifetime"},
		{"ttl/a second", func(g *Grant) { g.TTL = time.Second }, ""},
		{"ttl/15 minutes", func(g *Grant) { g.TTL = 15 * time.Minute }, ""},
		{"ttl/more", func(g *Grant) { g.TTL = 15*time.Minute + 1 }, "lifetime"},
		{"now/zero", func(g *Grant) { g.Now = time.Time{} }, "clock"},
		{"now/1970", func(g *Grant) { g.Now = time.Unix(60, 0) }, "clock"},

		{"command/none", func(g *Grant) { g.ForceCommand = "" }, "forced command"},
		{"command/newline", func(g *Grant) { g.ForceCommand = "a\nb" }, "forced command"},
		{"command/too long", func(g *Grant) { g.ForceCommand = strings.Repeat("a", 1025) }, "forced command"},

		{"source/none", func(g *Grant) { g.SourceAddress = "" }, ""},
		{"source/address", func(g *Grant) { g.SourceAddress = "127.0.0.1" }, ""},
		{"source/name", func(g *Grant) { g.SourceAddress = "localhost" }, "source address"},
		{"source/empty item", func(g *Grant) { g.SourceAddress = "127.0.0.1," }, "source address"},
		{"source/negated", func(g *Grant) { g.SourceAddress = "!127.0.0.1" }, "source address"},
		{"source/octal", func(g *Grant) { g.SourceAddress = "0177.0.0.1" }, "source address"},
		{"source/zone", func(g *Grant) { g.SourceAddress = "fe80::1%eth0" }, "source address"},
		{"source/mask too long", func(g *Grant) { g.SourceAddress = "10.0.0.0/33" }, "source address"},
		{"source/quote", func(g *Grant) { g.SourceAddress = `10.0.0.0/8"` }, "source address"},
		{"source/mixed families", func(g *Grant) { g.SourceAddress = "::ffff:10.0.0.0/90" }, "source address"},
		{"source/33 networks", func(g *Grant) { g.SourceAddress = networks(33) }, "more than 32"},
		{"source/32 networks", func(g *Grant) { g.SourceAddress = networks(32) }, ""},
		{"source/long", func(g *Grant) { g.SourceAddress = strings.Repeat("10.0.0.1,", 1000) }, "too long"},

		{"binding/other version", func(g *Grant) { g.Binding.V = 2 }, "binding"},
		{"binding/no sandbox", func(g *Grant) { g.Binding.Sandbox = "" }, "binding"},
		{"binding/sandbox with newline", func(g *Grant) { g.Binding.Sandbox = "a\n" }, "binding"},
		{"binding/no digest", func(g *Grant) { g.Binding.Spec = "" }, "binding"},
		{"binding/short digest", func(g *Grant) { g.Binding.Spec = "sha256:00" }, "binding"},
		{"binding/negative uses", func(g *Grant) { g.Binding.Uses = -1 }, "binding"},
		{"binding/unlimited uses", func(g *Grant) { g.Binding.Uses = 0 }, ""},
		{"binding/token with quote", func(g *Grant) { g.Binding.Token = `"` }, "binding"},
		{"binding/no token", func(g *Grant) { g.Binding.Token = "" }, ""},

		{"key/none", func(g *Grant) { g.PublicKey = nil }, "public key"},
		{"key/rsa 1024", func(g *Grant) { g.PublicKey = weakRSA(t) }, "1024 bits"},
		{"key/certificate", func(g *Grant) { g.PublicKey = issue(t, NewCA(newSigner(t)), testGrant(t)) }, "certificate"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			g := testGrant(t)
			tt.edit(&g)
			_, err := g.certificate()
			if tt.want == "" {
				if err != nil {
					t.Fatalf("certificate() = %v, want no error", err)
				}
				if _, err := NewCA(newSigner(t)).Issue(g); err != nil {
					t.Errorf("Issue = %v, want no error", err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("certificate() = %v, want an error with %q", err, tt.want)
			}
			if _, err := NewCA(newSigner(t)).Issue(g); !errors.Is(err, ErrGrant) {
				t.Errorf("Issue = %v, want ErrGrant", err)
			}
		})
	}
}

func TestIssueNeverOutlivesWhatWasAsked(t *testing.T) {
	g := testGrant(t)
	g.Now, g.TTL = testNow.Add(900*time.Millisecond), 1500*time.Millisecond
	cert := issue(t, NewCA(newSigner(t)), g)
	if end := time.Unix(int64(cert.ValidBefore), 0); end.After(g.Now.Add(g.TTL)) {
		t.Errorf("valid until %v, want no later than %v", end, g.Now.Add(g.TTL))
	}
}

func TestNormalAddresses(t *testing.T) {
	tests := []struct{ in, want string }{
		{"10.1.2.3", "10.1.2.3/32"},
		{"10.1.2.3/8", "10.0.0.0/8"},
		{"10.0.0.0/8,10.1.2.3/8", "10.0.0.0/8"},
		{"::ffff:10.1.2.3", "10.1.2.3/32"},
		{"::ffff:10.1.2.3/104", "10.0.0.0/8"},
		{"2001:DB8:0::1/32", "2001:db8::/32"},
		{" 10.1.2.3 , ::1 ", "10.1.2.3/32,::1/128"},
	}
	for _, tt := range tests {
		got, err := normalAddresses(tt.in)
		if err != nil || got != tt.want {
			t.Errorf("normalAddresses(%q) = %q, %v, want %q", tt.in, got, err, tt.want)
		}
		if again, err := normalAddresses(got); err != nil || again != got {
			t.Errorf("normalAddresses(%q) = %q, %v, want it unchanged", got, again, err)
		}
	}
}

func TestIssueIsSafeForConcurrentUse(t *testing.T) {
	ca := NewCA(newSigner(t))
	g := testGrant(t)
	var wg sync.WaitGroup
	for i := range 32 {
		wg.Go(func() {
			g := g
			g.Serial = uint64(i + 1)
			if _, err := ca.Issue(g); err != nil {
				t.Errorf("Issue(%d) = %v", g.Serial, err)
			}
		})
	}
	wg.Wait()
}

func TestIssueAcceptsCAsOfOtherTypes(t *testing.T) {
	for name, s := range map[string]ssh.Signer{
		"rsa":   signerFor(t, rsaKey(t, 2048)),
		"ecdsa": signerFor(t, ecdsaKey(t, elliptic.P384())),
	} {
		if _, err := NewCA(s).Issue(testGrant(t)); err != nil {
			t.Errorf("%s: Issue = %v", name, err)
		}
	}
}

// brokenSigner is an agent that signs with another key than it says.
type brokenSigner struct {
	ssh.Signer
	public ssh.PublicKey
}

func (s brokenSigner) PublicKey() ssh.PublicKey { return s.public }
func (s brokenSigner) Sign(r io.Reader, data []byte) (*ssh.Signature, error) {
	return s.Signer.Sign(r, data)
}

func TestIssueChecksWhatTheSignerMade(t *testing.T) {
	ca := NewCA(brokenSigner{newSigner(t), newSigner(t).PublicKey()})
	cert, err := ca.Issue(testGrant(t))
	if !errors.Is(err, ErrSignature) || cert != nil {
		t.Errorf("Issue = %v, %v, want ErrSignature", cert, err)
	}
}

func TestIssueRefusesWeakCA(t *testing.T) {
	weak := brokenSigner{newSigner(t), weakRSA(t)}
	if _, err := NewCA(weak).Issue(testGrant(t)); !errors.Is(err, ErrPublicKey) {
		t.Errorf("Issue with an RSA key of 1024 bits = %v, want ErrPublicKey", err)
	}
}

func TestIssueHost(t *testing.T) {
	pub := newSigner(t).PublicKey()
	year := 365 * 24 * time.Hour
	tests := []struct {
		name   string
		names  []string
		ttl    time.Duration
		serial uint64
		want   []string // nil is refused
	}{
		{"ok", []string{"Host.example", "host", "192.0.2.1", "2001:DB8::1", "host"}, year, 1, []string{"host.example", "host", "192.0.2.1", "2001:db8::1"}},
		{"no names", nil, year, 1, nil},
		{"pattern", []string{"*.example"}, year, 1, nil},
		{"question mark", []string{"host?"}, year, 1, nil},
		{"comma", []string{"a,b"}, year, 1, nil},
		{"newline", []string{"a\nb"}, year, 1, nil},
		{"empty name", []string{""}, year, 1, nil},
		{"serial 0", []string{"host"}, year, 0, nil},
		{"serial max", []string{"host"}, year, math.MaxUint64, nil},
		{"no ttl", []string{"host"}, 0, 1, nil},
		{"ttl too long", []string{"host"}, MaxHostTTL + 1, 1, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ca := NewCA(newSigner(t))
			cert, err := ca.IssueHost(pub, tt.names, testNow, tt.ttl, tt.serial)
			if tt.want == nil {
				if !errors.Is(err, ErrGrant) {
					t.Errorf("IssueHost = %v, want ErrGrant", err)
				}
				return
			}
			if err != nil || !cmp.Equal(cert.ValidPrincipals, tt.want) || cert.CertType != ssh.HostCert {
				t.Fatalf("IssueHost = %+v, %v, want a host certificate for %v", cert, err, tt.want)
			}
			checker := ssh.CertChecker{
				IsHostAuthority: func(k ssh.PublicKey, _ string) bool { return string(k.Marshal()) == string(ca.PublicKey().Marshal()) },
				Clock:           func() time.Time { return testNow },
			}
			if err := checker.CheckHostKey("host.example:22", nil, cert); err != nil {
				t.Errorf("CheckHostKey = %v, want accepted", err)
			}
		})
	}
	if _, err := NewCA(newSigner(t)).IssueHost(weakRSA(t), []string{"host"}, testNow, year, 1); !errors.Is(err, ErrPublicKey) {
		t.Errorf("IssueHost with a weak key = %v, want ErrPublicKey", err)
	}
}

func networks(n int) string {
	var list []string
	for i := range n {
		list = append(list, fmt.Sprintf("10.0.%d.0/24", i))
	}
	return strings.Join(list, ",")
}

func TestKeyID(t *testing.T) {
	tests := []struct{ host, login, subject, want string }{
		{"h.example", "sbx-1", "alice@example.com", "podspawn:h.example:sbx-1:alice@example.com"},
		{"", "", "", "podspawn:::"},
		{"h", "l", "a:b", "podspawn:h:l:a=3Ab"},
		{"h", "l", "a=3Ab", "podspawn:h:l:a=3D3Ab"},
		{"h", "l", "a\nb $(x)", "podspawn:h:l:a=0Ab=20=24=28x=29"},
		{"h", "l", "é", "podspawn:h:l:=C3=A9"},
	}
	for _, tt := range tests {
		if got := KeyID(tt.host, tt.login, tt.subject); got != tt.want {
			t.Errorf("KeyID(%q, %q, %q) = %q, want %q", tt.host, tt.login, tt.subject, got, tt.want)
		}
	}
	long := strings.Repeat("a", 200)
	if a, b := KeyID("h", "l", long+"1"), KeyID("h", "l", long+"2"); a == b {
		t.Errorf("two long subjects have the same key id %q", a)
	}
}

func FuzzKeyIDIsAlwaysAccepted(f *testing.F) {
	f.Add("h", "l", "s", "h", "l", "s")
	f.Add("h:l", "", strings.Repeat("\xff", 300), "h", "l:", strings.Repeat("\xff", 301))
	f.Fuzz(func(t *testing.T, h1, l1, s1, h2, l2, s2 string) {
		a, b := KeyID(h1, l1, s1), KeyID(h2, l2, s2)
		for _, id := range []string{a, b} {
			if !keyIDPattern.MatchString(id) {
				t.Errorf("key id %q is refused", id)
			}
		}
		if same := h1 == h2 && l1 == l2 && s1 == s2; same != (a == b) {
			t.Errorf("KeyID(%q, %q, %q) = %q and KeyID(%q, %q, %q) = %q", h1, l1, s1, a, h2, l2, s2, b)
		}
	})
}

func FuzzIssueIsAlwaysAcceptedOrRefused(f *testing.F) {
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	subject, err := ssh.NewPublicKey(pub)
	if err != nil {
		f.Fatal(err)
	}
	ca := NewCA(signerFor(f, key))
	f.Add(uint64(1), "id", "login", "cmd", "10.0.0.1", "sbx", "tok", 1, int64(time.Minute))
	f.Fuzz(func(t *testing.T, serial uint64, id, login, cmd, source, sandbox, token string, uses int, ttl int64) {
		cert, err := ca.Issue(Grant{
			Serial: serial, KeyID: id, Principal: login, PublicKey: subject, Now: testNow, TTL: time.Duration(ttl), ForceCommand: cmd,
			SourceAddress: source,
			Binding:       Binding{Sandbox: sandbox, Spec: testBinding().Spec, Uses: uses, Token: token},
		})
		if err != nil {
			if !errors.Is(err, ErrGrant) {
				t.Errorf("Issue = %v, want success or ErrGrant", err)
			}
			return
		}
		if _, err := ParseCertificate(cert.Type(), b64(cert)); err != nil {
			t.Errorf("ParseCertificate of an issued certificate = %v", err)
		}
	})
}
