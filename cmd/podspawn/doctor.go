package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/podspawn/podspawn/agent/api"
	"github.com/podspawn/podspawn/sandbox"
	"github.com/podspawn/podspawn/sandbox/docker"
	"github.com/podspawn/podspawn/sandbox/egress"
	"github.com/podspawn/podspawn/sandbox/guest"
	"github.com/podspawn/podspawn/sandbox/localapi"
	"github.com/podspawn/podspawn/sandbox/portal"
)

// checkTimeout bounds one check of doctor.
const checkTimeout = 10 * time.Second

// checkStatus is pass, warn or fail.
type checkStatus string

const (
	checkPass checkStatus = "pass"
	checkWarn checkStatus = "warn"
	checkFail checkStatus = "fail"
)

// check is one precondition as doctor found it.
type check struct {
	Name   string      `json:"name"`
	Status checkStatus `json:"status"`
	Detail string      `json:"detail,omitempty"`
	Remedy string      `json:"remedy,omitempty"` // set unless Status is pass
}

type doctorResult struct {
	OK     bool    `json:"ok"`
	Checks []check `json:"checks"`
}

func newDoctorCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "doctor", Short: "check every precondition on this host, with the remedy", GroupID: groupAdmin, Args: exact(),
		Long: `Checks, as root on the host, everything that a sandbox and a login need, and says
what to do about each thing that is missing. It changes nothing. The status is 1
when a check fails.`,
		RunE: func(cmd *cobra.Command, _ []string) error { return runDoctor(cmd.Context(), a) },
	}
}

func runDoctor(ctx context.Context, a *app) error {
	c, err := a.loadConfig(nil)
	if err != nil {
		return err
	}
	out := doctorResult{OK: true, Checks: diagnose(ctx, c)}
	rows := make([][]string, 0, len(out.Checks))
	failed := 0
	for _, k := range out.Checks {
		if k.Status == checkFail {
			out.OK = false
			failed++
		}
		if k.Status == checkPass && a.quiet {
			continue
		}
		rows = append(rows, []string{string(k.Status), k.Name, k.Detail})
		if k.Remedy != "" {
			rows = append(rows, []string{" ", " ", "→ " + k.Remedy})
		}
	}
	if a.json {
		if err := a.printJSON(out); err != nil {
			return err
		}
	} else if err := printTable(a.stdout, rows); err != nil {
		return err
	}
	if failed > 0 {
		return withHint(fmt.Errorf("%d of %d checks failed", failed, len(out.Checks)), "each failed check has its remedy below it")
	}
	return nil
}

// diagnose goes from the host's parts to the service on top of them, so that the
// first failure is the cause of the later ones.
func diagnose(ctx context.Context, c *config) []check {
	all := setupChecks(ctx, c)
	all = append(all, engineChecks(ctx, c)...)
	return append(all,
		checkOf(ctx, "firewall rule", "sandbox logins have no network on the host", func(context.Context) error {
			return withRemedy(portal.CheckHostRule(), "start podspawn daemon, which puts it in place; it needs nftables")
		}),
		checkOf(ctx, "sandbox networks", "the firewall rules for them are in place", func(context.Context) error {
			return withRemedy(egress.Present(), "start podspawn daemon, which puts them in place; it needs nft from nftables")
		}),
		checkOf(ctx, "resolver", "it listens for sandboxes' questions", func(ctx context.Context) error { return resolverListens(ctx, c) }),
		checkOf(ctx, "daemon", "it answers on its socket as root", func(ctx context.Context) error {
			return daemonAnswers(ctx, filepath.Join(c.RunDir, filepath.Base(localapi.SocketPath)))
		}),
		checkOf(ctx, "serve", "it answers and can make sandboxes", func(ctx context.Context) error {
			return serveReady(ctx, filepath.Join(c.RunDir, "podspawn.sock"))
		}),
		poolCheck(ctx, filepath.Join(c.RunDir, filepath.Base(localapi.SocketPath))),
		checkOf(ctx, "listener", c.baseURL(), func(ctx context.Context) error { return listens(ctx, c.Listen) }),
	)
}

