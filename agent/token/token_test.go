package token

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/podspawn/podspawn/sandbox"
)

func testClaims() Claims {
	return Claims{
		ID: sandbox.NewToken("tok_"), Tenant: "team", Subject: "alice@example.com",
		Scopes:   []sandbox.Scope{sandbox.ScopeRead, sandbox.ScopeRun, sandbox.ScopeAdmin},
		Caps:     sandbox.Caps{MaxSandboxes: 2, MaxTTL: 90 * time.Minute},
		IssuedAt: testNow, ExpiresAt: testNow.Add(24 * time.Hour),
	}
}

func TestIssuedTokensVerify(t *testing.T) {
	l := newLab(t)
	plain := testClaims()
	plain.Caps = sandbox.Caps{}
	for name, want := range map[string]Claims{"all set": testClaims(), "no caps": plain} {
		raw, err := l.issuer.Issue(want)
		if err != nil {
			t.Fatalf("%s: Issue = %v", name, err)
		}
		got, err := l.verifier.Verify(raw, testNow)
		if err != nil || !cmp.Equal(got, want) {
			t.Errorf("%s: Verify = %v, %s", name, err, cmp.Diff(want, got))
		}
	}
}

// TestIssuedTokensHaveTheDocumentedForm is for other programs that look into them.
func TestIssuedTokensHaveTheDocumentedForm(t *testing.T) {
	l := newLab(t)
	c := testClaims()
	c.ID = "tok_0123456789abcdef"
	raw, err := l.issuer.Issue(c)
	if err != nil {
		t.Fatal(err)
	}
	parts := strings.Split(raw, ".")
	var got []string
	for _, p := range parts[:2] {
		b, err := base64.RawURLEncoding.DecodeString(p)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, string(b))
	}
	want := []string{
		`{"alg":"EdDSA","kid":"` + thumbprint(l.public()) + `","typ":"podspawn+jwt"}`,
		`{"iss":"https://sandbox.example","sub":"alice@example.com","aud":"https://sandbox.example/api","exp":1800086400,"nbf":1800000000,"iat":1800000000,` +
			`"jti":"tok_0123456789abcdef","tenant":"team","scope":"sandbox:read sandbox:run sandbox:admin","caps":{"max_sandboxes":2,"max_ttl":5400000000000}}`,
	}
	if !cmp.Equal(got, want) {
		t.Errorf("token: %s", cmp.Diff(want, got))
	}
}

func TestIssueCutsFractionsOff(t *testing.T) {
	l := newLab(t)
	c := testClaims()
	c.IssuedAt, c.ExpiresAt = testNow.Add(900*time.Millisecond), testNow.Add(2*time.Second+100*time.Millisecond)
	raw, err := l.issuer.Issue(c)
	if err != nil {
		t.Fatal(err)
	}
	got, err := l.verifier.Verify(raw, testNow.Add(time.Second))
	if err != nil || !got.IssuedAt.Equal(testNow) || !got.ExpiresAt.Equal(testNow.Add(2*time.Second)) {
		t.Errorf("Verify = %+v, %v, want whole seconds", got, err)
	}
	if _, err := l.verifier.Verify(raw, testNow.Add(2*time.Second)); err == nil {
		t.Error("Verify at the end = nil, want expired")
	}
}

func TestIssueRefuses(t *testing.T) {
	l := newLab(t)
	for name, edit := range map[string]func(*Claims){
		"no id":              func(c *Claims) { c.ID = "" },
		"other id":           func(c *Claims) { c.ID = "sbx_0123456789abcdef" },
		"no subject":         func(c *Claims) { c.Subject = "" },
		"subject with space": func(c *Claims) { c.Subject = "a b" },
		"no tenant":          func(c *Claims) { c.Tenant = "" },
		"no scopes":          func(c *Claims) { c.Scopes = nil },
		"unknown scope":      func(c *Claims) { c.Scopes = []sandbox.Scope{"*"} },
		"scope with space":   func(c *Claims) { c.Scopes = []sandbox.Scope{"sandbox:read sandbox:admin"} },
		"negative cap":       func(c *Claims) { c.Caps.MaxSandboxes = -1 },
		"no end":             func(c *Claims) { c.ExpiresAt = time.Time{} },
		"no time":            func(c *Claims) { c.IssuedAt = time.Time{} },
		"under a second":     func(c *Claims) { c.ExpiresAt = c.IssuedAt.Add(time.Millisecond) },
		"two years":          func(c *Claims) { c.ExpiresAt = c.IssuedAt.Add(2 * 366 * 24 * time.Hour) },
	} {
		c := testClaims()
		edit(&c)
		raw, err := l.issuer.Issue(c)
		e, ok := errors.AsType[*sandbox.Error](err)
		if !ok || e.Kind != sandbox.KindInvalidSpec || e.Hint == "" || raw != "" {
			t.Errorf("%s: Issue = %q, %v, want an invalid_spec with a hint", name, raw, err)
		}
	}
}

