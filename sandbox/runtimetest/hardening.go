package runtimetest

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// testHardening looks from inside, as the sandbox's root, at what it is held by.
// Numbers are those of the threat list.
func testHardening(t *testing.T, h Harness) {
	p := params(t, h)
	start(t, h, p)
	id := p.Sandbox

	t.Run("gVisorIsTheKernel", func(t *testing.T) { // 83
		if out := run(t, h, id, "dmesg"); !strings.Contains(out, "gVisor") {
			t.Errorf("dmesg does not show gVisor: %.200q", out)
		}
		host, err := os.ReadFile("/proc/sys/kernel/osrelease")
		if err != nil {
			t.Fatal(err)
		}
		if out := run(t, h, id, "uname -r"); out == strings.TrimSpace(string(host)) {
			t.Errorf("uname -r in the sandbox = %q, which is the host's kernel", out)
		}
	})
	t.Run("GuestIsPID1AsRoot", func(t *testing.T) {
		if out := run(t, h, id, `tr '\0' ' ' </proc/1/cmdline 2>/dev/null || cat /proc/1/cmdline`); !strings.Contains(out, "init") {
			t.Errorf("PID 1 is %q, want the guest's init", out)
		}
		if out := run(t, h, id, "grep ^Uid: /proc/1/status"); strings.Join(strings.Fields(out), " ") != "Uid: 0 0 0 0" {
			t.Errorf("PID 1 has %q, want root", out)
		}
	})
	t.Run("DeadlineIsAllThatTheEnvironmentSays", func(t *testing.T) {
		out := run(t, h, id, `cat /proc/1/environ | while IFS= read -r -d '' v; do echo "$v"; done`)
		if want := "PODSPAWN_DEADLINE=" + strconv.FormatInt(p.Deadline, 10); !strings.Contains(out, want) {
			t.Errorf("environment of PID 1 is %q, want %s in it", out, want)
		}
	})
	t.Run("HostNameIsTheLogin", func(t *testing.T) {
		if out := run(t, h, id, "hostname"); out != id.Login() {
			t.Errorf("hostname = %q, want %q", out, id.Login())
		}
	})
	t.Run("CapabilitiesAreFew", func(t *testing.T) {
		// Bits from capability.h: what must never be there.
		forbidden := map[string]uint{
			"SYS_ADMIN": 21, "SYS_PTRACE": 19, "SYS_MODULE": 16, "SYS_RAWIO": 17, "SYS_BOOT": 22, "SYS_TIME": 25, "MKNOD": 27,
			"NET_ADMIN": 12, "NET_RAW": 13, "DAC_READ_SEARCH": 2, "SYS_RESOURCE": 24, "SETPCAP": 8, "SETFCAP": 31, "BPF": 39,
		}
		for _, set := range []string{"CapBnd", "CapPrm", "CapEff"} {
			f := strings.Fields(run(t, h, id, "grep ^"+set+": /proc/1/status"))
			bits, err := strconv.ParseUint(f[len(f)-1], 16, 64)
			if err != nil {
				t.Fatalf("%s: %v", set, err)
			}
			for name, bit := range forbidden {
				if bits&(1<<bit) != 0 {
					t.Errorf("%s holds CAP_%s", set, name)
				}
			}
		}
	})
	t.Run("NoNewPrivileges", func(t *testing.T) {
		out := run(t, h, id, "grep ^NoNewPrivs: /proc/1/status")
		if strings.Join(strings.Fields(out), " ") != "NoNewPrivs: 1" {
			t.Errorf("PID 1 has %q, want no new privileges", out)
		}
	})
	t.Run("GuestIsReadOnly", func(t *testing.T) {
		for _, attempt := range []string{
			"echo x >>" + h.GuestTarget, "rm " + h.GuestTarget, "chmod 777 " + h.GuestTarget,
			"mount -o remount,rw " + h.GuestTarget, "umount " + h.GuestTarget,
		} {
			if out, code := sh(t, h, id, attempt); code == 0 {
				t.Errorf("%s succeeded: %s", attempt, out)
			}
		}
	})
	t.Run("SocketDirectoryIsTheHosts", func(t *testing.T) {
		run(t, h, id, "echo hello >"+h.SocketTarget+"/x")
		if b, err := os.ReadFile(filepath.Join(p.SocketDir, "x")); err != nil || string(b) != "hello\n" {
			t.Errorf("the host reads %q, %v from the socket directory", b, err)
		}
	})
	t.Run("NothingElseOfTheHostIsWritable", func(t *testing.T) {
		// An engine mounts files of its own over these; written to, they would grow on
		// the host's disk past every limit.
		for _, file := range []string{"/etc/hosts", "/etc/hostname", "/etc/resolv.conf"} {
			if out, code := sh(t, h, id, "echo x >>"+file); code == 0 {
				t.Errorf("writing %s succeeded: %s", file, out)
			}
		}
		for line := range strings.Lines(run(t, h, id, "cat /proc/mounts")) {
			f := strings.Fields(line)
			if len(f) < 4 || f[1] == "/" || f[1] == h.SocketTarget || f[2] == "tmpfs" {
				continue
			}
			if f[2] == "9p" && strings.HasPrefix(f[3], "rw") {
				t.Errorf("a writable mount of the host: %s", strings.TrimSpace(line))
			}
		}
	})
	t.Run("LoopbackIsTheOnlyNetwork", func(t *testing.T) {
		out := run(t, h, id, "cat /proc/net/dev")
		for line := range strings.Lines(out) {
			if name, _, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) != "lo" {
				t.Errorf("there is a network device %q", strings.TrimSpace(name))
			}
		}
		run(t, h, id, "echo reply | nc -l -p 8123 & sleep 0.2; nc 127.0.0.1 8123 </dev/null") // loopback works
	})
	t.Run("EscapesFail", func(t *testing.T) { // 84
		for name, attempt := range map[string]string{
			"mount":         "mkdir -p /tmp/m && mount -t tmpfs none /tmp/m",
			"mknod":         "mknod /tmp/sda b 8 0",
			"namespace":     "unshare -m true",
			"kernel memory": "dd if=/dev/mem of=/dev/null count=1",
			"sysctl":        "echo 1 >/proc/sys/kernel/panic",
			"sysfs":         "echo 1 >/sys/kernel/uevent_seqnum",
			"host process":  "kill -0 " + strconv.Itoa(os.Getpid()+1_000_000),
		} {
			if out, code := sh(t, h, id, attempt); code == 0 {
				t.Errorf("%s: %q succeeded: %s", name, attempt, out)
			}
		}
	})
}

