package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"unsafe"
)

// escape tries what a process needs to get out of a container, and prints one
// line for each: its name and the error, or "possible". It runs in a sandbox, as
// its root.
func escape() int {
	zero := [256]byte{}
	p := func(b []byte) uintptr { return uintptr(unsafe.Pointer(&b[0])) }
	s := func(text string) uintptr { return p(append([]byte(text), 0)) }
	for _, tc := range []struct {
		name string
		nr   uintptr
		args [5]uintptr
	}{
		{"mount", syscall.SYS_MOUNT, [5]uintptr{s("none"), s("/mnt"), s("tmpfs"), 0, 0}},
		{"mount proc", syscall.SYS_MOUNT, [5]uintptr{s("proc"), s("/mnt"), s("proc"), 0, 0}},
		{"mount cgroup", syscall.SYS_MOUNT, [5]uintptr{s("cgroup"), s("/mnt"), s("cgroup"), 0, s("devices")}},
		{"umount", syscall.SYS_UMOUNT2, [5]uintptr{s("/.podspawn/run"), 2}},
		{"pivot_root", syscall.SYS_PIVOT_ROOT, [5]uintptr{s("/tmp"), s("/tmp")}},
		{"unshare mounts", syscall.SYS_UNSHARE, [5]uintptr{syscall.CLONE_NEWNS}},
		{"unshare network", syscall.SYS_UNSHARE, [5]uintptr{syscall.CLONE_NEWNET}},
		{"unshare pids", syscall.SYS_UNSHARE, [5]uintptr{syscall.CLONE_NEWPID}},
		{"setns", 308, [5]uintptr{0, 0}},
		{"ptrace of the first process", syscall.SYS_PTRACE, [5]uintptr{syscall.PTRACE_ATTACH, 1}},
		{"bpf", 321, [5]uintptr{0, p(zero[:]), 64}},
		{"io_uring", 425, [5]uintptr{8, p(zero[:])}},
		{"userfaultfd", 323, [5]uintptr{0}},
		{"perf_event_open", 298, [5]uintptr{p(zero[:]), 0, ^uintptr(0), ^uintptr(0), 0}},
		{"raw socket", syscall.SYS_SOCKET, [5]uintptr{syscall.AF_INET, syscall.SOCK_RAW, 255}},
		{"packet socket", syscall.SYS_SOCKET, [5]uintptr{syscall.AF_PACKET, syscall.SOCK_RAW, 0x300}},
		{"vsock", syscall.SYS_SOCKET, [5]uintptr{40, syscall.SOCK_STREAM, 0}},
		{"init_module", syscall.SYS_INIT_MODULE, [5]uintptr{p(zero[:]), 64, s("")}},
		{"kexec_load", 246, [5]uintptr{0, 0, 0, 0}},
		{"reboot", syscall.SYS_REBOOT, [5]uintptr{0xfee1dead, 672274793, 0x89abcdef}},
		{"settimeofday", syscall.SYS_SETTIMEOFDAY, [5]uintptr{p(zero[:]), 0}},
		{"swapon", syscall.SYS_SWAPON, [5]uintptr{s("/tmp"), 0}},
		{"iopl", syscall.SYS_IOPL, [5]uintptr{3}},
		{"mknod of a disk", syscall.SYS_MKNOD, [5]uintptr{s("/tmp/disk"), syscall.S_IFBLK | 0o600, 8 << 8}},
		{"mknod of /dev/mem", syscall.SYS_MKNOD, [5]uintptr{s("/tmp/mem"), syscall.S_IFCHR | 0o600, 1<<8 | 1}},
		{"open_by_handle_at", 304, [5]uintptr{^uintptr(99), p(zero[:]), 0}},
		{"add_key into the host's", syscall.SYS_ADD_KEY, [5]uintptr{s("user"), s("x"), p(zero[:]), 8, ^uintptr(3)}},
		{"request_key", syscall.SYS_REQUEST_KEY, [5]uintptr{s("user"), s("x"), 0, ^uintptr(2)}},
	} {
		_, _, errno := syscall.Syscall6(tc.nr, tc.args[0], tc.args[1], tc.args[2], tc.args[3], tc.args[4], 0)
		say := "possible"
		if errno != 0 {
			say = errno.Error()
		}
		fmt.Printf("%s: %s\n", tc.name, say)
	}
	for _, path := range []string{"/sys/kernel/uevent_helper", "/sys/fs/cgroup/release_agent", "/proc/sys/kernel/core_pattern", "/dev/mem", "/dev/kmsg", "/proc/kcore", "/sys/kernel/debug/x"} {
		say := "possible"
		if f, err := os.OpenFile(path, os.O_WRONLY, 0); err != nil {
			say = err.Error()
		} else {
			_ = f.Close() // nothing was written
		}
		fmt.Printf("write %s: %s\n", path, say)
	}
	return 0
}

