package pid1_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/podspawn/podspawn/sandbox"
	"github.com/podspawn/podspawn/sandbox/guest"
	"github.com/podspawn/podspawn/sandbox/guest/pid1"
	"github.com/podspawn/podspawn/sandbox/guest/sockets"
)

// need skips a test that lacks a part, and fails it where the part is required.
func need(t *testing.T, part string, missing string) {
	t.Helper()
	if missing == "" {
		return
	}
	if slices.Contains(strings.Split(os.Getenv("PODSPAWN_TEST_REQUIRE"), ","), part) {
		t.Fatalf("%s is required: %s", part, missing)
	}
	t.Skipf("needs %s: %s", part, missing)
}

// needGvisor returns the path of runsc and of a static busybox.
func needGvisor(t *testing.T) (runsc, busybox string) {
	t.Helper()
	if os.Geteuid() != 0 {
		need(t, "root", "not root")
	}
	for _, p := range []string{os.Getenv("PODSPAWN_RUNSC"), "/usr/libexec/podspawn/runsc"} {
		if p == "" {
			continue
		}
		if _, err := os.Stat(p); err == nil {
			runsc = p
			break
		}
	}
	if runsc == "" {
		need(t, "gvisor", "no runsc in $PODSPAWN_RUNSC or /usr/libexec/podspawn")
	}
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		need(t, "gvisor", "no busybox: apt-get install busybox-static")
	}
	return runsc, busybox
}

// box is a sandbox under real gVisor without a container engine.
type box struct {
	t     *testing.T
	id    sandbox.ID
	socks *sockets.Sockets
	dir   string
	runsc []string
	out   bytes.Buffer
	done  chan struct{} // runsc run has returned
}

