package install

import (
	"os"
	"strings"
	"testing"
)

// A host that was set up by a version without forwarding gets it by running
// server-setup again: the drop-in and the relays' group.
func TestApplyUpgradesAnEarlierSetUp(t *testing.T) {
	fresh(t)
	apply(t, Options{})
	path := dropInPath(Options{}.config())
	now, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	old := strings.NewReplacer("DisableForwarding no", "DisableForwarding yes", "AllowTcpForwarding yes", "AllowTcpForwarding no",
		"AllowAgentForwarding yes", "AllowAgentForwarding no", "PermitListen any", "PermitListen none", "PermitOpen any", "PermitOpen none").Replace(string(now))
	if old == string(now) {
		t.Fatal("the drop-in has none of the lines that changed")
	}
	if err := os.WriteFile(path, []byte(old), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(extraGroup, []byte(groups()[0].line()), 0o644); err != nil {
		t.Fatal(err)
	}
	if r, out := apply(t, Options{}); !r.Changed {
		t.Errorf("nothing changed:\n%s", out)
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != string(now) {
		t.Errorf("the drop-in is %v\n%s", err, got)
	}
	if got, err := os.ReadFile(extraGroup); err != nil || string(got) != groupLines() {
		t.Errorf("groups: %q, %v, want %q", got, err, groupLines())
	}
	if m, err := LoadManifest(ManifestPath); err != nil || m.Check() != nil {
		t.Errorf("manifest: %v, %v", err, m.Check())
	}
}