// TestNamelessServicesAcceptNothing: for the library, an empty issuer or audience
// to check means not to check.
func TestNamelessServicesAcceptNothing(t *testing.T) {
	l := newLab(t)
	for _, names := range [][2]string{{"", ""}, {"", testAudience}, {testIssuer, ""}} {
		iss := NewIssuer(l.issuer.signer, names[0], names[1])
		if _, err := iss.Issue(testClaims()); err == nil {
			t.Errorf("Issue for %q = nil, want an error", names)
		}
		p := payload()
		p["iss"], p["aud"] = names[0], names[1]
		v := NewVerifier(names[0], names[1], iss.Keys())
		for _, raw := range []string{l.sign(marshal(t, l.header()), text(t, p)), l.sign(marshal(t, l.header()), text(t, payload()))} {
			if _, err := v.Verify(raw, testNow); err == nil {
				t.Errorf("Verify for %q = nil, want an error", names)
			}
		}
	}
}

func TestVerifierTakesKeysByTheirThumbprint(t *testing.T) {
	l, other := newLab(t), newLab(t)
	raw, err := l.issuer.Issue(testClaims())
	if err != nil {
		t.Fatal(err)
	}
	good := l.issuer.Keys()[0]
	for name, tt := range map[string]struct {
		keys []Key
		ok   bool
	}{
		"none":               {nil, false},
		"ours":               {[]Key{good}, true},
		"both in a rotation": {[]Key{other.issuer.Keys()[0], good}, true},
		"another":            {other.issuer.Keys(), false},
		"another's id":       {[]Key{{ID: other.issuer.Keys()[0].ID, Public: good.Public}}, false},
		"ours over another":  {[]Key{{ID: good.ID, Public: other.public()}}, false},
		"short":              {[]Key{{ID: good.ID, Public: good.Public[:31]}}, false},
		"empty":              {[]Key{{ID: good.ID}}, false},
	} {
		if _, err := NewVerifier(testIssuer, testAudience, tt.keys).Verify(raw, testNow); (err == nil) != tt.ok {
			t.Errorf("%s: Verify = %v, want accepted %v", name, err, tt.ok)
		}
	}
	h := l.header()
	h["kid"] = "chosen"
	v := NewVerifier(testIssuer, testAudience, []Key{{ID: "chosen", Public: good.Public}})
	refuses(t, v, l.sign(marshal(t, h), text(t, payload())), errKey)
}

// TestThumbprint is the example of RFC 8037, appendix A.3.
func TestThumbprint(t *testing.T) {
	key, err := base64.RawURLEncoding.DecodeString("11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo")
	if err != nil {
		t.Fatal(err)
	}
	if got, want := thumbprint(key), "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"; got != want {
		t.Errorf("thumbprint = %q, want %q", got, want)
	}
}

func TestSignerIsNeverPrinted(t *testing.T) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s := newSigner(key)
	var log bytes.Buffer
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "signer", s)
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "signer", s)
	js, err := json.Marshal(map[string]any{"s": s})
	if err != nil {
		t.Fatal(err)
	}
	for _, out := range []string{fmt.Sprintf("%v %+v %#v %s %x %d", s, s, s, s, s, s), log.String(), string(js)} {
		if !strings.Contains(out, "redacted") {
			t.Errorf("printed %q, want redacted", out)
		}
		for _, secret := range []string{fmt.Sprint([]byte(key[:8]))[1:20], fmt.Sprintf("%x", []byte(key[:8])), base64.StdEncoding.EncodeToString(key[:9])} {
			if strings.Contains(out, secret) {
				t.Errorf("printed %q, which has the key", out)
			}
		}
	}
}

func FuzzVerifyNeverPanics(f *testing.F) {
	l := newLab(f)
	good := l.sign(marshal(f, l.header()), text(f, payload()))
	f.Add(good, marshal(f, l.header()), text(f, payload()))
	f.Add("..", `{"alg":"none"}`, `null`)
	f.Add(good+"\n", `{"alg":"EdDSA","crit":["x"]}`, `{"exp":1e400}`)
	f.Fuzz(func(t *testing.T, raw, header, claims string) {
		// A foreign string, and one whose signature is ours, to get past it.
		for _, text := range []string{raw, l.sign(header, claims)} {
			c, err := l.verifier.Verify(text, testNow)
			if err != nil {
				if sandbox.KindOf(err) != sandbox.KindUnauthorized || len(err.Error()) > 300 {
					t.Errorf("Verify = %v, want a short error of kind unauthorized", err)
				}
				continue
			}
			if c.check() != nil || testNow.Before(c.IssuedAt.Add(-leeway)) || !testNow.Before(c.ExpiresAt) {
				t.Errorf("Verify accepts %+v", c)
			}
		}
		if _, err := l.verifier.Verify(raw, testNow); err == nil && raw != good {
			t.Errorf("Verify accepts the forged %q", raw)
		}
	})
}
