package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// installed are our programs, and where sshd and Docker expect them.
var installed = map[string]string{
	"podspawn":       podspawn,
	"podspawn-hook":  "/usr/libexec/podspawn/podspawn-hook",
	"podspawn-guest": "/usr/libexec/podspawn/podspawn-guest",
}

const faultDir = "/run/podspawn-faults" // sandbox/fault.Dir

// faulty installs the programs with fault points (scripts/build.sh --faults)
// over the others for one test, as an upgrade would.
func (h *machine) faulty(t *testing.T) {
	t.Helper()
	from, err := filepath.Abs("../bin/faults")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(from, "podspawn")); err != nil {
		if strings.Contains(os.Getenv("PODSPAWN_TEST_REQUIRE"), "gvisor") {
			t.Fatal(err)
		}
		t.Skip("needs scripts/build.sh --faults")
	}
	kept := t.TempDir()
	swap := func(dir string) {
		t.Helper()
		for name, path := range installed {
			if err := command("install", "-m", "755", filepath.Join(dir, name), path+".new"); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(path+".new", path); err != nil {
				t.Fatal(err)
			}
		}
		h.restart(t, "daemon", syscall.SIGTERM)
		h.restart(t, "serve", syscall.SIGTERM)
	}
	for name, path := range installed {
		if err := command("cp", path, filepath.Join(kept, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(faultDir, 0o755); err != nil {
		t.Fatal(err)
	}
	swap(from)
	t.Cleanup(func() {
		if err := os.RemoveAll(faultDir); err != nil {
			t.Error(err)
		}
		swap(kept)
	})
}

// set arms a fault point for the next process that comes by.
func set(t *testing.T, point, action string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(faultDir, point), []byte(action), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(filepath.Join(faultDir, point)) }) // gone when it was reached
}

// reached fails the test unless a process came by the point.
func reached(t *testing.T, point string) {
	t.Helper()
	eventually(t, 15*time.Second, func() error {
		if _, err := os.Stat(filepath.Join(faultDir, point)); !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("nobody came by %s", point)
		}
		return nil
	})
}

// reborn waits for the daemon to have died and starts the next one.
func (h *machine) reborn(t *testing.T) {
	t.Helper()
	h.mu.Lock()
	cmd := h.procs["daemon"]
	delete(h.procs, "daemon")
	h.mu.Unlock()
	died := make(chan struct{})
	go func() { _ = cmd.Wait(); close(died) }() // a killed process reports that it was
	select {
	case <-died:
	case <-time.After(20 * time.Second):
		t.Error("the daemon lives")
		_ = cmd.Process.Kill()
		<-died
	}
	if err := errors.Join(h.start("daemon", podspawn, "daemon"), h.awaitReady()); err != nil {
		t.Fatal(err)
	}
}

// noSession returns an error while a process of a session runs on the host; the
// relay stays as long as the sandbox.
func noSession(t *testing.T, s sandbox) error {
	t.Helper()
	return absent("sh", "-c", "pgrep -a -U "+uidOf(t, s)+" | grep -v 'podspawn-hook relay'; true")
}

// nothingAtAll is nothingOfOurs and everything else that a sandbox ever has: uids'
// processes, rules of the firewall, mounts of the portals, Docker's networks.
func nothingAtAll(t *testing.T) {
	t.Helper()
	nothingOfOurs(t)
	eventually(t, 10*time.Second, func() error {
		return errors.Join(
			absent("sh", "-c", "ps -eo uid=,pid=,args= | awk '$1>=70000 && $1<=98999'"),
			absent("sh", "-c", "grep -h sbx- /proc/self/mountinfo; true"),
			absent("sh", "-c", "nft list ruleset 2>/dev/null | grep -i sbx; true"),
			absent("sh", "-c", "ip -o link | grep -v ' lo:' | grep -i -E 'sbx|psp' ; true"),
			absent("docker", "network", "ls", "-q", "--filter", "label=dev.podspawn.sandbox"),
			absent("docker", "volume", "ls", "-q", "--filter", "label=dev.podspawn.sandbox"),
			absent("sh", "-c", "ls -A /sys/fs/cgroup/pids/$PODSPAWN_LAB 2>/dev/null | grep -E '^[0-9a-f]{64}$'; true"),
		)
	})
}

