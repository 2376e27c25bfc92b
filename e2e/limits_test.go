package e2e

import (
	"context"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
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
	for name, c := range map[string]struct{ attack, says string }{
		"fork bomb":      {`b() { b | b & }; b; sleep 5`, "Resource temporarily unavailable"},
		"memory hog":     {`tail /dev/zero; sleep 1`, ""}, // ends the sandbox, most of the time
		"disk fill":      {`dd if=/dev/zero of=/workspace/fill bs=1M; sleep 2`, "No space left on device"},
		"inode fill":     {`mkdir /workspace/many; cd /workspace/many; i=0; while :; do : >f$i; i=$((i+1)); done`, ""},
		"fd flood":       {`while exec {fd}</dev/null; do :; done; sleep 4`, "Too many open files"},
		"1 GB of output": {`head -c 1073741824 /dev/zero`, ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := create(t, "--file", podfileWith(t, "resources: {cpus: 1, memory: 256m, disk: 1g, pids: 128}"))
			cl := connectable(t, s)
			disk := upperDir(t, s)
			daemonFDs := fds(t, h.procs["daemon"].Process.Pid)

			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			cmd := exec.CommandContext(ctx, "ssh", cl.args(cl.login, "timeout -k 1 5 bash -c '"+strings.ReplaceAll(c.attack, "'", `'\''`)+"'")...)
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
			if !strings.Contains(errs.String(), c.says) {
				t.Errorf("the attack says %q, want %q: it met no limit", clip(errs.String()), c.says)
			}
			probe()

			if size, files := usage(disk); size > 1100<<20 || files > 100 {
				t.Errorf("the sandbox has %d MiB and %d files on the host's disk, it may have 1 GiB in a few", size>>20, files)
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
				if size, files := usage(disk); files > 0 {
					return fmt.Errorf("%d files with %d MiB of it are still on the host's disk", files, size>>20)
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

// upperDir is where Docker keeps what the sandbox's container has written.
func upperDir(t *testing.T, s sandbox) string {
	t.Helper()
	id := strings.TrimSpace(run(t, nil, "docker", "ps", "-q", "--filter", "label=dev.podspawn.sandbox="+s.ID).stdout)
	dir := strings.TrimSpace(run(t, nil, "docker", "inspect", "-f", "{{.GraphDriver.Data.UpperDir}}", id).stdout)
	if _, err := os.Stat(dir); err != nil {
		t.Fatal(err)
	}
	return dir
}

// usage is the space and the number of the files below a folder.
func usage(dir string) (size int64, files int) {
	_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil // gone, which is what the caller wants to know
		}
		if info, err := d.Info(); err == nil {
			files++
			if st, ok := info.Sys().(*syscall.Stat_t); ok {
				size += st.Blocks * 512
			}
		}
		return nil
	})
	return size, files
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
