package main

import (
	"context"

	"github.com/spf13/cobra"
)

func newExtendCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "extend ID D", Short: "set the end of a sandbox to now + D, never earlier than it is", GroupID: groupPeople,
		Args: exact("an ID or NAME", "a duration"),
		RunE: func(cmd *cobra.Command, args []string) error { return runExtend(cmd.Context(), a, args[0], args[1]) },
	}
}

func runExtend(ctx context.Context, a *app, ref, text string) error {
	ttl, err := parseDuration(text)
	if err != nil {
		return &usageError{msg: err.Error(), hint: "podspawn extend " + ref + " 30m makes it end in half an hour"}
	}
	svc, err := a.connect()
	if err != nil {
		return err
	}
	s, err := svc.Extend(ctx, ref, ttl)
	if err != nil {
		return err
	}
	return a.printSandbox(s)
}