// Threat 84: the ways out of a container, tried by the sandbox's own root.
func TestEscapesFail(t *testing.T) {
	need(t)
	s := create(t, "--grace", "10m")
	c := connectable(t, s)
	exe, err := os.Open(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	defer exe.Close()
	if r := c.ssh(t, exe, "cat >/tmp/escape && chmod 755 /tmp/escape"); r.code != 0 {
		t.Fatalf("copy the program in: %v", r)
	}
	for _, as := range []string{"sudo -n env E2E_ESCAPE=1 /tmp/escape", "E2E_ESCAPE=1 /tmp/escape"} {
		r := c.ssh(t, nil, as)
		if r.code != 0 || strings.Count(r.stdout, "\n") < 35 {
			t.Errorf("%s: %v, want all attempts to be made", as, r)
		}
		for _, line := range strings.Split(r.stdout, "\n") {
			if strings.HasSuffix(line, ": possible") {
				t.Errorf("%s: %s", strings.Fields(as)[0], line)
			}
		}
	}
	if r := c.ssh(t, nil, "echo still here"); r.stdout != "still here\n" {
		t.Errorf("after the attempts: %v", r)
	}
}

// Threat 38: variables that a client sends, and what the hook makes of its own.
func TestEnvironmentFromTheClient(t *testing.T) {
	s := create(t, "--grace", "10m")
	c := connectable(t, s)
	names := []string{"LD_PRELOAD", "LD_LIBRARY_PATH", "DOCKER_HOST", "SSH_ORIGINAL_COMMAND", "BASH_ENV", "ENV", "PROMPT_COMMAND", "IFS", "GODEBUG", "PAM_TYPE", "SSH_AUTH_INFO_0"}
	var set []string
	for _, n := range names {
		set = append(set, n+"=/tmp/evil")
	}
	args := append(c.args(), "-o", "SetEnv="+strings.Join(append(set, `LC_EVIL=$(touch/tmp/evil)`, "LANG=C.UTF-8"), " "))
	r := run(t, nil, "ssh", append(args, c.login, "env")...)
	if r.code != 0 || !strings.Contains(r.stdout, "LANG=C.UTF-8\n") {
		t.Errorf("env: %v, want LANG alone to arrive", r)
	}
	if strings.Contains(r.stdout, "evil") {
		t.Errorf("the client's variables arrived: %s", r.stdout)
	}
}

// Threat 44: files in the logins' common home count for nothing, though root put
// them there.
func TestFilesInTheHomeAreNotUsed(t *testing.T) {
	h := need(t)
	s := create(t, "--grace", "10m")
	c := connectable(t, s)
	dir := "/var/lib/podspawn/home/.ssh"
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	}()
	pub, err := os.ReadFile(h.realKey + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"rc": "touch /tmp/rc-ran\n", "environment": "EVIL=1\n", "authorized_keys": string(pub), "authorized_principals": s.Login + "\n",
	} {
		if err := os.WriteFile(dir+"/"+name, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if r := h.asRealUser(t, s.Login, "echo in"); r.code == 0 || r.stdout != "" {
		t.Errorf("login with a key in authorized_keys: %v, want refused", r)
	}
	if r := c.ssh(t, nil, "env"); r.code != 0 || strings.Contains(r.stdout, "EVIL") {
		t.Errorf("env: %v", r)
	}
	if _, err := os.Stat("/tmp/rc-ran"); err == nil {
		t.Error("rc was run on the host")
	}
	if r := run(t, nil, "setpriv", "--reuid", uidOf(t, s), "--regid", "69999", "--clear-groups", "touch", "/var/lib/podspawn/home/x"); r.code == 0 {
		t.Error("the home can be written")
	}
}

// Threat 96: a process with a sandbox's uid on the host, should there ever be one,
// gets at nobody else's, and nothing of it outlives the sandbox.
func TestHostProcessesOfASandbox(t *testing.T) {
	need(t)
	victim, evil := create(t, "--grace", "10m"), create(t, "--grace", "10m")
	l := connectable(t, victim).live(t)
	pids := hostProcesses(t, victim)
	if len(pids) == 0 {
		t.Fatal("the victim's session has no process")
	}
	uid := uidOf(t, evil)
	as := func(cmd string) result {
		t.Helper()
		return run(t, nil, "setpriv", "--reuid", uid, "--regid", "69999", "--clear-groups", "sh", "-c", cmd)
	}
	for _, pid := range pids {
		for _, cmd := range []string{"kill -0 %d", "cat /proc/%d/environ", "cat /proc/%d/mem", "ls /proc/%d/fd/", "cat /proc/%d/maps", "timeout 5 strace -p %d"} {
			if r := as(fmt.Sprintf(cmd, pid)); r.code == 0 || r.stdout != "" {
				t.Errorf("%s: %v, want denied", fmt.Sprintf(cmd, pid), r)
			}
		}
	}
	for _, cmd := range []string{
		"ls /run/podspawn/guests", "ls /var/lib/podspawn/keys", "cat /var/lib/podspawn/state.db", "cat /var/lib/extrausers/shadow",
		"cat /var/log/podspawn/audit.jsonl", "echo x >/run/podspawn/x", "echo x >/etc/netns/" + evil.Login + "/x", "ls /run/docker.sock && curl -s --unix-socket /run/docker.sock http://x/version",
		"nsenter --net=/run/netns/" + victim.Login + " true", "echo x >/dev/tcp/127.0.0.1/22",
	} {
		if r := as(cmd); r.code == 0 {
			t.Errorf("%s: %v, want denied", cmd, r)
		}
	}
	r := as(`for d in /tmp /var/tmp /dev/shm; do mkdir -p $d/evil.$$/deep; ln -s /etc/passwd $d/evil.$$/link; dd if=/dev/zero of=$d/evil.$$/deep/fill bs=1M count=8 2>/dev/null; done
		ipcmk -M 4096 >/dev/null; ipcmk -Q >/dev/null; ipcmk -S 3 >/dev/null; echo $$`)
	if r.code != 0 {
		t.Fatalf("leave things behind: %v", r)
	}
	var bomb []*exec.Cmd
	for range 40 {
		cmd := exec.Command("setpriv", "--reuid", uid, "--regid", "69999", "--clear-groups", "sh", "-c", "trap '' TERM HUP INT; while :; do sleep 1000; done")
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		bomb = append(bomb, cmd)
	}
	if r := run(t, nil, podspawn, "destroy", evil.ID); r.code != 0 {
		t.Errorf("destroy: %v", r)
	}
	for _, cmd := range bomb {
		_ = cmd.Wait() // killed
	}
	for _, cmd := range []string{"pgrep -U " + uid + "; true", "find /tmp /var/tmp /dev/shm -uid " + uid + " 2>/dev/null; true", "ipcs -c | grep -w " + uid + "; true"} {
		if err := absent("sh", "-c", cmd); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat("/etc/passwd"); err != nil {
		t.Error(err)
	}
	l.echo("unharmed")
	if err := l.close(); err != nil {
		t.Errorf("the victim's session ends with %v", err)
	}
}
