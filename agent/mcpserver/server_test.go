package mcpserver

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	mcpclient "github.com/mark3labs/mcp-go/client"
	"github.com/mark3labs/mcp-go/client/transport"
	"github.com/mark3labs/mcp-go/mcp"
	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.uber.org/goleak"

	"github.com/podspawn/podspawn/agent"
	"github.com/podspawn/podspawn/agent/agenttest"
	"github.com/podspawn/podspawn/agent/api"
	"github.com/podspawn/podspawn/agent/client"
	"github.com/podspawn/podspawn/agent/httpapi"
	"github.com/podspawn/podspawn/agent/sshconfig"
	"github.com/podspawn/podspawn/sandbox"
	"github.com/podspawn/podspawn/sandbox/localapi"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serve puts the whole API process together: daemon double, service, HTTP, MCP.
func serve(t *testing.T, edit ...func(*Server)) (d *agenttest.Daemon, base string) {
	t.Helper()
	d = agenttest.Start(t)
	service, err := agent.New(agent.Config{Daemon: d.Client()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(service.Close)
	srv, err := New(Config{API: httpapi.APIFrom, Version: "test"})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range edit {
		f(srv)
	}
	handler, err := httpapi.New(httpapi.Config{Service: service, MCP: srv.Handler(), MCPScope: ScopeOf})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- httpapi.Serve(ctx, handler, time.Second, slog.New(slog.DiscardHandler), l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve = %v", err)
		}
	})
	return d, "http://" + l.Addr().String()
}

// connect returns an initialized client of mcp-go.
func connect(t *testing.T, base string, token localapi.Secret, version string) *mcpclient.Client {
	t.Helper()
	tr := &http.Transport{}
	c, err := mcpclient.NewStreamableHttpClient(base+"/mcp",
		transport.WithHTTPHeaders(map[string]string{"Authorization": "Bearer " + token.Reveal()}),
		transport.WithHTTPBasicClient(&http.Client{Transport: tr}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close(); tr.CloseIdleConnections() })
	initialize(t, c, version)
	return c
}

func initialize(t *testing.T, c *mcpclient.Client, version string) *mcp.InitializeResult {
	t.Helper()
	if err := c.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	var req mcp.InitializeRequest
	req.Params.ProtocolVersion = version
	req.Params.ClientInfo = mcp.Implementation{Name: "test", Version: "1"}
	got, err := c.Initialize(t.Context(), req)
	if err != nil {
		t.Fatalf("initialize: %v", err)
	}
	return got
}

// call calls a tool, checks of its result what holds for all, and decodes it.
func call(t *testing.T, c *mcpclient.Client, name string, args map[string]any) (map[string]any, bool) {
	t.Helper()
	var req mcp.CallToolRequest
	req.Params.Name = name
	req.Params.Arguments = args
	res, err := c.CallTool(t.Context(), req)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	text, ok := mcp.AsTextContent(res.Content[0])
	if !ok || len(res.Content) != 1 {
		t.Fatalf("%s: content = %+v, want one text", name, res.Content)
	}
	var got map[string]any
	if err := json.Unmarshal([]byte(text.Text), &got); err != nil {
		t.Fatalf("%s: text is no JSON: %v", name, err)
	}
	structured, err := json.Marshal(res.StructuredContent)
	if err != nil {
		t.Fatal(err)
	}
	var same map[string]any
	if err := json.Unmarshal(structured, &same); err != nil || fmt.Sprint(same) != fmt.Sprint(got) {
		t.Errorf("%s: structured content %s is not the text %s", name, structured, text.Text)
	}
	checkSchema(t, name, got)
	if res.IsError {
		for _, field := range []string{"code", "message", "hint", "retry_after"} {
			if _, ok := got[field]; !ok || got[field] == "" {
				t.Errorf("%s: error without %s: %s", name, field, text.Text)
			}
		}
		return got, false
	}
	if _, ok := got["expires_at"]; !ok {
		t.Errorf("%s: no expires_at", name)
	}
	next, _ := got["next"].(string)
	if next == "" || strings.Count(next, "\n") > 2 {
		t.Errorf("%s: next = %q, want 1 to 3 lines", name, next)
	}
	return got, true
}

