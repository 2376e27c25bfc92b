package install

import (
	"bytes"
	"context"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/podspawn/podspawn/sandbox"
	"github.com/podspawn/podspawn/sshhook/sshdtest"
)

// host is the lab's host with podspawn's programs, before or after set-up.
// Fresh undoes what the tests before it did.
func fresh(t *testing.T) {
	t.Helper()
	sshdtest.Need(t)
	buildHook(t)
	before := configFiles(t)
	t.Cleanup(func() {
		_, _ = Uninstall(context.Background(), Options{NoReload: true, Purge: true}) // whatever the test left
		for path := range configFiles(t) {
			if _, ok := before[path]; !ok {
				_ = os.Remove(path)
			}
		}
		for path, text := range before {
			if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
				t.Error(err)
			}
		}
	})
}

// buildHook puts the real program where sshd expects it.
func buildHook(t *testing.T) {
	t.Helper()
	if _, err := os.Stat(HookPath); err == nil {
		return
	}
	cmd := exec.Command("go", "build", "-trimpath", "-o", HookPath, "github.com/podspawn/podspawn/cmd/podspawn-hook")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the hook: %v: %s", err, out)
	}
}

// configFiles are the files that set-up may touch, and that uninstalling must
// give back byte for byte.
func configFiles(t *testing.T) map[string]string {
	t.Helper()
	files := map[string]string{}
	paths := []string{DefaultConfig, pamPath, nssPath, extraGroup, extraPasswd, extraShadow}
	dropIns, err := filepath.Glob("/etc/ssh/sshd_config.d/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range append(paths, dropIns...) {
		b, err := os.ReadFile(p)
		if err == nil {
			files[p] = string(b)
		}
	}
	return files
}

func apply(t *testing.T, o Options) (Result, string) {
	t.Helper()
	var out bytes.Buffer
	o.Out = &out
	r, err := Apply(context.Background(), o)
	if err != nil {
		t.Fatalf("Apply: %v\n%s", err, out.String())
	}
	return r, out.String()
}

func TestApplyIsIdempotentAndUninstallGivesFilesBack(t *testing.T) {
	fresh(t)
	before := configFiles(t)
	if r, out := apply(t, Options{DryRun: true}); !r.Changed || !strings.Contains(out, "+ Match Group podspawn") {
		t.Errorf("dry run: changed %v, said\n%s", r.Changed, out)
	}
	if diff := cmp.Diff(before, configFiles(t)); diff != "" {
		t.Fatalf("a dry run changed files:\n%s", diff)
	}
	if _, err := os.Stat("/etc/podspawn"); err == nil {
		t.Fatal("a dry run made /etc/podspawn")
	}

	r, out := apply(t, Options{})
	if !r.Changed {
		t.Errorf("the first run changed nothing:\n%s", out)
	}
	m, err := LoadManifest(ManifestPath)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Check(); err != nil {
		t.Errorf("Check after set-up = %v", err)
	}
	if m.SFTP != "/usr/lib/openssh/sftp-server" {
		t.Errorf("sftp text is %q", m.SFTP)
	}
	after := configFiles(t)
	r, out = apply(t, Options{})
	if r.Changed || !strings.Contains(out, "nothing to change") {
		t.Errorf("the second run changed %q, said\n%s", r.Steps, out)
	}
	if diff := cmp.Diff(after, configFiles(t)); diff != "" {
		t.Errorf("the second run changed files:\n%s", diff)
	}

	if _, err := Uninstall(context.Background(), Options{}); err != nil {
		t.Fatal(err)
	}
	left := configFiles(t)
	maps.DeleteFunc(left, func(path, text string) bool {
		_, was := before[path]
		return !was && text == "" // empty databases of logins may stay
	})
	if diff := cmp.Diff(before, left); diff != "" {
		t.Errorf("uninstalling did not give the files back:\n%s", diff)
	}
	if err := exec.Command("id", authUser).Run(); err == nil {
		t.Errorf("user %s is still there", authUser)
	}
	r, err = Uninstall(context.Background(), Options{})
	if err != nil || r.Changed {
		t.Errorf("uninstalling again: %+v, %v", r, err)
	}
}

func TestUninstallKeepsLaterEdits(t *testing.T) {
	fresh(t)
	apply(t, Options{})
	edits := map[string]string{
		pamPath: "session optional pam_permit.so # later\n",
		nssPath: "later: files\n",
	}
	for path, line := range edits {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		sshdtest.Write(t, path, string(b)+line, 0o644)
	}
	m, err := LoadManifest(ManifestPath)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Check(); err == nil {
		t.Error("Check = nil after files were edited")
	}
	if _, err := Uninstall(context.Background(), Options{}); err != nil {
		t.Fatal(err)
	}
	for path, line := range edits {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if text := string(b); !strings.HasSuffix(text, line) || strings.Contains(text, "podspawn") || strings.Contains(text, "extrausers") {
			t.Errorf("%s after uninstalling:\n%s", path, text)
		}
	}
}

