package docker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"golang.org/x/sys/unix"

	"github.com/podspawn/podspawn/sandbox"
	"github.com/podspawn/podspawn/sandbox/fault"
)

const (
	destroyTimeout = 60 * time.Second
	// politeTimeout is how long the engine gets to kill a container before we do.
	politeTimeout = 10 * time.Second
	pollInterval  = 50 * time.Millisecond
)

// destruction is a removal in progress: done is closed after err is set.
type destruction struct {
	done chan struct{}
	err  error
}

// Destroy implements sandbox.Runtime. Calls for the same id share one removal.
func (r *Runtime) Destroy(ctx context.Context, id sandbox.ID) error {
	if _, err := sandbox.ParseID(string(id)); err != nil {
		return fmt.Errorf("destroy: %w", err)
	}
	d := r.destruction(context.WithoutCancel(ctx), id)
	select {
	case <-d.done:
		return d.err
	case <-ctx.Done():
		return fmt.Errorf("wait for the removal of %s: %w", id, ctx.Err())
	}
}

// destruction joins the removal that runs, or begins one. Close waits for it.
func (r *Runtime) destruction(ctx context.Context, id sandbox.ID) *destruction {
	r.mu.Lock()
	defer r.mu.Unlock()
	if d, ok := r.running[id]; ok {
		return d
	}
	d := &destruction{done: make(chan struct{})}
	r.running[id] = d
	r.wg.Add(1)
	go func() {
		defer r.wg.Done()
		ctx, cancel := context.WithTimeout(ctx, destroyTimeout)
		defer cancel()
		d.err = r.removeAll(ctx, LabelSandbox+"="+string(id))
		if d.err == nil && r.cfg.Networks != nil {
			// An engine that was killed between making a bridge and noting it.
			d.err = r.cfg.Networks.RemoveBridge(ctx, id.Bridge())
		}
		r.mu.Lock()
		delete(r.running, id)
		r.mu.Unlock()
		close(d.done)
	}()
	return d
}

// removeAll removes every container with the label, in whatever state, then every
// such network, and returns when the engine no longer lists one. The label is enough to find them:
// the engine sets it in the same step as it makes the container, and a container
// whose removal failed halfway keeps it while its name is free again.
func (r *Runtime) removeAll(ctx context.Context, label string) error {
	for {
		cs, err := r.api.ContainerList(ctx, container.ListOptions{All: true, Filters: filters.NewArgs(filters.Arg("label", label))})
		if err != nil {
			return engineError("list containers", err)
		}
		if len(cs) == 0 {
			return r.removeNetworks(ctx, label)
		}
		for _, c := range cs {
			if c.State == container.StatePaused {
				// A frozen sandbox does not take the signal. When this fails, remove
				// kills the hard way, after a wait.
				_ = r.api.ContainerUnpause(ctx, c.ID)
			}
			fault.At("docker.destroy.found")
			if err := r.remove(ctx, c.ID); err != nil {
				return err
			}
		}
		select {
		case <-time.After(pollInterval):
		case <-ctx.Done():
			return engineError("wait until containers are gone", ctx.Err())
		}
	}
}

// remove kills and removes one container. One that somebody else is removing, or
// has removed, is no error: removeAll looks again.
func (r *Runtime) remove(ctx context.Context, id string) error {
	err := r.removeOnce(ctx, id)
	if err == nil || gone(err) || cerrdefs.IsConflict(err) {
		return nil
	}
	if ctx.Err() != nil {
		return engineError("remove container", err)
	}
	// The runtime hangs, or somebody stopped its processes, and the engine waits for
	// it: kill what it waits for, then ask once more.
	r.log.WarnContext(ctx, "container engine did not remove a container, killing its processes", "container", id, "err", err)
	if kerr := killCgroup(id); kerr != nil {
		return errors.Join(engineError("remove container", err), kerr)
	}
	if err := r.removeOnce(ctx, id); err != nil && !gone(err) && !cerrdefs.IsConflict(err) {
		return engineError("remove container", err)
	}
	return nil
}

func (r *Runtime) removeOnce(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, politeTimeout)
	defer cancel()
	return r.api.ContainerRemove(ctx, id, container.RemoveOptions{Force: true, RemoveVolumes: true})
}

// killCgroup kills the host's processes of a container: those whose control group
// ends in its id, which no process can get into by itself. That covers runsc's
// sandbox and gofer processes, which is all there is on the host's side.
func killCgroup(id string) error {
	if len(id) != 64 {
		return fmt.Errorf("kill processes of container %.80q: no full id", id)
	}
	procs, err := os.ReadDir("/proc")
	if err != nil {
		return fmt.Errorf("look for processes of container %s: %w", id, err)
	}
	var errs []error
	for _, p := range procs {
		pid, err := strconv.Atoi(p.Name())
		if err != nil {
			continue
		}
		// The descriptor comes first: it stays with the process whose group is read next.
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue // gone
		}
		if b, err := os.ReadFile("/proc/" + p.Name() + "/cgroup"); err == nil && inCgroup(string(b), id) {
			if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
				errs = append(errs, fmt.Errorf("kill process %d of container %s: %w", pid, id, err))
			}
		}
		unix.Close(fd)
	}
	return errors.Join(errs...)
}

// inCgroup reports whether /proc/PID/cgroup names the container's own group, with
// either of the engine's drivers: …/ID or …/docker-ID.scope.
func inCgroup(text, id string) bool {
	for line := range strings.Lines(text) {
		dir := strings.TrimSpace(line)
		base := dir[strings.LastIndexByte(dir, '/')+1:]
		if base == id || base == "docker-"+id+".scope" {
			return true
		}
	}
	return false
}
