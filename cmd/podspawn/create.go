package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/podspawn/podspawn/agent/api"
)

// specOptions are the flags that describe a new sandbox, for create and run.
type specOptions struct {
	podfile string
	image   string
}

func (o *specOptions) register(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&o.podfile, "file", "f", "", "`PODFILE` that describes the sandbox; - is stdin (default podfile.yaml or .podspawn/podfile.yaml, where there is one)")
	cmd.Flags().StringVar(&o.image, "image", "", "`IMAGE`, when there is no Podfile (default podspawn/base)")
}

func (o *specOptions) request(a *app) (api.CreateRequest, error) {
	if o.podfile != "" && o.image != "" {
		return api.CreateRequest{}, &usageError{msg: "-f and --image exclude each other", hint: "write the image into the Podfile"}
	}
	path := o.podfile
	if path == "" && o.image == "" {
		found, err := findPodfile()
		if err != nil {
			return api.CreateRequest{}, err
		}
		if path = found; path != "" {
			a.say("using %s", path)
		}
	}
	if path == "" {
		return api.CreateRequest{Image: o.image, Maker: api.MakerHTTP}, nil
	}
	text, err := a.readPodfile(path)
	return api.CreateRequest{Podfile: text, Maker: api.MakerHTTP}, err
}

type createOptions struct {
	spec             specOptions
	ttl, idle, grace durationFlag
	onExit, egress   string
	labels           []string
}

func newCreateCommand(a *app) *cobra.Command {
	var o createOptions
	cmd := &cobra.Command{
		Use: "create [NAME]", Short: "make a sandbox, and print how to reach it", GroupID: groupPeople,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usagef(cmd, "%s takes one NAME, and %q is one too many", cmd.CommandPath(), args[1])
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error { return runCreate(cmd.Context(), a, &o, args) },
	}
	o.spec.register(cmd)
	f := cmd.Flags()
	f.Var(&o.ttl, "ttl", "it ends after this time at the latest (default 1h)")
	f.Var(&o.idle, "idle", "it ends after this time without any use (default 15m)")
	f.Var(&o.grace, "grace", "it ends this long after the last ssh session has left (default 1m)")
	f.StringVar(&o.onExit, "on-exit", "", "`destroy|keep`: what happens when the last ssh session has left (default destroy)")
	f.StringArrayVar(&o.labels, "label", nil, "`KEY=VALUE`; may be repeated")
	f.StringVar(&o.egress, "egress", "", "network `POLICY`, public (the internet, nothing private) or none; default as the host is configured")
	return cmd
}

func runCreate(ctx context.Context, a *app, o *createOptions, args []string) error {
	r, err := o.spec.request(a)
	if err != nil {
		return err
	}
	if r.Labels, err = parseLabels(o.labels); err != nil {
		return err
	}
	if len(args) == 1 {
		r.Name = args[0]
	}
	r.TTL, r.IdleTimeout, r.Grace = o.ttl.api(), o.idle.api(), o.grace.pointer()
	r.OnExit, r.Egress = o.onExit, o.egress
	svc, err := a.connect()
	if err != nil {
		return err
	}
	s, err := svc.Create(ctx, r)
	if err != nil {
		return err
	}
	switch {
	case a.json:
		return a.printJSON(s)
	case a.quiet:
		_, err = fmt.Fprintln(a.stdout, s.ID)
		return err
	}
	return printTable(a.stdout, [][]string{
		{"id", string(s.ID)},
		{"expires", when(s.ExpiresAt, time.Now())},
		{"ssh", "podspawn ssh " + string(s.ID)},
	})
}