// checkSchema holds a result against the tool's published output schema, as clients do.
func checkSchema(t *testing.T, name string, got any) {
	t.Helper()
	for _, tool := range tools(false) {
		if tool.name != name {
			continue
		}
		doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(tool.definition().RawOutputSchema))
		if err != nil {
			t.Fatal(err)
		}
		compiler := jsonschema.NewCompiler()
		if err := compiler.AddResource("out.json", doc); err != nil {
			t.Fatal(err)
		}
		schema, err := compiler.Compile("out.json")
		if err != nil {
			t.Fatal(err)
		}
		if err := schema.Validate(got); err != nil {
			t.Errorf("%s: result does not fit its schema: %v", name, err)
		}
	}
}

func TestLifeOverMCP(t *testing.T) {
	for _, version := range []string{mcp.ProtocolVersion20250618, mcp.ProtocolVersion20251125, mcp.ProtocolVersion20260728} {
		t.Run(version, func(t *testing.T) {
			d, base := serve(t)
			c := connect(t, base, agenttest.Alice, version)
			made, ok := call(t, c, "sandbox_create", map[string]any{"name": "web", "ttl": "30m"})
			if !ok || made["state"] != "ready" {
				t.Fatalf("create = %v", made)
			}
			id := made["id"]
			if life, _ := made["lifecycle"].(map[string]any); life["on_exit"] != "keep" || life["idle_timeout"] != "30m0s" {
				t.Errorf("lifecycle = %v, want MCP's", made["lifecycle"])
			}
			ran, ok := call(t, c, "sandbox_exec", map[string]any{"id": id, "command": `printf '%s %s' "$TERM" "$NO_COLOR"; exit 3`})
			if !ok || ran["stdout"] != "dumb 1" || ran["exit_code"] != 3.0 || ran["untrusted"] == "" {
				t.Errorf("exec = %v", ran)
			}
			if got, ok := call(t, c, "sandbox_get", map[string]any{"id": "web"}); !ok || got["id"] != id {
				t.Errorf("get = %v", got)
			}
			if got, ok := call(t, c, "sandbox_list", nil); !ok || len(got["sandboxes"].([]any)) != 1 || got["expires_at"] == nil {
				t.Errorf("list = %v", got)
			}
			key, err := sshconfig.NewKey()
			if err != nil {
				t.Fatal(err)
			}
			cert, ok := call(t, c, "ssh_certificate_issue", map[string]any{"id": id, "public_key": key.Public})
			if !ok {
				t.Fatalf("certificate = %v", cert)
			}
			if ssh := cert["ssh"].(map[string]any); !strings.Contains(ssh["certificate"].(string), "cert-v01@openssh.com") {
				t.Errorf("ssh = %v", ssh)
			}
			if got, ok := call(t, c, "sandbox_destroy", map[string]any{"id": id}); !ok || got["state"] != "destroyed" {
				t.Errorf("destroy = %v", got)
			}
			if got, ok := call(t, c, "sandbox_exec", map[string]any{"id": id, "command": "id"}); ok || got["code"] != "gone" {
				t.Errorf("exec afterwards = %v, want gone", got)
			}
			if got, ok := call(t, c, "sandbox_list", nil); !ok || got["expires_at"] != nil {
				t.Errorf("empty list = %v", got)
			}
			for _, r := range d.Requests(localapi.OpExec) {
				if r.Auth.Bearer != agenttest.Alice {
					t.Errorf("the daemon saw %+v, want the caller's own token", r.Auth.Peer)
				}
			}
		})
	}
}

