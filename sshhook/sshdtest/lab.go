package sshdtest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
)

const (
	labVar     = "PODSPAWN_TEST_LAB"     // inside: the lab's folder; outside: not set
	missingVar = "PODSPAWN_TEST_NOLAB"   // why there is no lab
	requireVar = "PODSPAWN_TEST_REQUIRE" // a comma list of parts whose absence is a failure
)

// parts is what a lab of sshd needs, and the packages that bring it.
var parts = [...]struct{ path, pack string }{
	{"/usr/sbin/sshd", "openssh-server"},
	{"/usr/bin/ssh", "openssh-client"},
	{"/usr/bin/unshare", "util-linux"},
	{"/usr/sbin/useradd", "passwd"},
	{"/sbin/ip", "iproute2"},
}

// Main runs the package's tests, in a lab where there can be one, and exits.
// Without one the tests that call Need are skipped. run, when not nil, replaces
// m.Run; it returns the exit code.
func Main(m *testing.M, run func() int) {
	if run == nil {
		run = m.Run
	}
	if os.Getenv(labVar) != "" {
		os.Exit(run())
	}
	why := missing()
	if why == "" {
		code, err := reexec()
		if err == nil {
			os.Exit(code)
		}
		why = err.Error()
	}
	if err := os.Setenv(missingVar, why); err != nil {
		panic(err)
	}
	os.Exit(run())
}

// Need skips the test when it does not run in a lab, or fails it when
// PODSPAWN_TEST_REQUIRE lists "sshd".
func Need(t testing.TB) {
	t.Helper()
	if os.Getenv(labVar) != "" {
		return
	}
	why := os.Getenv(missingVar)
	if why == "" {
		why = "TestMain does not call sshdtest.Main"
	}
	if slices.Contains(strings.Split(os.Getenv(requireVar), ","), "sshd") {
		t.Fatalf("no lab for sshd: %s", why)
	}
	t.Skipf("no lab for sshd: %s", why)
}

// missing says why there can be no lab, "" when there can.
func missing() string {
	if os.Geteuid() != 0 {
		return "it needs root"
	}
	for _, p := range parts {
		if _, err := os.Stat(p.path); err != nil {
			return p.path + " is missing (package " + p.pack + ")"
		}
	}
	return ""
}

// enter is the first process of a lab: whatever it mounts ends with it, and it
// stays, as the one that reaps. The
// overlays' upper layers are on a tmpfs, since an overlay can't lie on another.
// /var/cache stays the machine's, for what is expensive to build.
const enter = `set -e
lab=$1; shift
mount -t tmpfs -o mode=755 lab "$lab"
for d in /etc /var/lib /usr/libexec /usr/local/bin; do
  n=$(echo "$d" | tr / _); mkdir "$lab/$n" "$lab/$n.work"
  mount -t overlay -o lowerdir="$d",upperdir="$lab/$n",workdir="$lab/$n.work" overlay "$d"
done
mkdir -p /var/lib/extrausers /var/lib/podspawn /usr/libexec/podspawn
for d in /run /var/log /var/lib/extrausers /var/lib/podspawn /usr/libexec/podspawn; do
  mount -t tmpfs -o mode=755 lab "$d"
done
mkdir -p /run/sshd /run/lock /run/netns
ip link set lo up
"$@" && exit 0 || exit $?
`

// reexec runs this test binary again in a lab and returns its exit code. An error
// means that the lab could not be made.
func reexec() (int, error) {
	runtime.LockOSThread() // Pdeathsig is about the thread
	lab, err := os.MkdirTemp("", "podspawn-lab")
	if err != nil {
		return 0, err
	}
	defer func() { _ = os.Remove(lab) }() // an empty mount point by now
	self, err := filepath.Abs(os.Args[0])
	if err != nil {
		return 0, err
	}
	unshare := []string{"-m", "-n", "-p", "-f", "-i", "-u", "--kill-child", "--mount-proc", "sh", "-c", enter, "lab", lab}
	if out, err := exec.Command("/usr/bin/unshare", append(unshare, "true")...).CombinedOutput(); err != nil {
		return 0, fmt.Errorf("make a lab: %s: %w", strings.TrimSpace(string(out)), err)
	}
	cmd := exec.Command("/usr/bin/unshare", append(append(unshare, self), os.Args[1:]...)...)
	cmd.Env = append(os.Environ(), labVar+"="+lab)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // the lab never outlives us
	err = cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return exit.ExitCode(), nil
	}
	return 0, err
}
