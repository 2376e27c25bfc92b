package main

import (
	"context"
	"log/slog"
	"path/filepath"
	"sync"

	"github.com/spf13/cobra"

	"github.com/podspawn/podspawn/agent/api"
	"github.com/podspawn/podspawn/agent/mcpserver"
)

func newMCPCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use: "mcp", Short: "MCP over stdio: a bridge to the service that makes keys on this machine", GroupID: groupPeople,
		Long: `Speaks MCP on stdin and stdout, for an agent on this machine, and asks the
service for everything but keys: those are made here, under ~/.ssh/podspawn, and
no private key passes through the agent or the network. It answers at once and
connects to the service with the first tool that needs it.`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return unknownCommand(cmd, args[0])
			}
			return runMCP(cmd.Context(), a)
		},
	}
	cmd.AddCommand(newMCPConfigCommand(a))
	return cmd
}

func runMCP(ctx context.Context, a *app) error {
	home := a.getenv("HOME")
	if !filepath.IsAbs(home) {
		return &usageError{msg: "HOME is not set, so there is no folder for keys", hint: "set HOME in the configuration of the MCP client"}
	}
	log := slog.New(slog.NewTextHandler(a.stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	srv, err := mcpserver.New(mcpserver.Config{
		API: (&lazyAPI{connect: a.connect}).get, Version: version, Log: log,
		Bridge: &mcpserver.Bridge{Dir: filepath.Join(home, ".ssh", "podspawn")},
	})
	if err != nil {
		return err
	}
	return srv.ServeStdio(ctx, a.stdin, a.stdout)
}

// lazyAPI connects with the first call that succeeds in it, so that a token file
// may be put in place while the bridge runs. It is safe for concurrent use.
type lazyAPI struct {
	connect func() (api.API, error)

	mu  sync.Mutex // guards api
	api api.API
}

func (l *lazyAPI) get(context.Context) (api.API, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.api == nil {
		svc, err := l.connect()
		if err != nil {
			return nil, publicError(err)
		}
		l.api = svc
	}
	return l.api, nil
}