func TestRefusalsOverMCP(t *testing.T) {
	d, base := serve(t)
	c := connect(t, base, agenttest.Alice, mcp.ProtocolVersion20251125)
	made, _ := call(t, c, "sandbox_create", nil)
	id := made["id"]
	tests := []struct {
		name string
		tool string
		args map[string]any
		code sandbox.Kind
		hint string
	}{
		{"unknown argument", "sandbox_create", map[string]any{"imagee": "a"}, sandbox.KindUnknownField, "image"},
		{"argument of a later version", "sandbox_create", map[string]any{"project": "a"}, sandbox.KindInvalidSpec, "leave it out"},
		{"wrong type", "sandbox_create", map[string]any{"image": 5}, sandbox.KindInvalidSpec, "string"},
		{"egress", "sandbox_create", map[string]any{"egress": "full"}, sandbox.KindEgressDenied, "public"},
		{"no id", "sandbox_get", nil, sandbox.KindInvalidSpec, "sandbox_list"},
		{"unknown id", "sandbox_get", map[string]any{"id": string(sandbox.NewID())}, sandbox.KindNotFound, ""},
		{"tty", "sandbox_exec", map[string]any{"id": id, "command": "id", "tty": true}, sandbox.KindInvalidSpec, "leave it out"},
		{"wait", "sandbox_exec", map[string]any{"id": id, "command": "id", "wait_seconds": 51}, sandbox.KindInvalidSpec, "0 to 50"},
		{"long", "sandbox_exec", map[string]any{"id": id, "command": "id", "timeout": "25h"}, sandbox.KindInvalidSpec, "24h"},
		{"poll", "exec_poll", map[string]any{"exec_id": "exe_0000000000000000"}, sandbox.KindNotFound, "10 minutes"},
		{"nothing to do", "exec_input", map[string]any{"exec_id": "exe_0000000000000000"}, sandbox.KindInvalidSpec, "eof"},
		{"run without a command", "sandbox_run", map[string]any{}, sandbox.KindInvalidSpec, "argv"},
		{"much output", "sandbox_exec", map[string]any{"id": id, "command": "id", "max_output_bytes": 1 << 20}, sandbox.KindInvalidSpec, "16384"},
		{"no command", "sandbox_exec", map[string]any{"id": id}, sandbox.KindInvalidSpec, ""},
		{"private key", "ssh_certificate_issue", map[string]any{"id": id, "public_key": "-----BEGIN OPENSSH PRIVATE KEY-----"}, sandbox.KindInvalidSpec, ".pub"},
		{"list limit", "sandbox_list", map[string]any{"limit": 1000}, sandbox.KindInvalidSpec, "50"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, ok := call(t, c, tt.tool, tt.args)
			hint, _ := got["hint"].(string)
			if ok || got["code"] != string(tt.code) || !strings.Contains(hint, tt.hint) {
				t.Errorf("%s = %v, want %s, hint …%s…", tt.tool, got, tt.code, tt.hint)
			}
		})
	}
	t.Run("internal error gives nothing away", func(t *testing.T) {
		d.Fail(localapi.OpList, errors.New(agenttest.Internal))
		if got, ok := call(t, c, "sandbox_list", nil); ok || strings.Contains(fmt.Sprint(got), agenttest.Internal) {
			t.Errorf("list = %v", got)
		}
	})
	t.Run("retry_after", func(t *testing.T) {
		d.Fail(localapi.OpCreate, sandbox.Errorf(sandbox.KindQuota, "destroy one", "too many"))
		if got, ok := call(t, c, "sandbox_create", nil); ok || got["retry_after"] != 30.0 {
			t.Errorf("create = %v", got)
		}
	})
}

func TestLowScopeIs403AtTheGate(t *testing.T) {
	_, base := serve(t)
	body := `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"sandbox_create","arguments":{}}}`
	for token, want := range map[localapi.Secret]int{agenttest.Reader: 403, "nobody": 401, agenttest.Alice: 200} {
		req, err := http.NewRequestWithContext(t.Context(), "POST", base+"/mcp", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+token.Reveal())
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("Accept", "application/json, text/event-stream")
		resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("status = %d, want %d", resp.StatusCode, want)
		}
	}
}

