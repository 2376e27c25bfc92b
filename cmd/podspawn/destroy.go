package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/podspawn/podspawn/agent/api"
)

func newDestroyCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use: "destroy ID…", Aliases: []string{"rm"}, Short: "destroy sandboxes and wait until nothing of them is left", GroupID: groupPeople,
		Args: func(cmd *cobra.Command, args []string) error {
			if err := refuseLater(cmd, "all", "tenant"); err != nil {
				return err
			}
			return atLeast("an ID or NAME")(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error { return runDestroy(cmd.Context(), a, args) },
	}
	laterFlags(cmd, []string{"all"}, []string{"tenant"})
	return cmd
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
