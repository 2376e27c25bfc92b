package ephemeralkeys

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
)

// TestVerifyRefuses signs each certificate properly, by the trusted CA unless the
// case is about that, so that only the check in question can refuse it.
func TestVerifyRefuses(t *testing.T) {
	signer := newSigner(t)
	ca := NewCA(signer)
	ext := func(name, value string) func(*ssh.Certificate) {
		return func(c *ssh.Certificate) { c.Extensions[name] = value }
	}
	opt := func(name, value string) func(*ssh.Certificate) {
		return func(c *ssh.Certificate) { c.CriticalOptions[name] = value }
	}
	principals := func(p ...string) func(*ssh.Certificate) {
		return func(c *ssh.Certificate) { c.ValidPrincipals = p }
	}
	bound := issue(t, ca, testGrant(t)).Extensions[BindingExtension]
	replace := func(old, new string) func(*ssh.Certificate) {
		return ext(BindingExtension, strings.Replace(bound, old, new, 1))
	}
	many := make([]string, 500)
	for i := range many {
		many[i] = fmt.Sprintf("sbx-%d", i)
	}
	many[250] = testLogin
	start, end := uint64(testNow.Unix()-60), uint64(testNow.Unix()+300)

	tests := []struct {
		name string
		edit func(*ssh.Certificate)
		want error // nil is accepted
	}{
		{"ok/as issued", func(*ssh.Certificate) {}, nil},
		{"ok/largest serial", func(c *ssh.Certificate) { c.Serial = math.MaxUint64 }, nil},
		{"ok/source address", opt("source-address", "192.0.2.0/24"), nil},

		{"host certificate", func(c *ssh.Certificate) { c.CertType = ssh.HostCert }, ErrHostCertificate},
		{"unknown kind", func(c *ssh.Certificate) { c.CertType = 3 }, ErrHostCertificate},

		{"expired", func(c *ssh.Certificate) { c.ValidAfter, c.ValidBefore = start-900, uint64(testNow.Unix()) }, ErrExpired},
		{"last second", func(c *ssh.Certificate) { c.ValidBefore = uint64(testNow.Unix()) + 1 }, nil},
		{"not yet valid", func(c *ssh.Certificate) { c.ValidAfter = uint64(testNow.Unix()) + 1 }, ErrNotYetValid},
		{"first second", func(c *ssh.Certificate) { c.ValidAfter = uint64(testNow.Unix()) }, nil},
		{"never valid", func(c *ssh.Certificate) { c.ValidAfter, c.ValidBefore = end, start }, ErrExpired},
		{"valid for ever", func(c *ssh.Certificate) { c.ValidAfter, c.ValidBefore = 0, ssh.CertTimeInfinity }, ErrLifetime},
		{"valid too long", func(c *ssh.Certificate) { c.ValidBefore = c.ValidAfter + 16*60 + 1 }, ErrLifetime},
		{"end beyond int64", func(c *ssh.Certificate) { c.ValidBefore = 1 << 63 }, ErrLifetime},

		{"principals/none", principals(), ErrPrincipals},
		{"principals/another", principals("root"), ErrPrincipals},
		{"principals/star", principals("*"), ErrPrincipals},
		{"principals/comma", principals(testLogin + ",root"), ErrPrincipals},
		{"principals/two", principals(testLogin, "root"), ErrPrincipals},
		{"principals/twice", principals(testLogin, testLogin), ErrPrincipals},
		{"principals/500", principals(many...), ErrPrincipals},
		{"principals/upper case", principals(strings.ToUpper(testLogin)), ErrPrincipals},

		{"options/unknown", opt("verify-required", ""), ErrCriticalOption},
		{"options/ours", opt("spec@podspawn.dev", "x"), ErrCriticalOption},
		{"options/no command", func(c *ssh.Certificate) { delete(c.CriticalOptions, "force-command") }, ErrCriticalOption},
		{"options/another command", opt("force-command", "/bin/sh"), ErrCriticalOption},
		{"options/more command", opt("force-command", testCommand+" "), ErrCriticalOption},
		{"options/bad source", opt("source-address", "everywhere"), ErrCriticalOption},
		{"options/empty source", opt("source-address", ""), ErrCriticalOption},

		{"extensions/user rc", ext("permit-user-rc", ""), ErrExtension},
		{"extensions/unknown", ext("permit-everything@example.com", ""), ErrExtension},
		{"extensions/huge name", ext(strings.Repeat("x", 60_000), ""), ErrExtension},
		{"extensions/value", ext("permit-pty", "yes"), ErrExtension},
		{"extensions/no touch", ext("no-touch-required", ""), ErrExtension},

		{"binding/none", func(c *ssh.Certificate) { delete(c.Extensions, BindingExtension) }, ErrBinding},
		{"binding/empty", ext(BindingExtension, ""), ErrBinding},
		{"binding/huge", ext(BindingExtension, bound+strings.Repeat(" ", 60_000)), ErrBinding},
		{"binding/not JSON", ext(BindingExtension, "sandbox"), ErrBinding},
		{"binding/null", ext(BindingExtension, "null"), ErrBinding},
		{"binding/unknown field", replace(`{`, `{"root":true,`), ErrBinding},
		{"binding/doubled field", replace(`{`, `{"uses":0,`), ErrBinding},
		{"binding/other case", replace(`"uses"`, `"Uses"`), ErrBinding},
		{"binding/missing field", replace(`"uses":1,`, ``), ErrBinding},
		{"binding/space", replace(`{`, `{ `), ErrBinding},
		{"binding/two values", ext(BindingExtension, bound+bound), ErrBinding},
		{"binding/version", replace(`"v":1`, `"v":2`), ErrBinding},
		{"binding/negative uses", replace(`"uses":1`, `"uses":-1`), ErrBinding},
		{"binding/fraction", replace(`"uses":1`, `"uses":1.0`), ErrBinding},
		{"binding/sandbox", replace(`sbx_`, `../`), ErrBinding},
		{"binding/digest", replace(`sha256:`, `sha512:`), ErrBinding},

		{"serial 0", func(c *ssh.Certificate) { c.Serial = 0 }, ErrMalformed},
		{"key id with newline", func(c *ssh.Certificate) { c.KeyId = "x\nrestrict,command=\"sh\" root" }, ErrMalformed},
		{"reserved field", func(c *ssh.Certificate) { c.Reserved = []byte("x") }, ErrMalformed},
		{"weak subject key", func(c *ssh.Certificate) { c.Key = weakRSA(t) }, ErrMalformed},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cert := issue(t, ca, testGrant(t))
			tt.edit(cert)
			resign(t, cert, signer)
			checkVerify(t, cert, ca, tt.want)
		})
	}
}

