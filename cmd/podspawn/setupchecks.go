package main

import (
	"context"
	"path/filepath"

	"github.com/podspawn/podspawn/sshhook/install"
)

// setupChecks are server-setup's, for the sshd configuration that it was run for.
func setupChecks(ctx context.Context, c *config) []check {
	var o install.Options
	if m, err := install.LoadManifest(filepath.Join(c.StateDir, "setup.json")); err == nil {
		o.SSHDConfig = m.Config // without a manifest the checks say what is missing
	}
	found := install.Checks(ctx, o)
	out := make([]check, len(found))
	for i, k := range found {
		out[i] = check{Name: k.Name, Status: checkStatus(k.Status), Detail: k.Detail, Remedy: k.Remedy}
	}
	return out
}
