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

type listOptions struct{ labels []string }

func newListCommand(a *app) *cobra.Command {
	var o listOptions
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "list the sandboxes that are alive", GroupID: groupPeople, Args: exact(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := refuseLater(cmd, "all"); err != nil {
				return err
			}
			return runList(cmd.Context(), a, &o)
		},
	}
	cmd.Flags().StringArrayVar(&o.labels, "label", nil, "only those with `KEY=VALUE`; may be repeated")
	laterFlags(cmd, []string{"all"}, nil)
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
	all := api.List{Sandboxes: []api.Sandbox{}}
	for cursor := ""; ; {
		page, err := svc.List(ctx, api.ListRequest{Labels: labels, Cursor: cursor})
		if err != nil {
			return err
		}
		all.Sandboxes = append(all.Sandboxes, page.Sandboxes...)
		if page.Next == "" || page.Next == cursor {
			break
		}
		if cursor = page.Next; len(all.Sandboxes) >= maxListed {
			all.Next = cursor
			break
		}
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
	return printTable(a.stdout, rows)
}
