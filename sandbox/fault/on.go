//go:build podspawn_faults

package fault

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Compiled says whether points do anything in this program.
const Compiled = true

// Dir holds a file for each point that is set. It is root's.
const Dir = "/run/podspawn-faults"

const (
	envPrefix   = "PODSPAWN_FAULT_"
	guestPrefix = "guest."
)

var loaded struct { // only in programs for tests
	sync.Mutex
	points map[string]string
}

// Load reads what is set now, for a process that will not be able to.
func Load() {
	files, _ := filepath.Glob(Dir + "/*")
	loaded.Lock()
	defer loaded.Unlock()
	loaded.points = map[string]string{}
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil {
			loaded.points[filepath.Base(f)] = strings.TrimSpace(string(b))
		}
	}
}

// Environ returns the variables that tell a sandbox's processes of their points.
func Environ() (env []string) {
	files, _ := filepath.Glob(Dir + "/" + guestPrefix + "*")
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil {
			env = append(env, envPrefix+filepath.Base(f)+"="+strings.TrimSpace(string(b)))
		}
	}
	return env
}

// At is a step at which the process may be killed or stopped.
func At(point string) { _ = Err(point) }

// Err is At for a step that may also fail.
func Err(point string) error {
	action, set := os.LookupEnv(envPrefix + point)
	if b, err := os.ReadFile(filepath.Join(Dir, point)); err == nil {
		action, set = strings.TrimSpace(string(b)), true
		_ = os.Remove(filepath.Join(Dir, point)) // a hook may not; the test does
	} else if !set {
		loaded.Lock()
		action, set = loaded.points[point], loaded.points[point] != ""
		loaded.Unlock()
	}
	if !set {
		return nil
	}
	switch what, text, _ := strings.Cut(action, " "); what {
	case "kill":
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		// The first process of a sandbox is spared its own signal.
		if os.Getpid() == 1 {
			os.Exit(137)
		}
		select {} // until the signal is delivered
	case "block":
		for { // select{} would be noticed as a deadlock
			time.Sleep(time.Hour)
		}
	case "error":
		return errors.New("fault at " + point + ": " + text)
	}
	return nil
}
