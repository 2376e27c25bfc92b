package e2e

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Threat 80. What one sandbox does to itself is contained in it: meanwhile the
// daemon, the API and another sandbox answer, and the host's disk is as it was.
func TestOneSandboxStarvesNobodyElse(t *testing.T) {
	h := need(t)
	tok := token(t, "--subject", "limits")
	other := made(t, tok)
	// One look at the daemon, the API and the other sandbox.
	probe := func() time.Duration {
		began := time.Now()
		if r := execute(t, tok, other.ID, "echo alive"); strings.TrimSpace(r.Stdout) != "alive" {
			t.Errorf("the other sandbox says %q", r.Stdout)
		}
		if a := call(t, tok, http.MethodGet, "/v1/sandboxes", ""); a.status != http.StatusOK {
			t.Errorf("list: %d", a.status)
		}
		return time.Since(began)
	}
	median := func(n int) time.Duration {
		var all []time.Duration
		for range n {
			all = append(all, probe())
		}
		slices.Sort(all)
		return all[n/2]
	}
	probe()
	quiet := median(7)

	// Each runs for at most five seconds in a sandbox of its own, as its user.
	for name, attack := range map[string]string{
		"fork bomb":      `b() { b | b & }; b; sleep 5`,
		"memory hog":     `tail /dev/zero; sleep 1`,
		"disk fill":      `dd if=/dev/zero of=/workspace/fill bs=1M; ls -l /workspace >&2; sleep 2`,
		"inode fill":     `mkdir /workspace/many; cd /workspace/many; i=0; while :; do : >f$i; i=$((i+1)); done`,
		"fd flood":       `while exec {fd}</dev/null; do n=$fd; done; echo reached $n >&2; sleep 4`,
		"1 GB of output": `head -c 1073741824 /dev/zero`,
	} {
		t.Run(name, func(t *testing.T) {
			s := create(t, "--file", podfileWith(t, "resources: {cpus: 1, memory: 256m, disk: 1g, pids: 128}"))
			c := connectable(t, s)
			before, daemonFDs := hostDisk(t), fds(t, h.procs["daemon"].Process.Pid)

			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			defer cancel()
			cmd := exec.CommandContext(ctx, "ssh", c.args(c.login, "timeout -k 1 5 bash -c '"+strings.ReplaceAll(attack, "'", `'\''`)+"'")...)
			var errs strings.Builder
			cmd.Stderr, cmd.WaitDelay = &errs, time.Second // and stdout to nowhere
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			done := make(chan struct{})
			go func() { defer close(done); _ = cmd.Wait() }() // however it ends
			time.Sleep(500 * time.Millisecond)                // well into it
			busy := median(7)
			ratio := float64(busy) / float64(quiet)
			t.Logf("exec and list: %s before, %s meanwhile, ratio %.1f", quiet.Round(time.Millisecond), busy.Round(time.Millisecond), ratio)
			if ratio > 20 && busy > 2*time.Second {
				t.Errorf("exec and list take %s while another sandbox does this, %s before: ratio %.1f", busy, quiet, ratio)
			}
			<-done
			t.Logf("%s: %s", cmd.ProcessState, clip(errs.String()))
			probe()

			after := hostDisk(t)
			if used := before.free - after.free; used > 1300<<20 {
				t.Errorf("the host's disk lost %d MiB, the sandbox may have 1 GiB", used>>20)
			}
			if used := before.inodes - after.inodes; used > 2000 {
				t.Errorf("the host's disk lost %d inodes", used)
			}
			for _, proc := range []string{"daemon", "serve"} {
				if rss := residentMiB(t, h.procs[proc].Process.Pid); rss > 400 {
					t.Errorf("%s uses %d MiB of memory", proc, rss)
				}
			}
			run(t, nil, podspawn, "destroy", s.ID)
			noLeftovers(t, s)
			eventually(t, 10*time.Second, func() error {
				if n := fds(t, h.procs["daemon"].Process.Pid); n > daemonFDs+8 {
					return fmt.Errorf("the daemon has %d descriptors, %d before", n, daemonFDs)
				}
				if lost := before.free - hostDisk(t).free; lost > 300<<20 {
					return fmt.Errorf("%d MiB of the host's disk are still gone", lost>>20)
				}
				return nil
			})
		})
	}
}

// podfileWith writes a Podfile of the base image and these lines.
func podfileWith(t *testing.T, lines string) string {
	t.Helper()
	file := t.TempDir() + "/podfile.yaml"
	if err := os.WriteFile(file, []byte("image: podspawn/base\n"+lines+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}

type disk struct{ free, inodes int64 }

// hostDisk is what is free where Docker keeps its files.
func hostDisk(t *testing.T) disk {
	t.Helper()
	var st syscall.Statfs_t
	if err := syscall.Statfs("/var/lib/docker", &st); err != nil {
		t.Fatal(err)
	}
	return disk{free: int64(st.Bavail) * st.Bsize, inodes: int64(st.Ffree)}
}

func fds(t *testing.T, pid int) int {
	t.Helper()
	all, err := os.ReadDir("/proc/" + strconv.Itoa(pid) + "/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

func residentMiB(t *testing.T, pid int) int {
	t.Helper()
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/statm")
	if err != nil {
		t.Fatal(err)
	}
	pages, err := strconv.Atoi(strings.Fields(string(b))[1])
	if err != nil {
		t.Fatal(err)
	}
	return pages * os.Getpagesize() >> 20
}
