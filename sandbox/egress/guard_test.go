package egress

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/podspawn/podspawn/sandbox"
)

var pool = netip.MustParsePrefix("10.213.0.0/16")

// inNetNS runs the test again in a second process with a network of its own, and
// reports whether this is that one.
func inNetNS(t *testing.T) bool {
	t.Helper()
	if os.Getenv("EGRESS_NETNS") != "" {
		return true
	}
	if os.Geteuid() != 0 {
		need(t, "root", "needs root: network namespaces, nftables")
	}
	if _, err := exec.LookPath("nft"); err != nil {
		need(t, "root", "needs nft")
	}
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=60s")
	cmd.Env = append(os.Environ(), "EGRESS_NETNS=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	if !strings.Contains(string(out), "--- PASS: "+t.Name()) && err == nil {
		t.Errorf("the test did not run:\n%s", out)
	}
	return false
}

func need(t *testing.T, part, why string) {
	t.Helper()
	if slices.Contains(strings.Split(os.Getenv("PODSPAWN_TEST_REQUIRE"), ","), part) {
		t.Fatal(why)
	}
	t.Skip(why)
}

func guard(t *testing.T) *Guard {
	t.Helper()
	g, err := New(pool, nil)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func sh(t *testing.T, script string) string {
	t.Helper()
	out, err := exec.Command("sh", "-ec", script).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", script, err, out)
	}
	return string(out)
}

func TestCheckNoticesEveryChange(t *testing.T) {
	if !inNetNS(t) {
		return
	}
	g := guard(t)
	if g.Check() == nil || Present() == nil {
		t.Fatal("Check = nil before Ensure")
	}
	for name, change := range map[string]string{
		"nothing":               "",
		"flush ruleset":         "nft flush ruleset",
		"table deleted":         "nft delete table inet podspawn-egress",
		"a chain flushed":       "nft flush chain inet podspawn-egress out",
		"a rule before ours":    "nft insert rule inet podspawn-egress forward accept",
		"a rule after ours":     "nft add rule inet podspawn-egress input accept",
		"dormant":               "nft 'add table inet podspawn-egress { flags dormant; }'",
		"address gone":          "ip addr flush dev lo",
		"restored with a hole":  "nft list table inet podspawn-egress >/tmp/egress-test.nft; nft delete table inet podspawn-egress; sed 's/169.254.0.0/169.255.0.0/' /tmp/egress-test.nft | nft -f -; rm /tmp/egress-test.nft",
		"restored without drop": "nft list table inet podspawn-egress | sed 's/ drop$/ accept/' >/tmp/egress-test.nft; nft delete table inet podspawn-egress; nft -f /tmp/egress-test.nft; rm /tmp/egress-test.nft",
	} {
		t.Run(name, func(t *testing.T) {
			if err := g.Ensure(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(g.Check(), Present()); err != nil {
				t.Fatalf("Check after Ensure = %v", err)
			}
			sh(t, change)
			err := g.Check()
			if name == "nothing" {
				if err != nil {
					t.Errorf("Check = %v", err)
				}
				return
			}
			if sandbox.KindOf(err) != sandbox.KindUnavailable || sandbox.Public(err).Hint == "" {
				t.Errorf("Check after %q = %v, want KindUnavailable with a hint", change, err)
			}
			if err := errors.Join(g.Ensure(t.Context()), g.Check()); err != nil {
				t.Errorf("not mended: %v", err)
			}
		})
	}
	if err := errors.Join(Remove(t.Context()), Remove(t.Context())); err != nil {
		t.Error(err)
	}
	if Present() == nil || hasResolverAddr(pool) == nil {
		t.Error("Remove left something")
	}
}

// Threat 104.
func TestKeepRestoresWithinASecond(t *testing.T) {
	if !inNetNS(t) {
		return
	}
	g := guard(t)
	if err := g.Ensure(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); g.Keep(ctx) }()
	defer func() { cancel(); <-done }()
	for range 5 {
		sh(t, "nft flush ruleset")
		began := time.Now()
		for g.Check() != nil {
			if time.Since(began) > time.Second {
				t.Fatal("rules not back after a second")
			}
			time.Sleep(time.Millisecond)
		}
	}
}