func TestVerifyRefusesUnknownAuthorities(t *testing.T) {
	ca := NewCA(newSigner(t))
	stranger := NewCA(newSigner(t))
	checkVerify(t, issue(t, stranger, testGrant(t)), ca, ErrUnknownCA)

	// The trusted CA's key is named, but another one signed.
	forged := issue(t, stranger, testGrant(t))
	forged.SignatureKey = ca.PublicKey()
	checkVerify(t, forged, ca, ErrSignature)

	cert := issue(t, ca, testGrant(t))
	for name, cas := range map[string][]ssh.PublicKey{"none": nil, "nil": {nil}, "another": {stranger.PublicKey()}} {
		if _, err := Verify(cert, testLogin, cas, testNow, testPolicy); !errors.Is(err, ErrUnknownCA) {
			t.Errorf("Verify with authorities %s = %v, want ErrUnknownCA", name, err)
		}
	}
	if _, err := Verify(cert, testLogin, []ssh.PublicKey{stranger.PublicKey(), ca.PublicKey()}, testNow, testPolicy); err != nil {
		t.Errorf("Verify during a rotation = %v, want accepted", err)
	}
}

func TestVerifyRefusesAnyChangedByte(t *testing.T) {
	ca := NewCA(newSigner(t))
	g := testGrant(t)
	g.SourceAddress = "192.0.2.0/24"
	blob := issue(t, ca, g).Marshal()
	for i := range blob {
		changed := append([]byte(nil), blob...)
		changed[i] ^= 1
		key, err := ssh.ParsePublicKey(changed)
		if err != nil {
			continue
		}
		cert, ok := key.(*ssh.Certificate)
		if !ok {
			continue
		}
		if _, err := Verify(cert, testLogin, []ssh.PublicKey{ca.PublicKey()}, testNow, testPolicy); err == nil {
			t.Errorf("Verify with byte %d of %d changed = nil, want an error", i, len(blob))
		}
	}
}

// TestVerifyRefusesSHA1 is about a CA key of type RSA in an agent.
func TestVerifyRefusesSHA1(t *testing.T) {
	key := rsaKey(t, 2048)
	signer := signerFor(t, key)
	ca := NewCA(signer)
	cert := issue(t, ca, testGrant(t))
	old, err := ssh.NewSignerWithAlgorithms(signer.(ssh.AlgorithmSigner), []string{ssh.KeyAlgoRSA})
	if err != nil {
		t.Fatal(err)
	}
	if err := cert.SignCert(rand.Reader, old); err != nil {
		t.Fatal(err)
	}
	checkVerify(t, cert, ca, ErrSignature)
}

