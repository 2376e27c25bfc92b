package docker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/docker/docker/client"

	"github.com/podspawn/podspawn/sandbox"
)

// The labels of our containers.
const (
	LabelSandbox = "dev.podspawn.sandbox" // the sandbox's id
	LabelHost    = "dev.podspawn.host"    // Config.Host
	labelStart   = "dev.podspawn.start"   // one value per call of Start
)

// requestTimeout bounds one request to the engine that should answer at once.
const requestTimeout = 15 * time.Second

// Config says how to reach the engine and what to show to a sandbox. The paths
// must mean the same to the engine as to this process.
type Config struct {
	Socket        string // the engine's unix socket; "" is /var/run/docker.sock
	RuntimePrefix string // "" is DefaultRuntimePrefix

	GuestPath    string // the guest's binary on the host
	GuestTarget  string // where it appears inside
	SocketTarget string // where StartParams.SocketDir appears inside

	// EtcDir holds small files that every sandbox sees, read-only, as its hosts,
	// hostname and resolv.conf. It is made when missing.
	EtcDir string

	// Networks is the host's side of sandboxes' networks; nil is a host that makes
	// none. Resolver is the address that they ask names of.
	Networks Networks
	Resolver netip.Addr

	// Host names this installation and must not change while it has sandboxes:
	// List and Watch see only containers of the same Host, so that two
	// installations on one engine leave each other's alone.
	Host string
	Log  *slog.Logger // nil discards
}

// Runtime starts sandboxes on a Docker engine. It is safe for concurrent use.
type Runtime struct {
	cfg Config
	api *client.Client
	log *slog.Logger

	mu      sync.Mutex                  // guards what follows
	running map[sandbox.ID]*destruction // by sandbox, at most one at a time
	subnet  uint32                      // the last one handed out, as its number in the pool
	wg      sync.WaitGroup              // of running
}

var _ sandbox.Runtime = (*Runtime)(nil)

// New returns a Runtime without talking to the engine, which may be down: see
// [Runtime.Check]. Close it when done.
func New(cfg Config) (*Runtime, error) {
	if cfg.RuntimePrefix == "" {
		cfg.RuntimePrefix = DefaultRuntimePrefix
	}
	for name, p := range map[string]string{
		"guest path": cfg.GuestPath, "guest target": cfg.GuestTarget,
		"socket target": cfg.SocketTarget, "etc directory": cfg.EtcDir,
	} {
		if !filepath.IsAbs(p) {
			return nil, fmt.Errorf("docker runtime: %s %q is not an absolute path", name, p)
		}
	}
	if cfg.Networks != nil && !cfg.Resolver.IsValid() {
		return nil, errors.New("docker runtime: networks without a resolver's address")
	}
	if cfg.Host == "" {
		return nil, errors.New("docker runtime: no host name for labels")
	}
	api, err := dial(cfg.Socket)
	if err != nil {
		return nil, err
	}
	log := cfg.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Runtime{cfg: cfg, api: api, log: log, running: map[sandbox.ID]*destruction{}}, nil
}

// dial makes a client. The environment is left out of it on purpose: DOCKER_HOST
// must not send the root daemon to another engine.
func dial(socket string) (*client.Client, error) {
	if socket == "" {
		socket = "/var/run/docker.sock"
	}
	api, err := client.NewClientWithOpts(client.WithHost("unix://"+socket), client.WithAPIVersionNegotiation())
	if err != nil {
		return nil, fmt.Errorf("docker client for %s: %w", socket, err)
	}
	return api, nil
}

// Close waits for destructions that nobody waits for any more, and closes idle
// connections.
func (r *Runtime) Close() error {
	r.wg.Wait()
	return r.api.Close()
}

// Check reports whether sandboxes can be started: the engine answers, limits
// them, has every one of our runtimes under its name with our flags, and the
// guest's binary is there.
func (r *Runtime) Check(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	info, err := r.api.Info(ctx)
	if err != nil {
		return engineError("ask the container engine about itself", err)
	}
	for _, limit := range []struct {
		what string
		ok   bool
	}{{"memory", info.MemoryLimit}, {"processes", info.PidsLimit}, {"cpu time", info.CPUCfsQuota}} {
		if !limit.ok {
			return sandbox.Errorf(sandbox.KindUnavailable, "enable the memory, pids and cpu cgroup controllers on this host",
				"the container engine cannot limit %s here", limit.what)
		}
	}
	for _, c := range diskClasses() {
		name := className(r.cfg.RuntimePrefix, c)
		have, ok := info.Runtimes[name]
		if !ok {
			return errNoRuntime(name, nil)
		}
		if !sameArgs(have.Args, runscArgs(c)) {
			return sandbox.Errorf(sandbox.KindUnavailable, "run podspawn server-setup as root, which writes the entry",
				"the engine's runtime %s has other flags than podspawn needs", name)
		}
		if fi, err := os.Stat(have.Path); err != nil || !fi.Mode().IsRegular() || fi.Mode()&0o111 == 0 {
			return sandbox.Errorf(sandbox.KindUnavailable, "install gVisor there again: make up does it",
				"the engine's runtime %s points to %s, which is no program", name, have.Path)
		}
	}
	if fi, err := os.Stat(r.cfg.GuestPath); err != nil || !fi.Mode().IsRegular() || fi.Mode()&0o111 == 0 {
		return sandbox.Errorf(sandbox.KindUnavailable, "install podspawn again: make up does it",
			"the guest program %s is missing", r.cfg.GuestPath)
	}
	return nil
}
