package main

import (
	"context"
	"fmt"
	"sync"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/podspawn/podspawn/agent/api"
)

type destroyOptions struct {
	all    bool
	tenant string
}

func newDestroyCommand(a *app) *cobra.Command {
	var o destroyOptions
	cmd := &cobra.Command{
		Use: "destroy ID…", Aliases: []string{"rm"}, Short: "destroy sandboxes and wait until nothing of them is left", GroupID: groupPeople,
		Args: func(cmd *cobra.Command, args []string) error {
			switch {
			case o.all && len(args) > 0:
				return usagef(cmd, "%s takes either --all or ids", cmd.CommandPath())
			case o.tenant != "" && !o.all:
				return usagef(cmd, "--tenant goes with --all")
			case o.all:
				return nil
			}
			return atLeast("an ID or NAME")(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if !o.all {
				return runDestroy(cmd.Context(), a, args)
			}
			svc, err := a.connect()
			if err != nil {
				return err
			}
			done, err := destroyAll(cmd.Context(), a, svc, o.tenant)
			if perr := a.printDestroyed(done); perr != nil {
				return perr
			}
			return err
		},
	}
	f := cmd.Flags()
	f.BoolVar(&o.all, "all", false, "destroy the sandboxes of all tenants; for root on the host")
	f.StringVar(&o.tenant, "tenant", "", "with --all: only those of this `TENANT`")
	return cmd
}

// parallelDestroys is how many sandboxes destroyAll ends at a time.
const parallelDestroys = 4

// destroyAll destroys every living sandbox, of one tenant or of all. The first
// failure is returned once all were tried; the others are reported on the way.
func destroyAll(ctx context.Context, a *app, svc api.API, tenant string) (api.List, error) {
	done := api.List{Sandboxes: []api.Sandbox{}}
	all, err := listAll(ctx, svc, api.ListRequest{AllTenants: true})
	if err != nil {
		return done, err
	}
	var mu sync.Mutex // guards done and first
	var first error
	var g errgroup.Group
	g.SetLimit(parallelDestroys)
	for _, s := range all.Sandboxes {
		if tenant != "" && s.Tenant != tenant {
			continue
		}
		g.Go(func() error {
			got, err := svc.Destroy(ctx, string(s.ID))
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				got.Tenant = s.Tenant
				done.Sandboxes = append(done.Sandboxes, got)
			case first == nil:
				first = err
			default:
				a.report(err)
			}
			return nil
		})
	}
	_ = g.Wait() // they return none: see first
	return done, first
}

// printDestroyed prints the ids of destroyed sandboxes.
func (a *app) printDestroyed(done api.List) error {
	if a.json {
		return a.printJSON(done)
	}
	for _, s := range done.Sandboxes {
		if !s.State.Final() {
			a.say("%s is %s: the service goes on removing it", s.ID, s.State)
		}
		if _, err := fmt.Fprintln(a.stdout, s.ID); err != nil {
			return err
		}
	}
	return nil
}

// runDestroy goes through all of them whatever becomes of one. The first failure
// decides the status; the others are reported on the way.
func runDestroy(ctx context.Context, a *app, refs []string) error {
	svc, err := a.connect()
	if err != nil {
		return err
	}
	done := api.List{Sandboxes: []api.Sandbox{}}
	var first error
	for _, ref := range refs {
		s, err := svc.Destroy(ctx, ref)
		if err != nil {
			if first != nil {
				a.report(err)
			} else {
				first = err
			}
			continue
		}
		done.Sandboxes = append(done.Sandboxes, s)
		if !s.State.Final() {
			why := s.Note
			if why == "" {
				why = "the service goes on removing it"
			}
			a.say("%s is %s: %s", s.ID, s.State, why)
		}
		if !a.json {
			if _, err := fmt.Fprintln(a.stdout, s.ID); err != nil {
				return err
			}
		}
	}
	if a.json {
		if err := a.printJSON(done); err != nil {
			return err
		}
	}
	return first
}
