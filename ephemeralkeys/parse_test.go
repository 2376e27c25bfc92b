package ephemeralkeys

import (
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
)

func TestParsePublicKeyAccepts(t *testing.T) {
	keys := []ssh.PublicKey{
		newSigner(t).PublicKey(),
		signerFor(t, ecdsaKey(t, elliptic.P256())).PublicKey(),
		signerFor(t, ecdsaKey(t, elliptic.P384())).PublicKey(),
		signerFor(t, ecdsaKey(t, elliptic.P521())).PublicKey(),
		signerFor(t, rsaKey(t, 2048)).PublicKey(),
	}
	for _, key := range append(keys, skKeys(t)...) {
		t.Run(key.Type(), func(t *testing.T) {
			for _, text := range []string{line(key), line(key) + "\n", line(key) + " alice@laptop, at home\r\n", "  " + line(key) + "\t "} {
				got, err := ParsePublicKey(text)
				if err != nil || string(got.Marshal()) != string(key.Marshal()) {
					t.Errorf("ParsePublicKey(%q) = %v, %v, want the key", text, got, err)
				}
			}
			g := testGrant(t)
			g.PublicKey = key
			cert := issue(t, NewCA(newSigner(t)), g)
			if _, err := ParseCertificate(cert.Type(), b64(cert)); err != nil {
				t.Errorf("ParseCertificate of its certificate = %v", err)
			}
		})
	}
}

func TestParsePublicKeyRefuses(t *testing.T) {
	good := line(newSigner(t).PublicKey())
	blob := strings.Fields(good)[1]
	cert := line(issue(t, NewCA(newSigner(t)), testGrant(t)))
	certBlob := strings.Fields(cert)[1]
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	pemText := privatePEM(t, private)
	body := strings.Split(pemText, "\n")[1]
	mpint := func(b ...byte) string { return string(b) }
	dss := base64.StdEncoding.EncodeToString(ssh.Marshal(struct{ Name, P, Q, G, Y string }{"ssh-dss", mpint(1), mpint(1), mpint(1), mpint(1)}))
	raw, err := base64.StdEncoding.DecodeString(blob)
	if err != nil {
		t.Fatal(err)
	}
	trailing := base64.StdEncoding.EncodeToString(append(raw, "more"...))

	tests := []struct {
		name, text, want string
	}{
		{"empty", "", "expected a line"},
		{"spaces", "  \n", "expected a line"},
		{"type only", "ssh-ed25519", "expected a line"},
		{"no type", blob + " x", "supported key type"},
		{"two lines", good + "\n" + good, "more than one line"},
		{"second line is an option", good + "\ncert-authority " + good, "more than one line"},
		{"return", good + "\rx", "more than one line"},
		{"NUL", good + "\x00", "more than one line"},
		{"options", `command="sh" ` + good, "supported key type"},
		{"authority", "cert-authority " + good, "supported key type"},
		{"comment line", "# " + good, "supported key type"},
		{"too long", good + " " + strings.Repeat("x", 16<<10), "longer than"},
		{"bad base64", "ssh-ed25519 !!!!", "not base64"},
		{"short", "ssh-ed25519 " + blob[:40], "not a key"},
		{"trailing bytes", "ssh-ed25519 " + trailing, "not a key"},
		{"other type", "ssh-rsa " + blob, "another type"},
		{"certificate", cert, "this is a certificate"},
		{"certificate under a key's type", "ssh-ed25519 " + certBlob, "another type"},
		{"dss", "ssh-dss " + dss, "DSA"},
		{"dss under another type", "ssh-rsa " + dss, "not a key"},
		{"rsa 1024", line(weakRSA(t)), "1024 bits"},
		{"unknown type", "ssh-mldsa-44 " + blob, "supported key type"},
		{"private/pem", pemText, "private key"},
		{"private/pem in lower case", strings.ToLower(pemText), "private key"},
		{"private/on one line", strings.ReplaceAll(pemText, "\n", " "), "private key"},
		{"private/base64 alone", body, "private key"},
		{"private/under a public type", "ssh-ed25519 " + body, "private key"},
		{"private/pkcs8", "-----BEGIN PRIVATE KEY-----\nMC4CAQ\n-----END PRIVATE KEY-----", "private key"},
		{"private/putty", "PuTTY-User-Key-File-3: ssh-ed25519\nPrivate-Lines: 1\n", "private key"},
		{"private/large", pemText + strings.Repeat("x", 1<<20), "private key"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			key, err := ParsePublicKey(tt.text)
			if !errors.Is(err, ErrPublicKey) || key != nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("ParsePublicKey = %v, %v, want ErrPublicKey with %q", key, err, tt.want)
			}
			if private := strings.HasPrefix(tt.name, "private/"); errors.Is(err, ErrPrivateKey) != private {
				t.Errorf("ParsePublicKey = %v, ErrPrivateKey want %v", err, private)
			}
			for _, word := range strings.Fields(tt.text) {
				if len(word) > 20 && strings.Contains(err.Error(), word[:20]) {
					t.Errorf("the error repeats the input: %v", err)
				}
			}
		})
	}
}