// Threat 85: the daemon dies at each step of a create. The next one either has
// the sandbox in working order (once it was ready) or removes all of it.
func TestDaemonDiesInCreate(t *testing.T) {
	h := need(t)
	h.faulty(t)
	for _, point := range []string{
		"manager.create.accepted", "manager.start.marked", "sockets.prepare.made", "manager.start.prepared",
		"portal.open.folder", "portal.open.netns", "portal.write.shadow", "portal.open.shadow", "portal.write.passwd", "manager.start.host",
		"docker.start.created", "docker.start.started", "manager.start.container", "sockets.seal.opened", "manager.start.sealed", "manager.start.greeted",
		"manager.start.ready",
	} {
		t.Run(point, func(t *testing.T) {
			set(t, point, "kill")
			r := run(t, nil, podspawn, "create", "dies", "--grace", "10m")
			reached(t, point)
			h.reborn(t)
			if r.code == 0 || !strings.Contains(r.stderr, "podspawn: hint: ") {
				t.Errorf("create: %v, want an error with a hint", r)
			}
			if point == "manager.start.ready" {
				var s sandbox
				eventually(t, 10*time.Second, func() error {
					s = get(t, "dies")
					if s.State != "ready" {
						return fmt.Errorf("state = %s, want ready: it was made completely", s.State)
					}
					return nil
				})
				if r := connectable(t, s).ssh(t, nil, "echo in"); r.stdout != "in\n" {
					t.Errorf("ssh: %v", r)
				}
				run(t, nil, podspawn, "destroy", "dies")
			}
			nothingAtAll(t)
		})
	}
}

// Threat 85: the daemon dies at each step of a destruction; the next one
// finishes it, nobody has to ask again, and no certificate opens anything.
func TestDaemonDiesInDestroy(t *testing.T) {
	h := need(t)
	h.faulty(t)
	for _, point := range []string{
		"manager.destroy.marked", "manager.destroy.connections", "docker.destroy.found", "manager.destroy.container",
		"sockets.remove.unmounted", "manager.destroy.socket", "portal.close.processes", "portal.close.unmounted", "portal.close.netns",
		"portal.close.passwd", "portal.close.shadow", "manager.destroy.login", "manager.destroy.closed", "manager.destroy.recorded",
	} {
		t.Run(point, func(t *testing.T) {
			s := create(t, "--grace", "10m")
			c := connectable(t, s)
			set(t, point, "kill")
			run(t, nil, podspawn, "destroy", s.ID) // whatever it says, it ends
			reached(t, point)
			h.reborn(t)
			eventually(t, 20*time.Second, func() error {
				if got := get(t, s.ID); got.State != "destroyed" || got.Reason != "requested" {
					return fmt.Errorf("state = %s (%s), want destroyed as requested", got.State, got.Reason)
				}
				return nil
			})
			if r := c.ssh(t, nil, "echo in"); r.code == 0 || r.stdout != "" {
				t.Errorf("a certificate of before: %v", r)
			}
			nothingAtAll(t)
		})
	}
}

// Threat 85: the daemon dies at each step of a login. A use that was counted stays
// counted, one that was not can be used again, and the sandbox goes on.
func TestDaemonDiesInLogin(t *testing.T) {
	h := need(t)
	h.faulty(t)
	s := create(t, "--grace", "10m")
	for _, tc := range []struct {
		point string
		used  bool // the one use of the certificate is gone
	}{
		{"daemon.principals", false},
		{"daemon.claim.before", false},
		{"daemon.claim.stored", true},
		{"daemon.session.connected", true},
		{"daemon.session.recorded", true},
		{"daemon.session.ended", true},
		{"daemon.session.closed", true},
	} {
		t.Run(tc.point, func(t *testing.T) {
			c := connectable(t, s, "--uses", "1")
			// The end of the connection before must not come by the point.
			eventually(t, 10*time.Second, func() error {
				if got := get(t, s.ID); got.State != "ready" {
					return fmt.Errorf("state = %s, want ready", got.State)
				}
				return nil
			})
			set(t, tc.point, "kill")
			r := c.ssh(t, nil, "echo in")
			reached(t, tc.point)
			h.reborn(t)
			if ended := tc.point == "daemon.session.ended" || tc.point == "daemon.session.closed"; (r.stdout == "in\n") != ended {
				t.Errorf("ssh while the daemon dies: %v", r)
			}
			again := c.ssh(t, nil, "echo in")
			if worked := again.stdout == "in\n"; worked == tc.used {
				t.Errorf("the same certificate again: %v, want used up: %v", again, tc.used)
			}
			// All that the dead connection had is gone, and its place is free.
			eventually(t, 15*time.Second, func() error {
				if got := get(t, s.ID); got.State != "ready" {
					return fmt.Errorf("state = %s, want ready", got.State)
				}
				return noSession(t, s)
			})
			if r := connectable(t, s).ssh(t, nil, "echo in"); r.stdout != "in\n" {
				t.Errorf("a new certificate: %v", r)
			}
		})
	}
	t.Run("daemon.issue.stored", func(t *testing.T) {
		set(t, "daemon.issue.stored", "kill")
		if r := askCert(t, s); r.code == 0 {
			t.Errorf("cert while the daemon dies: %v", r)
		}
		h.reborn(t)
	})
}