func TestToolsListIsWhatTheContractAsksFor(t *testing.T) {
	_, base := serve(t)
	c := connect(t, base, agenttest.Alice, mcp.ProtocolVersion20251125)
	l, err := c.ListTools(t.Context(), mcp.ListToolsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, tool := range l.Tools {
		names = append(names, tool.Name)
		b, err := json.Marshal(tool)
		if err != nil {
			t.Fatal(err)
		}
		if len(b) > 8<<10 || len(tool.Description) > 2000 || tool.Description == "" || tool.Title == "" {
			t.Errorf("%s: definition of %d bytes, description of %d, title %q", tool.Name, len(b), len(tool.Description), tool.Title)
		}
		a := tool.Annotations
		if a.ReadOnlyHint == nil || a.DestructiveHint == nil || a.IdempotentHint == nil || a.OpenWorldHint == nil {
			t.Fatalf("%s: annotations %+v, want all", tool.Name, a)
		}
		if *a.ReadOnlyHint != slices.Contains([]string{"sandbox_get", "sandbox_list", "file_read", "file_list", "exec_poll", "spec_validate"}, tool.Name) {
			t.Errorf("%s: readOnly = %v", tool.Name, *a.ReadOnlyHint)
		}
		if *a.DestructiveHint != (tool.Name == "sandbox_destroy") {
			t.Errorf("%s: destructive = %v", tool.Name, *a.DestructiveHint)
		}
		if *a.OpenWorldHint != slices.Contains([]string{"sandbox_create", "sandbox_exec", "sandbox_run"}, tool.Name) {
			t.Errorf("%s: openWorld = %v", tool.Name, *a.OpenWorldHint)
		}
		if tool.InputSchema.AdditionalProperties != false || len(tool.OutputSchema.Properties) == 0 {
			t.Errorf("%s: schemas %s", tool.Name, b)
		}
	}
	want := []string{"exec_input", "exec_poll", "file_edit", "file_list", "file_read", "file_write", "sandbox_create", "sandbox_destroy", "sandbox_exec", "sandbox_extend", "sandbox_get", "sandbox_list", "sandbox_run", "spec_validate", "ssh_certificate_issue"}
	slices.Sort(names)
	if !slices.Equal(names, want) {
		t.Errorf("tools = %v, want %v", names, want)
	}
	for _, bridge := range []bool{false, true} {
		if n := len(instructions(bridge)); n > 2000 {
			t.Errorf("instructions have %d bytes, want at most 2000", n)
		}
	}
}

// TestArgumentsAreThoseOfTheSchema keeps what is published and what is decoded together.
func TestArgumentsAreThoseOfTheSchema(t *testing.T) {
	for _, bridge := range []bool{false, true} {
		s := &Server{}
		if bridge {
			s.bridge = &Bridge{Dir: t.TempDir()}
		}
		for _, tool := range tools(bridge) {
			for name := range tool.args {
				_, err := tool.call(t.Context(), s, refusingAPI{}, mustJSON(map[string]any{name: nil}))
				if sandbox.KindOf(err) == sandbox.KindUnknownField {
					t.Errorf("%s: argument %s of the schema is unknown: %v", tool.name, name, err)
				}
			}
			for _, r := range tool.required {
				if _, ok := tool.args[r]; !ok {
					t.Errorf("%s: required %s is no argument", tool.name, r)
				}
			}
		}
	}
}

var errNop = errors.New("nop")

// nopAPI fails every call.
type nopAPI struct{ api.API }

func (nopAPI) Create(context.Context, api.CreateRequest) (api.Sandbox, error) {
	return api.Sandbox{}, errNop
}
func (nopAPI) List(context.Context, api.ListRequest) (api.List, error) { return api.List{}, errNop }

func TestExecTimesOutHonestly(t *testing.T) {
	_, base := serve(t)
	c := connect(t, base, agenttest.Alice, mcp.ProtocolVersion20251125)
	made, _ := call(t, c, "sandbox_create", nil)
	got, ok := call(t, c, "sandbox_exec", map[string]any{"id": made["id"], "command": "echo begun; sleep 600", "timeout": 0.5})
	if !ok || got["timed_out"] != true || got["exit_code"] != 124.0 || got["stdout"] != "begun\n" {
		t.Errorf("exec = %v", got)
	}
}

func TestOutputIsCappedAndClean(t *testing.T) {
	_, base := serve(t)
	c := connect(t, base, agenttest.Alice, mcp.ProtocolVersion20251125)
	made, _ := call(t, c, "sandbox_create", nil)
	got, ok := call(t, c, "sandbox_exec", map[string]any{"id": made["id"], "command": `printf '\033[31mhead\033[0m\033]0;title\007 '; head -c 10000000 /dev/zero | tr '\0' '\377'; echo tail`})
	out, _ := got["stdout"].(string)
	if !ok || len(out) > maxOutput || got["truncated"] != true {
		t.Errorf("exec = %d bytes, truncated %v", len(out), got["truncated"])
	}
	if !strings.HasPrefix(out, "head ") || !strings.HasSuffix(out, "tail\n") || strings.ContainsRune(out, 0x1b) || !strings.Contains(out, "bytes left out]") {
		t.Errorf("stdout = %.60q…%q", out, out[max(0, len(out)-40):])
	}
}

func TestCleanText(t *testing.T) {
	tests := []struct{ name, in, want string }{
		{"plain", "a\tb\nc é 漢 🙂\n", "a\tb\nc é 漢 🙂\n"},
		{"colors", "\x1b[1;31mred\x1b[0m", "red"},
		{"title", "\x1b]0;evil\x07a\x1b]8;;http://x\x1b\\b", "ab"},
		{"unfinished title keeps the next line", "\x1b]0;evil\nnext", "\nnext"},
		{"device control", "\x1bPq#0\x1b\\a", "a"},
		{"C1", "a\u009b31mb\u009d0;t\u009cc\u0085d", "abcd"},
		{"two characters", "\x1bca\x1b(Bb", "ab"},
		{"control characters", "a\x00\x07\x08b\x7f", "ab"},
		{"progress bar", "10%\r20%\r\ndone", "10%\n20%\ndone"},
		{"direction override", "a\u202Eb\u2066c", "abc"},
		{"tag characters", "a\U000E0049\U000E0067b", "ab"},
		{"zero width", "a\u200bb\ufeffc", "abc"},
		{"lone escape at the end", "a\x1b", "a"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := cleanText(tt.in); got != tt.want {
				t.Errorf("cleanText(%q) = %q, want %q", tt.in, got, tt.want)
			}
		})
	}
}

