package runtimetest

import (
	"strings"
	"testing"

	"github.com/podspawn/podspawn/sandbox"
)

// testNetwork starts sandboxes with a network of their own. What that reaches is
// the host's to hold; here it exists, is the sandbox's alone, and goes with it.
func testNetwork(t *testing.T, h Harness) {
	if !h.Networks {
		p := params(t, h)
		p.Egress = sandbox.EgressPublic
		destroyAfter(t, h, p.Sandbox)
		_, err := h.Runtime.Start(t.Context(), p)
		wantKind(t, "Start with a network where none can be made", err, sandbox.KindUnavailable)
		t.Log("no networks here: only their refusal was tested")
		return
	}
	one, two := params(t, h), params(t, h)
	one.Egress, two.Egress = sandbox.EgressPublic, sandbox.EgressPublic
	start(t, h, one)
	start(t, h, two)
	addresses := map[string]bool{}
	for _, p := range []sandbox.StartParams{one, two} {
		if out := run(t, h, p.Sandbox, "cat /proc/net/dev"); !strings.Contains(out, "eth0:") {
			t.Errorf("no network device: %s", out)
		}
		if out := run(t, h, p.Sandbox, "cat /etc/resolv.conf"); !strings.HasPrefix(out, "nameserver ") || strings.Contains(out, "127.") {
			t.Errorf("resolv.conf = %q, want the host's resolver for sandboxes", out)
		}
		if out, code := sh(t, h, p.Sandbox, "echo x >>/etc/resolv.conf"); code == 0 {
			t.Errorf("writing resolv.conf succeeded: %s", out)
		}
		addresses[run(t, h, p.Sandbox, "cat /proc/net/route")] = true
	}
	if len(addresses) != 2 {
		t.Errorf("two sandboxes have the same network: %v", addresses)
	}
	if _, err := h.Runtime.Start(t.Context(), one); err == nil || sandbox.KindOf(err) != sandbox.KindConflict {
		t.Errorf("second Start = %v, want kind conflict", err)
	}
	if c, ok := find(t, h, one.Sandbox); !ok || !c.Running {
		t.Errorf("after a refused second Start, List has %+v, %v", c, ok)
	}
	if out := run(t, h, one.Sandbox, "cat /proc/net/dev"); !strings.Contains(out, "eth0:") {
		t.Error("a refused second Start took the first one's network")
	}
	if err := h.Runtime.Destroy(t.Context(), one.Sandbox); err != nil {
		t.Fatal(err)
	}
	if c, ok := find(t, h, one.Sandbox); ok {
		t.Errorf("List after Destroy has %+v", c)
	}
	failing := params(t, h)
	failing.Egress = sandbox.EgressPublic
	failing.SocketDir += "/missing"
	destroyAfter(t, h, failing.Sandbox)
	if _, err := h.Runtime.Start(t.Context(), failing); err == nil {
		t.Error("Start succeeded without a socket directory")
	}
	if c, ok := find(t, h, failing.Sandbox); ok {
		t.Errorf("a failed Start left a network: %+v", c)
	}
}
