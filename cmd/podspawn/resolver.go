package main

import (
	"context"
	"log/slog"
	"net/netip"
	"os"

	"github.com/spf13/cobra"

	"github.com/podspawn/podspawn/sandbox/egress"
	"github.com/podspawn/podspawn/sandbox/resolver"
)

// hostResolvConf names the servers that sandboxes' questions go to.
const hostResolvConf = "/etc/resolv.conf"

func newResolverCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "resolver", Short: "answer sandboxes' questions for names", GroupID: groupAdmin, Args: exact(),
		Long: `Run the resolver in the foreground: it answers the questions for names of
sandboxes that have a network, by way of the host's own name servers, and nobody
else's. It runs as the user podspawn-dns (started as root it becomes that user
first), and needs neither the daemon nor any file of podspawn's but the
configuration.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.loadConfig(nil)
			if err != nil {
				return err
			}
			if os.Geteuid() == 0 {
				return becomeUser(dnsUser)
			}
			return runResolver(cmd.Context(), c, a.logger(c).With("process", "resolver"))
		},
	}
}

func runResolver(ctx context.Context, c *config, log *slog.Logger) error {
	pool, err := c.egressPool()
	if err != nil {
		return err
	}
	return resolver.New(resolver.Config{
		Listen:  netip.AddrPortFrom(egress.ResolverAddr(pool), egress.ResolverPort),
		Sources: egress.Sources(pool), ResolvConf: hostResolvConf, Log: log,
	}).Run(ctx)
}
