package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const base = "http://127.0.0.1:7722"

// token makes an API token with podspawn token create.
func token(t *testing.T, args ...string) string {
	t.Helper()
	need(t)
	r := run(t, nil, podspawn, append([]string{"token", "create"}, args...)...)
	if r.code != 0 || strings.Count(r.stdout, "\n") != 1 {
		t.Fatalf("podspawn token create %q: %v, want the token alone", args, r)
	}
	return strings.TrimSpace(r.stdout)
}

// answer is an HTTP answer.
type answer struct {
	status int
	header http.Header
	body   string
}

func (a answer) decode(t *testing.T, v any) {
	t.Helper()
	if err := json.Unmarshal([]byte(a.body), v); err != nil {
		t.Fatalf("answer %d is not JSON: %v: %s", a.status, err, clip(a.body))
	}
}

func (a answer) code(t *testing.T) string {
	t.Helper()
	var p struct{ Code, Detail, Hint string }
	a.decode(t, &p)
	if a.header.Get("Content-Type") != "application/problem+json" || p.Detail == "" {
		t.Errorf("error %d is no problem+json with a detail: %s %s", a.status, a.header.Get("Content-Type"), a.body)
	}
	return p.Code
}

func call(t *testing.T, tok, method, path, body string, headers ...string) answer {
	t.Helper()
	var r io.Reader
	if body != "" {
		r = strings.NewReader(body)
	}
	req, err := http.NewRequest(method, base+path, r)
	if err != nil {
		t.Fatal(err)
	}
	if tok != "" {
		req.Header.Set("Authorization", "Bearer "+tok)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	c := http.Client{Timeout: 90 * time.Second}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{resp.StatusCode, resp.Header, string(b)}
}

// A CI job's way: a token, raw HTTP, a key of its own, stock ssh.
func TestHTTPFromTokenToSSH(t *testing.T) {
	tok := token(t, "--subject", "ci-job")
	dir := filepath.Join(t.TempDir(), "k")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	key := filepath.Join(dir, "id")
	if err := command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key); err != nil {
		t.Fatal(err)
	}
	pub, err := os.ReadFile(key + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	body, err := json.Marshal(map[string]any{"public_key": strings.TrimSpace(string(pub)), "ttl": "10m", "labels": map[string]string{"job": "7"}})
	if err != nil {
		t.Fatal(err)
	}
	made := call(t, tok, "POST", "/v1/sandboxes", string(body))
	if made.status != http.StatusCreated {
		t.Fatalf("create: %d %s", made.status, made.body)
	}
	var s struct {
		sandbox
		Egress string `json:"egress"`
		SSH    struct {
			Host, User, Certificate string
			Port                    int
			KnownHosts              string `json:"known_hosts"`
			Serial                  int
		} `json:"ssh"`
	}
	made.decode(t, &s)
	t.Cleanup(func() { call(t, tok, "DELETE", "/v1/sandboxes/"+s.ID, ""); noLeftovers(t, s.sandbox) })
	if s.Egress != "public" || s.State != "ready" || s.SSH.Serial == 0 || s.SSH.User != s.Login {
		t.Errorf("created: %s", made.body)
	}
	for name, text := range map[string]string{"id-cert.pub": s.SSH.Certificate, "known": s.SSH.KnownHosts} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r := run(t, nil, "ssh", "-F", "none", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-i", key, "-o", "CertificateFile="+filepath.Join(dir, "id-cert.pub"),
		"-o", "UserKnownHostsFile="+filepath.Join(dir, "known"), "-o", "StrictHostKeyChecking=yes", "-p", fmt.Sprint(s.SSH.Port), s.SSH.User+"@"+s.SSH.Host, "echo in")
	if r.code != 0 || r.stdout != "in\n" {
		t.Errorf("ssh with what the API gave: %v", r)
	}
	ex := call(t, tok, "POST", "/v1/sandboxes/"+s.ID+"/exec", `{"command":"echo out; echo err >&2; cat; exit 3","stdin":"in"}`)
	var x struct {
		ExitCode       int `json:"exit_code"`
		Stdout, Stderr string
	}
	ex.decode(t, &x)
	if ex.status != 200 || x.ExitCode != 3 || x.Stdout != "out\nin" || x.Stderr != "err\n" {
		t.Errorf("exec: %d %s", ex.status, ex.body)
	}
	if gone := call(t, tok, "DELETE", "/v1/sandboxes/"+s.ID, ""); gone.status != 200 && gone.status != 202 {
		t.Errorf("delete: %d %s", gone.status, gone.body)
	}
	eventually(t, 15*time.Second, func() error {
		a := call(t, tok, "GET", "/v1/sandboxes/"+s.ID, "")
		if a.status != 200 || !strings.Contains(a.body, `"destroyed"`) {
			return fmt.Errorf("get after delete: %d %s, want 200 destroyed", a.status, a.body)
		}
		return nil
	})
	if a := call(t, tok, "POST", "/v1/sandboxes/"+s.ID+"/exec", `{"command":"true"}`); a.status != http.StatusGone || a.code(t) != "gone" {
		t.Errorf("exec in what is gone: %d %s", a.status, a.body)
	}
}

func TestHTTPRefusals(t *testing.T) {
	tok := token(t, "--subject", "refusals", "--max-sandboxes", "1", "--max-ttl", "30m")
	read := token(t, "--subject", "refusals", "--scope", "sandbox:read")
	short := token(t, "--subject", "refusals", "--ttl", "1s")
	mine := call(t, tok, "POST", "/v1/sandboxes", `{}`)
	if mine.status != 201 {
		t.Fatalf("create with the default ttl, which is over the token's: %d %s", mine.status, mine.body)
	}
	var s sandbox
	mine.decode(t, &s)
	if end, err := time.Parse(time.RFC3339, s.ExpiresAt); err != nil || time.Until(end) > 30*time.Minute {
		t.Errorf("expires_at = %s, want within the token's 30 minutes", s.ExpiresAt)
	}
	defer call(t, tok, "DELETE", "/v1/sandboxes/"+s.ID, "")
	other := token(t, "--subject", "other")
	eventually(t, 40*time.Second, func() error {
		if a := call(t, short, "GET", "/v1/sandboxes", ""); a.status != 401 {
			return fmt.Errorf("expired token: %d", a.status)
		}
		return nil
	})
	for _, tc := range []struct {
		name, tok, method, path, body string
		status                        int
		code                          string
	}{
		{"no token", "", "GET", "/v1/sandboxes", "", 401, "unauthorized"},
		{"garbage", "garbage", "GET", "/v1/sandboxes", "", 401, "unauthorized"},
		{"token with a changed signature", tok[:len(tok)-8] + "AAAAAAAA", "GET", "/v1/sandboxes", "", 401, "unauthorized"},
		{"read scope creates", read, "POST", "/v1/sandboxes", `{}`, 403, "insufficient_scope"},
		{"run scope makes tokens", tok, "POST", "/v1/tokens", `{"subject":"x"}`, 403, "insufficient_scope"},
		{"another tenant's sandbox", other, "GET", "/v1/sandboxes/" + s.ID, "", 404, "not_found"},
		{"another tenant destroys", other, "DELETE", "/v1/sandboxes/" + s.ID, "", 404, "not_found"},
		{"another tenant executes", other, "POST", "/v1/sandboxes/" + s.ID + "/exec", `{"command":"id"}`, 404, "not_found"},
		{"another tenant gets a certificate", other, "POST", "/v1/sandboxes/" + s.ID + "/certificates", `{"public_key":"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGPKSUTyz1HwHReFVvD5obVsALAgJRNarH4TRpNePnAS"}`, 404, "not_found"},
		{"quota", tok, "POST", "/v1/sandboxes", `{}`, 429, "quota_exceeded"},
		{"ttl over the token's", tok, "POST", "/v1/sandboxes", `{"ttl":"2h"}`, 403, "policy_denied"},
		{"unknown field", tok, "POST", "/v1/sandboxes", `{"imgae":"x"}`, 400, "unknown_field"},
		{"not JSON", tok, "POST", "/v1/sandboxes", `{`, 400, "invalid_spec"},
		{"no such path", tok, "GET", "/v1/nothing", "", 404, "not_found"},
		{"unknown image", other, "POST", "/v1/sandboxes", `{"image":"no/such:thing"}`, 422, "image_not_found"},
		{"a private key as public key", tok, "POST", "/v1/sandboxes/" + s.ID + "/certificates", `{"public_key":"-----BEGIN OPENSSH PRIVATE KEY-----"}`, 400, "invalid_spec"},
		{"certificate for too long", tok, "POST", "/v1/sandboxes/" + s.ID + "/certificates", `{"ttl":"2h","public_key":"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGPKSUTyz1HwHReFVvD5obVsALAgJRNarH4TRpNePnAS"}`, 403, "policy_denied"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a := call(t, tc.tok, tc.method, tc.path, tc.body)
			if code := a.code(t); a.status != tc.status || code != tc.code {
				t.Errorf("%s %s: %d %s, want %d %s: %s", tc.method, tc.path, a.status, code, tc.status, tc.code, a.body)
			}
			if a.status == 401 && !strings.HasPrefix(a.header.Get("WWW-Authenticate"), "Bearer") {
				t.Errorf("401 without WWW-Authenticate: %v", a.header)
			}
		})
	}
	if a := call(t, tok, "POST", "/v1/sandboxes", `{"name":"`+strings.Repeat("x", 2<<20)+`"}`); a.status != 413 && a.status != 400 {
		t.Errorf("a body of 2 MiB: %d", a.status)
	}
	for _, tc := range []struct{ path, origin, host string }{{"/mcp", "http://evil.example", ""}, {"/v1/sandboxes", "http://evil.example", ""}} {
		if a := call(t, tok, "POST", tc.path, `{}`, "Origin", tc.origin); a.status != 403 {
			t.Errorf("Origin %s at %s: %d, want 403", tc.origin, tc.path, a.status)
		}
	}
	if a := call(t, "", "POST", "/mcp", `{}`); a.status != 401 {
		t.Errorf("MCP without a token: %d, want 401", a.status)
	}
}