// Threats 94 and 105: what a Match block can't cure is refused with the remedy,
// and nothing is changed.
func TestApplyRefuses(t *testing.T) {
	stock := func(extra string) func(*testing.T) {
		return func(t *testing.T) {
			b, err := os.ReadFile(DefaultConfig)
			if err != nil {
				t.Fatal(err)
			}
			sshdtest.Write(t, DefaultConfig, strings.Replace(string(b), "UsePAM yes\n", extra+"\n", 1), 0o644)
		}
	}
	prefix := func(extra string) func(*testing.T) {
		return func(t *testing.T) {
			b, err := os.ReadFile(DefaultConfig)
			if err != nil {
				t.Fatal(err)
			}
			sshdtest.Write(t, DefaultConfig, extra+string(b), 0o644)
		}
	}
	file := func(path, extra string) func(*testing.T) {
		return func(t *testing.T) {
			b, _ := os.ReadFile(path) // need not exist
			sshdtest.Write(t, path, string(b)+extra, 0o644)
		}
	}
	tests := []struct {
		name  string
		given func(*testing.T)
		want  string
	}{
		{"match before the include", prefix("Match User root\n    X11Forwarding no\nMatch all\n"), "has a Match block in line 1"},
		{"match in an earlier drop-in", file("/etc/ssh/sshd_config.d/00-a.conf", "Match User x\n ForceCommand /bin/sh\n"), "00-a.conf has Match in line 1"},
		{"no include", func(t *testing.T) { sshdtest.Write(t, DefaultConfig, "UsePAM yes\n", 0o644) }, "does not include"},
		{"UsePAM no", stock("UsePAM no"), "UsePAM no"},
		{"PermitUserEnvironment", stock("UsePAM yes\nPermitUserEnvironment yes"), "PermitUserEnvironment yes"},
		{"LoginGraceTime 0", stock("UsePAM yes\nLoginGraceTime 0"), "LoginGraceTime 0"},
		{"global CA", stock("UsePAM yes\nTrustedUserCAKeys /etc/ssh/ssh_host_ed25519_key.pub"), "for root"},
		{"DenyUsers", stock("UsePAM yes\nDenyUsers mallory s?x-*"), "DenyUsers s?x-* in sshd_config"},
		{"DenyGroups", stock("UsePAM yes\nDenyGroups pod*"), "DenyGroups pod* in sshd_config"},
		{"broken configuration", stock("UsePAM yes\nNoSuchKeyword yes"), "sshd does not accept its configuration"},
		{"group with another gid", file("/etc/group", "podspawn:x:4321:\n"), "group podspawn with gid 4321"},
		{"gid of another group", file("/etc/group", "other:x:69999:\n"), "gid 69999 belongs to group other"},
		{"uid in our range", file("/etc/passwd", "late:x:70500:100::/:/bin/sh\n"), "user late has uid 70500"},
		{"drop-in of somebody else", file("/etc/ssh/sshd_config.d/00-podspawn.conf", "# mine\n"), "was not written by podspawn"},
		{"no session part", func(t *testing.T) { sshdtest.Write(t, pamPath, "auth required pam_deny.so\n", 0o644) }, "no session part"},
		{"nsswitch without shadow", func(t *testing.T) { sshdtest.Write(t, nssPath, "passwd: files\ngroup: files\n", 0o644) }, "no line for shadow"},
		{"hook writable for others", func(t *testing.T) {
			if err := os.Chmod(HookPath, 0o777); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = os.Chmod(HookPath, 0o755) })
		}, "can be changed by others"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			fresh(t)
			keepFile(t, "/etc/passwd")
			keepFile(t, "/etc/group")
			tt.given(t)
			before := configFiles(t)
			_, err := Apply(context.Background(), Options{})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Apply = %v, want %q", err, tt.want)
			}
			if err != nil && sandbox.Public(err).Hint == "" {
				t.Errorf("refusal %v has no hint", err)
			}
			if diff := cmp.Diff(before, configFiles(t)); diff != "" {
				t.Errorf("a refusal changed files:\n%s", diff)
			}
			if _, err := os.Stat("/var/lib/podspawn/keys"); err == nil {
				t.Error("a refusal made keys")
			}
		})
	}
}

func keepFile(t *testing.T, path string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { sshdtest.Write(t, path, string(b), 0o644) })
}

// What only shows once our files are in place is rolled back.
func TestApplyRollsBack(t *testing.T) {
	tests := []struct {
		name  string
		given func(*testing.T)
		want  string
	}{
		{"sshd refuses the drop-in", func(t *testing.T) { // a stand-in for an sshd that lacks a keyword
			fake := filepath.Join(t.TempDir(), "sshd")
			genuine := filepath.Join(t.TempDir(), "genuine")
			sshdtest.Run(t, "cp", "/usr/sbin/sshd", genuine)
			sshdtest.Write(t, fake, "#!/bin/sh\nif grep -q podspawn /etc/pam.d/sshd; then echo 'Bad configuration option' >&2; exit 255; fi\nexec "+genuine+" \"$@\"\n", 0o755)
			bind(t, fake, "/usr/sbin/sshd")
		}, "Bad configuration option"},
		{"the database of logins can't be used", func(t *testing.T) { // so sshd finds no sandbox login to match
			sshdtest.Break(t, module{"libnss_extrausers.so.2", ""}.find())
		}, "for sandbox logins"},
		{"the manifest can't be written", func(t *testing.T) {
			if err := os.Mkdir(ManifestPath, 0o755); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = os.Remove(ManifestPath) })
		}, "no configuration file"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			fresh(t)
			tt.given(t)
			before := configFiles(t)
			var out bytes.Buffer
			_, err := Apply(context.Background(), Options{Out: &out})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Apply = %v, want %q", err, tt.want)
			}
			if diff := cmp.Diff(before, configFiles(t)); diff != "" {
				t.Errorf("files after the rollback:\n%s", diff)
			}
			if err := exec.Command("id", authUser).Run(); err == nil {
				t.Errorf("user %s survived the rollback", authUser)
			}
			if _, err := LoadManifest(ManifestPath); err == nil {
				t.Error("there is a manifest after the rollback")
			}
		})
	}
}

// bind puts one file over another until the test ends.
func bind(t *testing.T, from, to string) {
	t.Helper()
	sshdtest.Run(t, "mount", "--bind", from, to)
	t.Cleanup(func() { sshdtest.Run(t, "umount", to) })
}