// newBox builds the guest, makes a root file system of busybox, and starts it.
func newBox(t *testing.T, deadline time.Time) *box {
	t.Helper()
	runsc, busybox := needGvisor(t)
	tmp := t.TempDir()
	b := &box{t: t, id: sandbox.NewID(), done: make(chan struct{})}
	root := filepath.Join(tmp, "rootfs")
	for _, d := range []string{"bin", "etc", "tmp", "proc", "dev", "root", "home/dev", "usr/local/bin", ".podspawn/run"} {
		must(t, os.MkdirAll(filepath.Join(root, d), 0o755))
	}
	must(t, os.Chown(filepath.Join(root, "home/dev"), 1000, 1000))
	must(t, os.Chmod(filepath.Join(root, "tmp"), 0o1777))
	copyFile(t, busybox, filepath.Join(root, "bin/busybox"))
	list, err := exec.Command(busybox, "--list").Output()
	must(t, err)
	for _, name := range strings.Fields(string(list)) {
		if name != "busybox" {
			must(t, os.Symlink("busybox", filepath.Join(root, "bin", name)))
		}
	}
	must(t, os.WriteFile(filepath.Join(root, "etc/passwd"),
		[]byte("root:x:0:0:root:/root:/bin/sh\ndev:x:1000:1000:Dev:/home/dev:/bin/sh\nother:x:1001:1001::/:/bin/sh\n"), 0o644))
	must(t, os.WriteFile(filepath.Join(root, "etc/group"),
		[]byte("root:x:0:\ndev:x:1000:\nwheel:x:10:dev\nother:x:1001:\n"), 0o644))
	must(t, os.Symlink("/.podspawn/guest", filepath.Join(root, "usr/local/bin/sudo")))
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", filepath.Join(root, ".podspawn/guest"),
		"github.com/podspawn/podspawn/cmd/podspawn-guest")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build guest: %v\n%s", err, out)
	}

	b.socks, err = sockets.New(filepath.Join(tmp, "guests"))
	must(t, err)
	b.dir, err = b.socks.Prepare(b.id)
	must(t, err)
	t.Cleanup(func() {
		if err := b.socks.Remove(b.id); err != nil {
			t.Errorf("Remove: %v", err)
		}
	})
	caps := []string{"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_SETUID", "CAP_SETGID", "CAP_KILL"}
	mount := func(dst, typ, src string, opts ...string) map[string]any {
		return map[string]any{"destination": dst, "type": typ, "source": src, "options": opts}
	}
	config, err := json.Marshal(map[string]any{
		"ociVersion": "1.0.0",
		"process": map[string]any{
			"user": map[string]any{"uid": 0, "gid": 0},
			"args": []string{guest.BinaryPath, "init"},
			"env":  []string{fmt.Sprintf("%s=%d", pid1.DeadlineEnv, deadline.Unix())},
			"cwd":  "/", "noNewPrivileges": true,
			"capabilities": map[string]any{"bounding": caps, "effective": caps, "inheritable": caps, "permitted": caps},
		},
		"root":     map[string]any{"path": root},
		"hostname": "box",
		"mounts": []any{
			mount("/proc", "proc", "proc"),
			mount("/dev", "tmpfs", "tmpfs"),
			mount("/dev/pts", "devpts", "devpts"),
			mount(guest.SocketDir, "bind", b.dir, "bind", "rw"),
		},
		"linux": map[string]any{"namespaces": []any{
			map[string]any{"type": "pid"},
			map[string]any{"type": "network"},
			map[string]any{"type": "ipc"},
			map[string]any{"type": "uts"},
			map[string]any{"type": "mount"},
		}},
	})
	must(t, err)
	must(t, os.WriteFile(filepath.Join(tmp, "config.json"), config, 0o600))

	b.runsc = []string{runsc, "--root", filepath.Join(tmp, "state"), "--host-uds=create", "--network=none", "--ignore-cgroups", "--overlay2=root:self,size=256m"}
	run := b.command("run", "-bundle", tmp, string(b.id))
	run.Stdout, run.Stderr = &b.out, &b.out
	must(t, run.Start())
	go func() {
		_ = run.Wait() // its status is that of the guest, which tests look at otherwise
		close(b.done)
	}()
	t.Cleanup(func() {
		_ = b.command("kill", string(b.id), "KILL").Run()     // it may have ended
		_ = b.command("delete", "-force", string(b.id)).Run() // same
		select {
		case <-b.done:
		case <-time.After(10 * time.Second):
			t.Error("runsc did not end")
		}
		_ = unix.Unmount(filepath.Join(tmp, "state/null-netns"), unix.MNT_DETACH) // runsc keeps it for its next start
		if t.Failed() {
			t.Logf("runsc and guest said:\n%s", b.out.String())
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if _, _, err := b.socks.Seal(ctx, b.id); err != nil {
		t.Fatalf("Seal: %v", err)
	}
	return b
}

func (b *box) command(args ...string) *exec.Cmd {
	return exec.Command(b.runsc[0], append(slices.Clone(b.runsc[1:]), args...)...)
}

// preamble is what the daemon would send for the user dev.
func preamble() guest.Preamble {
	return guest.Preamble{
		Login: "sbx-test", Rights: []guest.Right{guest.RightExec, guest.RightPTY, guest.RightSFTP},
		Deadline: time.Now().Add(time.Hour).Unix(), User: "dev", Work: "/workspace",
		Env: map[string]string{"FROM_SPEC": "spec", "BOTH": "spec"},
	}
}

// dial opens a connection for which the guest has accepted p.
func (b *box) dial(p guest.Preamble) (*os.File, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	f, err := b.socks.Dial(ctx, b.id)
	if err != nil {
		return nil, err
	}
	if err := guest.SendPreamble(ctx, f, p); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// result is a finished process.
type result struct {
	exit        guest.Exit
	out, errOut string
}

// run runs e with stdin and waits for its end.
func (b *box) run(t *testing.T, e guest.Exec, stdin string) result {
	t.Helper()
	f, err := b.dial(preamble())
	must(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var out, errOut bytes.Buffer
	exit, err := guest.Run(ctx, f, e, guest.Streams{Stdin: strings.NewReader(stdin), Stdout: &out, Stderr: &errOut})
	if err != nil {
		t.Fatalf("Run(%+v): %v", e, err)
	}
	return result{exit, out.String(), errOut.String()}
}

// sh runs a script that has to succeed and returns its output.
func (b *box) sh(t *testing.T, script string) string {
	t.Helper()
	r := b.run(t, guest.Exec{Script: script}, "")
	if r.exit.Code != 0 || r.exit.Error != "" {
		t.Fatalf("script %q: exit %+v, stderr %q", script, r.exit, r.errOut)
	}
	return r.out
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	data, err := os.ReadFile(from)
	must(t, err)
	must(t, os.WriteFile(to, data, 0o755))
}

// await polls until ok or the deadline.
func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("timed out: %s", what)
		}
	}
}
