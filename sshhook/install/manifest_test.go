package install

import (
	"bytes"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/podspawn/podspawn/sshhook/sshdtest"
)

func TestManifestNoticesEveryChange(t *testing.T) {
	fresh(t)
	apply(t, Options{})
	m, err := LoadManifest(ManifestPath)
	if err != nil {
		t.Fatal(err)
	}
	check := func(what string, wantErr bool) {
		t.Helper()
		if err := m.Check(); (err != nil) != wantErr {
			t.Errorf("%s: Check = %v, want an error: %v", what, err, wantErr)
		}
	}
	check("as it was", false)
	for path := range m.Files {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		st, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		other := bytes.Clone(b)
		other[len(other)-2] ^= 1
		sshdtest.Write(t, path, string(other), 0o644)
		if err := os.Chtimes(path, st.ModTime(), st.ModTime()); err != nil { // same size and time
			t.Fatal(err)
		}
		check(path+" edited", true)
		sshdtest.Write(t, path, string(b), 0o644)
		check(path+" edited back", false)
		if err := os.Rename(path, path+"~"); err != nil {
			t.Fatal(err)
		}
		check(path+" removed", true)
		if err := os.Rename(path+"~", path); err != nil {
			t.Fatal(err)
		}
		check(path+" is back", false)
	}
	late := "/etc/ssh/sshd_config.d/99-late.conf"
	sshdtest.Write(t, late, "LogLevel VERBOSE\n", 0o644)
	check("a drop-in added", true)
	if r, _ := apply(t, Options{}); !r.Changed || len(r.Steps) != 1 {
		t.Errorf("set-up again = %+v, want one step", r)
	}
	if m, err = LoadManifest(ManifestPath); err != nil {
		t.Fatal(err)
	}
	check("after set-up again", false)
	if err := os.Remove(late); err != nil {
		t.Fatal(err)
	}
	check("a drop-in removed", true)
}

func TestHostCertificateIsRenewedInTime(t *testing.T) {
	fresh(t)
	now := time.Now()
	apply(t, Options{Now: now})
	first := hostCertificate(t)
	if r, _ := apply(t, Options{Now: now.Add(300 * 24 * time.Hour)}); r.Changed {
		t.Errorf("65 days before its end: %q", r.Steps)
	}
	apply(t, Options{Now: now.Add(340 * 24 * time.Hour)})
	second := hostCertificate(t)
	if second.Serial == first.Serial || !bytes.Equal(first.SignatureKey.Marshal(), second.SignatureKey.Marshal()) {
		t.Errorf("25 days before its end: serial %d after %d", second.Serial, first.Serial)
	}
	apply(t, Options{Now: now.Add(340 * 24 * time.Hour), Hostnames: []string{"Pod.Example", "::0001", "pod.example"}})
	if got := strings.Join(hostCertificate(t).ValidPrincipals, " "); got != "pod.example ::1" {
		t.Errorf("certificate is for %q", got)
	}
	if r, _ := apply(t, Options{Now: now.Add(340 * 24 * time.Hour), Hostnames: []string{"pod.example", "::1"}}); r.Changed {
		t.Errorf("the same names again: %q", r.Steps)
	}
}

func hostCertificate(t *testing.T) *ssh.Certificate {
	t.Helper()
	key, err := readKey(hostCert)
	if err != nil {
		t.Fatal(err)
	}
	cert, ok := key.(*ssh.Certificate)
	if !ok {
		t.Fatalf("%s holds a plain key", hostCert)
	}
	return cert
}

func TestApplyMakesMissingHostKeys(t *testing.T) {
	fresh(t)
	sshdtest.Run(t, "sh", "-c", "mkdir /run/keys && mv /etc/ssh/ssh_host_* /run/keys")
	t.Cleanup(func() { sshdtest.Run(t, "sh", "-c", "mv -f /run/keys/* /etc/ssh && rmdir /run/keys") })
	apply(t, Options{})
	if hostCertificate(t) == nil {
		t.Error("no host certificate")
	}
}