func TestBridgesGoDownWhenRulesCantBeMade(t *testing.T) {
	if !inNetNS(t) {
		return
	}
	g := guard(t)
	sh(t, "ip link add ps-aaaaaaaaaaaa type bridge; ip link set ps-aaaaaaaaaaaa up; ip link add other type bridge; ip link set other up")
	up := func(name string) bool {
		i, err := net.InterfaceByName(name)
		if err != nil {
			t.Fatal(err)
		}
		return i.Flags&net.FlagUp != 0
	}
	// A folder with ip but without nft stands for a host that lost nft.
	dir := t.TempDir()
	ip, err := exec.LookPath("ip")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(ip, filepath.Join(dir, "ip")); err != nil {
		t.Fatal(err)
	}
	path := os.Getenv("PATH")
	t.Setenv("PATH", dir)
	if err := g.Ensure(t.Context()); err == nil {
		t.Fatal("Ensure without nft succeeded")
	}
	if up("ps-aaaaaaaaaaaa") || !up("other") {
		t.Error("bridges: a sandbox's is up or somebody else's is down")
	}
	if g.Check() == nil {
		t.Error("Check = nil while bridges are down")
	}
	t.Setenv("PATH", path)
	if err := g.Ensure(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !up("ps-aaaaaaaaaaaa") {
		t.Error("the bridge stays down although the rules are there")
	}
	if err := g.RemoveBridge(t.Context(), "other"); err == nil {
		t.Error("RemoveBridge removed somebody else's")
	}
	if err := errors.Join(g.RemoveBridge(t.Context(), "ps-aaaaaaaaaaaa"), g.RemoveBridge(t.Context(), "ps-aaaaaaaaaaaa")); err != nil {
		t.Error(err)
	}
	if names, err := Bridges(); err != nil || len(names) > 0 {
		t.Errorf("Bridges = %q, %v", names, err)
	}
}

func TestPoolSeesTheHostsRoutes(t *testing.T) {
	if !inNetNS(t) {
		return
	}
	sh(t, `ip link add br0 type bridge; ip link set br0 up; ip addr add 10.213.4.1/24 dev br0; ip addr add 192.168.5.1/24 dev br0
		ip route add 10.0.0.0/8 via 192.168.5.2; ip route add 10.213.9.8/30 via 192.168.5.2; ip route add default via 192.168.5.2`)
	p, taken, err := guard(t).Pool()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, x := range taken {
		got = append(got, x.String())
	}
	slices.Sort(got)
	want := []string{"10.213.255.252/30", "10.213.4.0/24", "10.213.9.8/30"}
	if diff := cmp.Diff(want, got); diff != "" || p != pool {
		t.Errorf("pool %s (-want +got):\n%s", p, diff)
	}
}

func TestResolverAddr(t *testing.T) {
	for p, want := range map[string]string{
		"10.213.0.0/16": "10.213.255.253", "10.0.0.0/8": "10.255.255.253", "192.168.7.0/24": "192.168.7.253", "172.20.128.0/17": "172.20.255.253",
	} {
		if got := ResolverAddr(netip.MustParsePrefix(p)).String(); got != want {
			t.Errorf("ResolverAddr(%s) = %s, want %s", p, got, want)
		}
	}
}

func TestCheckPool(t *testing.T) {
	for p, ok := range map[string]bool{
		"10.213.0.0/16": true, "192.168.9.0/24": true, "10.0.0.0/7": false, "192.168.9.0/25": false, "93.184.0.0/16": false, "fd00::/16": false,
	} {
		if err := CheckPool(netip.MustParsePrefix(p)); (err == nil) != ok {
			t.Errorf("CheckPool(%s) = %v, want ok %v", p, err, ok)
		}
	}
	if CheckPool(netip.Prefix{}) == nil {
		t.Error("the zero prefix is a pool")
	}
}

func TestParseRouteNeverTakesTheHeading(t *testing.T) {
	for line, want := range map[string]string{
		"Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT": "",
		"eth0\t00000000\t0101A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0":                          "0.0.0.0/0",
		"ps-a\t0000D50A\t00000000\t0001\t0\t0\t0\tFCFFFFFF\t0\t0\t0":                          "10.213.0.0/30",
		"": "", "x": "",
	} {
		p, ok := parseRoute(line)
		if got := fmt.Sprint(p); ok != (want != "") || ok && got != want {
			t.Errorf("parseRoute(%q) = %s, %v, want %q", line, got, ok, want)
		}
	}
}

func BenchmarkCheck(b *testing.B) {
	g, err := New(pool, nil)
	if err != nil || os.Getenv("EGRESS_NETNS") == "" {
		b.Skip("in a network of its own only")
	}
	if err := g.Ensure(b.Context()); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if err := g.Check(); err != nil {
			b.Fatal(err)
		}
	}
}
