package ephemeralkeys

import (
	"crypto/ed25519"
	"crypto/rand"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
)

// TestOpenSSHReadsWhatIsIssued compares with ssh-keygen -L, field by field.
func TestOpenSSHReadsWhatIsIssued(t *testing.T) {
	needKeygen(t)
	ca := NewCA(newSigner(t))
	g := testGrant(t)
	g.Serial = 1<<64 - 2
	g.SourceAddress = "192.0.2.7/24,2001:db8::1"
	g.PortForwarding, g.Agent, g.X11 = true, true, true
	for _, key := range append(skKeys(t), g.PublicKey, signerFor(t, rsaKey(t, 3072)).PublicKey()) {
		t.Run(key.Type(), func(t *testing.T) {
			g.PublicKey = key
			cert := issue(t, ca, g)
			out, ok := keygen(t, "", "-L", "-f", writeFile(t, "cert.pub", line(cert)+"\n", 0o600))
			if !ok {
				t.Fatalf("ssh-keygen -L: %s", out)
			}
			for _, want := range []string{
				"Type: " + cert.Type() + " user certificate",
				"Public key: ", ssh.FingerprintSHA256(key),
				"Signing CA: ED25519 " + ssh.FingerprintSHA256(ca.PublicKey()) + " (using ssh-ed25519)",
				`Key ID: "podspawn:host.example:` + testLogin + `:alice"`,
				"Serial: 18446744073709551614",
				"Valid: from 2027-01-15T07:59:00 to 2027-01-15T08:05:00",
				"Principals: \n                " + testLogin + "\n        Critical Options: ",
				"force-command " + testCommand,
				"source-address 192.0.2.0/24,2001:db8::1/128",
				"permit-X11-forwarding", "permit-agent-forwarding", "permit-port-forwarding", "permit-pty",
				BindingExtension,
			} {
				if !strings.Contains(out, want) {
					t.Errorf("ssh-keygen -L has no %q:\n%s", want, out)
				}
			}
		})
	}
}

// TestOpenSSHAcceptsWhatIsIssued has OpenSSH check a signature under one of our
// certificates, with its own idea of authorities, principals and time.
func TestOpenSSHAcceptsWhatIsIssued(t *testing.T) {
	needKeygen(t)
	dir := t.TempDir()
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	public, err := ssh.NewPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	ca := NewCA(newSigner(t))
	g := testGrant(t)
	g.PublicKey = public
	cert := issue(t, ca, g)
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	private := file("key", privatePEM(t, key))
	file("key-cert.pub", line(cert)+"\n")
	text := file("text", "hello\n")
	if out, ok := keygen(t, "", "-Y", "sign", "-n", "file", "-f", filepath.Join(dir, "key-cert.pub"), text); !ok {
		// Some releases want the private key's name.
		if out2, ok := keygen(t, "", "-Y", "sign", "-n", "file", "-f", private, text); !ok {
			t.Fatalf("ssh-keygen -Y sign: %s %s", out, out2)
		}
	}
	at := func(d time.Duration) string { return testNow.Add(d).UTC().Format("20060102150405Z") }
	verify := func(who, when, authority string) bool {
		signers := file("signers", "* cert-authority "+authority+"\n")
		out, ok := keygen(t, "hello\n", "-Y", "verify", "-n", "file", "-I", who, "-f", signers, "-s", text+".sig", "-Overify-time="+when)
		t.Logf("%s at %s: %s", who, when, strings.TrimSpace(out))
		return ok
	}
	tests := []struct {
		name, who, when, authority string
		want                       bool
	}{
		{"ok", testLogin, at(0), ca.AuthorizedKey(), true},
		{"first second", testLogin, at(-60 * time.Second), ca.AuthorizedKey(), true},
		{"too early", testLogin, at(-61 * time.Second), ca.AuthorizedKey(), false},
		{"last second", testLogin, at(299 * time.Second), ca.AuthorizedKey(), true},
		{"expired", testLogin, at(301 * time.Second), ca.AuthorizedKey(), false},
		{"another login", "root", at(0), ca.AuthorizedKey(), false},
		{"another CA", testLogin, at(0), NewCA(newSigner(t)).AuthorizedKey(), false},
	}
	for _, tt := range tests {
		if got := verify(tt.who, tt.when, tt.authority); got != tt.want {
			t.Errorf("%s: OpenSSH accepts %v, want %v", tt.name, got, tt.want)
		}
	}
}

func TestOpenSSHReadsTheCAFile(t *testing.T) {
	needKeygen(t)
	path := filepath.Join(t.TempDir(), "user_ca")
	ca, _, err := LoadOrCreateCA(path, "podspawn user CA")
	if err != nil {
		t.Fatal(err)
	}
	out, ok := keygen(t, "", "-y", "-f", path)
	if !ok || strings.TrimSpace(out) != ca.AuthorizedKey() {
		t.Errorf("ssh-keygen -y = %q, want %q", out, ca.AuthorizedKey())
	}
}

func TestOpenSSHReadsHostCertificates(t *testing.T) {
	needKeygen(t)
	ca := NewCA(newSigner(t))
	cert, err := ca.IssueHost(newSigner(t).PublicKey(), []string{"host.example", "192.0.2.1"}, testNow, 365*24*time.Hour, 3)
	if err != nil {
		t.Fatal(err)
	}
	out, ok := keygen(t, "", "-L", "-f", writeFile(t, "cert.pub", line(cert)+"\n", 0o600))
	for _, want := range []string{"host certificate", "Serial: 3", "host.example\n", "192.0.2.1\n", "Critical Options: (none)", "Extensions: (none)", `Key ID: "podspawn:host:host.example"`} {
		if !ok || !strings.Contains(out, want) {
			t.Errorf("ssh-keygen -L has no %q:\n%s", want, out)
		}
	}
}

// TestLoadCATakesKeysOfSSHKeygen: administrators bring their own.
func TestLoadCATakesKeysOfSSHKeygen(t *testing.T) {
	needKeygen(t)
	for _, kind := range []string{"ed25519", "ecdsa", "rsa"} {
		path := filepath.Join(t.TempDir(), "ca")
		if out, ok := keygen(t, "", "-q", "-t", kind, "-N", "", "-C", "mine", "-f", path); !ok {
			t.Fatalf("ssh-keygen: %s", out)
		}
		ca, created, err := LoadOrCreateCA(path, "other")
		if err != nil || created || !strings.HasSuffix(ca.AuthorizedKey(), " mine") {
			t.Errorf("%s: LoadOrCreateCA = created %v, %v, want it loaded with its comment", kind, created, err)
			continue
		}
		issue(t, ca, testGrant(t))
	}
}
