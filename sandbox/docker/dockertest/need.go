package dockertest

import (
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// Need skips the test unless it can have an engine with gVisor: root, dockerd and
// runsc. Where PODSPAWN_TEST_REQUIRE lists the missing part, the test fails instead.
func Need(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		missing(t, "root", "needs root")
	}
	for _, p := range []string{"dockerd", "containerd"} {
		if _, err := exec.LookPath(p); err != nil {
			missing(t, "docker", p+" is not installed")
		}
	}
	if Runsc() == "" {
		missing(t, "gvisor", "no runsc at PODSPAWN_RUNSC, /usr/libexec/podspawn or /var/cache/podspawn")
	}
}

func missing(t testing.TB, part, why string) {
	t.Helper()
	if slices.Contains(strings.Split(os.Getenv("PODSPAWN_TEST_REQUIRE"), ","), part) {
		t.Fatalf("PODSPAWN_TEST_REQUIRE asks for %s: %s", part, why)
	}
	t.Skip(why)
}

// Runsc returns the path of a gVisor binary, or "".
func Runsc() string {
	for _, p := range []string{os.Getenv("PODSPAWN_RUNSC"), "/usr/libexec/podspawn/runsc", "/var/cache/podspawn/runsc"} {
		if p == "" {
			continue
		}
		if fi, err := os.Stat(p); err == nil && fi.Mode().IsRegular() && fi.Mode()&0o111 != 0 {
			return p
		}
	}
	return ""
}
