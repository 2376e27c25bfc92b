package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/podspawn/podspawn/agent/api"
)

func newCACommand(a *app) *cobra.Command {
	show := &cobra.Command{
		Use: "show", Short: "show the certificate authorities that are trusted", Args: exact(),
		RunE: func(cmd *cobra.Command, _ []string) error { return runCAShow(cmd.Context(), a) },
	}
	var overlap durationFlag
	rotate := &cobra.Command{
		Use: "rotate", Short: "replace the user CA; the former one is trusted for a while", Args: exact(),
		Long: `Replace the key that user certificates are signed with. Certificates of the
former key are accepted for --overlap more, by default for as long as any can
live, so nobody notices. Open connections go on. The host CA, which clients
know, stays. Only for root on the host.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			svc, err := a.connectAdmin()
			if err != nil {
				return err
			}
			ca, err := svc.RotateCA(cmd.Context(), api.RotateRequest{Overlap: overlap.pointer()})
			if err != nil {
				return err
			}
			return a.printCA(ca)
		},
	}
	rotate.Flags().Var(&overlap, "overlap", "for how long the former CA is still trusted, at most 15m; 0s when its key is lost")
	revoke := &cobra.Command{
		Use: "revoke SERIAL|KEY-ID|LOGIN", Short: "revoke certificates and end the connections that they opened", Args: exact("a serial, key id or login"),
		RunE: func(cmd *cobra.Command, args []string) error {
			svc, err := a.connectAdmin()
			if err != nil {
				return err
			}
			r, err := svc.Revoke(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return a.printRevoked(r)
		},
	}
	return parent("ca", "certificate authorities and revocation", groupAdmin, show, rotate, revoke)
}

func runCAShow(ctx context.Context, a *app) error {
	svc, err := a.connectAdmin()
	if err != nil {
		return err
	}
	ca, err := svc.CA(ctx)
	if err != nil {
		return err
	}
	return a.printCA(ca)
}

func (a *app) printCA(ca api.CA) error {
	if a.json {
		return a.printJSON(ca)
	}
	now := time.Now()
	rows := [][]string{{"CA", "TRUSTED", "KEY"}}
	for _, t := range ca.Trusted {
		until := "and signs"
		if t.Until != nil {
			until = "until " + when(*t.Until, now)
		}
		rows = append(rows, []string{"user", until, t.Fingerprint})
	}
	if err := printTable(a.stdout, append(rows, []string{"host", "by clients", "in the line below"})); err != nil {
		return err
	}
	_, err := fmt.Fprintln(a.stdout, oneLine(ca.KnownHosts))
	return err
}