// testLimits checks that a sandbox which takes all it can get is held, and that
// the runtime still removes it (80).
func testLimits(t *testing.T, h Harness) {
	t.Run("SmallestThatASpecMayAskForStarts", func(t *testing.T) {
		p := params(t, h)
		p.Resources.Memory, p.Resources.PIDs, p.Resources.CPUs = 64<<20, 16, 0.1
		start(t, h, p)
		run(t, h, p.Sandbox, "true")
	})
	t.Run("Disk", func(t *testing.T) {
		p := params(t, h)
		p.Resources.Disk = 100 << 20 // rounded up to the smallest class, 1 GiB
		start(t, h, p)
		out, code := sh(t, h, p.Sandbox, "dd if=/dev/zero of=/fill bs=1M count=1100 2>&1")
		if code == 0 {
			t.Errorf("writing 1100 MiB to a 1 GiB disk succeeded: %s", out)
		}
		if !strings.Contains(out, "No space left on device") {
			t.Errorf("writing 1100 MiB to a 1 GiB disk = exit %d: %s, want no space left", code, out)
		}
		// Half of it fits: the limit is the disk's, not the memory's.
		run(t, h, p.Sandbox, "rm /fill && dd if=/dev/zero of=/fill bs=1M count=600 2>/dev/null")
	})
	t.Run("Memory", func(t *testing.T) {
		p := params(t, h)
		start(t, h, p)
		if out, code := sh(t, h, p.Sandbox, `dd if=/dev/zero of=/dev/null bs=600M count=1`); code == 0 {
			t.Errorf("a process took 600 MiB of 256: %s", out)
		}
	})
	t.Run("Processes", func(t *testing.T) {
		p := params(t, h)
		p.Resources.PIDs = 128
		start(t, h, p)
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		// The shell stops at the first fork that fails, with a message.
		out, _, err := h.Exec(ctx, p.Sandbox, "/bin/sh", "-c",
			"i=0; while [ $i -lt 400 ]; do sleep 60 & i=$((i+1)); echo started $i; done 2>&1")
		if err != nil {
			t.Errorf("a fork bomb's shell: %v", err)
		}
		if n := strings.Count(out, "started "); n < 32 || n > 128 {
			t.Errorf("%d processes started in a sandbox that may have 128: …%q", n, out[max(0, len(out)-200):])
		}
		if c, ok := find(t, h, p.Sandbox); !ok || !c.Running {
			t.Errorf("a sandbox at its limit of processes is %+v, %v, want it running", c, ok)
		}
		began := time.Now()
		destroyCtx, cancel := context.WithTimeout(t.Context(), stepTimeout)
		defer cancel()
		if err := h.Runtime.Destroy(destroyCtx, p.Sandbox); err != nil {
			t.Errorf("Destroy of a sandbox at its limit: %v", err)
		}
		t.Logf("destroyed in %s", time.Since(began))
	})
}