func TestVerifyDemandsThePolicysCommand(t *testing.T) {
	ca := NewCA(newSigner(t))
	cert := issue(t, ca, testGrant(t))
	for _, p := range []Policy{{}, {ForceCommand: "/bin/sh"}} {
		if _, err := Verify(cert, testLogin, []ssh.PublicKey{ca.PublicKey()}, testNow, p); !errors.Is(err, ErrCriticalOption) {
			t.Errorf("Verify with policy %+v = %v, want ErrCriticalOption", p, err)
		}
	}
	delete(cert.CriticalOptions, "force-command")
	resign(t, cert, nil, ca)
	if _, err := Verify(cert, testLogin, []ssh.PublicKey{ca.PublicKey()}, testNow, Policy{}); !errors.Is(err, ErrCriticalOption) {
		t.Errorf("Verify without any command = %v, want ErrCriticalOption", err)
	}
}

func TestVerifyRefusesStrangeLogins(t *testing.T) {
	ca := NewCA(newSigner(t))
	for _, login := range []string{"", "*", "root,x", "root", testLogin + "\n"} {
		cert := issue(t, ca, testGrant(t))
		if login != "root" {
			cert.ValidPrincipals = []string{login}
			resign(t, cert, nil, ca)
		}
		if _, err := Verify(cert, login, []ssh.PublicKey{ca.PublicKey()}, testNow, testPolicy); !errors.Is(err, ErrPrincipals) {
			t.Errorf("Verify for login %q = %v, want ErrPrincipals", login, err)
		}
	}
}

func TestVerifyAllowsClocksToDifferByAMinute(t *testing.T) {
	ca := NewCA(newSigner(t))
	g := testGrant(t)
	g.TTL = time.Minute
	cert := issue(t, ca, g)
	for offset, want := range map[time.Duration]error{
		-2 * time.Minute: ErrNotYetValid, -61 * time.Second: ErrNotYetValid, -60 * time.Second: nil,
		59 * time.Second: nil, 60 * time.Second: ErrExpired, 2 * time.Minute: ErrExpired,
	} {
		if _, err := Verify(cert, testLogin, []ssh.PublicKey{ca.PublicKey()}, testNow.Add(offset), testPolicy); !errors.Is(err, want) {
			t.Errorf("Verify with the clock at %s = %v, want %v", offset, err, want)
		}
	}
	if _, err := Verify(cert, testLogin, []ssh.PublicKey{ca.PublicKey()}, time.Time{}, testPolicy); !errors.Is(err, ErrNotYetValid) {
		t.Errorf("Verify at the zero time = %v, want ErrNotYetValid", err)
	}
}

func TestVerifyRefusesIncompleteCertificates(t *testing.T) {
	ca := NewCA(newSigner(t))
	for name, cut := range map[string]func(*ssh.Certificate){
		"key": func(c *ssh.Certificate) { c.Key = nil }, "signature": func(c *ssh.Certificate) { c.Signature = nil },
		"authority": func(c *ssh.Certificate) { c.SignatureKey = nil }, "nonce": func(c *ssh.Certificate) { c.Nonce = nil },
		"all": func(c *ssh.Certificate) { *c = ssh.Certificate{} },
	} {
		t.Run(name, func(t *testing.T) {
			cert := issue(t, ca, testGrant(t))
			cut(cert)
			checkVerify(t, cert, ca, ErrMalformed)
		})
	}
	checkVerify(t, nil, ca, ErrMalformed)
}

func checkVerify(t *testing.T, cert *ssh.Certificate, ca *CA, want error) {
	t.Helper()
	b, err := Verify(cert, testLogin, []ssh.PublicKey{ca.PublicKey()}, testNow, testPolicy)
	if !errors.Is(err, want) || (want == nil && err != nil) {
		t.Fatalf("Verify = %v, want %v", err, want)
	}
	if want != nil && b != (Binding{}) {
		t.Errorf("Verify = %+v beside an error, want nothing", b)
	}
	if err != nil && len(err.Error()) > 300 {
		t.Errorf("the error has %d bytes", len(err.Error()))
	}
}

// resign signs by hand, since SignCert refuses some of what an attacker who has
// another tool, or a CA of more than one user, would not.
func resign(t testing.TB, cert *ssh.Certificate, signer ssh.Signer, ca ...*CA) {
	t.Helper()
	if signer == nil {
		signer = ca[0].signer
	}
	cert.SignatureKey, cert.Signature = signer.PublicKey(), nil
	if len(cert.Nonce) == 0 {
		cert.Nonce = make([]byte, 32)
		if _, err := io.ReadFull(rand.Reader, cert.Nonce); err != nil {
			t.Fatal(err)
		}
	}
	text := cert.Marshal()
	sig, err := signer.Sign(rand.Reader, text[:len(text)-4])
	if err != nil {
		t.Fatal(err)
	}
	cert.Signature = sig
}
