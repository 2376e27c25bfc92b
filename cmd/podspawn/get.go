package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/podspawn/podspawn/agent/api"
)

func newGetCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use: "get ID", Short: "show one sandbox, also one that ended, and why logins to it failed", GroupID: groupPeople, Args: exact("an ID or NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := refuseLater(cmd, "logs"); err != nil {
				return err
			}
			return runGet(cmd.Context(), a, args[0])
		},
	}
	laterFlags(cmd, []string{"logs"}, nil)
	return cmd
}

func runGet(ctx context.Context, a *app, ref string) error {
	svc, err := a.connect()
	if err != nil {
		return err
	}
	s, err := svc.Get(ctx, ref)
	if err != nil {
		return err
	}
	return a.printSandbox(s)
}

// printSandbox is the result of get and extend.
func (a *app) printSandbox(s api.Sandbox) error {
	if a.json {
		return a.printJSON(s)
	}
	if a.quiet {
		_, err := fmt.Fprintln(a.stdout, s.ID)
		return err
	}
	now := time.Now()
	rows := [][]string{{"id", string(s.ID)}}
	add := func(key, value string) {
		if value != "" {
			rows = append(rows, []string{key, value})
		}
	}
	add("name", s.Name)
	add("state", string(s.State))
	add("reason", string(s.Reason))
	add("image", s.Image)
	add("spec", string(s.SpecDigest))
	add("created", when(s.CreatedAt, now))
	if s.EndedAt != nil {
		add("ended", when(*s.EndedAt, now))
	} else {
		add("expires", when(s.ExpiresAt, now))
	}
	add("on exit", fmt.Sprintf("%s, grace %s, idle %s", s.Lifecycle.OnExit, time.Duration(s.Lifecycle.Grace), time.Duration(s.Lifecycle.IdleTimeout)))
	add("limits", fmt.Sprintf("%g cpus, %s memory, %s disk, %d pids", s.Limits.CPUs, formatSize(s.Limits.Memory), formatSize(s.Limits.Disk), s.Limits.PIDs))
	add("egress", string(s.Egress))
	add("ssh connections", strconv.Itoa(s.Connections))
	for _, k := range sortedKeys(s.Labels) {
		add("label", k+"="+s.Labels[k])
	}
	for _, r := range s.LastRefusals {
		add("refused", fmt.Sprintf("%s: %s (certificate %d, from %s)", when(r.Time, now), r.Reason, r.Serial, r.Source))
	}
	return printTable(a.stdout, rows)
}

func sortedKeys(m map[string]string) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