// Every other process of ours dies, or hangs, in its turn. The sandbox outlives
// hooks and serve; without its guest or its container it is removed.
func TestOthersDie(t *testing.T) {
	h := need(t)
	h.faulty(t)
	lives := create(t, "--grace", "10m")
	for _, point := range []string{
		"hook.principals.begun", "hook.pam-session.begun", "hook.pam-session.claimed", "hook.session.begun", "hook.session.leased",
	} {
		for _, action := range []string{"kill", "block"} {
			if action == "block" && (point == "hook.principals.begun" || strings.HasPrefix(point, "hook.session")) {
				continue // sshd's own LoginGraceTime; a session that waits is a session
			}
			t.Run(point+" "+action, func(t *testing.T) {
				c := connectable(t, lives)
				set(t, point, action)
				cmd := exec.Command("timeout", append([]string{"8", "ssh"}, append(c.args(lives.Login), "echo in")...)...)
				if out, err := cmd.Output(); err == nil || len(out) != 0 {
					t.Errorf("ssh = %q, %v, want an error and no output", out, err)
				}
				_ = os.Remove(filepath.Join(faultDir, point)) // hooks may not
				if action == "block" {
					if err := command("pkill", "-KILL", "-x", "-f", installed["podspawn-hook"]+" pam-session"); err != nil {
						t.Errorf("the hook did not come by: %v", err)
					}
				}
				eventually(t, 15*time.Second, func() error {
					if got := get(t, lives.ID); got.State != "ready" {
						return fmt.Errorf("state = %s, want ready", got.State)
					}
					return noSession(t, lives)
				})
				if r := connectable(t, lives).ssh(t, nil, "echo in"); r.stdout != "in\n" {
					t.Errorf("the next login: %v", r)
				}
			})
		}
	}
	for i, point := range []string{"guest.listening", "guest.accepted", "guest.started"} {
		t.Run(point, func(t *testing.T) {
			name := fmt.Sprint("guestless-", i)
			set(t, point, "kill")
			r := run(t, nil, podspawn, "create", name, "--grace", "10m", "--json")
			if err := os.Remove(filepath.Join(faultDir, point)); err != nil { // it is in the container's environment now
				t.Fatal(err)
			}
			if made := point != "guest.listening"; made != (r.code == 0) || !made && !strings.Contains(r.stderr, "podspawn: hint: ") {
				t.Errorf("create: %v", r)
			}
			if r.code == 0 { // it dies of its first command
				if r := run(t, nil, podspawn, "ssh", name, "--", "echo in"); r.code == 0 || r.stdout != "" {
					t.Errorf("ssh: %v", r)
				}
			}
			eventually(t, 30*time.Second, func() error {
				out, err := exec.Command("docker", "ps", "-aq", "--filter", "label=dev.podspawn.sandbox").Output()
				if n := len(strings.Fields(string(out))); err != nil || n != 1 {
					return fmt.Errorf("%d containers, %v, want that of the other sandbox alone", n, err)
				}
				return nil
			})
		})
	}
	t.Run("containerd", func(t *testing.T) {
		l := connectable(t, lives).live(t)
		if err := command("pkill", "-KILL", "-x", "containerd"); err != nil {
			t.Fatal(err)
		}
		l.echo("without containerd")
		eventually(t, 30*time.Second, func() error { return h.awaitReady() })
		eventually(t, 30*time.Second, func() error {
			if r := run(t, nil, podspawn, "create", "after"); r.code != 0 {
				return fmt.Errorf("create: %v", r)
			}
			return nil
		})
		l.echo("with the next one")
		if err := l.close(); err != nil {
			t.Errorf("session ends with %v", err)
		}
		run(t, nil, podspawn, "destroy", "after")
	})
	t.Run("serve, while it carries a command", func(t *testing.T) {
		cmd := exec.Command(podspawn, "ssh", lives.ID, "--", "sleep 1; echo through")
		out := make(chan string, 1)
		go func() { b, _ := cmd.Output(); out <- string(b) }()
		h.restart(t, "serve", syscall.SIGKILL)
		if got := <-out; got != "" && got != "through\n" {
			t.Errorf("ssh = %q", got)
		}
	})
	run(t, nil, podspawn, "destroy", lives.ID)
	nothingAtAll(t)
}

