package docker

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/events"
	"github.com/docker/docker/api/types/filters"

	"github.com/podspawn/podspawn/sandbox"
)

// errNoMoreEvents ends a Watch whose stream ended without an error.
var errNoMoreEvents = errors.New("the event stream ended")

// ours filters containers of this installation.
func (r *Runtime) ours(more ...filters.KeyValuePair) filters.Args {
	return filters.NewArgs(append(more,
		filters.Arg("label", LabelSandbox), filters.Arg("label", LabelHost+"="+r.cfg.Host))...)
}

// List implements sandbox.Runtime.
func (r *Runtime) List(ctx context.Context) ([]sandbox.Container, error) {
	cs, err := r.list(ctx)
	if err != nil {
		return nil, err
	}
	out := make([]sandbox.Container, 0, len(cs))
	for _, c := range cs {
		out = append(out, sandbox.Container{
			Sandbox: sandbox.ID(c.Labels[LabelSandbox]), ID: c.ID,
			Running: c.State == container.StateRunning || c.State == container.StatePaused,
		})
	}
	// Asked for after the containers: a network is made before its container.
	nets, err := r.networks(ctx)
	if err != nil {
		return nil, err
	}
	for _, id := range nets {
		if !slices.ContainsFunc(out, func(c sandbox.Container) bool { return c.Sandbox == id }) {
			out = append(out, sandbox.Container{Sandbox: id})
		}
	}
	return out, nil
}

// list leaves out containers whose label is no sandbox id: those are not ours.
func (r *Runtime) list(ctx context.Context) ([]container.Summary, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	cs, err := r.api.ContainerList(ctx, container.ListOptions{All: true, Filters: r.ours()})
	if err != nil {
		return nil, engineError("list containers", err)
	}
	kept := cs[:0]
	for _, c := range cs {
		if _, err := sandbox.ParseID(c.Labels[LabelSandbox]); err == nil {
			kept = append(kept, c)
		}
	}
	return kept, nil
}

// Watch implements sandbox.Runtime. It first reports the containers that had
// ended before, so that nothing is missed between two calls; ended may therefore
// hear of one twice. It is called from this goroutine only.
func (r *Runtime) Watch(ctx context.Context, ended func(sandbox.ID)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the client's goroutine
	// The engine sends its headers before it subscribes us; asking for the past
	// second again closes that gap.
	since := strconv.FormatInt(time.Now().Add(-time.Second).Unix(), 10)
	msgs, errs := r.api.Events(ctx, events.ListOptions{Since: since, Filters: r.ours(
		filters.Arg("type", string(events.ContainerEventType)), filters.Arg("event", string(events.ActionDie)))})

	cs, err := r.list(ctx)
	if err != nil {
		return err
	}
	for _, c := range cs {
		if c.State == container.StateExited || c.State == container.StateDead {
			ended(sandbox.ID(c.Labels[LabelSandbox]))
		}
	}
	for {
		select {
		case m := <-msgs:
			if id, err := sandbox.ParseID(m.Actor.Attributes[LabelSandbox]); err == nil {
				ended(id)
			}
		case err := <-errs:
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err == nil {
				err = errNoMoreEvents
			}
			return &sandbox.Error{
				Kind: sandbox.KindUnavailable, Err: err, Msg: "the container engine went away",
				Hint: "start Docker on the host; podspawn doctor says what is wrong",
			}
		}
	}
}
