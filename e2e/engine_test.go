package e2e

import (
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// containerPID is runsc's process of a sandbox, by Docker's word.
func containerPID(t *testing.T, s sandbox) string {
	t.Helper()
	id := strings.TrimSpace(run(t, nil, "docker", "ps", "-q", "--filter", "label=dev.podspawn.sandbox="+s.ID).stdout)
	pid := strings.TrimSpace(run(t, nil, "docker", "inspect", "-f", "{{.State.Pid}}", id).stdout)
	if pid == "" || pid == "0" {
		t.Fatalf("no container of %s runs", s.ID)
	}
	return pid
}

// runs reports whether the process does anything but wait to be reaped.
func runs(pid string) bool {
	out, err := exec.Command("ps", "-o", "state=", "-p", pid).Output()
	return err == nil && !strings.HasPrefix(strings.TrimSpace(string(out)), "Z")
}

// With dockerd dead or hung, sandboxes go on, but a destroy, the end of grace and
// the deadline still end what runs in them; Docker's return finishes the job
// within seconds.
func TestDestroyWithoutDocker(t *testing.T) {
	h := need(t)
	requested := create(t, "--grace", "10m")
	left := create(t, "--grace", "0s")
	dies := create(t, "--ttl", "25s", "--grace", "10m") // at its deadline
	stays := create(t, "--grace", "10m")
	session, goes := connectable(t, stays).live(t), connectable(t, left).live(t)
	pids := map[string]string{}
	for _, s := range []sandbox{requested, left, dies, stays} {
		pids[s.ID] = containerPID(t, s)
	}
	if err := h.end("dockerd", syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	defer h.dockerBack(t)
	r := run(t, nil, podspawn, "destroy", requested.ID)
	if r.code != 0 || !strings.Contains(r.stderr, "is draining: the container engine does not answer") {
		t.Errorf("destroy without dockerd: %v, want success that says what it waits for", r)
	}
	if got := get(t, requested.ID); got.State != "draining" {
		t.Errorf("state = %s, want draining until Docker says that the container is gone", got.State)
	}
	h.again(t, "daemon", syscall.SIGKILL) // and so does a daemon that starts without Docker
	if err := goes.close(); err != nil {
		t.Errorf("session ends with %v", err)
	}
	for _, s := range []sandbox{requested, left, dies} {
		eventually(t, 40*time.Second, func() error {
			if runs(pids[s.ID]) {
				return fmt.Errorf("%s: its container's process %s goes on", s.ID, pids[s.ID])
			}
			return nil
		})
	}
	if r := askCert(t, requested); r.code == 0 {
		t.Errorf("a certificate for a draining sandbox: %v", r)
	}
	session.echo("without dockerd")
	if !runs(pids[stays.ID]) {
		t.Error("a sandbox that should live does not")
	}
	h.dockerBack(t)
	// What lived is Docker's to keep or to stop now: without its live-restore it stops.
	for _, s := range []sandbox{requested, left, dies} {
		eventually(t, 10*time.Second, func() error {
			if got := get(t, s.ID); got.State != "destroyed" && got.State != "expired" {
				return fmt.Errorf("%s: state = %s (%s), want an end now that Docker is back", s.ID, got.State, got.Reason)
			}
			return nil
		})
		noLeftovers(t, s)
	}
}

// again restarts a process and waits until the daemon answers, be the host ready
// for sandboxes or not.
func (h *machine) again(t *testing.T, name string, sig syscall.Signal) {
	t.Helper()
	if err := errors.Join(h.end(name, sig), h.start(name, podspawn, name)); err != nil {
		t.Fatal(err)
	}
	if err := poll(30*time.Second, func() error { return command(podspawn, "list") }); err != nil {
		t.Fatal(err)
	}
}

// dockerBack starts dockerd unless it runs, and waits until podspawn knows.
func (h *machine) dockerBack(t *testing.T) {
	t.Helper()
	h.mu.Lock()
	there := h.procs["dockerd"] != nil
	h.mu.Unlock()
	if there {
		return
	}
	if err := errors.Join(h.startDockerd(), h.awaitReady()); err != nil {
		t.Fatal(err)
	}
}

// askCert asks for a certificate and returns how that went.
func askCert(t *testing.T, s sandbox) result {
	t.Helper()
	return run(t, nil, podspawn, "cert", s.ID, "--out", shortDir(t)+"/ssh")
}

// A dockerd that does not answer, though it is there, is no different.
func TestDestroyWithDockerHung(t *testing.T) {
	h := need(t)
	s := create(t, "--grace", "10m")
	pid := containerPID(t, s)
	h.mu.Lock()
	dockerd := h.procs["dockerd"].Process
	h.mu.Unlock()
	if err := dockerd.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	r := run(t, nil, podspawn, "destroy", s.ID)
	eventually(t, 5*time.Second, func() error {
		if runs(pid) {
			return fmt.Errorf("the container's process goes on")
		}
		return nil
	})
	if err := dockerd.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); r.code != 0 || !strings.Contains(r.stderr, "is draining") || took > 20*time.Second {
		t.Errorf("destroy with dockerd hung, after %s: %v, want success within its wait", took, r)
	}
	eventually(t, 15*time.Second, func() error {
		if got := get(t, s.ID); got.State != "destroyed" {
			return fmt.Errorf("state = %s, want destroyed now that Docker answers", got.State)
		}
		return nil
	})
	noLeftovers(t, s)
}
