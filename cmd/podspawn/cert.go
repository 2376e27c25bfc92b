package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/podspawn/podspawn/agent/api"
	"github.com/podspawn/podspawn/agent/sshconfig"
	"github.com/podspawn/podspawn/sandbox"
)

type certOptions struct {
	out    string
	ttl    durationFlag
	uses   int
	source string
}

// certResult is the JSON of cert: what was written where, and no key.
type certResult struct {
	Dir         string    `json:"dir"`
	Command     string    `json:"command"`
	User        string    `json:"user"`
	Host        string    `json:"host"`
	Port        int       `json:"port"`
	Serial      uint64    `json:"serial"`
	ValidBefore time.Time `json:"valid_before"`
}

func newCertCommand(a *app) *cobra.Command {
	var o certOptions
	cmd := &cobra.Command{
		Use: "cert ID", Short: "write a key, a certificate and an ssh_config, and print the ssh command", GroupID: groupPeople, Args: exact("an ID or NAME"),
		RunE: func(cmd *cobra.Command, args []string) error { return runCert(cmd.Context(), a, &o, args[0]) },
	}
	f := cmd.Flags()
	f.StringVar(&o.out, "out", "", "`DIR` to write to (default ~/.ssh/podspawn/ID)")
	f.Var(&o.ttl, "ttl", "time to connect in; sessions may last longer (default 5m, at most 15m)")
	f.IntVar(&o.uses, "uses", 0, "connections `N` that the certificate is good for; 0 is any number")
	f.StringVar(&o.source, "source", "", "`CIDR` to connect from, like 192.0.2.0/24; several with commas")
	return cmd
}

func runCert(ctx context.Context, a *app, o *certOptions, ref string) error {
	if o.uses < 0 {
		return &usageError{msg: "--uses is negative", hint: "0 is any number, 1 is one connection"}
	}
	if o.out != "" { // before a certificate is issued for nothing
		if err := checkOut(o.out); err != nil {
			return err
		}
	}
	svc, err := a.connect()
	if err != nil {
		return err
	}
	key, err := sshconfig.NewKey()
	if err != nil {
		return err
	}
	block, err := svc.Certificate(ctx, ref, api.CertificateRequest{
		PublicKey: key.Public, TTL: o.ttl.api(), Uses: o.uses, SourceAddress: o.source,
	})
	if err != nil {
		return err
	}
	dir := o.out
	if dir == "" {
		if dir, err = a.defaultOut(block.User); err != nil {
			return err
		}
		if err := checkOut(dir); err != nil {
			return err
		}
	}
	t, err := sshconfig.Install(dir, key, block)
	if err != nil {
		return withHint(err, "name a folder of your own with --out")
	}
	if a.json {
		return a.printJSON(certResult{
			Dir: t.Dir, Command: t.ConfigCommand(), User: t.User, Host: t.Host, Port: t.Port,
			Serial: block.Serial, ValidBefore: block.ValidBefore,
		})
	}
	a.say("certificate %d, to connect with until %s, is in %s", block.Serial, when(block.ValidBefore, time.Now()), t.Dir)
	_, err = fmt.Fprintln(a.stdout, t.ConfigCommand())
	return err
}

// defaultOut is ~/.ssh/podspawn/ID for the sandbox with this login.
func (a *app) defaultOut(login string) (string, error) {
	id, err := sandbox.ParseLogin(login)
	if err != nil {
		return "", fmt.Errorf("the service's answer: %w", err)
	}
	home := a.getenv("HOME")
	if !filepath.IsAbs(home) {
		return "", &usageError{msg: "HOME is not set, so there is no default folder", hint: "name one with --out"}
	}
	return filepath.Join(home, ".ssh", "podspawn", string(id)), nil
}

// checkOut refuses a folder that holds something else than an earlier result of
// cert, so that a slip of the hand does not replace somebody's id_ed25519.
func checkOut(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) || (err == nil && len(entries) == 0) {
		return nil
	}
	if err != nil {
		return withHint(fmt.Errorf("look into the folder: %w", err), "name another with --out")
	}
	ours := []string{sshconfig.KeyFile, sshconfig.CertificateFile, sshconfig.KnownHostsFile, sshconfig.ConfigFile, "cm"}
	found := 0
	for _, e := range entries {
		if slices.Contains(ours, e.Name()) {
			found++
			continue
		}
		return foreign(dir, e.Name())
	}
	if found < len(ours)-1 { // cm is there only while a connection is
		return foreign(dir, entries[0].Name())
	}
	return nil
}

func foreign(dir, name string) error {
	return &usageError{
		msg:  fmt.Sprintf("%s is not empty and was not written by podspawn cert: it holds %s", dir, name),
		hint: "name a new or empty folder with --out",
	}
}
