package sshconfig

import (
	"crypto/ed25519"
	"crypto/rand"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/podspawn/podspawn/agent/api"
)

const login = "sbx-0123456789abcdef"

func TestTargetValidate(t *testing.T) {
	good := Target{Host: "pods.example", Port: 22, User: login, Dir: "/home/u/.ssh/podspawn/x"}
	if err := good.Validate(); err != nil {
		t.Fatalf("Validate = %v, want nil", err)
	}
	tests := []struct {
		name string
		edit func(*Target)
	}{
		{"host/empty", func(t *Target) { t.Host = "" }},
		{"host/option", func(t *Target) { t.Host = "-oProxyCommand=id" }},
		{"host/newline", func(t *Target) { t.Host = "a\n  ProxyCommand id" }},
		{"host/space", func(t *Target) { t.Host = "a b" }},
		{"host/shell", func(t *Target) { t.Host = "$(id)" }},
		{"host/zone", func(t *Target) { t.Host = "fe80::1%eth0" }},
		{"host/pattern", func(t *Target) { t.Host = "*" }},
		{"port/0", func(t *Target) { t.Port = 0 }},
		{"port/65536", func(t *Target) { t.Port = 65536 }},
		{"user/option", func(t *Target) { t.User = "-l" }},
		{"user/newline", func(t *Target) { t.User = "a\nb" }},
		{"dir/relative", func(t *Target) { t.Dir = "a/b" }},
		{"dir/up", func(t *Target) { t.Dir = "/a/../b" }},
		{"dir/up from home", func(t *Target) { t.Dir = "~/../b" }},
		{"dir/root", func(t *Target) { t.Dir = "/" }},
		{"dir/quote", func(t *Target) { t.Dir = `/a"b` }},
		{"dir/percent", func(t *Target) { t.Dir = "/a%h" }},
		{"dir/variable", func(t *Target) { t.Dir = "/a${HOME}" }},
		{"dir/newline", func(t *Target) { t.Dir = "/a\nProxyCommand id" }},
		{"dir/escape", func(t *Target) { t.Dir = "/a\x1b[2J" }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bad := good
			tt.edit(&bad)
			if err := bad.Validate(); err == nil {
				t.Errorf("Validate(%+v) = nil, want an error", bad)
			}
		})
	}
}

// TestOpenSSHReadsConfigAndCommandAlike asks the real client what it makes of both.
func TestOpenSSHReadsConfigAndCommandAlike(t *testing.T) {
	bin, err := exec.LookPath("ssh")
	if err != nil {
		t.Skip("no ssh client")
	}
	dir := filepath.Join(t.TempDir(), "with space#")
	target := Target{Host: "pods.example", Port: 2022, User: login, Dir: dir}
	if err := target.Validate(); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(target.file(ConfigFile), []byte(target.Config()), 0o600); err != nil {
		t.Fatal(err)
	}
	commands := map[string]string{"command": target.Command(), "config": target.ConfigCommand()}
	for name, command := range commands {
		t.Run(name, func(t *testing.T) {
			command = strings.Replace(command, "ssh ", bin+" -G ", 1)
			out, err := exec.Command("sh", "-c", command).CombinedOutput()
			if err != nil {
				t.Fatalf("%s: %v\n%s", command, err, out)
			}
			for _, want := range []string{
				"hostname pods.example", "port 2022", "user " + login, "identitiesonly yes",
				"identityfile " + dir + "/" + KeyFile, "certificatefile " + dir + "/" + CertificateFile,
				"userknownhostsfile " + dir + "/" + KnownHostsFile, "stricthostkeychecking true",
			} {
				if !strings.Contains(string(out), want+"\n") {
					t.Errorf("ssh -G does not say %q:\n%s", want, out)
				}
			}
		})
	}
}

func TestControlMasterIsLeftOutWhereItsSocketWouldNotFit(t *testing.T) {
	short := Target{Host: "h", Port: 22, User: login, Dir: "/" + strings.Repeat("a", maxControlDir-1)}
	long := short
	long.Dir += "a"
	if !strings.Contains(short.Config(), "ControlMaster auto") {
		t.Error("no ControlMaster in a folder that has room for it")
	}
	if strings.Contains(long.Config(), "ControlMaster") {
		t.Error("ControlMaster in a folder without room for it")
	}
}

