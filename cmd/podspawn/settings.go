package main

import (
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/podspawn/podspawn/sandbox"
)

const maxConfigSize = 1 << 20

// setting is one key of the configuration.
type setting struct {
	key string // dotted: "ssh.port"
	set func(string) error
	get func() string
}

// env is the environment variable that overrides the key.
func (s setting) env() string {
	return "PODSPAWN_" + strings.ToUpper(strings.ReplaceAll(s.key, ".", "_"))
}

// settings are the keys that have an effect in this version, in the order in
// which config show prints them.
func (c *config) settings() []setting {
	return []setting{
		textSetting("listen", &c.Listen),
		textSetting("public_url", &c.PublicURL),
		textSetting("tls.cert", &c.TLS.Cert),
		textSetting("tls.key", &c.TLS.Key),
		boolSetting("tls.behind_proxy", &c.TLS.BehindProxy),
		textSetting("ssh.host", &c.SSH.Host),
		intSetting("ssh.port", &c.SSH.Port, 1, 65535),
		textSetting("docker.socket", &c.Docker.Socket),
		intSetting("limits.per_tenant", &c.Limits.PerTenant, 1, 28999),
		intSetting("limits.total", &c.Limits.Total, 1, 28999),
		autoSizeSetting("limits.memory", &c.Limits.Memory, 64<<20, 64<<40),
		sizeSetting("limits.memory_reserve", &c.Limits.MemoryReserve, 1<<20, 1<<40),
		durationSetting("limits.ttl_max", &c.Limits.TTLMax, time.Minute, 24*time.Hour),
		durationSetting("limits.cert_ttl_max", &c.Limits.CertTTLMax, 10*time.Second, 15*time.Minute),
		choiceSetting("egress.default", &c.Egress.Default, string(sandbox.EgressNone), string(sandbox.EgressPublic)),
		choiceSetting("egress.max", &c.Egress.Max, string(sandbox.EgressNone), string(sandbox.EgressPublic)),
		textSetting("egress.pool", &c.Egress.Pool),
		textSetting("defaults.image", &c.Defaults.Image),
		intSetting("pool.size", &c.Pool.Size, 0, 100),
		textSetting("pool.image", &c.Pool.Image),
		floatSetting("defaults.cpus", &c.Defaults.CPUs, 0.1, 64),
		sizeSetting("defaults.memory", &c.Defaults.Memory, 64<<20, 256<<30),
		sizeSetting("defaults.disk", &c.Defaults.Disk, 64<<20, 50<<30),
		int64Setting("defaults.pids", &c.Defaults.PIDs, 16, 32768),
		choiceSetting("log.level", &c.Log.Level, "debug", "info", "warn", "error"),
		textSetting("github_url", &c.GitHubURL),
		textSetting("state_dir", &c.StateDir),
		textSetting("run_dir", &c.RunDir),
	}
}

// laterKeys are keys, or sections of keys, that are planned: accepting them
// would promise what does not happen.
var laterKeys = [...]string{"docker.runtime", "ca", "images", "egress.presets", "oidc", "metrics"}

func textSetting(key string, p *string) setting {
	return setting{
		key: key, get: func() string { return *p },
		set: func(v string) error {
			if len(v) > 4096 || oneLine(v) != v {
				return fmt.Errorf("the value is too long or holds control characters")
			}
			*p = v
			return nil
		},
	}
}

func choiceSetting(key string, p *string, choices ...string) setting {
	return setting{
		key: key, get: func() string { return *p },
		set: func(v string) error {
			for _, c := range choices {
				if v == c {
					*p = v
					return nil
				}
			}
			return fmt.Errorf("%q is none of %s", v, strings.Join(choices, ", "))
		},
	}
}

func boolSetting(key string, p *bool) setting {
	return setting{
		key: key, get: func() string { return strconv.FormatBool(*p) },
		set: func(v string) error {
			if v != "true" && v != "false" {
				return fmt.Errorf("%q is neither true nor false", v)
			}
			*p = v == "true"
			return nil
		},
	}
}