// The client dies in every way that TCP knows. What it ran dies with it, and the
// sandbox ends when its grace or idle time says so.
func TestClientDies(t *testing.T) {
	need(t)
	for _, tc := range []struct {
		name string
		pty  bool
		die  func(t *testing.T, cmd *exec.Cmd)
	}{
		{"killed", false, func(t *testing.T, cmd *exec.Cmd) { _ = cmd.Process.Kill() }},
		{"killed, with a terminal", true, func(t *testing.T, cmd *exec.Cmd) { _ = cmd.Process.Kill() }},
		{"hung up", true, func(t *testing.T, cmd *exec.Cmd) { _ = cmd.Process.Signal(syscall.SIGHUP) }},
		{"its host vanishes", false, func(t *testing.T, cmd *exec.Cmd) {
			// Nothing arrives any more in either direction; then sshd's side is reset.
			out, err := exec.Command("sh", "-c", fmt.Sprintf(`ss -Htnp state established '( dport = :22 )' | grep pid=%d, | awk '{print $3}'`, cmd.Process.Pid)).Output()
			port := string(out[strings.LastIndexByte(string(out), ':')+1:])
			if err != nil || strings.TrimSpace(port) == "" {
				t.Fatalf("the client's port: %q, %v", out, err)
			}
			port = strings.TrimSpace(port)
			rules := "table inet e2e_drop {\n chain in {\n type filter hook input priority -10\n tcp sport " + port + " drop\n tcp dport " + port + " drop\n }\n}"
			if err := command("nft", rules); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := command("nft", "delete table inet e2e_drop"); err != nil {
					t.Error(err)
				}
			})
			_ = cmd.Process.Kill()
			if err := command("ss", "-K", "sport", "=", ":22", "dport", "=", ":"+port); err != nil {
				t.Logf("ss -K: %v; the keep-alive of sshd does it later", err)
			}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := create(t, "--grace", "0s", "--idle", "30s")
			c := connectable(t, s)
			args := c.args()
			if tc.pty {
				args = append(args, "-tt")
			}
			cmd := exec.Command("ssh", append(args, s.Login, "echo begun; sleep 1000; echo never")...)
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, 5)
			if _, err := out.Read(buf); err != nil || string(buf) != "begun" {
				t.Fatalf("ssh = %q, %v", buf, err)
			}
			tc.die(t, cmd)
			_ = cmd.Wait() // killed
			if tc.name == "its host vanishes" {
				// sshd learns of it by its own keep-alive at the earliest; what we end by is
				// the sandbox's deadline and the administrator.
				if r := run(t, nil, podspawn, "destroy", s.ID); r.code != 0 {
					t.Errorf("destroy: %v", r)
				}
				noLeftovers(t, s)
				return
			}
			eventually(t, 20*time.Second, func() error {
				if got := get(t, s.ID); got.State == "running" {
					return fmt.Errorf("state = %s, want no connection", got.State)
				}
				return nil
			})
			run(t, nil, podspawn, "destroy", s.ID)
			noLeftovers(t, s)
		})
	}
}