func TestQuote(t *testing.T) {
	for _, s := range []string{"", "a", "a b", "it's", "$(id)", "a\nb", "-x", "~/a", "*"} {
		out, err := exec.Command("sh", "-c", "printf %s "+Quote(s)).Output()
		if err != nil || string(out) != s {
			t.Errorf("sh made %q of Quote(%q), %v", out, s, err)
		}
	}
}

func TestInstallUsesNothingElseOfAHostileServer(t *testing.T) {
	key, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	block := issue(t, key, login)
	block.Config = "Host *\n  ProxyCommand touch /owned\n"
	block.Command = "ssh -oProxyCommand=id x"
	dir := filepath.Join(t.TempDir(), "sbx")
	target, err := Install(dir, key, block)
	if err != nil {
		t.Fatalf("Install = %v", err)
	}
	for _, name := range []string{KeyFile, CertificateFile, KnownHostsFile, ConfigFile} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(b), "Proxy") {
			t.Errorf("%s has the server's text:\n%s", name, b)
		}
		if st, err := os.Stat(filepath.Join(dir, name)); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v, %v, want 0600", name, st.Mode(), err)
		}
	}
	if strings.Contains(target.Command(), "Proxy") {
		t.Errorf("command has the server's text: %s", target.Command())
	}
	known, err := os.ReadFile(filepath.Join(dir, KnownHostsFile))
	if err != nil || !strings.HasPrefix(string(known), "@cert-authority [pods.example]:2022 ssh-ed25519 ") {
		t.Errorf("known_hosts = %q, %v", known, err)
	}
}

func TestInstallRefuses(t *testing.T) {
	key, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	other, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	good := issue(t, key, login)
	tests := []struct {
		name string
		edit func(*api.SSH)
	}{
		{"certificate for another key", func(s *api.SSH) { s.Certificate = issue(t, other, login).Certificate }},
		{"certificate for another login", func(s *api.SSH) { s.Certificate = issue(t, key, "root").Certificate }},
		{"plain key for a certificate", func(s *api.SSH) { s.Certificate = key.Public }},
		{"two certificates", func(s *api.SSH) { s.Certificate += "\n" + s.Certificate }},
		{"known_hosts without marker", func(s *api.SSH) { s.KnownHosts = "h " + key.Public }},
		{"two known_hosts lines", func(s *api.SSH) { s.KnownHosts += "\n@cert-authority * " + key.Public }},
		{"newline in the host", func(s *api.SSH) { s.Host = "a\nProxyCommand id" }},
		{"option as the user", func(s *api.SSH) { s.User = "-oProxyCommand=id" }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bad := good
			tt.edit(&bad)
			dir := filepath.Join(t.TempDir(), "sbx")
			if _, err := Install(dir, key, bad); err == nil {
				t.Error("Install = nil, want an error")
			}
			if _, err := os.Stat(dir); !os.IsNotExist(err) {
				t.Errorf("Install left the folder behind: %v", err)
			}
		})
	}
}

func FuzzQuoteIsOneWord(f *testing.F) {
	f.Add("it's")
	f.Fuzz(func(t *testing.T, s string) {
		q := Quote(s)
		if plainWord.MatchString(q) {
			return
		}
		// Outside the quotes nothing but an escaped quote may stand.
		inside := false
		for i := 0; i < len(q); i++ {
			switch {
			case q[i] == '\'':
				inside = !inside
			case !inside && !strings.HasPrefix(q[i:], `\'`):
				t.Fatalf("Quote(%q) = %s leaves byte %d unquoted", s, q, i)
			case !inside:
				i++ // the escaped quote
			}
		}
		if inside {
			t.Fatalf("Quote(%q) = %s does not end", s, q)
		}
	})
}

// issue plays the server: a certificate for key under a CA of its own.
func issue(t *testing.T, key *Key, principal string) api.SSH {
	t.Helper()
	_, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ca, err := ssh.NewSignerFromKey(priv)
	if err != nil {
		t.Fatal(err)
	}
	cert := &ssh.Certificate{
		Key: key.key, CertType: ssh.UserCert, Serial: 1, ValidPrincipals: []string{principal},
		ValidBefore: ssh.CertTimeInfinity,
	}
	if err := cert.SignCert(rand.Reader, ca); err != nil {
		t.Fatal(err)
	}
	return api.SSH{
		Host: "pods.example", Port: 2022, User: login,
		KnownHosts:  "@cert-authority * " + authorizedLine(ca.PublicKey()),
		Certificate: authorizedLine(cert),
	}
}