// TestParseRefusesOtherEncodings: sshd verifies the bytes that it got, we verify
// what we parsed; the two must be the same.
func TestParseRefusesOtherEncodings(t *testing.T) {
	ca := NewCA(newSigner(t))
	cert := issue(t, ca, testGrant(t))
	text := b64(cert)
	// An empty string inside an option's value reads like no value at all.
	blob := string(cert.Marshal())
	empty := "\x00\x00\x00\x0apermit-pty\x00\x00\x00\x00"
	i := strings.Index(blob, empty)
	if i < 0 {
		t.Fatal("no permit-pty in the certificate")
	}
	other := blob[:i] + "\x00\x00\x00\x0apermit-pty\x00\x00\x00\x04\x00\x00\x00\x00" + blob[i+len(empty):]
	j := strings.LastIndex(blob[:i], BindingExtension) // its list begins 4 bytes of length earlier
	if j > 0 {
		t.Fatal("the order of extensions has changed")
	}
	// Lengthen the list of extensions, whose length stands right before its first name.
	fixed := []byte(other)
	fixed[i-1] += 4
	if k, err := ssh.ParsePublicKey(fixed); err != nil {
		t.Fatalf("the certificate of this test can't be parsed: %v", err)
	} else if _, ok := k.(*ssh.Certificate).Extensions["permit-pty"]; !ok {
		t.Fatal("the certificate of this test is not what it should be")
	}

	for name, bad := range map[string]string{
		"second encoding of no value": base64.StdEncoding.EncodeToString(fixed),
		"newline inside":              text[:40] + "\n" + text[40:],
		"trailing bytes":              base64.StdEncoding.EncodeToString([]byte(blob + "x")),
		"url alphabet":                base64.URLEncoding.EncodeToString([]byte(blob + "\xff\xff\xff")),
	} {
		if _, err := ParseCertificate(cert.Type(), bad); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: ParseCertificate = %v, want ErrMalformed", name, err)
		}
	}
}

func TestParseCertificateRefuses(t *testing.T) {
	cert := issue(t, NewCA(newSigner(t)), testGrant(t))
	key := newSigner(t).PublicKey()
	huge := issue(t, NewCA(newSigner(t)), testGrant(t))
	huge.Extensions["x@example.com"] = strings.Repeat("x", 64<<10)
	tests := []struct{ name, keyType, text string }{
		{"empty", "", ""},
		{"plain key", key.Type(), b64(key)},
		{"plain key under a certificate's type", cert.Type(), b64(key)},
		{"certificate under a key's type", key.Type(), b64(cert)},
		{"certificate under another type", ssh.CertAlgoRSAv01, b64(cert)},
		{"cut", cert.Type(), b64(cert)[:200]},
		{"64 KiB", huge.Type(), b64(huge)},
		{"nested", cert.Type(), nested(t, cert)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if c, err := ParseCertificate(tt.keyType, tt.text); !errors.Is(err, ErrMalformed) || c != nil {
				t.Errorf("ParseCertificate = %v, %v, want ErrMalformed", c, err)
			}
		})
	}
}

// nested is a certificate whose authority is a certificate.
func nested(t *testing.T, authority *ssh.Certificate) string {
	cert := issue(t, NewCA(newSigner(t)), testGrant(t))
	cert.SignatureKey = authority
	return b64(cert)
}