func FuzzCleanTextLeavesNoControl(f *testing.F) {
	f.Add("a\x1b[31m\u009b\x1b]0;x")
	f.Fuzz(func(t *testing.T, s string) {
		got, _ := capText(cleanText(strings.ToValidUTF8(s, "?")), 1<<10)
		if len(got) > 1<<10 {
			t.Fatalf("%d bytes", len(got))
		}
		for _, r := range got {
			if r != '\n' && r != '\t' && (r < 0x20 || (r >= 0x7f && r < 0xa0)) {
				t.Fatalf("cleanText(%q) keeps %U", s, r)
			}
		}
	})
}

// bridge runs the stdio server on a client of base, as podspawn mcp does.
func bridge(t *testing.T, server, dir string) *mcpclient.Client {
	t.Helper()
	api0, err := client.New(client.Config{Server: server, Token: agenttest.Alice})
	if err != nil {
		t.Fatal(err)
	}
	srv, err := New(Config{
		API:     func(context.Context) (api.API, error) { return api0, nil },
		Version: "test", Bridge: &Bridge{Dir: dir},
	})
	if err != nil {
		t.Fatal(err)
	}
	inR, inW := io.Pipe()
	outR, outW := io.Pipe()
	done := make(chan error, 1)
	go func() {
		done <- srv.ServeStdio(context.Background(), inR, outW)
		_ = outW.Close()
	}()
	tr := transport.NewIO(outR, inW, io.NopCloser(strings.NewReader("")))
	c := mcpclient.NewClient(tr)
	t.Cleanup(func() {
		_ = c.Close()
		_ = inW.Close()
		if err := <-done; err != nil {
			t.Errorf("ServeStdio = %v", err)
		}
		api0.Close()
	})
	return c
}

