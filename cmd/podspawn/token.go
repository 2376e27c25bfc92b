package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/podspawn/podspawn/agent/api"
	"github.com/podspawn/podspawn/sandbox"
)

type tokenOptions struct {
	subject      string
	scopes       []string
	maxSandboxes int
	maxTTL, ttl  durationFlag
}

func newTokenCommand(a *app) *cobra.Command {
	var o tokenOptions
	create := &cobra.Command{
		Use: "create --subject S", Short: "print a new API token, and nothing else, on stdout", Args: exact(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.subject == "" {
				return usagef(cmd, "podspawn token create needs --subject")
			}
			return runTokenCreate(cmd.Context(), a, &o)
		},
	}
	f := create.Flags()
	f.StringVar(&o.subject, "subject", "", "`SUBJECT` that the token is for; also its tenant")
	f.StringArrayVar(&o.scopes, "scope", nil, "`SCOPE`: sandbox:read, sandbox:run or sandbox:admin; may be repeated (default read and run)")
	f.IntVar(&o.maxSandboxes, "max-sandboxes", 0, "most sandboxes alive at a time, `N` (default: the service's limit)")
	f.Var(&o.maxTTL, "max-ttl", "longest ttl of a sandbox (default: the service's limit)")
	f.Var(&o.ttl, "ttl", "the token expires after this time")
	cmd := parent("token", "API tokens", groupAdmin, create, newTokenListCommand(a), newTokenRevokeCommand(a))
	for _, later := range []string{"exchange"} {
		cmd.AddCommand(unsupported(later))
	}
	return cmd
}

func runTokenCreate(ctx context.Context, a *app, o *tokenOptions) error {
	r := api.TokenRequest{Subject: o.subject, MaxSandboxes: o.maxSandboxes, MaxTTL: o.maxTTL.api(), TTL: o.ttl.api()}
	for _, s := range o.scopes {
		switch scope := sandbox.Scope(s); scope {
		case sandbox.ScopeRead, sandbox.ScopeRun, sandbox.ScopeAdmin:
			r.Scopes = append(r.Scopes, scope)
		default:
			return &usageError{msg: fmt.Sprintf("--scope %s does not exist", s), hint: "scopes are sandbox:read, sandbox:run and sandbox:admin"}
		}
	}
	if o.maxSandboxes < 0 {
		return &usageError{msg: "--max-sandboxes is negative", hint: "leave it out for the service's limit"}
	}
	svc, err := a.connect()
	if err != nil {
		return err
	}
	t, err := svc.CreateToken(ctx, r)
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(t)
	}
	a.say("token %s for %s expires %s; it is shown only this once", t.ID, o.subject, when(t.ExpiresAt, time.Now()))
	_, err = fmt.Fprintln(a.stdout, t.Token)
	return err
}
