package e2e

import (
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// person is a user of classic mode with a key of her own.
type person struct {
	name, key string
}

// register makes a user with podspawn add-user, who is removed with the test.
func register(t *testing.T, name string, args ...string) person {
	t.Helper()
	need(t)
	p := person{name: name, key: newKey(t)}
	r := run(t, nil, podspawn, append([]string{"add-user", name, "--key-file", p.key + ".pub"}, args...)...)
	if r.code != 0 {
		t.Fatalf("podspawn add-user: %v", r)
	}
	t.Cleanup(func() {
		if r := run(t, nil, podspawn, "remove-user", name); r.code != 0 && r.code != 3 {
			t.Errorf("podspawn remove-user: %v", r)
		}
		eventually(t, 20*time.Second, func() error {
			return absent("sh", "-c", "getent passwd "+name+"; ls -d /run/netns/"+name+" /etc/podspawn/keys/"+name+" 2>/dev/null; true")
		})
	})
	return p
}

func newKey(t *testing.T) string {
	t.Helper()
	key := filepath.Join(shortDir(t), "id")
	if r := run(t, nil, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "laptop", "-f", key); r.code != 0 {
		t.Fatalf("ssh-keygen: %v", r)
	}
	return key
}

// args are ssh's for this person at some login of hers.
func (p person) args(login string, more ...string) []string {
	args := []string{
		"-F", "none", "-i", p.key, "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes",
		"-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR",
	}
	return append(append(args, login+"@127.0.0.1"), more...)
}

func (p person) ssh(t *testing.T, args ...string) result {
	t.Helper()
	return run(t, nil, "ssh", p.args(p.name, args...)...)
}

// sandboxOf returns the sandbox that a user's login enters, "" for none.
func sandboxOf(t *testing.T, name string) string {
	t.Helper()
	r := run(t, nil, podspawn, "list-users", "--json")
	var out struct {
		Users []struct{ Name, Sandbox string }
	}
	if err := json.Unmarshal([]byte(r.stdout), &out); err != nil {
		t.Fatalf("podspawn list-users --json: %v: %v", err, r)
	}
	for _, u := range out.Users {
		if u.Name == name {
			return u.Sandbox
		}
	}
	return ""
}

// The three steps: install (the lab's), server-setup (the lab's), add-user; then ssh.
func TestClassicLogin(t *testing.T) {
	alice := register(t, "alice")
	r := alice.ssh(t, "dmesg; id -un; pwd; echo kept >note")
	if r.code != 0 || !strings.Contains(r.stdout, "gVisor") || !strings.Contains(r.stdout, "\ndev\n/workspace\n") || r.stderr != "" {
		t.Fatalf("ssh alice@host: %v, want a sandbox under gVisor", r)
	}
	first := sandboxOf(t, "alice")
	if r := alice.ssh(t, "cat note; exit 7"); r.code != 7 || r.stdout != "kept\n" {
		t.Errorf("ssh alice@host again, within the grace period: %v, want the same files and exit 7", r)
	}
	if again := sandboxOf(t, "alice"); again != first || first == "" {
		t.Errorf("sandbox %q, then %q, want one", first, again)
	}
	if r := run(t, strings.NewReader("put /etc/hostname up\n"), "sftp", append([]string{"-b", "-"}, sftpArgs(alice)...)...); r.code != 0 {
		t.Errorf("sftp: %v", r)
	}

	// Another user's key opens nothing, nor hers another's login.
	bob := register(t, "bob")
	shell := run(t, strings.NewReader("exit 4\n"), "ssh", append([]string{"-tt"}, bob.args("bob")...)...)
	if shell.code != 4 || !strings.Contains(shell.stdout+shell.stderr, "podspawn: starting your sandbox") ||
		!strings.Contains(shell.stdout+shell.stderr, "this sandbox ends at") {
		t.Errorf("a terminal while there is no sandbox: %v, want progress, the deadline and exit 4", shell)
	}
	for _, login := range []struct {
		who  person
		name string
	}{{bob, "alice"}, {alice, "bob"}, {alice, "root"}, {alice, "realuser"}, {alice, "nobody-here"}} {
		if r := run(t, nil, "ssh", login.who.args(login.name, "true")...); r.code != 255 || !strings.Contains(r.stderr, "Permission denied") {
			t.Errorf("%s's key as %s: %v, want permission denied", login.who.name, login.name, r)
		}
	}
	if r := bob.ssh(t, "cat note"); r.code == 0 {
		t.Errorf("bob sees alice's file: %v", r)
	}

	// Removed: her connections and her sandbox go.
	if r := run(t, nil, podspawn, "remove-user", "alice"); r.code != 0 {
		t.Fatalf("podspawn remove-user: %v", r)
	}
	if r := alice.ssh(t, "true"); r.code != 255 {
		t.Errorf("ssh after remove-user: %v, want permission denied", r)
	}
	noLeftovers(t, sandbox{ID: first, Login: "sbx-" + strings.TrimPrefix(first, "sbx_")})
}

func sftpArgs(p person) []string { return p.args(p.name) }

func TestClassicSandboxEndsAfterGrace(t *testing.T) {
	pod := filepath.Join(shortDir(t), "podfile.yaml")
	if err := os.WriteFile(pod, []byte("image: podspawn/base\nenv: {GREETING: hello}\nlifecycle: {grace: 0s}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	carol := register(t, "carol", "-f", pod)
	if r := carol.ssh(t, `echo "$GREETING" >&2; touch here; exit 3`); r.code != 3 || r.stderr != "hello\n" {
		t.Fatalf("ssh carol@host: %v, want her Podfile's environment", r)
	}
	first := sandboxOf(t, "carol")
	// The next login may come while the old sandbox goes: it waits and gets a fresh one.
	if r := carol.ssh(t, "ls"); r.code != 0 || r.stdout != "" {
		t.Errorf("ssh after the grace period: %v, want a fresh sandbox", r)
	}
	if first != "" && sandboxOf(t, "carol") == first {
		t.Errorf("the same sandbox %s", first)
	}
}

func TestClassicServiceSurvivesDaemonRestart(t *testing.T) {
	dora := register(t, "dora")
	if r := dora.ssh(t, "echo kept >note"); r.code != 0 {
		t.Fatalf("ssh: %v", r)
	}
	host.restart(t, "daemon", syscall.SIGKILL)
	if r := dora.ssh(t, "cat note"); r.code != 0 || r.stdout != "kept\n" {
		t.Errorf("ssh after the daemon's restart: %v, want the same sandbox", r)
	}
}

func TestClassicNamesThatAreRefused(t *testing.T) {
	need(t)
	key := newKey(t)
	for _, c := range []struct {
		name string
		code int
	}{
		{"root", 2},
		{"realuser", 5},
		{"sshd", 5},
		{"daemon", 5},
		{"podspawn-auth", 2},
		{"sbx-0123456789abcdef", 2},
		{"../x", 2},
		{"a b", 2},
		{"$(x)", 2},
		{"alice+x", 2},
		{"älice", 2},
		{"", 2},
		{"Alice", 2},
		{strings.Repeat("a", 300), 2},
		{"-x", 2},
		{"1a", 2},
	} {
		r := run(t, nil, podspawn, "add-user", "--key-file", key+".pub", "--", c.name)
		if r.code != c.code || r.stdout != "" || !strings.Contains(r.stderr, "hint:") {
			t.Errorf("add-user %q: %v, want exit %d with a hint", c.name, r, c.code)
		}
	}
	for _, login := range []string{"../x", "a b", "$(id)", "alice+../../etc", "alice+$(id)", strings.Repeat("a", 300), "zoë"} {
		r := run(t, nil, "ssh", "-F", "none", "-i", key, "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-l", login, "127.0.0.1", "id")
		if r.code != 255 || r.stdout != "" {
			t.Errorf("ssh -l %q: %v, want no login", login, r)
		}
	}
	if r := run(t, nil, podspawn, "list-users", "--quiet"); r.stdout != "" {
		t.Errorf("users after refusals: %v, want none", r)
	}
}

func TestClassicKeysFileIsTheTruth(t *testing.T) {
	erin := register(t, "erin")
	file := "/etc/podspawn/keys/erin"
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	write := func(text string, mode os.FileMode) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(file, mode); err != nil {
			t.Fatal(err)
		}
	}
	line := ""
	for _, l := range strings.Split(string(text), "\n") {
		if strings.HasPrefix(l, "ssh-ed25519 ") {
			line = l
		}
	}
	if r := run(t, nil, podspawn, "auth-keys", "erin"); r.code != 0 || r.stdout != "restrict,pty,port-forwarding "+strings.TrimSuffix(line, " laptop")+"\n" {
		t.Errorf("auth-keys: %v, want the key with options", r)
	}
	for _, c := range []struct {
		what, text string
		mode       os.FileMode
		in         bool
	}{
		{"as it was", string(text), 0o644, true},
		{"written by others", string(text), 0o666, false},
		{"with another command", `command="id" ` + line + "\n", 0o644, false},
		{"with a source", `from="192.0.2.1" ` + line + "\n", 0o644, false},
		{"as an authority", "cert-authority " + line + "\n", 0o644, false},
		{"behind garbage", "garbage\n" + line + "\n", 0o644, true},
		{"empty", "", 0o644, false},
		{"too large", string(text) + strings.Repeat("#", 70<<10), 0o644, false},
		{"as it was again", string(text), 0o644, true},
	} {
		write(c.text, c.mode)
		if r := erin.ssh(t, "true"); (r.code == 0) != c.in {
			t.Errorf("keys file %s: %v, want in=%v", c.what, r, c.in)
		}
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/root/.ssh/authorized_keys", file); err != nil {
		t.Fatal(err)
	}
	if r := run(t, nil, "ssh", "-F", "none", "-i", host.realKey, "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no",
		"-o", "UserKnownHostsFile=/dev/null", "erin@127.0.0.1", "true"); r.code != 255 {
		t.Errorf("a link to root's keys: %v, want permission denied", r)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
}

func TestClassicNamedSandbox(t *testing.T) {
	fay := register(t, "fay")
	tok := run(t, nil, podspawn, "token", "create", "--subject", "fay")
	if tok.code != 0 {
		t.Fatalf("token: %v", tok)
	}
	file := filepath.Join(shortDir(t), "token")
	if err := os.WriteFile(file, []byte(tok.stdout), 0o600); err != nil {
		t.Fatal(err)
	}
	as := func(args ...string) result {
		return run(t, nil, "env", append([]string{"PODSPAWN_TOKEN_FILE=" + file, podspawn}, args...)...)
	}
	if r := as("create", "web", "--on-exit", "keep"); r.code != 0 {
		t.Fatalf("create: %v", r)
	}
	if r := run(t, nil, "ssh", fay.args("fay+web", "echo web >note; hostname")...); r.code != 0 {
		t.Fatalf("ssh fay+web@host: %v", r)
	}
	if r := fay.ssh(t, "cat note"); r.code == 0 {
		t.Errorf("ssh fay@host sees the named sandbox's file: %v", r)
	}
	if r := run(t, nil, "ssh", fay.args("fay+web", "cat note")...); r.stdout != "web\n" {
		t.Errorf("ssh fay+web@host again: %v", r)
	}
	gus := register(t, "gus")
	if r := run(t, nil, "ssh", gus.args("fay+web", "true")...); r.code != 255 {
		t.Errorf("gus as fay+web: %v, want permission denied", r)
	}
	if r := as("destroy", "web"); r.code != 0 {
		t.Errorf("destroy: %v", r)
	}
	if r := run(t, nil, "ssh", fay.args("fay+web", "true")...); r.code != 255 {
		t.Errorf("ssh fay+web@host after its end: %v, want permission denied", r)
	}
	eventually(t, 10*time.Second, func() error {
		return absent("sh", "-c", "getent passwd fay+web; ls -d /run/netns/fay+web /etc/netns/fay+web 2>/dev/null; true")
	})
}

// As an editor connects: one connection with a session and forwards, into her
// sandbox's loopback and never the host's.
func TestClassicForwarding(t *testing.T) {
	hal := register(t, "hal")
	hostAddr, came := onHost(t, "127.0.0.1:0")
	port, toHost := freePort(t), freePort(t)
	_, out := start(t, strings.NewReader(echoServer), "ssh", append([]string{
		"-L", local(port) + ":127.0.0.1:7000", "-L", local(toHost) + ":" + hostAddr,
	}, hal.args("hal", "python3", "-", "127.0.0.1:7000")...)...)
	line := make([]byte, 6)
	if _, err := io.ReadFull(out, line); err != nil || string(line) != "ready\n" {
		t.Fatalf("echo server: %q, %v", line, err)
	}
	wantEcho(t, local(port), "-L")
	if got, _ := echoes(local(toHost), "hello"); got != "" || came.Load() != 0 {
		t.Errorf("-L to the host's loopback: %q, %d connections there", got, came.Load())
	}
}

// The service over ssh: no token, no listener; identity is the registered key.
func TestClassicServiceOverSSH(t *testing.T) {
	ivy := register(t, "ivy")
	jon := register(t, "jon")
	as := func(p person, args ...string) result {
		t.Helper()
		home := shortDir(t)
		if err := os.MkdirAll(filepath.Join(home, "bin"), 0o700); err != nil {
			t.Fatal(err)
		}
		wrap := "#!/bin/sh\nexec /usr/bin/ssh -F none -i " + p.key + " -o IdentitiesOnly=yes -o BatchMode=yes -o StrictHostKeyChecking=no" +
			" -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR \"$@\"\n"
		if err := os.WriteFile(filepath.Join(home, "bin", "ssh"), []byte(wrap), 0o700); err != nil {
			t.Fatal(err)
		}
		return run(t, nil, "env", append([]string{"PATH=" + filepath.Join(home, "bin") + ":" + os.Getenv("PATH"), "PODSPAWN_SERVER=ssh://" + p.name + "@127.0.0.1", podspawn}, args...)...)
	}
	if r := as(ivy, "list", "--quiet"); r.code != 0 || r.stdout != "" || sandboxOf(t, "ivy") != "" {
		t.Fatalf("list over ssh: %v, want an empty list and no sandbox made for it", r)
	}
	made := as(ivy, "create", "box", "--quiet", "--on-exit", "keep")
	if made.code != 0 {
		t.Fatalf("create over ssh: %v", made)
	}
	id := strings.TrimSpace(made.stdout)
	if r := as(ivy, "list", "--quiet"); r.stdout != id+"\n" {
		t.Errorf("list over ssh: %v, want %s", r, id)
	}
	if r := as(jon, "get", id); r.code != 3 {
		t.Errorf("another user's get: %v, want not found", r)
	}
	if r := as(jon, "token", "create", "--subject", "root"); r.code != 4 {
		t.Errorf("a user makes a token: %v, want denied", r)
	}
	if r := run(t, nil, "ssh", ivy.args("ivy+box", "hostname")...); r.code != 0 {
		t.Errorf("ssh ivy+box@host: %v", r)
	}
	// Nothing but the exact words means the service.
	if r := ivy.ssh(t, "podspawn api;id"); r.code == 0 && !strings.Contains(r.stdout, "dev") {
		t.Errorf("podspawn api;id: %v, want it to run inside", r)
	}
	// Her sandbox, made by a session, is also reached by certificate, which opens no more.
	if r := ivy.ssh(t, "true"); r.code != 0 {
		t.Fatalf("ssh: %v", r)
	}
	own := sandboxOf(t, "ivy")
	if r := as(ivy, "ssh", own, "--", "hostname"); r.code != 0 || !strings.HasPrefix(r.stdout, "sbx-") {
		t.Errorf("podspawn ssh into her sandbox: %v", r)
	}
	if r := as(ivy, "destroy", "box"); r.code != 0 {
		t.Errorf("destroy over ssh: %v", r)
	}
}
