package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/podspawn/podspawn/agent/api"
)

type drainOptions struct {
	destroy, off bool
	wait         durationFlag
}

// drainLook is how often drain looks what is left.
const drainLook = time.Second

func newDrainCommand(a *app) *cobra.Command {
	var o drainOptions
	cmd := &cobra.Command{
		Use: "drain", Short: "take no new sandboxes, and wait until the last one is gone or destroy them", GroupID: groupAdmin, Args: exact(),
		Long: `Refuse new sandboxes from now on, of all tenants, until podspawn drain --off or
until the daemon starts anew. With --destroy those that are alive are destroyed,
with --wait the command waits for them to end. It fails when some are left. Only
for root on the host.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.off && (o.destroy || o.wait.set) {
				return usagef(cmd, "--off goes with neither --destroy nor --wait")
			}
			return runDrain(cmd.Context(), a, &o)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&o.destroy, "destroy", false, "destroy the sandboxes that are alive")
	f.BoolVar(&o.off, "off", false, "take new sandboxes again")
	f.Var(&o.wait, "wait", "wait for at most this long until none is alive")
	return cmd
}

func runDrain(ctx context.Context, a *app, o *drainOptions) error {
	svc, err := a.connectAdmin()
	if err != nil {
		return err
	}
	d, err := svc.Drain(ctx, api.DrainRequest{Drain: !o.off})
	if err != nil {
		return err
	}
	if o.destroy {
		if _, err := destroyAll(ctx, a, svc, ""); err != nil {
			a.report(err) // the count below decides
		}
	}
	deadline := time.Now().Add(o.wait.value)
	for told := -1; !o.off; {
		if d, err = svc.Drain(ctx, api.DrainRequest{Drain: true}); err != nil {
			return err
		}
		if d.Living == 0 || !time.Now().Before(deadline) {
			break
		}
		if d.Living != told {
			told = d.Living
			a.say("%d sandbox(es) alive", told)
		}
		t := time.NewTimer(drainLook)
		select {
		case <-ctx.Done():
			t.Stop()
			return ctx.Err()
		case <-t.C:
		}
	}
	if a.json {
		if err := a.printJSON(d); err != nil {
			return err
		}
	} else if _, err := fmt.Fprintln(a.stdout, d.Living); err != nil {
		return err
	}
	switch {
	case o.off:
		a.say("new sandboxes are accepted again")
	case d.Living > 0 && (o.destroy || o.wait.set):
		return withHint(fmt.Errorf("%d sandbox(es) are still alive", d.Living), "podspawn list --all shows them; podspawn drain --destroy ends them")
	default:
		a.say("no new sandboxes are accepted; %d alive", d.Living)
	}
	return nil
}
