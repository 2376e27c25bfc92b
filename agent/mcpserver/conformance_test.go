package mcpserver

import (
	"context"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mark3labs/mcp-go/mcp"

	"github.com/podspawn/podspawn/agent/agenttest"
)

// suites is where scripts/mcp-suites.sh puts the protocol's own test programs.
func suites(t *testing.T) string {
	t.Helper()
	cache := os.Getenv("PODSPAWN_CACHE")
	if cache == "" {
		cache = "/var/cache/podspawn"
	}
	bin := filepath.Join(cache, "npm", "node_modules", ".bin")
	if !slices.Contains(strings.Split(os.Getenv("PODSPAWN_TEST_REQUIRE"), ","), "npm") {
		t.Skip("takes a minute: PODSPAWN_TEST_REQUIRE=npm runs the MCP suites")
	}
	if _, err := os.Stat(filepath.Join(bin, "conformance")); err != nil {
		t.Fatalf("the MCP suites are not installed, see scripts/mcp-suites.sh: %v", err)
	}
	return bin
}

// withToken is the service behind a proxy that adds a token, since the suite sends none.
func withToken(t *testing.T, base string) string {
	t.Helper()
	to, err := url.Parse(base)
	if err != nil {
		t.Fatal(err)
	}
	p := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		host := r.In.Host
		r.SetURL(to)
		r.Out.Host = host
		r.Out.Header.Set("Authorization", "Bearer "+agenttest.Alice.Reveal())
	}}
	srv := httptest.NewServer(p)
	t.Cleanup(srv.Close)
	return srv.URL + "/mcp"
}

// suite runs one program of the suites.
func suite(t *testing.T, bin, name string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(bin, name), args...)
	cmd.Dir = t.TempDir()
	cmd.Env = []string{"PATH=" + bin + ":/usr/bin:/bin", "HOME=" + cmd.Dir, "NO_COLOR=1"}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func conformance(t *testing.T, bin, url, revision, scenario string) (string, error) {
	t.Helper()
	return suite(t, bin, "conformance", "server", "--url", url, "--spec-version", revision, "--scenario", scenario, "--force")
}

// TestConformance runs the protocol's own suite behind the real gate: what needs no
// tools of the suite's against the real ones, the rest against the same server with
// those added.
func TestConformance(t *testing.T) {
	bin := suites(t)
	_, base := serve(t)
	_, fixtures := serve(t, fixtureTools)
	real, more := withToken(t, base), withToken(t, fixtures)
	both := []string{"tools-list", "dns-rebinding-protection", "server-sse-multiple-streams"}
	sessions := append([]string{"server-initialize", "ping", "server-session-lifecycle"}, both...)
	tools := []string{
		"tools-call-simple-text", "tools-call-image", "tools-call-audio", "tools-call-embedded-resource", "tools-call-mixed-content", "tools-call-error",
	}
	for _, part := range []struct {
		name, url, revision string
		scenarios           []string
	}{
		{"our tools", real, "2025-06-18", sessions},
		{"our tools", real, "2025-11-25", sessions},
		{"our tools", real, "2026-07-28", append([]string{"http-header-validation"}, both...)},
		{"fixture tools", more, "2025-11-25", tools},
		{"fixture tools", more, "2026-07-28", tools},
	} {
		for _, scenario := range part.scenarios {
			t.Run(part.revision+"/"+part.name+"/"+scenario, func(t *testing.T) {
				if out, err := conformance(t, bin, part.url, part.revision, scenario); err != nil {
					t.Errorf("%v\n%s", err, out)
				}
			})
		}
	}
	// Each with its reason. One that passes belongs above.
	for _, expected := range []struct{ revision, scenario, reason string }{
		{"2025-11-25", "logging-set-level", "the server sends no log messages and says so"},
		{"2025-11-25", "prompts-list", "there are no prompts"},
		{"2025-11-25", "resources-list", "there are no resources yet"},
		{"2025-11-25", "completion-complete", "there is nothing to complete"},
		{"2025-11-25", "tools-call-with-progress", "nothing is sent unasked: every tool answers within 25 s"},
		{"2025-11-25", "tools-call-sampling", "the server never asks the client's model"},
		{"2025-11-25", "tools-call-elicitation", "the server never asks the user"},
		{"2026-07-28", "caching", "hints are asked for prompts and resources too; those of tools/list are there"},
		{"2026-07-28", "server-stateless", "4 of 28 checks need the suite's diagnostic tools, which ask the client"},
		{"2026-07-28", "http-custom-header-server-validation", "no tool takes arguments from headers"},
		{"2026-07-28", "input-required-result-result-type", "no tool asks for more input"},
	} {
		t.Run("expected failure/"+expected.revision+"/"+expected.scenario, func(t *testing.T) {
			if out, err := conformance(t, bin, real, expected.revision, expected.scenario); err == nil || !strings.Contains(out, "Failed Checks") {
				t.Errorf("passes, or does not run, though %q: list it among what must pass\n%s", expected.reason, out)
			}
		})
	}
}

// fixtureTools adds the tools that the suite calls. Their names and answers are its.
func fixtureTools(s *Server) {
	png := "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
	wav := "UklGRiYAAABXQVZFZm10IBAAAAABAAEAQB8AAAB9AAACABAAZGF0YQIAAAA="
	text := mcp.NewTextContent
	resource := mcp.NewEmbeddedResource(mcp.TextResourceContents{URI: "test://embedded-resource", MIMEType: "text/plain", Text: "This is an embedded resource content."})
	mixed := mcp.NewEmbeddedResource(mcp.TextResourceContents{URI: "test://mixed-content-resource", MIMEType: "application/json", Text: `{"test":"data","value":123}`})
	for name, res := range map[string]*mcp.CallToolResult{
		"test_simple_text":            {Content: []mcp.Content{text("This is a simple text response for testing.")}},
		"test_image_content":          {Content: []mcp.Content{mcp.NewImageContent(png, "image/png")}},
		"test_audio_content":          {Content: []mcp.Content{mcp.NewAudioContent(wav, "audio/wav")}},
		"test_embedded_resource":      {Content: []mcp.Content{resource}},
		"test_multiple_content_types": {Content: []mcp.Content{text("Multiple content types test:"), mcp.NewImageContent(png, "image/png"), mixed}},
		"test_error_handling":         {Content: []mcp.Content{text("This tool intentionally returns an error for testing")}, IsError: true},
	} {
		s.mcp.AddTool(mcp.NewTool(name, mcp.WithDescription("A fixture of the suite.")), func(context.Context, mcp.CallToolRequest) (*mcp.CallToolResult, error) {
			return res, nil
		})
	}
}

// TestInspectorFindsNothing: the tools' schemas are portable between clients, and a
// tool can be called with the inspector.
func TestInspectorFindsNothing(t *testing.T) {
	bin := suites(t)
	_, base := serve(t)
	auth := "Authorization: Bearer " + agenttest.Alice.Reveal()
	common := []string{"--cli", base + "/mcp", "--transport", "http", "--header", auth}
	out, err := suite(t, bin, "mcp-inspector", append(common, "--method", "tools/list", "--strict")...)
	if err != nil || !strings.Contains(out, `"sandbox_create"`) {
		t.Errorf("tools/list --strict: %v\n%s", err, out)
	}
	out, err = suite(t, bin, "mcp-inspector", append(common, "--method", "tools/call", "--tool-name", "sandbox_list")...)
	if err != nil || !strings.Contains(out, "There is none. Make one with sandbox_create.") {
		t.Errorf("tools/call: %v\n%s", err, out)
	}
}
