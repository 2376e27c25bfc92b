package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func testApp(env map[string]string) (*app, *bytes.Buffer, *bytes.Buffer) {
	var out, errs bytes.Buffer
	getenv := func(name string) string { return env[name] }
	return &app{getenv: getenv, stdin: strings.NewReader(""), stdout: &out, stderr: &errs}, &out, &errs
}

func writeConfig(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestLoadConfigPrecedence(t *testing.T) {
	path := writeConfig(t, "log:\n  level: warn\nlimits:\n  per_tenant: 7\n  ttl_max: 3600\nssh: {host: box.example, port: 2022}\n")
	a, _, _ := testApp(map[string]string{"PODSPAWN_LOG_LEVEL": "error", "PODSPAWN_LIMITS_PER_TENANT": "8"})
	a.configFile = path
	c, err := a.loadConfig(map[string]string{"log.level": "debug"})
	if err != nil {
		t.Fatal(err)
	}
	if c.Log.Level != "debug" || c.sources["log.level"] != "flag" {
		t.Errorf("log.level = %q from %q, want debug from flag", c.Log.Level, c.sources["log.level"])
	}
	if c.Limits.PerTenant != 8 || c.sources["limits.per_tenant"] != "environment PODSPAWN_LIMITS_PER_TENANT" {
		t.Errorf("limits.per_tenant = %d from %q, want 8 from the environment", c.Limits.PerTenant, c.sources["limits.per_tenant"])
	}
	if c.Limits.TTLMax != time.Hour || c.sources["limits.ttl_max"] != "file "+path {
		t.Errorf("limits.ttl_max = %s from %q, want 1h from the file", c.Limits.TTLMax, c.sources["limits.ttl_max"])
	}
	if c.SSH.Host != "box.example" || c.SSH.Port != 2022 {
		t.Errorf("ssh = %+v, want box.example 2022", c.SSH)
	}
	if c.Listen != "127.0.0.1:7722" || c.sources["listen"] != "" {
		t.Errorf("listen = %q from %q, want the default", c.Listen, c.sources["listen"])
	}
}

func TestLoadConfigRefusals(t *testing.T) {
	tests := map[string]struct{ text, want string }{
		"unknown/top":            {"lisen: 127.0.0.1:1\n", `:1: unknown key "lisen"; did you mean listen?`},
		"unknown/nested":         {"ssh:\n  host: a\n  prot: 3\n", `:3: unknown key "ssh.prot"; did you mean ssh.port?`},
		"unknown/section":        {"limit:\n  total: 3\n", `unknown key "limit"; did you mean limits?`},
		"later":                  {"metrics: {listen: a}\n", "metrics is not supported in this version yet"},
		"later/nested":           {"docker:\n  runtime: runc\n", ":2: docker.runtime is not supported in this version yet"},
		"number/out of range":    {"ssh: {port: 70000}\n", "no number from 1 to 65535"},
		"bool/yes":               {"tls: {behind_proxy: yes}\n", "neither true nor false"},
		"duration/negative":      {"limits: {ttl_max: -1h}\n", "no duration"},
		"duration/too long":      {"limits: {cert_ttl_max: 1h}\n", "not between"},
		"scalar for section":     {"ssh: here\n", "must be a mapping"},
		"list for value":         {"listen: [a, b]\n", "must be one plain value"},
		"null for value":         {"listen:\n", "must be one plain value"},
		"twice":                  {"ssh: {port: 1}\nlisten: 127.0.0.1:1\nssh: {port: 2}\n", ""},
		"no yaml":                {"{{{\n", "no valid YAML"},
		"list at top":            {"- a\n", "must be a mapping"},
		"two documents":          {"listen: 127.0.0.1:1\n---\nlisten: 127.0.0.1:2\n", "more than one document"},
		"listen/public":          {"listen: 0.0.0.0:7722\n", "tokens would cross the network in clear"},
		"listen/all":             {"listen: \":7722\"\n", "tokens would cross the network in clear"},
		"listen/name":            {"listen: box.example:7722\n", "tokens would cross the network in clear"},
		"tls/half":               {"tls: {cert: /a}\n", "belong together"},
		"relative path":          {"state_dir: here\n", "not an absolute path"},
		"public_url/no scheme":   {"public_url: box.example\n", "no http or https address"},
		"alias":                  {"listen: &a 127.0.0.1:1\npublic_url: *a\n", "must be one plain value"},
		"size":                   {"defaults: {memory: lots}\n", "no size"},
		"size/overflow":          {"defaults: {memory: 99999999999t}\n", "no size"},
		"log level/unknown":      {"log: {level: loud}\n", "none of debug, info, warn, error"},
		"value/control sequence": {"public_url: \"http://a\\e[2J\"\n", "control characters"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			a, _, _ := testApp(nil)
			a.configFile = writeConfig(t, tt.text)
			_, err := a.loadConfig(nil)
			if err == nil {
				t.Fatalf("loadConfig(%q) succeeded", tt.text)
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("loadConfig(%q) = %q, want it to contain %q", tt.text, err, tt.want)
			}
			if _, hint := words(err); hint == "" {
				t.Errorf("loadConfig(%q): no hint", tt.text)
			}
			if exitCode(err) != exitUsage {
				t.Errorf("loadConfig(%q): exit code %d, want %d", tt.text, exitCode(err), exitUsage)
			}
		})
	}
}

func TestLoadConfigAccepts(t *testing.T) {
	for name, text := range map[string]string{
		"empty":        "",
		"comment":      "# nothing\n",
		"ipv6":         "listen: \"[::1]:7722\"\n",
		"tls":          "listen: 0.0.0.0:443\ntls: {cert: /c, key: /k}\n",
		"behind proxy": "listen: 0.0.0.0:80\ntls: {behind_proxy: true}\n",
		"sizes":        "defaults: {memory: 512m, disk: 20g, cpus: 1.5, pids: 100}\n",
	} {
		t.Run(name, func(t *testing.T) {
			a, _, _ := testApp(nil)
			a.configFile = writeConfig(t, text)
			if _, err := a.loadConfig(nil); err != nil {
				t.Errorf("loadConfig(%q) = %v", text, err)
			}
		})
	}
}

func TestLoadConfigMissingFile(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "none.yaml")
	a, _, _ := testApp(map[string]string{envConfig: missing})
	if _, err := a.loadConfig(nil); err == nil {
		t.Errorf("a file named in %s and missing was accepted", envConfig)
	}
}

func FuzzApplyFileNeverPanics(f *testing.F) {
	for _, seed := range []string{"", "listen: a", "ssh: {port: 1}", "- a", "? a\n: b", "<<: *x", "a: &a [*a]", "!!binary x: y", "listen: |\n  a"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(_ *testing.T, text []byte) {
		_ = defaultConfig().applyFile("fuzz", text) // only a panic counts here
	})
}
