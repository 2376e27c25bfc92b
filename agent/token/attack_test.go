package token

import (
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/podspawn/podspawn/sandbox"
)

const (
	testIssuer   = "https://sandbox.example"
	testAudience = "https://sandbox.example/api"
)

var testNow = time.Unix(1_800_000_000, 0).UTC()

// lab builds tokens by hand, so that each attack is what it says and nothing of
// the code under test hides it. They are signed with the service's own key unless
// the case is about that: only the check in question can refuse them.
type lab struct {
	key      ed25519.PrivateKey
	verifier *Verifier
	issuer   *Issuer
}

func newLab(t testing.TB) *lab {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	iss := NewIssuer(newSigner(key), testIssuer, testAudience)
	return &lab{key: key, issuer: iss, verifier: NewVerifier(testIssuer, testAudience, iss.Keys())}
}

func (l *lab) public() ed25519.PublicKey { return l.key.Public().(ed25519.PublicKey) }

func (l *lab) header() map[string]any {
	return map[string]any{"alg": "EdDSA", "typ": tokenType, "kid": thumbprint(l.public())}
}

func payload() map[string]any {
	return map[string]any{
		"iss": testIssuer, "sub": "alice", "aud": testAudience, "exp": testNow.Unix() + 3600, "nbf": testNow.Unix(), "iat": testNow.Unix(),
		"jti": "tok_0123456789abcdef", "tenant": "team", "scope": "sandbox:read sandbox:run",
		"caps": map[string]any{"max_sandboxes": 3},
	}
}

// text writes the claims in the order in which they are issued.
func text(t testing.TB, p map[string]any) string {
	t.Helper()
	var b strings.Builder
	order := []string{"iss", "sub", "aud", "exp", "nbf", "iat", "jti", "tenant", "scope", "caps"}
	for name := range p {
		if !slices.Contains(order, name) {
			order = append(order, name)
		}
	}
	for _, name := range order {
		if value, ok := p[name]; ok {
			fmt.Fprintf(&b, ",%q:%s", name, marshal(t, value))
		}
	}
	return "{" + strings.TrimPrefix(b.String(), ",") + "}"
}

func marshal(t testing.TB, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func b64(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }

func (l *lab) sign(header, claims string) string {
	body := b64(header) + "." + b64(claims)
	return body + "." + b64(string(ed25519.Sign(l.key, []byte(body))))
}

func TestVerifyAcceptsAHandMadeToken(t *testing.T) {
	l := newLab(t)
	got, err := l.verifier.verify(l.sign(marshal(t, l.header()), text(t, payload())), testNow)
	want := Claims{
		ID: "tok_0123456789abcdef", Tenant: "team", Subject: "alice",
		Scopes: []sandbox.Scope{sandbox.ScopeRead, sandbox.ScopeRun}, Caps: sandbox.Caps{MaxSandboxes: 3},
		IssuedAt: testNow, ExpiresAt: testNow.Add(time.Hour),
	}
	if err != nil || !cmp.Equal(got, want) {
		t.Errorf("Verify = %v, %s", err, cmp.Diff(want, got))
	}
}

func TestVerifyRefusesHeaders(t *testing.T) {
	l := newLab(t)
	set := func(name string, value any) func(map[string]any) {
		return func(h map[string]any) { h[name] = value }
	}
	_, other, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	otherX := base64.RawURLEncoding.EncodeToString(other.Public().(ed25519.PublicKey))
	tests := []struct {
		name string
		edit func(map[string]any)
		want error
	}{
		{"alg/none", set("alg", "none"), errAlgorithm},
		{"alg/None", set("alg", "None"), errAlgorithm},
		{"alg/HS256", set("alg", "HS256"), errAlgorithm},
		{"alg/RS256", set("alg", "RS256"), errAlgorithm},
		{"alg/lower case", set("alg", "eddsa"), errAlgorithm},
		{"alg/unknown", set("alg", "XS1"), errAlgorithm},
		{"alg/missing", func(h map[string]any) { delete(h, "alg") }, errAlgorithm},
		{"alg/number", set("alg", 1), errAlgorithm},
		{"typ/missing", func(h map[string]any) { delete(h, "typ") }, errType},
		{"typ/JWT", set("typ", "JWT"), errType},
		{"typ/access token of others", set("typ", "at+jwt"), errType},
		{"typ/other case", set("typ", "Podspawn+JWT"), errType},
		{"typ/media type", set("typ", "application/podspawn+jwt"), errType},
		{"typ/list", set("typ", []string{tokenType}), errType},
		{"crit/unknown", set("crit", []string{"exp"}), errHeader},
		{"crit/empty", set("crit", []string{}), errHeader},
		{"crit/b64", func(h map[string]any) { h["crit"], h["b64"] = []string{"b64"}, false }, errHeader},
		{"jku", set("jku", "http://127.0.0.1:1/keys"), errHeader},
		{"jwk", set("jwk", map[string]any{"kty": "OKP", "crv": "Ed25519", "x": otherX}), errHeader},
		{"x5u", set("x5u", "http://127.0.0.1:1/cert"), errHeader},
		{"x5c", set("x5c", []string{"MIIB"}), errHeader},
		{"cty", set("cty", "JWT"), errHeader},
		{"zip", set("zip", "DEF"), errHeader},
		{"kid/missing", func(h map[string]any) { delete(h, "kid") }, errKey},
		{"kid/empty", set("kid", ""), errKey},
		{"kid/number", set("kid", 0), errKey},
		{"kid/null", set("kid", nil), errKey},
		{"kid/unknown", set("kid", thumbprint(other.Public().(ed25519.PublicKey))), errKey},
		{"kid/path", set("kid", "../../../../etc/passwd"), errKey},
		{"kid/device", set("kid", "/dev/null"), errKey},
		{"kid/SQL", set("kid", "x' UNION SELECT 'k'; --"), errKey},
		{"kid/URL", set("kid", "http://127.0.0.1:1/"), errKey},
		{"kid/command", set("kid", "|reboot"), errKey},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := l.header()
			tt.edit(h)
			refuses(t, l.verifier, l.sign(marshal(t, h), text(t, payload())), tt.want)
		})
	}
}

