package docker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"

	"github.com/podspawn/podspawn/sandbox"
)

// verify looks at a container that the engine says it started: that it runs, that
// the engine used the runtime we asked for, and that the process on the host is
// really that runtime's program. Under runc it would be the guest itself, as root
// of the host's kernel with nothing in between; a name in a configuration file must
// not be all that stands against that.
func (r *Runtime) verify(ctx context.Context, id, runtime string) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	c, err := r.api.ContainerInspect(ctx, id)
	if err != nil {
		return engineError("look at the started container", err)
	}
	if c.HostConfig == nil || c.HostConfig.Runtime != runtime {
		return notOurs(errNotOurs)
	}
	if c.State == nil || !c.State.Running || c.State.Pid <= 0 {
		return fmt.Errorf("start container: %w", errNotRunning)
	}
	info, err := r.api.Info(ctx)
	if err != nil {
		return engineError("ask the container engine about itself", err)
	}
	want, err := os.Stat(info.Runtimes[runtime].Path)
	if err != nil {
		return notOurs(fmt.Errorf("find the runtime's program: %w", err))
	}
	have, err := os.Stat("/proc/" + strconv.Itoa(c.State.Pid) + "/exe")
	switch {
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("start container: %w", errNotRunning)
	case err != nil:
		return notOurs(fmt.Errorf("look at the container's process: %w", err))
	case !os.SameFile(have, want):
		return notOurs(errNotOurs)
	}
	return nil
}

func notOurs(err error) error {
	return &sandbox.Error{
		Kind: sandbox.KindUnavailable, Err: err,
		Msg:  "the container engine did not put the sandbox under gVisor, so it was removed",
		Hint: "run podspawn doctor as root on the host",
	}
}
