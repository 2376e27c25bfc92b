package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

const (
	krlFile = "/etc/podspawn/ssh/revoked.krl"
	caFile  = "/etc/podspawn/ssh/user_ca.pub"
)

// ended fails the test unless the session's ssh ends within the time that the
// contract gives a revocation.
func (l *live) ended(since time.Time) {
	l.t.Helper()
	done := make(chan struct{})
	go func() { _ = l.cmd.Wait(); close(done) }()
	select {
	case <-done:
		if took := time.Since(since); took > 2*time.Second {
			l.t.Errorf("the connection was closed after %s, want 2s", took)
		}
	case <-time.After(20 * time.Second):
		l.t.Fatal("the connection was not closed")
	}
}

func serialOf(t *testing.T, s sandbox) string {
	t.Helper()
	issued := audited(t, s, "cert.issued")
	if len(issued) == 0 {
		t.Fatal("no certificate on record")
	}
	return strconv.FormatUint(issued[len(issued)-1].Serial, 10)
}

// monitorsOf returns root's sshd processes above the sandbox's.
func monitorsOf(t *testing.T, s sandbox) []int {
	t.Helper()
	var all []int
	for _, pid := range hostProcesses(t, s) {
		parent := strings.TrimSpace(run(t, nil, "ps", "-o", "ppid=", "-p", strconv.Itoa(pid)).stdout)
		if comm := strings.TrimSpace(run(t, nil, "ps", "-o", "comm=,uid=", "-p", parent).stdout); strings.HasPrefix(comm, "sshd") && strings.HasSuffix(comm, " 0") {
			p, err := strconv.Atoi(parent)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, p)
		}
	}
	return all
}

// Threats 20, 22, 31: a revoked certificate opens nothing, what it opened ends
// within 2 s, also under a monitor that takes no TERM, and another certificate for
// the same sandbox goes on.
func TestRevokeCertificateWhileConnected(t *testing.T) {
	s := create(t, "--grace", "0s")
	other := connectable(t, s)
	kept := other.live(t)
	for _, tc := range []struct{ name, by string }{
		{"by serial", "serial"},
		{"by serial, monitor ignores TERM", "stopped"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			had := map[int]bool{}
			for _, p := range monitorsOf(t, s) {
				had[p] = true
			}
			c := connectable(t, s)
			serial := serialOf(t, s)
			l := c.live(t)
			if tc.by == "stopped" {
				for _, p := range monitorsOf(t, s) {
					if !had[p] {
						if err := syscall.Kill(p, syscall.SIGSTOP); err != nil {
							t.Fatal(err)
						}
					}
				}
			}
			began := time.Now()
			r := run(t, nil, podspawn, "ca", "revoke", serial)
			if r.code != 0 || r.stdout != serial+"\n" {
				t.Fatalf("podspawn ca revoke: %v", r)
			}
			l.ended(began)
			if r := c.ssh(t, nil, "true"); r.code != 255 || !strings.Contains(r.stderr, "Permission denied") {
				t.Errorf("ssh with the revoked certificate: %v", r)
			}
			// sshd itself knows, without the daemon.
			if out, err := exec.Command("ssh-keygen", "-Q", "-f", krlFile, filepath.Join(c.dir, "id_ed25519-cert.pub")).CombinedOutput(); err == nil {
				t.Errorf("the revocation list does not have serial %s: %s", serial, out)
			}
			kept.echo("still here")
		})
	}
	r := run(t, nil, podspawn, "ca", "revoke", s.Login)
	if r.code != 0 || strings.Count(r.stdout, "\n") != 3 {
		t.Errorf("podspawn ca revoke LOGIN: %v, want three serials", r)
	}
	kept.ended(time.Now())
	eventually(t, 10*time.Second, func() error {
		evs := audited(t, s, "session.closed")
		if len(evs) != 3 {
			return fmt.Errorf("%d connections closed, want 3", len(evs))
		}
		for _, e := range evs {
			if e.Reason != "revoked" {
				t.Fatalf("closed by %q, want revoked", e.Reason)
			}
		}
		return nil
	})
	if got := get(t, s.ID); got.State != "ready" {
		t.Errorf("state = %s (%s): revocation is no exit", got.State, got.Reason)
	}
	if r := connectable(t, s).ssh(t, nil, "echo new"); r.stdout != "new\n" {
		t.Errorf("a new certificate: %v", r)
	}
	if r := run(t, nil, podspawn, "ca", "revoke", "999999999"); r.code != 3 {
		t.Errorf("revoke of a serial that never was: %v, want exit 3", r)
	}
}

