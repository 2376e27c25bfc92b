package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/podspawn/podspawn/agent/api"
)

func newTokenListCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "list API tokens, also those that expired or were revoked", Args: exact(),
		RunE: func(cmd *cobra.Command, _ []string) error { return runTokenList(cmd.Context(), a) },
	}
}

func runTokenList(ctx context.Context, a *app) error {
	svc, err := a.connectAdmin()
	if err != nil {
		return err
	}
	all, err := svc.Tokens(ctx)
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(all)
	}
	now := time.Now()
	rows := [][]string{{"ID", "TENANT", "SUBJECT", "SCOPES", "STATE"}}
	for _, t := range all.Tokens {
		state := "expires " + when(t.ExpiresAt, now)
		switch {
		case t.RevokedAt != nil:
			state = "revoked " + when(*t.RevokedAt, now)
		case t.ExpiresAt.Before(now):
			state = "expired " + when(t.ExpiresAt, now)
		}
		rows = append(rows, []string{t.ID, t.Tenant, t.Subject, fmt.Sprint(t.Scopes), state})
	}
	return printTable(a.stdout, rows)
}

func newTokenRevokeCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "revoke ID", Short: "revoke a token with its certificates, connections and running commands", Args: exact("the token's ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			svc, err := a.connectAdmin()
			if err != nil {
				return err
			}
			r, err := svc.RevokeToken(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return a.printRevoked(r)
		},
	}
}

// printRevoked prints the serials that are revoked now, one a line.
func (a *app) printRevoked(r api.Revoked) error {
	if a.json {
		return a.printJSON(r)
	}
	for _, serial := range r.Serials {
		if _, err := fmt.Fprintln(a.stdout, serial); err != nil {
			return err
		}
	}
	a.say("revoked: %d certificate(s); ended: %d connection(s), %d command(s)", len(r.Serials), r.Connections, r.Commands)
	return nil
}