func TestIdempotencyKeyOverHTTP(t *testing.T) {
	tok := token(t, "--subject", "idem")
	first := call(t, tok, "POST", "/v1/sandboxes", `{"ttl":"5m"}`, "Idempotency-Key", "k1")
	again := call(t, tok, "POST", "/v1/sandboxes", `{"ttl":"5m"}`, "Idempotency-Key", "k1")
	other := call(t, tok, "POST", "/v1/sandboxes", `{"ttl":"6m"}`, "Idempotency-Key", "k1")
	var a, b sandbox
	first.decode(t, &a)
	again.decode(t, &b)
	defer call(t, tok, "DELETE", "/v1/sandboxes/"+a.ID, "")
	if a.ID == "" || a.ID != b.ID {
		t.Errorf("same key: %s and %s", first.body, again.body)
	}
	if code := other.code(t); code != "idempotency_mismatch" {
		t.Errorf("same key, another body: %d %s", other.status, code)
	}
}

// The example's player, over both transports, with nothing of ours but binaries.
func TestPlayedAgentSession(t *testing.T) {
	need(t)
	play := os.Getenv("PODSPAWN_E2E_PLAY")
	if play == "" {
		play = filepath.Join(t.TempDir(), "play")
		cmd := run(t, nil, "env", "-C", "..", "go", "build", "-o", play, "./examples/claude-code/play")
		if cmd.code != 0 {
			t.Fatalf("build the player: %v", cmd)
		}
	}
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(token(t, "--subject", "agent")), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		args []string
	}{
		{"http", []string{"-url", base + "/mcp", "-token-file", file}},
		{"stdio bridge", []string{"-stdio", podspawn + " mcp"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := run(t, nil, play, tc.args...)
			if r.code != 0 || !strings.Contains(r.stdout, "gVisor") {
				t.Errorf("play %q: %v", tc.args, r)
			}
		})
	}
	nothingOfOurs(t)
}

// Threat 76: no secret in the logs of the service.
func TestNoTokenInLogs(t *testing.T) {
	h := need(t)
	tok := token(t, "--subject", "secret")
	call(t, tok, "GET", "/v1/sandboxes", "")
	call(t, tok[:len(tok)-4]+"AAAA", "GET", "/v1/sandboxes", "")
	call(t, tok, "GET", "/v1/sandboxes?token="+tok, "")
	files, err := filepath.Glob(filepath.Join(h.logs, "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(b, []byte(tok)) || bytes.Contains(b, []byte(tok[len(tok)-40:])) {
			t.Errorf("%s has the token in it", f)
		}
	}
}
