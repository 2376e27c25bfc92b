package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/podspawn/podspawn/sandbox"
	"github.com/podspawn/podspawn/sandbox/egress"
)

const (
	defaultConfigFile = "/etc/podspawn/config.yaml"
	defaultServer     = "unix:///run/podspawn/podspawn.sock"
)

// config is the configuration of the service, for daemon, serve and the
// commands that work on the host itself. Every value is set; loadConfig checks
// them.
type config struct {
	Listen    string // of the HTTP API
	PublicURL string // by which clients reach it; "" is made from Listen
	TLS       tlsConfig
	SSH       sshConfig
	Docker    dockerConfig
	Limits    limitsConfig
	Pool      poolConfig
	Egress    egressConfig
	Defaults  defaultsConfig
	Log       logConfig
	GitHubURL string // where add-user --github finds published keys
	StateDir  string
	RunDir    string

	// sources says for each key where its value came from.
	sources map[string]string
}

type tlsConfig struct {
	Cert, Key string
	// BehindProxy says that a proxy in front of Listen does TLS.
	BehindProxy bool
}

// sshConfig is how clients reach the machine's sshd.
type sshConfig struct {
	Host string
	Port int
}

type dockerConfig struct {
	Socket string // path
}

type limitsConfig struct {
	PerTenant int // living sandboxes
	Total     int
	// Memory bounds the memory limits of all sandboxes together; 0 is autoMemory
	// times the host's. MemoryReserve is what the host must have available.
	Memory        int64
	MemoryReserve int64
	TTLMax        time.Duration
	CertTTLMax    time.Duration
}

// autoMemory is how often limits.memory: auto promises the host's memory: most
// sandboxes use a small part of their limit, and what is really left is looked at
// as well.
const autoMemory = 2

// poolConfig says what is held ready. Image "" is Defaults.Image.
type poolConfig struct {
	Size  int
	Image string
}

// egressConfig says what sandboxes may reach.
type egressConfig struct {
	Default string // of specs that say nothing
	Max     string // the most that a spec may ask for
	Pool    string // the network of which sandboxes' networks are parts
}

// defaultsConfig completes specs that leave these out. Sizes are in bytes.
type defaultsConfig struct {
	Image  string
	CPUs   float64
	Memory int64
	Disk   int64
	PIDs   int64
}

type logConfig struct {
	Level string // debug, info, warn or error
}

func defaultConfig() *config {
	r := sandbox.DefaultResources()
	return &config{
		Listen:   "127.0.0.1:7722",
		SSH:      sshConfig{Host: "127.0.0.1", Port: 22},
		Docker:   dockerConfig{Socket: "/var/run/docker.sock"},
		Limits:   limitsConfig{PerTenant: 5, Total: 100, MemoryReserve: 256 << 20, TTLMax: 24 * time.Hour, CertTTLMax: 15 * time.Minute},
		Pool:     poolConfig{Size: 2},
		Egress:   egressConfig{Default: string(sandbox.EgressPublic), Max: string(sandbox.EgressPublic), Pool: "10.213.0.0/16"},
		Defaults: defaultsConfig{Image: sandbox.DefaultImage, CPUs: r.CPUs, Memory: r.Memory, Disk: r.Disk, PIDs: r.PIDs},
		Log:      logConfig{Level: "info"},

		GitHubURL: "https://github.com",
		StateDir:  "/var/lib/podspawn",
		RunDir:    "/run/podspawn",
		sources:   make(map[string]string),
	}
}

// loadConfig reads the configuration that --config or PODSPAWN_CONFIG names, or
// the default file, which may be missing. Flags, by key ("log.level"), beat the
// environment (PODSPAWN_LOG_LEVEL), which beats the file.
func (a *app) loadConfig(flags map[string]string) (*config, error) {
	path, named := a.configFile, true
	if path == "" {
		path = a.getenv(envConfig)
	}
	if path == "" {
		path, named = defaultConfigFile, false
	}
	c := defaultConfig()
	text, err := readBounded(path, maxConfigSize)
	switch {
	case err == nil:
		if err := c.applyFile(path, text); err != nil {
			return nil, err
		}
	case errors.Is(err, os.ErrNotExist) && !named:
	default:
		return nil, withHint(fmt.Errorf("read the configuration: %w", err), "name another file with --config")
	}
	for _, s := range c.settings() {
		if v := a.getenv(s.env()); v != "" {
			if err := s.set(v); err != nil {
				return nil, configError(s.env()+" in the environment", err)
			}
			c.sources[s.key] = "environment " + s.env()
		}
		if v, ok := flags[s.key]; ok {
			if err := s.set(v); err != nil {
				return nil, configError("the flag for "+s.key, err)
			}
			c.sources[s.key] = "flag"
		}
	}
	if err := c.check(); err != nil {
		return nil, err
	}
	return c, nil
}

func configError(where string, err error) error {
	return &usageError{msg: fmt.Sprintf("%s: %v", where, err), hint: "podspawn config show prints every key and its value; docs/install.md explains them"}
}

// check refuses combinations that would not do what they say.
func (c *config) check() error {
	host, port, err := net.SplitHostPort(c.Listen)
	if err != nil || port == "" {
		return configError("listen", fmt.Errorf("%q is no address like 127.0.0.1:7722", c.Listen))
	}
	if (c.TLS.Cert == "") != (c.TLS.Key == "") {
		return configError("tls", errors.New("cert and key belong together"))
	}
	if !isLoopback(host) && c.TLS.Cert == "" && !c.TLS.BehindProxy {
		return &usageError{
			msg:  fmt.Sprintf("listen: %s is not a loopback address, and bearer tokens would cross the network in clear", c.Listen),
			hint: "set tls.cert and tls.key, or tls.behind_proxy: true when a proxy in front of it does TLS",
		}
	}
	if c.TLS.Cert != "" && c.TLS.BehindProxy {
		return configError("tls", errors.New("behind_proxy and cert exclude each other"))
	}
	if c.PublicURL != "" && !strings.HasPrefix(c.PublicURL, "https://") && !strings.HasPrefix(c.PublicURL, "http://") {
		return configError("public_url", fmt.Errorf("%q is no http or https address", c.PublicURL))
	}
	if limit := sandbox.Egress(c.Egress.Max); !sandbox.Egress(c.Egress.Default).Within(limit) {
		return configError("egress.default", fmt.Errorf("%s is more than egress.max, which is %s", c.Egress.Default, limit))
	}
	if _, err := c.egressPool(); err != nil {
		return configError("egress.pool", err)
	}
	for key, dir := range map[string]string{"state_dir": c.StateDir, "run_dir": c.RunDir, "docker.socket": c.Docker.Socket} {
		if !filepath.IsAbs(dir) {
			return configError(key, fmt.Errorf("%q is not an absolute path", dir))
		}
	}
	return nil
}

// egressPool is the network of which sandboxes' networks are parts.
func (c *config) egressPool() (netip.Prefix, error) {
	p, err := netip.ParsePrefix(c.Egress.Pool)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("%q is no network like 10.213.0.0/16", c.Egress.Pool)
	}
	return p.Masked(), egress.CheckPool(p)
}

// isLoopback reports whether only this machine can reach a listener on host.
// Names other than localhost are not resolved: they may change.
func isLoopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

// baseURL is where clients find the API.
func (c *config) baseURL() string {
	if c.PublicURL != "" {
		return strings.TrimRight(c.PublicURL, "/")
	}
	if c.TLS.Cert != "" {
		return "https://" + c.Listen
	}
	return "http://" + c.Listen
}

// readBounded reads a file of at most limit bytes.
func readBounded(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readAtMost(f, path, limit)
}