func TestBridgeMakesKeysHere(t *testing.T) {
	d, base := serve(t)
	dir := filepath.Join(t.TempDir(), "podspawn")
	c := bridge(t, base, dir)
	initialize(t, c, mcp.ProtocolVersion20251125)
	made, ok := call(t, c, "sandbox_create", nil)
	if !ok {
		t.Fatalf("create = %v", made)
	}
	id := made["id"].(string)
	ssh, _ := made["ssh"].(map[string]any)
	if ssh["command"] != "ssh -F "+filepath.Join(dir, id, "ssh_config")+" "+sandbox.ID(id).Login() {
		t.Errorf("ssh = %v", ssh)
	}
	key, err := os.ReadFile(filepath.Join(dir, id, sshconfig.KeyFile))
	if err != nil || !strings.Contains(string(key), "PRIVATE KEY") {
		t.Fatalf("key: %v", err)
	}
	if st, err := os.Stat(filepath.Join(dir, id)); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("folder: %v, %v, want 0700", st.Mode(), err)
	}
	secret := strings.Split(string(key), "\n")[2]
	if strings.Contains(fmt.Sprint(made), secret) || strings.Contains(fmt.Sprint(d.Requests(localapi.OpIssue)), secret) {
		t.Error("the private key left this machine")
	}
	if life, _ := made["lifecycle"].(map[string]any); life["on_exit"] != "keep" {
		t.Errorf("lifecycle = %v, want MCP's although it went over HTTP", life)
	}
	again, ok := call(t, c, "ssh_certificate_issue", map[string]any{"id": id})
	if !ok || again["ssh"].(map[string]any)["config_file"] != filepath.Join(dir, id, "ssh_config") {
		t.Errorf("certificate = %v", again)
	}
	if got, ok := call(t, c, "ssh_certificate_issue", map[string]any{"id": id, "public_key": "x"}); ok || got["code"] != "unknown_field" {
		t.Errorf("certificate with a key = %v", got)
	}
	if out, err := exec.Command("ssh", "-G", "-F", filepath.Join(dir, id, "ssh_config"), sandbox.ID(id).Login()).CombinedOutput(); err != nil {
		t.Errorf("ssh -G: %v\n%s", err, out)
	}
	if _, ok := call(t, c, "sandbox_destroy", map[string]any{"id": id}); !ok {
		t.Error("destroy failed")
	}
	if _, err := os.Stat(filepath.Join(dir, id)); !os.IsNotExist(err) {
		t.Errorf("key folder after destroy: %v", err)
	}
}

func TestBridgeInitializesWithoutItsServer(t *testing.T) {
	c := bridge(t, "http://127.0.0.1:1", filepath.Join(t.TempDir(), "podspawn"))
	began := time.Now()
	got := initialize(t, c, mcp.ProtocolVersion20250618)
	if took := time.Since(began); took > time.Second {
		t.Errorf("initialize took %s, want at most 1s", took)
	}
	if got.ProtocolVersion != mcp.ProtocolVersion20250618 || got.Instructions == "" {
		t.Errorf("initialize = %+v", got)
	}
	if res, ok := call(t, c, "sandbox_list", nil); ok || res["code"] != "unavailable" {
		t.Errorf("list = %v, want unavailable", res)
	}
}