// Threat 21: while the list is broken sshd refuses everybody; the daemon puts it
// back and says so.
func TestRevocationListDamaged(t *testing.T) {
	need(t)
	s := create(t, "--on-exit", "keep")
	c := connectable(t, s)
	for _, tc := range []struct {
		name   string
		damage func() error
	}{
		{"missing", func() error { return os.Remove(krlFile) }},
		{"truncated", func() error { return os.Truncate(krlFile, 20) }},
		{"emptied", func() error { return os.Truncate(krlFile, 0) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			alarms := grepAudit(t, "the revocation list was")
			if err := tc.damage(); err != nil {
				t.Fatal(err)
			}
			eventually(t, 10*time.Second, func() error {
				if n := grepAudit(t, "the revocation list was"); n <= alarms {
					return fmt.Errorf("%d alarms in the audit log, want more than %d", n, alarms)
				}
				return nil
			})
			if r := c.ssh(t, nil, "echo in"); r.stdout != "in\n" {
				t.Errorf("ssh after the list was put back: %v", r)
			}
		})
	}
}

func grepAudit(t *testing.T, word string) int {
	t.Helper()
	b, err := os.ReadFile(auditLog)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(b), word)
}

// Threat 92: a token's certificates, connections and commands die with it.
func TestRevokeToken(t *testing.T) {
	need(t)
	tok := token(t, "--subject", "revoked-one")
	r := run(t, nil, podspawn, "token", "list", "--json")
	var list struct {
		Tokens []struct{ ID, Subject string }
	}
	if err := json.Unmarshal([]byte(r.stdout), &list); err != nil || len(list.Tokens) == 0 || list.Tokens[0].Subject != "revoked-one" {
		t.Fatalf("podspawn token list: %v, %v", r, err)
	}
	as := func(args ...string) *exec.Cmd {
		cmd := exec.Command(podspawn, append([]string{"--server", base}, args...)...)
		cmd.Env = append(os.Environ(), "PODSPAWN_TOKEN="+tok)
		return cmd
	}
	out, err := as("create", "--json", "--grace", "10m").Output()
	if err != nil {
		t.Fatal(err)
	}
	var s sandbox
	if err := json.Unmarshal(out, &s); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		run(t, nil, podspawn, "destroy", s.ID) // root may, by id
		noLeftovers(t, s)
	})
	dir := filepath.Join(shortDir(t), "ssh")
	if out, err := as("cert", s.ID, "--out", dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	c := client{dir: dir, login: s.Login}
	l := c.live(t)
	execDone := make(chan answer, 1)
	go func() {
		execDone <- call(t, tok, "POST", "/v1/sandboxes/"+s.ID+"/exec", `{"command":"echo up > /tmp/up; sleep 300"}`)
	}()
	eventually(t, 15*time.Second, func() error {
		l.echo("waiting")
		if len(audited(t, s, "command.started")) < 2 { // the session's and the exec's
			return fmt.Errorf("the command does not run yet")
		}
		return nil
	})
	began := time.Now()
	if r := run(t, nil, podspawn, "token", "revoke", list.Tokens[0].ID); r.code != 0 {
		t.Fatalf("podspawn token revoke: %v", r)
	}
	l.ended(began)
	select {
	case a := <-execDone:
		if a.status == 200 {
			t.Errorf("the command answered %d %s", a.status, a.body)
		}
	case <-time.After(10 * time.Second):
		t.Error("the command goes on")
	}
	if a := call(t, tok, "GET", "/v1/sandboxes", ""); a.status != 401 {
		t.Errorf("list with the revoked token: %d", a.status)
	}
	if r := c.ssh(t, nil, "true"); r.code != 255 {
		t.Errorf("ssh with its certificate: %v", r)
	}
	if len(audited(t, s, "cert.revoked")) != 1 {
		t.Error("the certificate's revocation is not on record")
	}
}

// A token administers its own tenant and no other.
func TestRevocationIsOfTheTenant(t *testing.T) {
	s := create(t)
	connectable(t, s)
	serial := serialOf(t, s)
	admin := token(t, "--subject", "somebody", "--scope", "sandbox:admin", "--scope", "sandbox:read", "--scope", "sandbox:run")
	reader := token(t, "--subject", "root", "--scope", "sandbox:read")
	for _, tc := range []struct {
		name, tok, method, path, body string
		want                          int
	}{
		{"certificate of another tenant", admin, "POST", "/v1/ca/revoke", `{"certificate":"` + serial + `"}`, 404},
		{"sandbox of another tenant", admin, "POST", "/v1/ca/revoke", `{"certificate":"` + s.Login + `"}`, 404},
		{"without the scope", reader, "POST", "/v1/ca/revoke", `{"certificate":"` + serial + `"}`, 403},
		{"tokens without the scope", reader, "GET", "/v1/tokens", "", 403},
		{"token that never was", admin, "DELETE", "/v1/tokens/tok_0000000000000000", "", 404},
		{"rotation by a token", admin, "POST", "/v1/ca/rotate", "{}", 403},
		{"drain by a token", admin, "POST", "/v1/drain", `{"drain":true}`, 403},
		{"all tenants by a token", admin, "GET", "/v1/sandboxes?tenants=all", "", 403},
		{"destroy of another tenant", admin, "DELETE", "/v1/sandboxes/" + s.ID, "", 404},
		{"unknown field", admin, "POST", "/v1/ca/revoke", `{"serial":1}`, 400},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if a := call(t, tc.tok, tc.method, tc.path, tc.body); a.status != tc.want {
				t.Errorf("%s %s: %d %s, want %d", tc.method, tc.path, a.status, a.body, tc.want)
			}
		})
	}
	a := call(t, admin, "GET", "/v1/tokens", "")
	if strings.Contains(a.body, `"root"`) || !strings.Contains(a.body, "somebody") {
		t.Errorf("tokens of a tenant: %s", a.body)
	}
}

