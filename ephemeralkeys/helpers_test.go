package ephemeralkeys

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
)

const (
	testLogin   = "sbx-0123456789abcdef"
	testCommand = "/usr/libexec/podspawn/podspawn-hook session"
)

var (
	testPolicy = Policy{ForceCommand: testCommand}
	testNow    = time.Unix(1_800_000_000, 0)
)

func newSigner(t testing.TB) ssh.Signer {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return signerFor(t, key)
}

func signerFor(t testing.TB, key crypto.Signer) ssh.Signer {
	t.Helper()
	s, err := ssh.NewSignerFromSigner(key)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func rsaKey(t testing.TB, bits int) *rsa.PrivateKey {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func ecdsaKey(t testing.TB, c elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(c, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// skKeys returns the public keys of security keys that nobody has.
func skKeys(t testing.TB) []ssh.PublicKey {
	t.Helper()
	point, err := ecdsaKey(t, elliptic.P256()).PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	blobs := [][]byte{
		ssh.Marshal(struct{ Name, Key, App string }{ssh.KeyAlgoSKED25519, strings.Repeat("k", 32), "ssh:"}),
		ssh.Marshal(struct{ Name, ID, Key, App string }{ssh.KeyAlgoSKECDSA256, "nistp256", string(point), "ssh:"}),
	}
	var keys []ssh.PublicKey
	for _, b := range blobs {
		k, err := ssh.ParsePublicKey(b)
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, k)
	}
	return keys
}

func testGrant(t testing.TB) Grant {
	t.Helper()
	return Grant{
		Serial:       7,
		KeyID:        KeyID("host.example", testLogin, "alice"),
		Principal:    testLogin,
		PublicKey:    newSigner(t).PublicKey(),
		Now:          testNow,
		ForceCommand: testCommand,
		PTY:          true,
		Binding:      testBinding(),
	}
}

func testBinding() Binding {
	return Binding{
		V: 1, Sandbox: "sbx_0123456789abcdef", Spec: "sha256:" + strings.Repeat("0a", 32),
		Uses: 1, Token: "tok_0123456789abcdef",
	}
}

func issue(t testing.TB, ca *CA, g Grant) *ssh.Certificate {
	t.Helper()
	cert, err := ca.Issue(g)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func line(key ssh.PublicKey) string { return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key))) }

func b64(key ssh.PublicKey) string { return base64.StdEncoding.EncodeToString(key.Marshal()) }

func writeFile(t testing.TB, name, text string, perm os.FileMode) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), perm); err != nil {
		t.Fatal(err)
	}
	return path
}

func privatePEM(t testing.TB, key crypto.PrivateKey) string {
	t.Helper()
	block, err := ssh.MarshalPrivateKey(key, "")
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(block))
}

// needKeygen asks for OpenSSH's own tool, the judge of what we write.
func needKeygen(t testing.TB) {
	t.Helper()
	if _, err := exec.LookPath("ssh-keygen"); err != nil {
		if slices.Contains(strings.Split(os.Getenv("PODSPAWN_TEST_REQUIRE"), ","), "sshd") {
			t.Fatal("ssh-keygen is required and missing: install openssh-client")
		}
		t.Skip("no ssh-keygen: install openssh-client")
	}
}

// keygen runs ssh-keygen and returns what it printed and whether it succeeded.
func keygen(t testing.TB, stdin string, args ...string) (string, bool) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "ssh-keygen", args...)
	cmd.Stdin = strings.NewReader(stdin)
	cmd.Env = []string{"TZ=UTC", "PATH=" + os.Getenv("PATH")}
	out, err := cmd.CombinedOutput()
	if _, exited := errors.AsType[*exec.ExitError](err); err != nil && !exited {
		t.Fatal(err)
	}
	return string(out), err == nil
}

// weakRSA returns a key of 1024 bits, of which nobody has the private half.
func weakRSA(t testing.TB) ssh.PublicKey {
	t.Helper()
	n := new(big.Int).SetBit(big.NewInt(1), 1023, 1)
	key, err := ssh.NewPublicKey(&rsa.PublicKey{N: n, E: 65537})
	if err != nil {
		t.Fatal(err)
	}
	return key
}
