package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// withConfig restarts the daemon with a configuration of the test's, and with the
// lab's when it ends.
func withConfig(t *testing.T, text string) {
	t.Helper()
	h := need(t)
	set := func(text string) {
		if err := configure(text); err != nil {
			t.Fatal(err)
		}
		h.restart(t, "daemon", syscall.SIGTERM)
	}
	t.Cleanup(func() {
		set(noPool)
		nothingOfOurs(t)
	})
	set(text)
}

// withPool gives the host a full pool for one test.
func withPool(t *testing.T, size int) {
	t.Helper()
	withConfig(t, fmt.Sprintf("pool: {size: %d}\n", size))
	awaitPool(t, size)
}

// pooled returns the ids of the containers that are no tenant's sandbox.
func pooled() ([]string, error) {
	out, err := exec.Command("docker", "ps", "-a", "--filter", "label=dev.podspawn.sandbox", "--format", `{{.Label "dev.podspawn.sandbox"}}`).Output()
	if err != nil {
		return nil, err
	}
	ids := strings.Fields(string(out))
	list, err := exec.Command(podspawn, "list", "--json").Output()
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(ids, func(id string) bool { return strings.Contains(string(list), id) }), nil
}

// poolStatus is what doctor says of the pool.
func poolStatus() (string, error) {
	out, _ := exec.Command(podspawn, "doctor", "--json").Output() // other checks may fail in a test
	var d struct {
		Checks []struct{ Name, Detail string } `json:"checks"`
	}
	if err := json.Unmarshal(out, &d); err != nil {
		return "", err
	}
	for _, c := range d.Checks {
		if c.Name == "pool" {
			return c.Detail, nil
		}
	}
	return "", errors.New("doctor says nothing of the pool")
}

// awaitPool waits until the pool is full and has nothing but what it counts.
func awaitPool(t *testing.T, size int, without ...string) []string {
	t.Helper()
	var ids []string
	eventually(t, 60*time.Second, func() (err error) {
		if ids, err = pooled(); err != nil {
			return err
		}
		st, err := poolStatus()
		if err != nil {
			return err
		}
		if !strings.HasPrefix(st, fmt.Sprintf("%d of %d ", size, size)) || len(ids) != size ||
			slices.ContainsFunc(ids, func(id string) bool { return slices.Contains(without, id) }) {
			return fmt.Errorf("pool: %s; containers %v, want %d without %v", st, ids, size, without)
		}
		return nil
	})
	return ids
}

func TestPooledSandboxIsLikeAnyOther(t *testing.T) {
	withPool(t, 1)
	was := awaitPool(t, 1)
	// Nobody's: not shown, not found, no certificate, no login.
	if r := run(t, nil, podspawn, "get", was[0]); r.code != 3 {
		t.Errorf("get of a pooled sandbox: %v, want status 3", r)
	}
	if r := run(t, nil, podspawn, "cert", was[0], "--out", shortDir(t)+"/c"); r.code != 3 {
		t.Errorf("cert for a pooled sandbox: %v, want status 3", r)
	}

	s := create(t, "--grace", "0s", "--ttl", "10m")
	if s.ID != was[0] {
		t.Errorf("created %s, want the pooled %s", s.ID, was[0])
	}
	c := connectable(t, s)
	r := c.ssh(t, nil, "id -un; pwd; dmesg | grep -ci gvisor; exit 7")
	if r.code != 7 || !strings.HasPrefix(r.stdout, "dev\n/workspace\n") {
		t.Errorf("ssh: %v, want dev in /workspace and status 7", r)
	}
	eventually(t, 20*time.Second, func() error {
		if got := get(t, s.ID); got.State != "destroyed" {
			return fmt.Errorf("state %s after the exit, want destroyed", got.State)
		}
		return nil
	})
	noLeftovers(t, s)
	awaitPool(t, 1, s.ID) // a claimed one never comes back
}