func TestVerifyRefusesForgedSignatures(t *testing.T) {
	l, stranger := newLab(t), newLab(t)
	claims := text(t, payload())
	header := func(alg string) string {
		h := l.header()
		h["alg"] = alg
		return marshal(t, h)
	}
	body := func(alg string) string { return b64(header(alg)) + "." + b64(claims) }
	mac := func(key []byte) string {
		m := hmac.New(sha256.New, key)
		m.Write([]byte(body("HS256")))
		return body("HS256") + "." + b64(string(m.Sum(nil)))
	}
	good := l.sign(header("EdDSA"), claims)
	parts := strings.Split(good, ".")

	for _, tt := range []struct {
		name, raw string
		want      error
	}{
		{"none with an empty signature", body("none") + ".", errEncoding},
		{"none with a signature", body("none") + "." + b64("x"), errAlgorithm},
		{"HS256 with the public key as secret", mac(l.public()), errAlgorithm},
		{"HS256 with the key's id as secret", mac([]byte(thumbprint(l.public()))), errAlgorithm},
		{"HS256 with an empty secret", mac(nil), errAlgorithm},
		{"another key under this kid", stranger.sign(header("EdDSA"), claims), errSignature},
		{"no signature", body("EdDSA") + ".", errEncoding},
		{"zero signature", body("EdDSA") + "." + b64(strings.Repeat("\x00", 64)), errSignature},
		{"short signature", body("EdDSA") + "." + b64("short"), errSignature},
		{"claims exchanged", parts[0] + "." + b64(strings.Replace(claims, `"alice"`, `"root_"`, 1)) + "." + parts[2], errSignature},
		{"header spelled differently", b64(strings.Replace(header("EdDSA"), "{", "{ ", 1)) + "." + parts[1] + "." + parts[2], errEncoding},
	} {
		t.Run(tt.name, func(t *testing.T) { refuses(t, l.verifier, tt.raw, tt.want) })
	}
}

