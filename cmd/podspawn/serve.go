package main

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/podspawn/podspawn/agent"
	"github.com/podspawn/podspawn/agent/httpapi"
	"github.com/podspawn/podspawn/agent/mcpserver"
	"github.com/podspawn/podspawn/agent/peersock"
	"github.com/podspawn/podspawn/agent/token"
	"github.com/podspawn/podspawn/sandbox"
	"github.com/podspawn/podspawn/sandbox/daemon"
	"github.com/podspawn/podspawn/sandbox/localapi"
)

// serveGrace is how long requests under way may take once serve is told to stop.
const serveGrace = 10 * time.Second

func newServeCommand(a *app) *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use: "serve", Short: "run the API: HTTP and MCP", GroupID: groupAdmin, Args: exact(),
		Long: `Run the API process in the foreground: HTTP and MCP on the configured address and
on a local socket. It runs as the user podspawn-api (started as root it becomes
that user first) and asks podspawn daemon for everything. With --all-in-one it
starts the daemon and the resolver too, keeps all three running, and stays root
itself.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.loadConfig(nil)
			if err != nil {
				return err
			}
			if all {
				return runAllInOne(cmd.Context(), a, a.logger(c).With("process", "supervisor"))
			}
			if os.Geteuid() == 0 {
				return becomeUser(apiUser)
			}
			return runServe(cmd.Context(), c, a.logger(c).With("process", "serve"))
		},
	}
	cmd.Flags().BoolVar(&all, "all-in-one", false, "start the daemon and the resolver as well, as processes with their own users")
	return cmd
}

// becomeUser gives up root for good and runs this command again: the new program
// image never held a privilege.
func becomeUser(name string) error {
	u, err := user.Lookup(name)
	if err != nil {
		return withHint(err, "run podspawn server-setup first")
	}
	uid, err1 := strconv.Atoi(u.Uid)
	gid, err2 := strconv.Atoi(u.Gid)
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("set no_new_privs: %w", err)
	}
	for _, drop := range []func() error{
		func() error { return syscall.Setgroups(nil) },
		func() error { return syscall.Setresgid(gid, gid, gid) },
		func() error { return syscall.Setresuid(uid, uid, uid) },
	} {
		if err := drop(); err != nil {
			return fmt.Errorf("become %s: %w", name, err)
		}
	}
	if err := syscall.Chdir("/"); err != nil {
		return err
	}
	return syscall.Exec("/proc/self/exe", os.Args, os.Environ())
}

func runServe(ctx context.Context, c *config, log *slog.Logger) error {
	client := &localapi.Client{Path: filepath.Join(c.RunDir, daemon.DaemonSocket)}
	svc, err := agent.New(agent.Config{Daemon: client, Defaults: c.specDefaults(), Log: log})
	if err != nil {
		return err
	}
	defer svc.Close() // commands that outlive their calls end with this process
	mcp, err := mcpserver.New(mcpserver.Config{
		API: httpapi.APIFrom, Version: version, Log: log, NoNetwork: sandbox.Egress(c.Egress.Max) == sandbox.EgressNone,
	})
	if err != nil {
		return err
	}
	h, err := httpapi.New(httpapi.Config{
		Service: svc, Verifier: &earlyVerifier{keys: svc.Keys}, PublicURL: c.baseURL(),
		MCP: mcp.Handler(), MCPScope: mcpserver.ScopeOf, Log: log,
	})
	if err != nil {
		return err
	}
	tcp, err := listenHTTP(c)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	var counts sync.WaitGroup
	counts.Go(func() { logCounts(ctx, log) })
	defer counts.Wait()
	defer cancel()
	log.InfoContext(ctx, "serving", "listen", c.Listen, "socket", filepath.Join(c.RunDir, daemon.CallerSocket))
	return httpapi.Serve(ctx, h, serveGrace, log, tcp, peersock.Listen(client))
}

// listenHTTP opens the TCP listener, with TLS when it is configured.
func listenHTTP(c *config) (net.Listener, error) {
	l, err := net.Listen("tcp", c.Listen)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, withHint(fmt.Errorf("%s is taken by another program", c.Listen),
			"stop that one (ss -ltnp shows it), or set listen in the configuration")
	}
	if err != nil {
		return nil, err
	}
	if c.TLS.Cert == "" {
		return l, nil
	}
	pair, err := tls.LoadX509KeyPair(c.TLS.Cert, c.TLS.Key)
	if err != nil {
		return nil, withHint(errors.Join(fmt.Errorf("tls: %w", err), l.Close()), "both files must be readable by "+apiUser)
	}
	return tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}}), nil
}

// keysRefresh is how often the daemon's public token keys are asked for at most.
const keysRefresh = 10 * time.Second

// earlyVerifier turns bad tokens away before they cost the daemon anything. It
// holds public keys only, fetched from the daemon when first needed. While
// there are none every token passes: the daemon decides.
type earlyVerifier struct {
	keys func(context.Context) (localapi.KeysResponse, error)

	mu       sync.Mutex // guards what follows
	verifier *token.Verifier
	asked    time.Time
}

var _ httpapi.Verifier = (*earlyVerifier)(nil)

// Verify implements httpapi.Verifier. A token of an unknown key makes it ask for
// the keys again, at most every keysRefresh.
func (e *earlyVerifier) Verify(raw string, now time.Time) error {
	v := e.current(now, false)
	if v == nil {
		return nil
	}
	_, err := v.Verify(raw, now)
	if err == nil {
		return nil
	}
	if v = e.current(now, true); v == nil {
		return nil
	}
	_, err = v.Verify(raw, now)
	return err
}

func (e *earlyVerifier) current(now time.Time, again bool) *token.Verifier {
	e.mu.Lock()
	defer e.mu.Unlock()
	if (e.verifier == nil || again) && now.Sub(e.asked) >= keysRefresh {
		e.asked = now
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if got, err := e.keys(ctx); err == nil {
			keys := make([]token.Key, 0, len(got.Keys))
			for _, k := range got.Keys {
				keys = append(keys, token.Key{ID: k.ID, Public: ed25519.PublicKey(k.Key)})
			}
			e.verifier = token.NewVerifier(got.Issuer, got.Audience, keys)
		}
	}
	return e.verifier
}

// specDefaults completes specs with the configuration's values.
func (c *config) specDefaults() sandbox.Defaults {
	d := sandbox.BuiltinDefaults()
	d.Image = c.Defaults.Image
	d.Resources = sandbox.Resources{CPUs: c.Defaults.CPUs, Memory: c.Defaults.Memory, Disk: c.Defaults.Disk, PIDs: c.Defaults.PIDs}
	d.Egress = sandbox.Egress(c.Egress.Default)
	return d
}