// Threat 25: old and new certificates work during the overlap, over a restart of
// the daemon too; afterwards the old one is refused, by sshd's own file as well.
func TestRotateCA(t *testing.T) {
	h := need(t)
	s := create(t, "--on-exit", "keep")
	before := connectable(t, s)
	if r := run(t, nil, podspawn, "ca", "rotate", "--overlap", "12s"); r.code != 0 {
		t.Fatalf("podspawn ca rotate: %v", r)
	}
	rotated := time.Now()
	after := connectable(t, s)
	check := func(when string, oldOK bool) {
		t.Helper()
		if r := after.ssh(t, nil, "echo new"); r.stdout != "new\n" {
			t.Errorf("%s: new certificate: %v", when, r)
		}
		if r := before.ssh(t, nil, "echo old"); (r.stdout == "old\n") != oldOK {
			t.Errorf("%s: old certificate: %v, want it to work: %v", when, r, oldOK)
		}
	}
	check("in the overlap", true)
	h.restart(t, "daemon", syscall.SIGKILL)
	check("after a restart in the overlap", true)
	eventually(t, 40*time.Second, func() error {
		b, err := os.ReadFile(caFile)
		if err == nil && strings.Count(string(b), "ssh-ed25519") != 1 {
			err = fmt.Errorf("%s after %s: %s", caFile, time.Since(rotated), b)
		}
		return err
	})
	check("after the overlap", false)
	if r := run(t, nil, podspawn, "server-setup", "--dry-run", "--json"); r.code != 0 || !strings.Contains(r.stdout, `"changed": false`) {
		t.Errorf("server-setup after a rotation: %v, want nothing to do", r)
	}
	if grepAudit(t, "the user CA was replaced") != 1 {
		t.Error("the rotation is not on record")
	}
}

// Root on the host sees and ends the sandboxes of all tenants; a drained host
// takes no new ones.
func TestAllTenantsAndDrain(t *testing.T) {
	need(t)
	s := create(t)
	tok := token(t, "--subject", "drained-tenant")
	a := call(t, tok, "POST", "/v1/sandboxes", "{}")
	var other sandbox
	if err := json.Unmarshal([]byte(a.body), &other); err != nil || a.status != 201 {
		t.Fatalf("create: %d %s", a.status, a.body)
	}
	if r := run(t, nil, podspawn, "list"); strings.Contains(r.stdout, other.ID) {
		t.Errorf("list without --all has another tenant's: %v", r)
	}
	if r := run(t, nil, podspawn, "list", "--all"); !strings.Contains(r.stdout, other.ID) || !strings.Contains(r.stdout, s.ID) || !strings.Contains(r.stdout, "drained-tenant") {
		t.Errorf("list --all: %v", r)
	}
	if r := run(t, nil, podspawn, "destroy", "--all", "--tenant", "drained-tenant"); r.stdout != other.ID+"\n" {
		t.Errorf("destroy --all --tenant: %v", r)
	}
	noLeftovers(t, other)
	if got := get(t, s.ID); got.State != "ready" {
		t.Errorf("a sandbox of another tenant is %s", got.State)
	}
	if r := run(t, nil, podspawn, "drain"); r.code != 0 || strings.TrimSpace(r.stdout) == "0" {
		t.Errorf("drain: %v", r)
	}
	defer run(t, nil, podspawn, "drain", "--off")
	for _, r := range []result{run(t, nil, podspawn, "create"), run(t, nil, podspawn, "create", "--image", "podspawn/base")} {
		if r.code != 6 || !strings.Contains(r.stderr, "being drained") || !strings.Contains(r.stderr, "podspawn: hint: ") {
			t.Errorf("create on a drained host: %v", r)
		}
	}
	if r := connectable(t, s).ssh(t, nil, "echo in"); r.stdout != "in\n" {
		t.Errorf("ssh on a drained host: %v", r)
	}
	if r := run(t, nil, podspawn, "drain", "--destroy", "--wait", "20s"); r.code != 0 || r.stdout != "0\n" {
		t.Errorf("drain --destroy: %v", r)
	}
	if r := run(t, nil, podspawn, "drain", "--off"); r.code != 0 {
		t.Errorf("drain --off: %v", r)
	}
	create(t)
}