// TestVerifyRefusesOtherSpellings is threat 68: one token has one spelling.
func TestVerifyRefusesOtherSpellings(t *testing.T) {
	l := newLab(t)
	header, claims := marshal(t, l.header()), text(t, payload())
	good := l.sign(header, claims)
	parts := strings.Split(good, ".")
	sig := parts[2]

	// 64 bytes leave 4 spare bits in the last character.
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	last := strings.IndexByte(alphabet, sig[len(sig)-1])
	spare := sig[:len(sig)-1] + string(alphabet[last|1])

	// s + L is the same number modulo the group's order.
	raw, err := base64.RawURLEncoding.DecodeString(sig)
	if err != nil {
		t.Fatal(err)
	}
	order, _ := new(big.Int).SetString("7237005577332262213973186563042994240857116359379907606001950938285454250989", 10)
	s := slices.Clone(raw[32:])
	slices.Reverse(s)
	sum := new(big.Int).Add(new(big.Int).SetBytes(s), order).FillBytes(make([]byte, 32))
	slices.Reverse(sum)
	plusL := b64(string(raw[:32]) + string(sum))

	two := parts[0] + "." + parts[1] + "."
	for _, tt := range []struct {
		name, raw string
		want      error
	}{
		{"spare bits set", two + spare, errEncoding},
		{"padding", two + sig + "==", errEncoding},
		{"newline at the end", good + "\n", errEncoding},
		{"newline in the signature", two + sig[:10] + "\n" + sig[10:], errEncoding},
		{"return in the signature", two + sig[:10] + "\r" + sig[10:], errEncoding},
		{"space before", " " + good, errEncoding},
		{"scheme before", "Bearer " + good, errEncoding},
		{"standard alphabet", two + strings.NewReplacer("-", "+", "_", "/").Replace(sig) + "+", errEncoding},
		{"a fourth part", good + ".", errEncoding},
		{"a fourth part with content", good + ".e30", errEncoding},
		{"two parts", parts[0] + "." + parts[1], errEncoding},
		{"signature twice", two + b64(string(raw)+string(raw)), errSignature},
		{"a byte more", two + b64(string(raw)+"\x00"), errSignature},
		{"s plus the order", two + plusL, errSignature},
		{"NUL", two + sig + "\x00", errEncoding},
		{"empty", "", errEncoding},
		{"dots", "..", errEncoding},
		{"5 KiB", good + strings.Repeat("A", 5<<10), errSize},
		{"10 MB", strings.Repeat("A", 10<<20), errSize},

		{"doubled header field", l.sign(strings.Replace(header, "{", `{"alg":"none",`, 1), claims), errEncoding},
		{"space in the header", l.sign(strings.Replace(header, "{", "{ ", 1), claims), errEncoding},
		{"header is null", l.sign("null", claims), errAlgorithm},
		{"header is a list", l.sign("[]", claims), errEncoding},
		{"header is text", l.sign("x", claims), errEncoding},
		{"doubled claim", l.sign(header, strings.Replace(claims, "{", `{"sub":"root",`, 1)), errClaims},
		{"claim in other case", l.sign(header, strings.Replace(claims, `"sub"`, `"SUB"`, 1)), errClaims},
		{"space in the claims", l.sign(header, strings.Replace(claims, ":", ": ", 1)), errClaims},
		{"claims are null", l.sign(header, "null"), errMissing},
		{"claims are a list", l.sign(header, "[]"), errClaims},
		{"claims are text", l.sign(header, "x"), errEncoding},
		{"two values", l.sign(header, claims+claims), errEncoding},
	} {
		t.Run(tt.name, func(t *testing.T) { refuses(t, l.verifier, tt.raw, tt.want) })
	}
}