// hostileAPI answers with an id that would lead out of the key folder.
type hostileAPI struct{ api.API }

func (hostileAPI) Create(context.Context, api.CreateRequest) (api.Sandbox, error) {
	return api.Sandbox{ID: "sbx_/../../../../../tmp/x", State: sandbox.StateReady}, nil
}

func (hostileAPI) Certificate(context.Context, string, api.CertificateRequest) (api.SSH, error) {
	return api.SSH{User: "sbx-/../../../../../tmp/x"}, nil
}

func TestBridgeKeepsAHostileIDOutOfPaths(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "keys")
	s := &Server{bridge: &Bridge{Dir: dir}}
	out, err := create(t.Context(), s, hostileAPI{}, []byte("{}"))
	if err != nil {
		t.Fatal(err)
	}
	if res := out.(sandboxResult); res.SSH != nil || !strings.Contains(res.Next, "ssh is not set up") {
		t.Errorf("result = %+v", res)
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("something was written: %v", err)
	}
}

// otherAPI answers with another sandbox's login.
type otherAPI struct{ api.API }

func (otherAPI) Certificate(context.Context, string, api.CertificateRequest) (api.SSH, error) {
	return api.SSH{User: sandbox.NewID().Login()}, nil
}

func TestBridgeRefusesAnotherSandboxsCertificate(t *testing.T) {
	b := &Bridge{Dir: filepath.Join(t.TempDir(), "keys")}
	_, err := b.connect(t.Context(), otherAPI{}, string(sandbox.NewID()), api.CertificateRequest{})
	if err == nil || !strings.Contains(err.Error(), "another sandbox") {
		t.Errorf("connect = %v, want a refusal", err)
	}
}

func TestStdioAnswersWhatIsUnderWayWhenItsInputEnds(t *testing.T) {
	srv, err := New(Config{API: func(context.Context) (api.API, error) {
		return nil, sandbox.Errorf(sandbox.KindUnavailable, "start it", "down")
	}})
	if err != nil {
		t.Fatal(err)
	}
	in := strings.Join([]string{
		`{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"t","version":"1"}}}`,
		`{"jsonrpc":"2.0","method":"notifications/initialized"}`,
		``,
		`{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"sandbox_list","arguments":{}}}`,
		`not json`,
		`{"jsonrpc":"2.0","id":3,"method":"no/such"}`,
	}, "\n") + "\n"
	var out bytes.Buffer
	if err := srv.ServeStdio(t.Context(), strings.NewReader(in), &out); err != nil {
		t.Fatalf("ServeStdio = %v", err)
	}
	for _, want := range []string{`"id":1,"result"`, `"id":2,"result"`, `"id":3,"error"`, `"code":-32700`} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %s in:\n%s", want, &out)
		}
	}
	for line := range strings.Lines(out.String()) {
		if !json.Valid([]byte(line)) {
			t.Errorf("not JSON: %s", line)
		}
	}
}

func TestStdioEndsWithItsContext(t *testing.T) {
	srv, err := New(Config{API: func(context.Context) (api.API, error) { return nil, errors.New("unused") }})
	if err != nil {
		t.Fatal(err)
	}
	r, w := io.Pipe()
	defer w.Close()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- srv.ServeStdio(ctx, r, io.Discard) }()
	cancel()
	if err := <-done; err != nil {
		t.Errorf("ServeStdio = %v", err)
	}
}

func TestStdioRefusesAnEndlessLine(t *testing.T) {
	srv, err := New(Config{API: func(context.Context) (api.API, error) { return nil, errors.New("unused") }})
	if err != nil {
		t.Fatal(err)
	}
	if err := srv.ServeStdio(t.Context(), strings.NewReader(strings.Repeat("a", maxLine+1)), io.Discard); err == nil {
		t.Error("ServeStdio = nil, want an error")
	}
}
