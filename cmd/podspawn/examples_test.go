package main

import (
	"bytes"
	"os"
	"testing"
)

// TestExamplesAreWhatMCPConfigPrints keeps the files in examples/ true.
func TestExamplesAreWhatMCPConfigPrints(t *testing.T) {
	for client, file := range map[string]string{
		"cursor": "../../examples/cursor/.cursor/mcp.json", "codex": "../../examples/codex/.codex/config.toml", "vscode": "../../examples/vscode/.vscode/mcp.json",
	} {
		var out bytes.Buffer
		a, _, _ := testApp(nil)
		a.stdout = &out
		if err := runMCPConfig(a, client); err != nil {
			t.Fatal(err)
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if out.String() != string(want) {
			t.Errorf("%s holds\n%s\nand podspawn mcp config %s prints\n%s", file, want, client, out.String())
		}
	}
}
