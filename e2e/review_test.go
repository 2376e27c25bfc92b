package e2e

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// flood opens connections to a socket with half a frame on each, keeps as many as
// it is given, and opens new ones for those that are closed, until it is killed.
// It says when it has begun.
func flood(path string) int {
	limit := syscall.Rlimit{Cur: 20_000, Max: 20_000}
	_ = syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit) // fewer will do
	var open atomic.Int64
	for range 4 {
		go func() {
			for {
				if open.Load() > 9000 {
					time.Sleep(time.Millisecond)
					continue
				}
				c, err := net.Dial("unix", path)
				if err != nil {
					continue // its queue is full: that is the purpose
				}
				open.Add(1)
				_, _ = c.Write([]byte{0, 0, 1, 0, '{'}) // refused already, perhaps
				go func() {
					var b [1]byte
					_, _ = c.Read(b[:]) // until it is closed
					_ = c.Close()
					open.Add(-1)
				}()
			}
		}()
	}
	time.Sleep(300 * time.Millisecond) // for the flood to rise
	fmt.Println("flooding")
	select {}
}

// Threat 80 on the host's own doors: a user, a sandbox's process or the API process
// that opens every connection it can keeps nobody else from logging in.
func TestFloodedSocketsKeepNobodyOut(t *testing.T) {
	h := need(t)
	s, victim := create(t, "--grace", "10m"), create(t, "--grace", "10m")
	uids := map[string]string{"a local user": "1234", "a sandbox's uid": uidOf(t, victim), "the API's user": strings.TrimSpace(run(t, nil, "id", "-u", "podspawn-api").stdout)}
	for name, uid := range uids {
		for _, sock := range []string{"daemon.sock", "podspawn.sock"} {
			t.Run(name+" on "+sock, func(t *testing.T) {
				c := connectable(t, s)
				cmd := exec.Command("setpriv", "--reuid", uid, "--regid", "65534", "--clear-groups", helper)
				cmd.Env = append(os.Environ(), "E2E_ASK=flood /run/podspawn/"+sock)
				out, err := cmd.StdoutPipe()
				if err := errors.Join(err, cmd.Start()); err != nil {
					t.Fatal(err)
				}
				defer func() {
					_ = cmd.Process.Kill() // that is how it ends
					_ = cmd.Wait()
				}()
				if line, err := bufio.NewReader(out).ReadString('\n'); line != "flooding\n" {
					t.Fatalf("the flood says %q, %v", line, err)
				}
				for range 3 {
					if r := c.ssh(t, nil, "echo in"); r.code != 0 || r.stdout != "in\n" {
						t.Errorf("ssh: %v", r)
					}
				}
				if r := h.asRealUser(t, h.realUser, "echo in"); r.stdout != "in\n" {
					t.Errorf("a real user: %v", r)
				}
				if uid == uids["the API's user"] && sock == "daemon.sock" {
					return // it takes its own places
				}
				if r := run(t, nil, podspawn, "list"); r.code != 0 {
					t.Errorf("podspawn list: %v", r)
				}
			})
		}
	}
	if err := h.awaitReady(); err != nil {
		t.Error(err)
	}
}

// Threat 99: one of our PAM lines is lost, and server-setup's record says that all
// is well, so that only the claim and the session's own check can notice.
func TestEachPAMLineLost(t *testing.T) {
	h := need(t)
	const pam, manifest = "/etc/pam.d/sshd", "/var/lib/podspawn/setup.json"
	for _, tc := range []struct {
		line string
		code int    // of ssh
		want string // on stderr
	}{
		{"pam_usernet", 254, ""},
		{"podspawn-hook pam-session", 75, "no claimed SSH connection"},
	} {
		t.Run(tc.line, func(t *testing.T) {
			s := create(t)
			c := connectable(t, s)
			text := ""
			defer breakHost(t, pam, func(old string) string {
				for line := range strings.Lines(old) {
					if !strings.Contains(line, tc.line) {
						text += line
					}
				}
				return text
			})()
			defer breakHost(t, manifest, func(old string) string {
				var m map[string]any
				if err := json.Unmarshal([]byte(old), &m); err != nil {
					t.Fatal(err)
				}
				sum := sha256.Sum256([]byte(text))
				m["files"].(map[string]any)[pam] = hex.EncodeToString(sum[:])
				b, err := json.Marshal(m)
				if err != nil {
					t.Fatal(err)
				}
				return string(b)
			})()
			r := c.ssh(t, nil, "echo in")
			if r.code != tc.code || strings.Contains(r.stdout, "in\n") || !strings.Contains(r.stderr, tc.want) {
				t.Errorf("ssh: %v, want exit %d and %q", r, tc.code, tc.want)
			}
			if got := get(t, s.ID); got.State != "ready" {
				t.Errorf("state = %s, want ready: nothing was claimed", got.State)
			}
			for _, login := range []string{"root", h.realUser} {
				if r := h.asRealUser(t, login, "echo in"); r.stdout != "in\n" {
					t.Errorf("%s can't log in: %v", login, r)
				}
			}
		})
	}
	// The repair above was by hand: the daemon notices a new record by its time.
	if err := command("touch", manifest); err != nil {
		t.Fatal(err)
	}
	if r := connectable(t, create(t)).ssh(t, nil, "echo in"); r.stdout != "in\n" {
		t.Errorf("after the repair: %v", r)
	}
}

// Processes of one sandbox's uid, should one be taken over, get nowhere near each
// other's descriptors, and a process that leaves its connection is ended.
func TestHooksOfOneUIDAreClosedToEachOther(t *testing.T) {
	s := create(t, "--grace", "10m")
	l := connectable(t, s).live(t)
	uid := uidOf(t, s)
	for _, pid := range hostProcesses(t, s) {
		for _, what := range []string{"cat /proc/%d/environ", "ls /proc/%d/fd", "cat /proc/%d/maps", "head -c1 /proc/%d/mem", "strace -o /dev/null -p %d"} {
			sh := fmt.Sprintf("timeout 2 "+what, pid)
			r := run(t, nil, "setpriv", "--reuid", uid, "--regid", "69999", "--clear-groups", "sh", "-c", sh)
			if r.code == 0 || r.code == 124 || r.stdout != "" {
				t.Errorf("%s (%s) as uid %s: %v, want refused", sh, comm(pid), uid, r)
			}
		}
	}
	l.echo("still there")
	// It may end its own connection; that is all.
	stray := exec.Command("setpriv", "--reuid", uid, "--regid", "69999", "--clear-groups", "sleep", "600")
	if err := stray.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- stray.Wait() }()
	if err := connectable(t, s).live(t).close(); err != nil {
		t.Error(err)
	}
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Error("a process of the uid outside of every connection lives on")
		_ = stray.Process.Kill() // so that the test ends
	}
	l.echo("and still")
}

func comm(pid int) string {
	b, _ := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "comm")) // "" when it has ended
	return strings.TrimSpace(string(b))
}
