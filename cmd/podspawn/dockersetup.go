package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/podspawn/podspawn/sandbox/docker"
	"github.com/podspawn/podspawn/sshhook/install"
)

// dockerPIDFiles are where dockerd may have left its pid.
func dockerPIDFiles() []string {
	return []string{"/run/podspawn/docker-engine.pid", "/run/docker.pid", "/var/run/docker.pid"}
}

// setUpDocker names gVisor to Docker, once for each size of disk, or takes the
// names out again, and has a running dockerd read them. It reports whether
// anything changed and says so on out, which may be nil.
func setUpDocker(undo, dryRun bool, out io.Writer) (steps []string, err error) {
	runtimes := map[string]install.Runtime{}
	names := make([]string, 0, len(runtimes))
	for name, r := range docker.DaemonRuntimes(runscBinary) {
		runtimes[name] = install.Runtime{Path: r.Path, Args: r.Args}
		names = append(names, name)
	}
	file := install.DockerConfig
	if dryRun {
		// The real edit on a copy: what would change is what does.
		dir, err := os.MkdirTemp("", "podspawn-docker")
		if err != nil {
			return nil, err
		}
		defer os.RemoveAll(dir)
		file = filepath.Join(dir, "daemon.json")
		if b, err := os.ReadFile(install.DockerConfig); err == nil {
			if err := os.WriteFile(file, b, 0o600); err != nil {
				return nil, err
			}
		} else if !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
	}
	var changed bool
	step := "name gVisor's runtimes in " + install.DockerConfig
	if undo {
		step = "take gVisor's runtimes out of " + install.DockerConfig
		changed, err = install.RemoveRuntimes(file, names)
	} else {
		if err := os.MkdirAll(filepath.Dir(install.DockerConfig), 0o755); err != nil {
			return nil, err
		}
		changed, err = install.ConfigureDocker(file, runtimes)
	}
	if err != nil || !changed {
		return nil, err
	}
	if out != nil {
		fmt.Fprintln(out, step)
	}
	if dryRun {
		return []string{step}, nil
	}
	return []string{step}, reloadDocker()
}

// reloadDocker makes a running dockerd read its configuration again: it knows
// new runtimes from then on, and its containers go on.
func reloadDocker() error {
	for _, f := range dockerPIDFiles() {
		b, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
		if err != nil || pid <= 1 {
			continue
		}
		name, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "comm"))
		if err != nil || string(bytes.TrimSpace(name)) != "dockerd" {
			continue // an old file
		}
		return syscall.Kill(pid, syscall.SIGHUP)
	}
	return nil
}
