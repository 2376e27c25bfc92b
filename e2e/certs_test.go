package e2e

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
)

const userCA = "/var/lib/podspawn/keys/user_ca"

func signerFrom(t *testing.T, path string) ssh.Signer {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	s, err := ssh.ParsePrivateKey(b)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func newSigner(t *testing.T) ssh.Signer {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s, err := ssh.NewSignerFromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// certFile is the certificate in a client's folder.
func (c client) certFile(t *testing.T) string {
	t.Helper()
	all, err := filepath.Glob(filepath.Join(c.dir, "*-cert.pub"))
	if err != nil || len(all) != 1 {
		t.Fatalf("certificates in %s: %v, %v", c.dir, all, err)
	}
	return all[0]
}

func (c client) cert(t *testing.T) *ssh.Certificate {
	t.Helper()
	b, err := os.ReadFile(c.certFile(t))
	if err != nil {
		t.Fatal(err)
	}
	key, _, _, _, err := ssh.ParseAuthorizedKey(b)
	if err != nil {
		t.Fatal(err)
	}
	return key.(*ssh.Certificate)
}

// forge replaces the client's certificate by a changed one, signed by ca.
func (c client) forge(t *testing.T, ca ssh.Signer, change func(*ssh.Certificate)) {
	t.Helper()
	cert := c.cert(t)
	change(cert)
	if err := cert.SignCert(rand.Reader, ca); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(c.certFile(t), ssh.MarshalAuthorizedKey(cert), 0o600); err != nil {
		t.Fatal(err)
	}
}

// Threats 1-9, 15, 17, 19, 29-32: each attack has the real CA's key, which no
// attacker has, unless it says otherwise, so that only the named check can stop it.
func TestCertificateAttacks(t *testing.T) {
	s := create(t, "--grace", "10m")
	connectable(t, s).ssh(t, nil, "true") // the sandbox works
	ca := signerFrom(t, userCA)
	now := uint64(time.Now().Unix())
	for _, tc := range []struct {
		name   string
		ca     ssh.Signer
		change func(*ssh.Certificate)
	}{
		{"2 expired", ca, func(c *ssh.Certificate) { c.ValidAfter, c.ValidBefore = now-600, now-300 }},
		{"3 not yet valid", ca, func(c *ssh.Certificate) { c.ValidAfter, c.ValidBefore = now+300, now+600 }},
		{"4 another CA", newSigner(t), func(*ssh.Certificate) {}},
		{"5 host certificate", ca, func(c *ssh.Certificate) { c.CertType = ssh.HostCert }},
		{"7 principal *", ca, func(c *ssh.Certificate) { c.ValidPrincipals = []string{"*"} }},
		{"8 comma in a principal", ca, func(c *ssh.Certificate) { c.ValidPrincipals = []string{s.Login + ",root"} }},
		{"9 unknown critical option", ca, func(c *ssh.Certificate) { c.CriticalOptions["verify-required-not"] = "" }},
		{"17 another source address", ca, func(c *ssh.Certificate) { c.CriticalOptions["source-address"] = "192.0.2.0/24" }},
		{"19 another command", ca, func(c *ssh.Certificate) { c.CriticalOptions["force-command"] = "/bin/sh" }},
		{"19 no command", ca, func(c *ssh.Certificate) { delete(c.CriticalOptions, "force-command") }},
		{"19 one more extension", ca, func(c *ssh.Certificate) { c.Extensions["permit-port-forwarding"] = "" }},
		{"19 longer validity", ca, func(c *ssh.Certificate) { c.ValidBefore += 60 }},
		{"19 same content, signed again", ca, func(c *ssh.Certificate) { c.Nonce = []byte(strings.Repeat("n", 32)) }},
		{"29 options in the key id", ca, func(c *ssh.Certificate) { c.KeyId = "x\nrestrict " + s.Login + "\ncommand=\"/bin/sh\" " + s.Login }},
		{"30 serial 0", ca, func(c *ssh.Certificate) { c.Serial = 0 }},
		{"30 serial 2^64-1", ca, func(c *ssh.Certificate) { c.Serial = 1<<64 - 1 }},
		{"32 500 principals", ca, func(c *ssh.Certificate) {
			for i := range 500 {
				c.ValidPrincipals = append(c.ValidPrincipals, fmt.Sprint("sbx-", i))
			}
		}},
		{"32 huge extension", ca, func(c *ssh.Certificate) { c.Extensions["permit@podspawn.dev"] = strings.Repeat("x", 100_000) }},
		{"unbound", ca, func(c *ssh.Certificate) { delete(c.Extensions, "permit@podspawn.dev") }},
		{"another serial of its own", ca, func(c *ssh.Certificate) { c.Serial++ }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := connectable(t, s)
			c.forge(t, tc.ca, tc.change)
			r := c.ssh(t, nil, "echo in as $(id -un)")
			if r.code != 255 || r.stdout != "" {
				t.Errorf("ssh: %v, want refused with nothing on stdout", r)
			}
		})
	}
	t.Run("6 no principals", func(t *testing.T) {
		c := connectable(t, s)
		key := strings.TrimSuffix(c.certFile(t), "-cert.pub") + ".pub"
		if err := os.WriteFile(key, ssh.MarshalAuthorizedKey(c.cert(t).Key), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := command("ssh-keygen", "-q", "-s", userCA, "-I", "x", "-z", "1", "-V", "-1m:+5m", key); err != nil {
			t.Fatal(err)
		}
		if r := c.ssh(t, nil, "echo in"); r.code != 255 || r.stdout != "" {
			t.Errorf("ssh: %v, want refused", r)
		}
	})
	t.Run("1 untouched, signed by nobody else", func(t *testing.T) {
		if r := connectable(t, s).ssh(t, nil, "echo in"); r.code != 0 || r.stdout != "in\n" {
			t.Errorf("ssh with the certificate as issued: %v", r)
		}
	})
}

// Threats 7, 15, 16: a certificate is for its own sandbox and no other account.
func TestCertificateOpensNothingElse(t *testing.T) {
	h := need(t)
	one, two := create(t), create(t)
	ca := signerFrom(t, userCA)
	for _, login := range []string{"root", h.realUser, "nobody", "podspawn-auth", "podspawn-api", two.Login} {
		t.Run(login, func(t *testing.T) {
			c := connectable(t, one)
			if r := run(t, nil, "ssh", append(c.args("-l", login), c.login, "id")...); r.code != 255 || r.stdout != "" {
				t.Errorf("as issued: %v, want refused", r)
			}
			c.forge(t, ca, func(cert *ssh.Certificate) { cert.ValidPrincipals = []string{login} })
			if r := run(t, nil, "ssh", append(c.args("-l", login), c.login, "id")...); r.code != 255 || r.stdout != "" {
				t.Errorf("signed by the CA for %s: %v, want refused", login, r)
			}
		})
	}
}

// Threat 10: whoever has a certificate without its key can't use it up.
func TestCertificateWithoutKeyUsesNothingUp(t *testing.T) {
	s := create(t, "--grace", "10m")
	c := connectable(t, s, "--uses", "1")
	thief := client{dir: t.TempDir(), login: c.login}
	cert, err := os.ReadFile(c.certFile(t))
	if err != nil {
		t.Fatal(err)
	}
	_, other, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(other, "")
	if err != nil {
		t.Fatal(err)
	}
	key, crt := filepath.Join(thief.dir, "key"), filepath.Join(thief.dir, "cert")
	for path, data := range map[string][]byte{key: pem.EncodeToMemory(block), crt: cert} {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for range 20 {
		r := run(t, nil, "ssh", "-F", "none", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
			"-o", "IdentitiesOnly=yes", "-i", key, "-o", "CertificateFile="+crt, thief.login+"@127.0.0.1", "true")
		if r.code != 255 {
			t.Fatalf("the thief got in: %v", r)
		}
	}
	if r := c.ssh(t, nil, "echo in"); r.code != 0 || r.stdout != "in\n" {
		t.Errorf("the owner after 20 attempts of a thief: %v", r)
	}
}

// Threats 11-14.
func TestUses(t *testing.T) {
	s := create(t, "--grace", "10m")
	t.Run("12 of parallel logins exactly one wins", func(t *testing.T) {
		c := connectable(t, s, "--uses", "1")
		var wg sync.WaitGroup
		results := make([]result, 6)
		for i := range results {
			wg.Go(func() { results[i] = c.ssh(t, nil, "echo in; sleep 1") })
		}
		wg.Wait()
		won := 0
		for _, r := range results {
			if r.stdout == "in\n" {
				won++
			} else if r.stdout != "" || r.code == 0 {
				t.Errorf("a loser: %v", r)
			}
		}
		if won != 1 {
			t.Errorf("%d of %d won with a one-use certificate: %v", won, len(results), results)
		}
	})
	t.Run("11 spent", func(t *testing.T) {
		c := connectable(t, s, "--uses", "1")
		if r := c.ssh(t, nil, "true"); r.code != 0 {
			t.Fatalf("first use: %v", r)
		}
		r := c.ssh(t, nil, "echo in")
		if r.code != 75 || r.stdout != "" || strings.Count(r.stderr, "\n") != 1 || !strings.Contains(r.stderr, "used up") {
			t.Errorf("second use: %v, want exit 75 and one line that says why", r)
		}
		began := time.Now()
		if r := run(t, nil, "ssh", append(c.args("-N"), c.login)...); r.code != 255 {
			t.Errorf("ssh -N when spent: %v, want 255", r)
		}
		if took := time.Since(began); took > 20*time.Second {
			t.Errorf("a refused ssh -N stayed for %s", took)
		}
		found := false
		for _, ref := range get(t, s.ID).Refusals {
			found = found || strings.Contains(ref.Reason, "used up")
		}
		if !found {
			t.Errorf("podspawn get does not say why: %+v", get(t, s.ID))
		}
	})
	t.Run("13 a ControlMaster with three sessions is one use", func(t *testing.T) {
		c := connectable(t, s, "--uses", "1")
		ctl := []string{"-F", filepath.Join(c.dir, "ssh_config"), "-o", "BatchMode=yes", "-o", "ControlPath=" + filepath.Join(c.dir, "m")}
		if r := run(t, nil, "ssh", append(ctl, "-o", "ControlMaster=yes", "-o", "ControlPersist=yes", "-fN", c.login)...); r.code != 0 {
			t.Fatalf("master: %v", r)
		}
		defer run(t, nil, "ssh", append(ctl, "-O", "exit", c.login)...)
		for range 3 {
			if r := run(t, nil, "ssh", append(ctl, c.login, "echo in")...); r.stdout != "in\n" {
				t.Errorf("session over the master: %v", r)
			}
		}
	})
	t.Run("14 ssh -N is a use", func(t *testing.T) {
		c := connectable(t, s, "--uses", "1")
		run(t, nil, "timeout", append([]string{"3", "ssh"}, c.args("-N", c.login)...)...)
		if r := c.ssh(t, nil, "echo in"); r.code != 75 {
			t.Errorf("after ssh -N: %v, want spent", r)
		}
	})
}

func TestOtherSourceAddressIsRefused(t *testing.T) {
	s := create(t, "--grace", "10m")
	if r := connectable(t, s, "--source", "127.0.0.0/8").ssh(t, nil, "echo in"); r.stdout != "in\n" {
		t.Errorf("from an allowed address: %v", r)
	}
	if r := connectable(t, s, "--source", "192.0.2.1/32").ssh(t, nil, "echo in"); r.code != 255 || r.stdout != "" {
		t.Errorf("from another address: %v", r)
	}
}
