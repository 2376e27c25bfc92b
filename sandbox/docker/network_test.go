package docker_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/docker/docker/api/types/network"

	"github.com/podspawn/podspawn/sandbox"
	"github.com/podspawn/podspawn/sandbox/docker"
	"github.com/podspawn/podspawn/sandbox/docker/dockertest"
)

func TestNetworkFaults(t *testing.T) {
	if !inLab() {
		t.Skip("makes bridges: needs a lab, go test -exec scripts/lab.sh")
	}
	e := startEngine(t, dockertest.Options{})
	e.ImportBusybox(t, testImage)
	nets := &hostNetworks{}
	rt := e.open(t, withNetworks(nets))
	public := func() sandbox.StartParams {
		p := e.params(t, rt)
		p.Egress = sandbox.EgressPublic
		return p
	}

	t.Run("NoRulesNoNetwork", func(t *testing.T) {
		nets.missing = sandbox.Errorf(sandbox.KindUnavailable, "wait", "no rules")
		defer func() { nets.missing = nil }()
		_, err := rt.Start(t.Context(), public())
		wantKind(t, "Start", err, sandbox.KindUnavailable)
		e.wantNothingLeft(t)
	})
	t.Run("PoolExhausted", func(t *testing.T) {
		nets.taken = []netip.Prefix{netip.MustParsePrefix("10.213.7.0/25"), netip.MustParsePrefix("10.213.7.128/25")}
		defer func() { nets.taken = nil }()
		_, err := rt.Start(t.Context(), public())
		wantKind(t, "Start", err, sandbox.KindCapacity)
		e.wantNothingLeft(t)
	})
	t.Run("SubnetsThatTheEngineKnowsAreSkipped", func(t *testing.T) {
		// Of a network whose bridge is gone there is no route.
		other, err := e.api.NetworkCreate(t.Context(), "someone", network.CreateOptions{
			Driver: "bridge", IPAM: &network.IPAM{Config: []network.IPAMConfig{{Subnet: "10.213.7.0/27"}}},
		})
		if err != nil {
			t.Fatal(err)
		}
		p := public()
		mustStart(t, rt, p)
		mustDestroy(t, rt, p.Sandbox)
		if err := e.api.NetworkRemove(t.Context(), other.ID); err != nil {
			t.Error(err)
		}
		e.wantNothingLeft(t)
	})
	t.Run("NetworkWithoutContainer", func(t *testing.T) { // the daemon died between the two
		id := sandbox.NewID()
		_, err := e.api.NetworkCreate(t.Context(), "left", network.CreateOptions{
			Driver: "bridge", Options: map[string]string{"com.docker.network.bridge.name": id.Bridge()},
			IPAM:   &network.IPAM{Config: []network.IPAMConfig{{Subnet: "10.213.7.64/30"}}},
			Labels: map[string]string{docker.LabelSandbox: string(id), docker.LabelHost: "test"},
		})
		if err != nil {
			t.Fatal(err)
		}
		cs, err := rt.List(t.Context())
		if err != nil || len(cs) != 1 || cs[0] != (sandbox.Container{Sandbox: id}) {
			t.Errorf("List = %+v, %v, want one that does not run", cs, err)
		}
		mustDestroy(t, rt, id)
		if n := nets.removed[len(nets.removed)-1]; n != id.Bridge() || !strings.HasPrefix(n, sandbox.BridgePrefix) || len(n) > 15 {
			t.Errorf("RemoveBridge(%q), want the sandbox's bridge %q", n, id.Bridge())
		}
		e.wantNothingLeft(t)
	})
	t.Run("EngineKilledUnderASandbox", func(t *testing.T) { // last: it takes the engine away
		p := public()
		mustStart(t, rt, p)
		if err := e.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := e.Start(); err != nil {
			t.Fatal(err)
		}
		mustDestroy(t, rt, p.Sandbox)
		e.wantNothingLeft(t)
	})
}