func TestVerifyRefusesClaims(t *testing.T) {
	l := newLab(t)
	now := testNow.Unix()
	set := func(name string, value any) func(map[string]any) {
		return func(p map[string]any) { p[name] = value }
	}
	drop := func(name string) func(map[string]any) {
		return func(p map[string]any) { delete(p, name) }
	}
	times := func(iat, exp int64) func(map[string]any) {
		return func(p map[string]any) { p["iat"], p["nbf"], p["exp"] = iat, iat, exp }
	}
	year := int64(366 * 24 * 3600)
	tests := []struct {
		name string
		edit func(map[string]any)
		want error // nil is accepted
	}{
		{"exp/missing", drop("exp"), errClaims},
		{"exp/null", set("exp", nil), errMissing},
		{"exp/now", times(now-100, now), errExpired},
		{"exp/within the leeway", times(now-100, now-10), errExpired},
		{"exp/long ago", times(now-100, now-90), errExpired},
		{"exp/last second", times(now-100, now+1), nil},
		{"exp/text", set("exp", "tomorrow"), errClaims},
		{"exp/fraction", set("exp", float64(now)+3600.5), errClaims},
		{"exp/negative", set("exp", -1), errTime},
		{"exp/zero", set("exp", 0), errExpired},
		{"exp/ten years", set("exp", now+10*year), errLifetime},
		{"exp/366 days", set("exp", now+year), nil},
		{"exp/366 days and a second", set("exp", now+year+1), errLifetime},
		{"exp/far beyond", set("exp", int64(1)<<62), errTime},
		{"exp/wraps a duration", set("exp", now+18_446_744_074), errTime},
		{"exp/before iat", times(now+20, now+10), errLifetime},

		{"iat/missing", drop("iat"), errClaims},
		{"iat/null", set("iat", nil), errMissing},
		{"iat/future", times(now+31, now+3600), errNotYet},
		{"iat/within the leeway", times(now+30, now+3600), nil},
		{"iat/future alone", set("iat", now+3000), errNotYet},
		{"iat/old, to hide a long life", set("iat", now+20), errTime},
		{"nbf/missing", drop("nbf"), errClaims},
		{"nbf/null", set("nbf", nil), errMissing},
		{"nbf/future", set("nbf", now+60), errNotYet},
		{"nbf/before iat", set("nbf", now-60), errTime},

		{"aud/missing", drop("aud"), errClaims},
		{"aud/another", set("aud", "https://other.example"), errAudience},
		{"aud/empty", set("aud", ""), errMissing},
		{"aud/list with ours", set("aud", []string{testAudience, "https://other.example"}), errClaims},
		{"aud/list of one", set("aud", []string{testAudience}), errClaims},
		{"aud/prefix", set("aud", testAudience+"/"), errAudience},
		{"aud/other case", set("aud", strings.ToUpper(testAudience)), errAudience},
		{"iss/missing", drop("iss"), errClaims},
		{"iss/another", set("iss", "https://evil.example"), errIssuer},
		{"iss/empty", set("iss", ""), errMissing},
		{"iss/list", set("iss", []string{testIssuer}), errClaims},

		{"jti/missing", drop("jti"), errClaims},
		{"jti/empty", set("jti", ""), errID},
		{"jti/other form", set("jti", "tok_1"), errID},
		{"jti/letter outside of the alphabet", set("jti", "tok_0123456789abcdeu"), errID},
		{"jti/upper case", set("jti", "tok_0123456789ABCDEF"), errID},
		{"jti/newline", set("jti", "tok_0123456789abcdef\n"), errID},
		{"jti/SQL", set("jti", "' OR 1=1 --"), errID},
		{"sub/missing", drop("sub"), errClaims},
		{"sub/empty", set("sub", ""), errSubject},
		{"sub/newline", set("sub", "alice\nroot"), errSubject},
		{"sub/escape", set("sub", "a\x1b[2J"), errSubject},
		{"sub/CI job", set("sub", "repo:owner/name:ref:refs/heads/main"), nil},
		{"sub/128", set("sub", strings.Repeat("a", 128)), nil},
		{"sub/129", set("sub", strings.Repeat("a", 129)), errSubject},
		{"tenant/missing", drop("tenant"), errClaims},
		{"tenant/empty", set("tenant", ""), errTenant},
		{"tenant/quote", set("tenant", `a"b`), errTenant},
		{"tenant/129", set("tenant", strings.Repeat("a", 129)), errTenant},

		{"scope/empty", set("scope", ""), errScopes},
		{"scope/unknown", set("scope", "sandbox:read root"), errScopes},
		{"scope/doubled", set("scope", "sandbox:read sandbox:read"), errScopes},
		{"scope/two spaces", set("scope", "sandbox:read  sandbox:run"), errScopes},
		{"scope/prefix", set("scope", "sandbox:"), errScopes},
		{"scope/list", set("scope", []string{"sandbox:admin"}), errClaims},
		{"caps/negative", set("caps", map[string]any{"max_sandboxes": -1}), errCaps},
		{"caps/negative ttl", set("caps", map[string]any{"max_ttl": -1}), errCaps},
		{"caps/unknown", set("caps", map[string]any{"egress": "none"}), errClaims},
		{"caps/none", drop("caps"), nil},
		{"unknown claim", set("admin", true), errClaims},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := payload()
			tt.edit(p)
			raw := l.sign(marshal(t, l.header()), text(t, p))
			if tt.want == nil {
				if _, err := l.verifier.verify(raw, testNow); err != nil {
					t.Errorf("Verify = %v, want accepted", err)
				}
				return
			}
			refuses(t, l.verifier, raw, tt.want)
		})
	}
}

// refuses checks the reason, and that what a client sees is one public sentence.
func refuses(t *testing.T, v *Verifier, raw string, want error) {
	t.Helper()
	if _, err := v.verify(raw, testNow); !errors.Is(err, want) {
		t.Errorf("Verify = %v, want %v", err, want)
	}
	c, err := v.Verify(raw, testNow)
	e, ok := errors.AsType[*sandbox.Error](err)
	if !ok || e.Kind != sandbox.KindUnauthorized || e.Msg == "" || e.Hint == "" {
		t.Fatalf("Verify = %#v, want a *sandbox.Error of kind unauthorized with a hint", err)
	}
	if !cmp.Equal(c, Claims{}) {
		t.Errorf("Verify = %+v beside an error, want nothing", c)
	}
	for part := range strings.SplitSeq(raw, ".") {
		if len(part) > 12 && strings.Contains(err.Error()+e.Hint, part[:12]) {
			t.Errorf("the error repeats the token: %v", err)
		}
	}
	if s := err.Error() + e.Msg; len(s) > 300 || strings.ContainsAny(s, "\n\x1b\x00") {
		t.Errorf("the error repeats foreign text: %q", s)
	}
}