func TestCertificateOfAnotherDoesNotOpenAPooledSandbox(t *testing.T) {
	withPool(t, 1)
	s := create(t)
	waiting := awaitPool(t, 1, s.ID)[0]
	c := connectable(t, s)
	login := strings.Replace(waiting, "sbx_", "sbx-", 1)
	if r := run(t, nil, "ssh", append(c.args("-l", login, c.login), "true")...); r.code != 255 || !strings.Contains(r.stderr, "Permission denied") {
		t.Errorf("ssh as the pooled login: %v, want it denied", r)
	}
}

// A pooled sandbox that was stopped, killed or frozen is never handed out, and
// never the reason why a create fails.
func TestBadPooledSandboxIsReplaced(t *testing.T) {
	withPool(t, 1)
	for _, how := range []string{"pause", "kill"} {
		t.Run(how, func(t *testing.T) {
			bad := awaitPool(t, 1)[0]
			if r := run(t, nil, "docker", how, "podspawn-"+strings.Replace(bad, "_", "-", 1)); r.code != 0 {
				t.Fatal(r)
			}
			s := create(t)
			if s.ID == bad {
				t.Errorf("handed out %s after docker %s", bad, how)
			}
			if r := connectable(t, s).ssh(t, nil, "true"); r.code != 0 {
				t.Errorf("ssh: %v", r)
			}
			noLeftovers(t, sandbox{ID: bad, Login: strings.Replace(bad, "sbx_", "sbx-", 1)})
			awaitPool(t, 1, bad, s.ID)
		})
	}
}

// The daemon is killed while it fills the pool and while it claims from it: no
// sandbox is handed out twice, and nothing is left that is nobody's.
func TestDaemonKilledWhileFillingAndClaiming(t *testing.T) {
	withPool(t, 2)
	h := need(t)
	t.Run("filling", func(t *testing.T) {
		taken := awaitPool(t, 2)
		create(t)
		create(t)
		eventually(t, 30*time.Second, func() error { // a new one is on its way
			ids, err := pooled()
			if err == nil && !slices.ContainsFunc(ids, func(id string) bool { return !slices.Contains(taken, id) }) {
				err = errors.New("nothing is being started")
			}
			return err
		})
		h.restart(t, "daemon", syscall.SIGKILL)
		awaitPool(t, 2, taken...)
	})
	t.Run("claiming", func(t *testing.T) {
		for round := range 3 {
			awaitPool(t, 2)
			var wg sync.WaitGroup
			var mu sync.Mutex
			ids := map[string]int{}
			for range 3 {
				wg.Go(func() {
					out, err := exec.Command(podspawn, "create", "--json", "--label", "round=kill").Output()
					var s sandbox
					if err == nil && json.Unmarshal(out, &s) == nil { // others were cut off
						mu.Lock()
						ids[s.ID]++
						mu.Unlock()
					}
				})
			}
			time.Sleep(time.Duration(round*15) * time.Millisecond) // not to wait for something: to hit another step
			h.restart(t, "daemon", syscall.SIGKILL)
			wg.Wait()
			for id, n := range ids {
				if n > 1 {
					t.Errorf("%s was handed out %d times", id, n)
				}
			}
			var list struct {
				Sandboxes []sandbox `json:"sandboxes"`
			}
			out, err := exec.Command(podspawn, "list", "--json").Output()
			if err := errors.Join(err, json.Unmarshal(out, &list)); err != nil {
				t.Fatal(err)
			}
			for _, s := range list.Sandboxes {
				run(t, nil, podspawn, "destroy", s.ID)
				noLeftovers(t, s)
			}
		}
		awaitPool(t, 2)
	})
}

func TestCreateThatDoesNotFitTheHostIsRefused(t *testing.T) {
	withConfig(t, "pool: {size: 0}\nlimits: {memory: 1g}\n")
	create(t)
	r := run(t, nil, podspawn, "create")
	if r.code == 0 || !strings.Contains(r.stderr, "do not fit") || !strings.Contains(r.stderr, "hint:") {
		t.Errorf("create beyond limits.memory: %v, want a refusal with a hint", r)
	}
}
