package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// counts is what must not grow.
type counts struct {
	goroutines, fds, threads map[string]int // by process
	rss                      map[string]int // KiB
	namespaces, mounts       int
	files                    int // in our run directories
}

var countsLine = regexp.MustCompile(`msg=counts .*goroutines=(\d+) descriptors=(\d+)`)

func (h *machine) counts(t *testing.T) counts {
	t.Helper()
	c := counts{goroutines: map[string]int{}, fds: map[string]int{}, threads: map[string]int{}, rss: map[string]int{}}
	for _, name := range []string{"daemon", "serve"} {
		h.mu.Lock()
		pid := h.procs[name].Process.Pid
		h.mu.Unlock()
		log := filepath.Join(h.logs, name+".log")
		read := func() [][]string {
			b, err := os.ReadFile(log)
			if err != nil {
				t.Fatal(err)
			}
			return countsLine.FindAllStringSubmatch(string(b), -1)
		}
		before := len(read())
		if err := syscall.Kill(pid, syscall.SIGUSR1); err != nil {
			t.Fatal(err)
		}
		var last []string
		eventually(t, 10*time.Second, func() error {
			all := read()
			if len(all) <= before {
				return fmt.Errorf("%s does not say its counts", name)
			}
			last = all[len(all)-1]
			return nil
		})
		if last == nil {
			t.FailNow()
		}
		c.goroutines[name], _ = strconv.Atoi(last[1]) // digits, by the pattern
		c.fds[name], _ = strconv.Atoi(last[2])
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range strings.Split(string(status), "\n") {
			f := strings.Fields(line)
			if len(f) > 1 && f[0] == "Threads:" {
				c.threads[name], _ = strconv.Atoi(f[1])
			}
			if len(f) > 1 && f[0] == "VmRSS:" {
				c.rss[name], _ = strconv.Atoi(f[1])
			}
		}
	}
	lines := func(cmd string) int {
		out, err := exec.Command("sh", "-c", cmd).Output()
		if err != nil {
			t.Fatal(err)
		}
		n, err := strconv.Atoi(strings.TrimSpace(string(out)))
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	c.namespaces = lines("ls /run/netns 2>/dev/null | wc -l")
	c.mounts = lines("wc -l </proc/self/mountinfo")
	c.files = lines("find /run/podspawn /etc/netns /var/lib/extrausers 2>/dev/null | wc -l")
	return c
}

// Create, ssh, destroy, again and again: nothing of it stays. PODSPAWN_E2E_CYCLES
// says how often; without it, time is what bounds it.
func TestCyclesLeaveNothing(t *testing.T) {
	h := need(t)
	cycles, limit := 300, 100*time.Second
	if v := os.Getenv("PODSPAWN_E2E_CYCLES"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil {
			t.Fatal(err)
		}
		cycles, limit = n, 3*time.Hour
	}
	cycle := func(n int) error {
		r := run(t, nil, podspawn, "create", fmt.Sprintf("cycle-%d", n), "--grace", "10m")
		if r.code != 0 {
			return fmt.Errorf("create: %v", r)
		}
		name := fmt.Sprintf("cycle-%d", n)
		if r := run(t, nil, podspawn, "ssh", name, "--", "echo in"); r.stdout != "in\n" {
			return fmt.Errorf("ssh: %v", r)
		}
		if r := run(t, nil, podspawn, "destroy", name); r.code != 0 {
			return fmt.Errorf("destroy: %v", r)
		}
		return nil
	}
	const parallel, warm = 3, 12
	var done atomic.Int64
	batch := func(upTo int, until time.Time) {
		var wg sync.WaitGroup
		for range parallel {
			wg.Go(func() {
				for time.Now().Before(until) && !t.Failed() {
					n := int(done.Add(1))
					if n > upTo {
						done.Add(-1)
						return
					}
					if err := cycle(n); err != nil {
						t.Errorf("cycle %d: %v", n, err)
					}
				}
			})
		}
		wg.Wait()
		nothingOfOurs(t)
	}
	batch(warm, time.Now().Add(limit))
	first := h.counts(t)
	began := time.Now()
	batch(warm+cycles/2, began.Add(limit/2))
	middle := h.counts(t)
	half := done.Load() - warm
	batch(warm+cycles, began.Add(limit))
	last := h.counts(t)
	made := done.Load() - warm
	t.Logf("%d cycles in %s; first %+v, middle %+v, last %+v", made, time.Since(began).Round(time.Second), first, middle, last)
	if made < 10 {
		t.Errorf("only %d cycles: they say nothing", made)
	}
	for _, name := range []string{"daemon", "serve"} {
		// A few come and go: connections kept for reuse, the runtime's own.
		for what, v := range map[string][2]int{
			"goroutines":  {first.goroutines[name], last.goroutines[name]},
			"descriptors": {first.fds[name], last.fds[name]},
		} {
			if v[1] > v[0]+8 {
				t.Errorf("%s: %s grew from %d to %d", name, what, v[0], v[1])
			}
		}
		if a, b := first.threads[name], last.threads[name]; b > a+12 {
			t.Errorf("%s: threads grew from %d to %d", name, a, b)
		}
		// Memory: per cycle, over the second half, where nothing warms up any more.
		if grew, n := last.rss[name]-middle.rss[name], int(made-half); n > 0 && grew > 4096+40*n {
			t.Errorf("%s: memory grew by %d KiB over %d cycles", name, grew, n)
		}
	}
	if first.namespaces != last.namespaces || first.mounts != last.mounts || first.files != last.files {
		t.Errorf("namespaces, mounts, files: %d, %d, %d, then %d, %d, %d",
			first.namespaces, first.mounts, first.files, last.namespaces, last.mounts, last.files)
	}
}