// engineChecks are Docker, the runtimes in it, the guest and the base image.
func engineChecks(ctx context.Context, c *config) []check {
	rt, err := docker.New(docker.Config{
		Socket: c.Docker.Socket, GuestPath: guestBinary, GuestTarget: guest.BinaryPath, SocketTarget: guest.SocketDir,
		EtcDir: filepath.Join(c.RunDir, "etc"), Host: c.StateDir,
	})
	if err != nil {
		return []check{{Name: "docker", Status: checkFail, Detail: err.Error(), Remedy: "correct docker.socket in the configuration"}}
	}
	defer func() { _ = rt.Close() }() // it only closes idle connections here
	return []check{
		checkOf(ctx, "docker and gVisor", "the engine answers and has podspawn's runtimes", func(ctx context.Context) error {
			return withRemedy(rt.Check(ctx), "start Docker; make up registers the runtimes in /etc/docker/daemon.json")
		}),
		checkOf(ctx, "base image", c.Defaults.Image, func(ctx context.Context) error {
			_, err := rt.Image(ctx, c.Defaults.Image)
			if sandbox.KindOf(err) == sandbox.KindUnavailable {
				return withRemedy(err, "start Docker first")
			}
			return withRemedy(err, "make it with podspawn image build")
		}),
	}
}

// checkOf runs one check. A failure's own hint is its remedy.
func checkOf(ctx context.Context, name, detail string, f func(context.Context) error) check {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	err := f(ctx)
	if err == nil {
		return check{Name: name, Status: checkPass, Detail: detail}
	}
	msg, hint := words(err)
	return check{Name: name, Status: checkFail, Detail: msg, Remedy: hint}
}

// withRemedy gives a failure this remedy, unless it has one of its own that does
// not send the reader here.
func withRemedy(err error, remedy string) error {
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[*sandbox.Error](err); ok && e.Hint != "" && !strings.Contains(e.Hint, "podspawn doctor") {
		return err
	}
	return withHint(err, remedy)
}

// daemonAnswers connects and looks who is at the other end: hooks and serve
// refuse a daemon that is not root.
func daemonAnswers(ctx context.Context, path string) error {
	const remedy = "start it: podspawn serve --all-in-one, or the unit podspawn-daemon"
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return withHint(err, remedy)
	}
	defer c.Close()
	peer, err := localapi.PeerOf(c.(*net.UnixConn)) // a unix dialer makes no other
	if err != nil {
		return withHint(err, remedy)
	}
	if peer.UID != 0 {
		return withHint(fmt.Errorf("%s belongs to uid %d, not to root", path, peer.UID), "stop that process, remove the socket, and start podspawn daemon")
	}
	return nil
}

// poolCheck says what the pool holds. A pool that is not full is no failure: then
// creates start containers, which takes longer.
func poolCheck(ctx context.Context, path string) check {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	k := check{Name: "pool", Status: checkPass}
	var st sandbox.PoolStatus
	err := (&localapi.Client{Path: path}).Call(ctx, localapi.OpPool, localapi.Auth{}, struct{}{}, &st)
	switch {
	case err != nil:
		msg, hint := words(err)
		k.Status, k.Detail, k.Remedy = checkWarn, msg, hint
	case st.Size == 0:
		k.Detail = "off (pool.size is 0)"
	default:
		k.Detail = fmt.Sprintf("%d of %d sandboxes are ready to be taken", st.Ready, st.Size)
		if st.Problem != "" {
			k.Status, k.Detail, k.Remedy = checkWarn, k.Detail+": "+st.Problem, "creates start a container each meanwhile; the daemon's log has more"
		}
	}
	return k
}

// serveReady asks what serve and the daemon together think of themselves.
func serveReady(ctx context.Context, path string) error {
	const remedy = "start it: podspawn serve --all-in-one, or the unit podspawn-serve"
	var d net.Dialer
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return d.DialContext(ctx, "unix", path)
	}}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://podspawn/readyz", nil)
	if err != nil {
		return err
	}
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return withHint(err, remedy)
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusOK {
		return nil
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return withHint(err, remedy)
	}
	return problemOf(body, resp.Status)
}

// problemOf reads a problem+json body.
func problemOf(body []byte, status string) error {
	var p api.Problem
	if err := json.Unmarshal(body, &p); err != nil || p.Detail == "" {
		return withHint(fmt.Errorf("it answers %s", status), "look into its log")
	}
	return withHint(errors.New(p.Detail), cmp.Or(p.Hint, "look into its log"))
}

// resolverListens connects to it as a sandbox would, but for the firewall.
func resolverListens(ctx context.Context, c *config) error {
	pool, err := c.egressPool()
	if err != nil {
		return err
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", netip.AddrPortFrom(egress.ResolverAddr(pool), egress.ResolverPort).String())
	if err != nil {
		return withHint(err, "start podspawn resolver, or the unit podspawn-resolver")
	}
	return conn.Close()
}

func listens(ctx context.Context, address string) error {
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return withHint(err, "start podspawn serve, or correct listen in the configuration")
	}
	return c.Close()
}