func intSetting(key string, p *int, least, most int) setting {
	v64 := int64(*p)
	s := int64Setting(key, &v64, int64(least), int64(most))
	set := s.set
	s.set = func(v string) error {
		if err := set(v); err != nil {
			return err
		}
		*p = int(v64)
		return nil
	}
	return s
}

func int64Setting(key string, p *int64, least, most int64) setting {
	return setting{
		key: key, get: func() string { return strconv.FormatInt(*p, 10) },
		set: func(v string) error {
			n, err := strconv.ParseInt(v, 10, 64)
			if err != nil || n < least || n > most {
				return fmt.Errorf("%q is no number from %d to %d", v, least, most)
			}
			*p = n
			return nil
		},
	}
}

func floatSetting(key string, p *float64, least, most float64) setting {
	return setting{
		key: key, get: func() string { return strconv.FormatFloat(*p, 'g', -1, 64) },
		set: func(v string) error {
			n, err := strconv.ParseFloat(v, 64)
			if err != nil || math.IsNaN(n) || n < least || n > most {
				return fmt.Errorf("%q is no number from %g to %g", v, least, most)
			}
			*p = n
			return nil
		},
	}
}

func durationSetting(key string, p *time.Duration, least, most time.Duration) setting {
	return setting{
		key: key, get: func() string { return p.String() },
		set: func(v string) error {
			d, err := parseDuration(v)
			if err != nil {
				return err
			}
			if d < least || d > most {
				return fmt.Errorf("%q is not between %s and %s", v, least, most)
			}
			*p = d
			return nil
		},
	}
}

func sizeSetting(key string, p *int64, least, most int64) setting {
	return setting{
		key: key, get: func() string { return formatSize(*p) },
		set: func(v string) error {
			n, err := parseSize(v)
			if err != nil {
				return err
			}
			if n < least || n > most {
				return fmt.Errorf("%q is not between %s and %s", v, formatSize(least), formatSize(most))
			}
			*p = n
			return nil
		},
	}
}

// autoSizeSetting is a size, or "auto", which is kept as 0.
func autoSizeSetting(key string, p *int64, least, most int64) setting {
	s := sizeSetting(key, p, least, most)
	get, set := s.get, s.set
	s.get = func() string {
		if *p == 0 {
			return "auto"
		}
		return get()
	}
	s.set = func(v string) error {
		if v == "auto" {
			*p = 0
			return nil
		}
		return set(v)
	}
	return s
}

// parseDuration reads "90s", or seconds.
func parseDuration(v string) (time.Duration, error) {
	if n, err := strconv.ParseInt(v, 10, 32); err == nil && n >= 0 {
		return time.Duration(n) * time.Second, nil
	}
	d, err := time.ParseDuration(v)
	if err != nil || d < 0 {
		return 0, fmt.Errorf("%q is no duration; write it like 90s, 30m or 2h", v)
	}
	return d, nil
}

var sizeUnits = [...]struct {
	suffix string
	factor int64
}{{"t", 1 << 40}, {"g", 1 << 30}, {"m", 1 << 20}, {"k", 1 << 10}}

// parseSize reads "512m" or "10g" (binary units), or bytes.
func parseSize(v string) (int64, error) {
	text, factor := strings.ToLower(v), int64(1)
	for _, u := range sizeUnits {
		if rest, ok := strings.CutSuffix(text, u.suffix); ok {
			text, factor = rest, u.factor
			break
		}
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n <= 0 || n > math.MaxInt64/factor {
		return 0, fmt.Errorf("%q is no size; write it like 512m or 10g", v)
	}
	return n * factor, nil
}

func formatSize(n int64) string {
	for _, u := range sizeUnits {
		if n >= u.factor && n%u.factor == 0 {
			return strconv.FormatInt(n/u.factor, 10) + u.suffix
		}
	}
	return strconv.FormatInt(n, 10)
}

// readAtMost reads all of r, or fails when that is more than limit bytes.
func readAtMost(r io.Reader, name string, limit int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("%s is larger than %s", name, formatSize(limit))
	}
	return b, nil
}