func TestParseAuthInfo(t *testing.T) {
	cert := issue(t, NewCA(newSigner(t)), testGrant(t))
	key := newSigner(t).PublicKey()
	good := "publickey " + cert.Type() + " " + b64(cert)
	tests := []struct {
		name, text string
		ok         bool
	}{
		{"ok/as sshd writes it", good + "\n", true},
		{"ok/without the line ending", good, true},
		{"empty", "", false},
		{"line ending only", "\n", false},
		{"password", "password\n", false},
		{"key", "publickey " + key.Type() + " " + b64(key) + "\n", false},
		{"twice", good + "\n" + good + "\n", false},
		{"password too", "password\n" + good + "\n", false},
		{"empty line after", good + "\n\n", false},
		{"another word", good + " x\n", false},
		{"two spaces", "publickey  " + cert.Type() + " " + b64(cert), false},
		{"other method", "hostbased " + cert.Type() + " " + b64(cert), false},
		{"method in upper case", strings.ToUpper("publickey") + good[9:], false},
		{"too long", good + strings.Repeat(" ", 300<<10), false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ParseAuthInfo(tt.text)
			if tt.ok {
				if err != nil || string(got.Marshal()) != string(cert.Marshal()) {
					t.Errorf("ParseAuthInfo = %v, %v, want the certificate", got, err)
				}
				return
			}
			if !errors.Is(err, ErrMalformed) || got != nil {
				t.Errorf("ParseAuthInfo = %v, %v, want ErrMalformed", got, err)
			}
		})
	}
}

func FuzzParseCertificateNeverPanics(f *testing.F) {
	ca := NewCA(newSigner(f))
	cert := issue(f, ca, testGrant(f))
	f.Add(cert.Type(), cert.Marshal())
	host, err := ca.IssueHost(newSigner(f).PublicKey(), []string{"h"}, testNow, MaxHostTTL, 1)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(host.Type(), host.Marshal())
	for _, key := range append(skKeys(f), signerFor(f, rsaKey(f, 2048)).PublicKey(), signerFor(f, ecdsaKey(f, elliptic.P256())).PublicKey()) {
		g := testGrant(f)
		g.PublicKey = key
		c := issue(f, ca, g)
		f.Add(c.Type(), c.Marshal())
	}
	f.Fuzz(func(t *testing.T, keyType string, blob []byte) {
		cert, err := ParseCertificate(keyType, base64.StdEncoding.EncodeToString(blob))
		if err != nil {
			if !errors.Is(err, ErrMalformed) || len(err.Error()) > 400 {
				t.Errorf("ParseCertificate = %v, want a short ErrMalformed", err)
			}
			return
		}
		if string(cert.Marshal()) != string(blob) {
			t.Error("an accepted certificate has another encoding")
		}
		_, err = Verify(cert, testLogin, []ssh.PublicKey{cert.SignatureKey}, testNow, testPolicy)
		if err != nil && len(err.Error()) > 400 {
			t.Errorf("Verify = %v, want a short error", err)
		}
	})
}

func FuzzParseAuthInfoNeverPanics(f *testing.F) {
	cert := issue(f, NewCA(newSigner(f)), testGrant(f))
	f.Add("publickey " + cert.Type() + " " + b64(cert) + "\n")
	f.Add("password\n")
	f.Fuzz(func(t *testing.T, info string) {
		cert, err := ParseAuthInfo(info)
		if (cert == nil) != (err != nil) || (err != nil && !errors.Is(err, ErrMalformed)) {
			t.Errorf("ParseAuthInfo(%q) = %v, %v", info, cert, err)
		}
	})
}

func FuzzParsePublicKeyNeverPanics(f *testing.F) {
	f.Add(line(newSigner(f).PublicKey()) + " comment\n")
	f.Fuzz(func(t *testing.T, text string) {
		key, err := ParsePublicKey(text)
		if err != nil {
			return
		}
		if again, err := ParsePublicKey(line(key)); err != nil || string(again.Marshal()) != string(key.Marshal()) {
			t.Errorf("ParsePublicKey of its own result = %v, %v", again, err)
		}
	})
}
