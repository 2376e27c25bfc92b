package docker

import (
	"fmt"
	"strings"

	"github.com/podspawn/podspawn/sandbox"
)

// DefaultRuntimePrefix begins the names of our runtime entries in the engine's
// configuration; the size class follows, as in "podspawn-runsc-10g".
const DefaultRuntimePrefix = "podspawn-runsc-"

const gib = 1 << 30

// diskClasses returns the disk limits that exist, in GiB, ascending. The limit is
// a flag of the runtime, so there is one runtime entry per class.
func diskClasses() []int64 { return []int64{1, 2, 5, 10, 20, 50} }

// RuntimeEntry is one value of "runtimes" in the engine's daemon.json.
type RuntimeEntry struct {
	Path string   `json:"path"`
	Args []string `json:"runtimeArgs"`
}

// DaemonRuntimes returns our entries for "runtimes" in the engine's daemon.json,
// by name. Set-up writes exactly these, and [Runtime.Check] compares with them.
func DaemonRuntimes(runscPath string) map[string]RuntimeEntry {
	entries := map[string]RuntimeEntry{}
	for _, c := range diskClasses() {
		entries[className(DefaultRuntimePrefix, c)] = RuntimeEntry{Path: runscPath, Args: runscArgs(c)}
	}
	return entries
}

// runscArgs returns runsc's flags for a class.
//
// host-uds=create lets the guest listen in its socket directory and lets nobody
// inside connect to a host's socket. overlay2 keeps what the sandbox writes to its
// root in one host file of at most that size; without it a sandbox sees, and can
// fill, the host's disk.
func runscArgs(class int64) []string {
	return []string{
		"--host-uds=create",
		fmt.Sprintf("--overlay2=root:self,size=%dg", class),
		"--network=sandbox",
	}
}

func className(prefix string, class int64) string { return fmt.Sprintf("%s%dg", prefix, class) }

// classFor returns the smallest class that holds a disk of so many bytes.
func classFor(disk int64) (int64, error) {
	for _, c := range diskClasses() {
		if disk <= c*gib {
			return c, nil
		}
	}
	return 0, sandbox.Errorf(sandbox.KindInvalidSpec, "ask for 50 GiB or less",
		"resources.disk: %d bytes are more than a sandbox can have", disk)
}

// sameArgs reports whether a registered runtime has the flags that we want. More
// flags than ours are an administrator's decision (a platform, debugging), as long
// as none of them sets one of ours again.
func sameArgs(have, want []string) bool {
	values := map[string]string{}
	for _, a := range have {
		name, value, _ := strings.Cut(strings.TrimLeft(a, "-"), "=")
		values[name] = value // as with runsc, the last one wins
	}
	for _, a := range want {
		name, value, _ := strings.Cut(strings.TrimLeft(a, "-"), "=")
		if values[name] != value {
			return false
		}
	}
	return true
}
