package install

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// reloadTimeout is how long sshd may take to start over.
const reloadTimeout = 10 * time.Second

// reload makes a running sshd read its configuration again, and waits until it
// serves again. Connections that are open stay as they are. No running sshd is no
// error: it will read the new files when it starts.
func (s sshd) reload(ctx context.Context, o Options) error {
	set, err := s.settings(ctx)
	if err != nil {
		return err
	}
	path := set.one("pidfile")
	pid, ok := runningSSHD(path)
	if !ok {
		o.say("sshd is not running; it reads the new configuration when it starts")
		return nil
	}
	// A restarting sshd removes its file and writes it again once it listens.
	before, err := identify(path)
	if err != nil {
		return err
	}
	if err := unix.Kill(pid, unix.SIGHUP); err != nil {
		return fmt.Errorf("reload sshd (pid %d): %w", pid, err)
	}
	ctx, cancel := context.WithTimeout(ctx, reloadTimeout)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if now, err := identify(path); err == nil && now != before {
			if again, ok := runningSSHD(path); ok && again == pid {
				o.say("reloaded sshd")
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("sshd (pid %d) did not come back after the reload: %w", pid, ctx.Err())
		case <-tick.C:
		}
	}
}

// runningSSHD returns the process in a pid file, if it is an sshd.
func runningSSHD(pidFile string) (pid int, ok bool) {
	b, err := os.ReadFile(pidFile)
	if err != nil {
		return 0, false
	}
	pid, err = strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || pid <= 1 {
		return 0, false
	}
	comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	return pid, err == nil && strings.TrimSpace(string(comm)) == "sshd"
}

// flushNameCache makes nscd forget that a sandbox login does not exist. That
// there is no nscd is the normal case.
func flushNameCache(ctx context.Context) {
	for _, db := range [...]string{"passwd", "group"} {
		_ = exec.CommandContext(ctx, "nscd", "-i", db).Run() // see above; doctor warns about nscd
	}
}
