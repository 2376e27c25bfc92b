package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/podspawn/podspawn/agent/sshconfig"
	"github.com/podspawn/podspawn/agent/token"
	"github.com/podspawn/podspawn/sandbox"
	"github.com/podspawn/podspawn/sandbox/audit"
	"github.com/podspawn/podspawn/sandbox/daemon"
	"github.com/podspawn/podspawn/sandbox/docker"
	"github.com/podspawn/podspawn/sandbox/egress"
	"github.com/podspawn/podspawn/sandbox/guest"
	"github.com/podspawn/podspawn/sandbox/guest/sockets"
	"github.com/podspawn/podspawn/sandbox/localapi"
	"github.com/podspawn/podspawn/sandbox/portal"
	"github.com/podspawn/podspawn/sandbox/sqlstore"
	"github.com/podspawn/podspawn/sshhook/install"
)

// hostRuleEvery is how often the daemon looks whether the host rule is still
// there: firewall tools flush what they did not write.
const hostRuleEvery = time.Second

func newDaemonCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "daemon", Short: "run the root broker: state, keys, Docker", GroupID: groupAdmin, Args: exact(),
		Long: `Run the root broker in the foreground: it holds the state, the CA keys and the
Docker socket, and answers sshd's hooks and podspawn serve on a local socket. It
has no network listener. Live SSH sessions survive a restart of it.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.loadConfig(nil)
			if err != nil {
				return err
			}
			return runDaemon(cmd.Context(), c, a.logger(c).With("process", "daemon"))
		},
	}
}

// broker is everything that the daemon process holds, in the order in which it
// was opened.
type broker struct {
	c       *config
	log     *slog.Logger
	store   *sqlstore.Store
	audit   *audit.Writer
	egress  *egress.Guard
	runtime *docker.Runtime
	sockets *sockets.Sockets
	manager *sandbox.Manager
	ssh     *daemon.Sessions
	server  *daemon.Server
}

func runDaemon(ctx context.Context, c *config, log *slog.Logger) (err error) {
	if os.Geteuid() != 0 {
		return withHint(errors.New("the daemon must be root"), "run it with sudo, or let make up start it")
	}
	if err := daemon.CheckMountNamespace(); err != nil {
		return err
	}
	if err := daemon.RaiseFileLimit(); err != nil {
		log.WarnContext(ctx, "few descriptors", "err", err)
	}
	l, err := daemon.Listen(c.RunDir)
	if err != nil {
		return err
	}
	defer l.Close()
	b, err := openBroker(ctx, c, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.close()) }()

	if err := portal.EnsureHostRule(); err != nil {
		return withHint(err, "install nftables; without the rule nobody can log in")
	}
	if err := b.egress.Ensure(ctx); err != nil {
		// Sandboxes with a network are refused until it succeeds; the others are not.
		log.ErrorContext(ctx, "no firewall rules for sandboxes' networks; their bridges are down", "err", err)
	}
	if err := b.ssh.Resume(ctx); err != nil {
		return err
	}
	if err := b.manager.Reconcile(ctx); err != nil {
		// Docker may be down: what is there goes on, and the reaper keeps trying.
		log.WarnContext(ctx, "reconciliation incomplete", "err", err)
	}
	if err := b.server.RestoreUsers(ctx); err != nil {
		// Whoever has no portal is refused; the others get in.
		log.ErrorContext(ctx, "users not restored", "err", err)
	}
	log.InfoContext(ctx, "daemon ready", "socket", filepath.Join(c.RunDir, daemon.DaemonSocket))
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return b.server.Serve(ctx, l.Daemon, l.Callers) })
	g.Go(func() error { b.manager.Run(ctx); return nil })
	g.Go(func() error { return b.audit.Run(ctx) })
	g.Go(func() error { keepHostRule(ctx, log); return nil })
	g.Go(func() error { logCounts(ctx, log); return nil })
	g.Go(func() error { b.egress.Keep(ctx); return nil })
	g.Go(func() error { egress.Audit(ctx, b.store, log); return nil })
	if err := g.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	log.Info("daemon stopped; live sessions go on")
	return nil
}

// keepHostRule puts the host rule back when something removed it.
func keepHostRule(ctx context.Context, log *slog.Logger) {
	t := time.NewTicker(hostRuleEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		if portal.CheckHostRule() == nil {
			continue
		}
		err := portal.EnsureHostRule()
		log.WarnContext(ctx, "the host rule was missing", "restored", err == nil, "err", err)
	}
}

// openBroker opens everything the daemon works with. On an error what was opened
// is closed again.
func openBroker(ctx context.Context, c *config, log *slog.Logger) (_ *broker, err error) {
	b := &broker{c: c, log: log}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.close())
		}
	}()
	keys, err := daemon.OpenKeyring(filepath.Join(c.StateDir, "keys"), filepath.Join(sshDir, "user_ca.pub"), time.Now())
	if err != nil {
		return nil, withHint(fmt.Errorf("user CA: %w", err), "run podspawn server-setup first")
	}
	signer, err := token.LoadOrCreateSigner(filepath.Join(c.StateDir, "keys", "token_ed25519"))
	if err != nil {
		return nil, fmt.Errorf("token signing key: %w", err)
	}
	setup, err := openSetup(install.ManifestPath)
	if err != nil {
		return nil, err
	}
	info, err := hostInfo(c)
	if err != nil {
		return nil, err
	}
	authUID, apiUID, err := serviceUsers()
	if err != nil {
		return nil, err
	}
	if b.store, err = sqlstore.Open(ctx, filepath.Join(c.StateDir, "state.db")); err != nil {
		return nil, err
	}
	b.audit = audit.NewWriter(b.store, auditFile, log)
	b.store.Notify(b.audit.Notify)
	if b.sockets, err = sockets.New(filepath.Join(c.RunDir, "guests")); err != nil {
		return nil, err
	}
	pool, err := c.egressPool()
	if err != nil {
		return nil, err
	}
	if b.egress, err = egress.New(pool, log); err != nil {
		return nil, err
	}
	if b.runtime, err = docker.New(docker.Config{
		Socket: c.Docker.Socket, GuestPath: guestBinary, GuestTarget: guest.BinaryPath, SocketTarget: guest.SocketDir,
		EtcDir: filepath.Join(c.RunDir, "etc"), Host: c.StateDir, Log: log,
		Networks: b.egress, Resolver: egress.ResolverAddr(pool),
	}); err != nil {
		return nil, err
	}
	quota, err := c.hostQuota()
	if err != nil {
		return nil, err
	}
	guests := daemon.NewGuests(b.sockets)
	host := portal.New(portal.Config{Home: filepath.Join(c.StateDir, "home"), Shell: hookBinary})
	b.ssh = daemon.NewSessions(b.store, func() { b.manager.Kick() }, log)
	b.manager = sandbox.NewManager(sandbox.Config{
		Store: b.store, Runtime: b.runtime, Sockets: b.sockets, Guest: guests, Sessions: b.ssh, Log: log,
		Pool: c.pool(quota), Generation: generation, Memory: availableMemory, MemoryReserve: c.Limits.MemoryReserve,
		Host: host,
	})
	hostname, err := os.Hostname()
	if err != nil {
		return nil, err
	}
	b.server = daemon.New(daemon.Config{
		Store: b.store, Runtime: b.runtime, Manager: b.manager, Guests: guests, Sessions: b.ssh,
		AuthUID: authUID, APIUID: apiUID, Keyring: keys, Revocations: daemon.NewRevocations(b.store, filepath.Join(sshDir, "revoked.krl"), log),
		ForceCommand: hookBinary + " session", HostName: hostname,
		Host: info, SFTPCommand: setup.sftp, UserHost: host, KeysDir: keysDir,
		UserSpec: func() (sandbox.Spec, error) { return userSpec(c, userPodfile) },
		Tokens:   newTokens(signer, c.baseURL()),
		NetNS:    portal.CookieOf, Relay: host.OpenRelay, SetupIntact: setup.check, HostRule: portal.CheckHostRule, Egress: b.egress.Check,
		Limits: daemon.Limits{PerTenant: c.Limits.PerTenant, Total: quota.Total, Memory: quota.Memory, TTLMax: c.Limits.TTLMax, CertTTLMax: c.Limits.CertTTLMax, Egress: sandbox.Egress(c.Egress.Max)},
		Log:    log,
	})
	return b, nil
}

// close closes what is open, last first. Work in progress is finished before.
func (b *broker) close() error {
	var errs []error
	if b.manager != nil {
		b.manager.Close()
	}
	if b.ssh != nil {
		b.ssh.Close()
	}
	if b.runtime != nil {
		errs = append(errs, b.runtime.Close())
	}
	if b.sockets != nil {
		b.sockets.Close()
	}
	if b.audit != nil {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		errs = append(errs, b.audit.Flush(ctx))
	}
	if b.store != nil {
		errs = append(errs, b.store.Close())
	}
	return errors.Join(errs...)
}

// serviceUsers returns the uids of podspawn-auth and podspawn-api.
func serviceUsers() (auth, api int, err error) {
	uid := func(name string) int {
		u, uerr := user.Lookup(name)
		if uerr != nil {
			err = errors.Join(err, uerr)
			return -1
		}
		n, uerr := strconv.Atoi(u.Uid)
		err = errors.Join(err, uerr)
		return n
	}
	auth, api = uid(authUser), uid(apiUser)
	if err != nil {
		return 0, 0, withHint(err, "run podspawn server-setup first")
	}
	return auth, api, nil
}

// hostInfo is how clients reach and know this machine's sshd.
func hostInfo(c *config) (localapi.HostInfo, error) {
	ca, err := os.ReadFile(filepath.Join(sshDir, "host_ca.pub"))
	if err != nil {
		return localapi.HostInfo{}, withHint(fmt.Errorf("host CA: %w", err), "run podspawn server-setup first")
	}
	line, err := sshconfig.KnownHosts(c.SSH.Host, c.SSH.Port, "@cert-authority * "+string(ca))
	if err != nil {
		return localapi.HostInfo{}, fmt.Errorf("ssh.host, ssh.port or the host CA: %w", err)
	}
	return localapi.HostInfo{Host: c.SSH.Host, Port: c.SSH.Port, KnownHosts: line}, nil
}
