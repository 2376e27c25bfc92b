package main

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/podspawn/podspawn/agent/api"
)

// maxListed bounds what list holds in memory.
const maxListed = 10_000

type listOptions struct {
	labels []string
	all    bool
}

func newListCommand(a *app) *cobra.Command {
	var o listOptions
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "list the sandboxes that are alive", GroupID: groupPeople, Args: exact(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runList(cmd.Context(), a, &o)
		},
	}
	cmd.Flags().StringArrayVar(&o.labels, "label", nil, "only those with `KEY=VALUE`; may be repeated")
	cmd.Flags().BoolVar(&o.all, "all", false, "those of all tenants; for root on the host")
	return cmd
}

func runList(ctx context.Context, a *app, o *listOptions) error {
	labels, err := parseLabels(o.labels)
	if err != nil {
		return err
	}
	svc, err := a.connect()
	if err != nil {
		return err
	}
	all, err := listAll(ctx, svc, api.ListRequest{Labels: labels, AllTenants: o.all})
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(all)
	}
	if a.quiet {
		for _, s := range all.Sandboxes {
			if _, err := fmt.Fprintln(a.stdout, s.ID); err != nil {
				return err
			}
		}
		return nil
	}
	now := time.Now()
	rows := [][]string{{"ID", "NAME", "STATE", "IMAGE", "SSH", "EXPIRES"}}
	for _, s := range all.Sandboxes {
		rows = append(rows, []string{string(s.ID), s.Name, string(s.State), s.Image, strconv.Itoa(s.Connections), when(s.ExpiresAt, now)})
	}
	if o.all {
		rows[0] = append(rows[0], "TENANT")
		for i, s := range all.Sandboxes {
			rows[i+1] = append(rows[i+1], s.Tenant)
		}
	}
	return printTable(a.stdout, rows)
}

// listAll goes through all pages, up to maxListed sandboxes.
func listAll(ctx context.Context, svc api.API, r api.ListRequest) (api.List, error) {
	all := api.List{Sandboxes: []api.Sandbox{}}
	for {
		page, err := svc.List(ctx, r)
		if err != nil {
			return api.List{}, err
		}
		all.Sandboxes = append(all.Sandboxes, page.Sandboxes...)
		if page.Next == "" || page.Next == r.Cursor {
			return all, nil
		}
		if r.Cursor = page.Next; len(all.Sandboxes) >= maxListed {
			all.Next = r.Cursor
			return all, nil
		}
	}
}
