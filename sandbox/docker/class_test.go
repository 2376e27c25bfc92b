package docker

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/podspawn/podspawn/sandbox"
)

func TestClassForRoundsUp(t *testing.T) {
	for name, tc := range map[string]struct{ disk, want int64 }{
		"a byte":         {1, 1},
		"exactly 1 GiB":  {1 << 30, 1},
		"a byte more":    {1<<30 + 1, 2},
		"3 GiB":          {3 << 30, 5},
		"default":        {sandbox.DefaultResources().Disk, 10},
		"exactly 50 GiB": {50 << 30, 50},
		"too much":       {50<<30 + 1, 0},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := classFor(tc.disk)
			if got != tc.want || (err != nil) != (tc.want == 0) {
				t.Errorf("classFor(%d) = %d, %v, want %d", tc.disk, got, err, tc.want)
			}
		})
	}
}

func TestDaemonRuntimesAreWhatStartAsksFor(t *testing.T) {
	entries := DaemonRuntimes("/usr/libexec/podspawn/runsc")
	if len(entries) != len(diskClasses()) {
		t.Errorf("DaemonRuntimes has %d entries, want one per class (%d)", len(entries), len(diskClasses()))
	}
	got, err := json.Marshal(entries["podspawn-runsc-10g"])
	if err != nil {
		t.Fatal(err)
	}
	want := `{"path":"/usr/libexec/podspawn/runsc","runtimeArgs":["--host-uds=create","--overlay2=root:self,size=10g","--network=sandbox"]}`
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("entry of class 10 (-want +got):\n%s", diff)
	}
}

func TestSameArgs(t *testing.T) {
	want := runscArgs(10)
	for name, tc := range map[string]struct {
		have []string
		want bool
	}{
		"equal":                 {want, true},
		"another order":         {[]string{want[2], want[0], want[1]}, true},
		"more":                  {append([]string{"--platform=kvm"}, want...), true},
		"one dash":              {[]string{"-host-uds=create", "-overlay2=root:self,size=10g", "-network=sandbox"}, true},
		"none":                  {nil, false},
		"another size":          {runscArgs(50), false},
		"overridden at the end": {append(append([]string{}, want...), "--host-uds=all"), false},
		"host network":          {append(append([]string{}, want...), "--network=host"), false},
	} {
		t.Run(name, func(t *testing.T) {
			if got := sameArgs(tc.have, want); got != tc.want {
				t.Errorf("sameArgs(%q) = %v, want %v", tc.have, got, tc.want)
			}
		})
	}
}

func TestInCgroup(t *testing.T) {
	id := strings.Repeat("ab", 32)
	for name, tc := range map[string]struct {
		text string
		want bool
	}{
		"cgroupfs":         {"12:pids:/docker/" + id + "\n", true},
		"systemd":          {"0::/system.slice/docker-" + id + ".scope\n", true},
		"host":             {"0::/\n", false},
		"another":          {"0::/docker/" + strings.Repeat("cd", 32) + "\n", false},
		"longer name":      {"0::/docker/x" + id + "\n", false},
		"group below ours": {"0::/docker/" + id + "/inner\n", false},
		"empty":            {"", false},
	} {
		t.Run(name, func(t *testing.T) {
			if got := inCgroup(tc.text, id); got != tc.want {
				t.Errorf("inCgroup(%q) = %v, want %v", tc.text, got, tc.want)
			}
		})
	}
}

func TestHostConfigHoldsEveryLimitAndNoFlagOfTheCallers(t *testing.T) {
	r := &Runtime{cfg: Config{GuestPath: "/g", GuestTarget: "/t", SocketTarget: "/s", EtcDir: "/e", Host: "h"}}
	hc := r.hostConfig(sandbox.StartParams{
		SocketDir: "/d", Resources: sandbox.Resources{CPUs: 0.5, Memory: 1 << 28, Disk: 1, PIDs: 64}, Egress: sandbox.EgressNone,
	}, "podspawn-runsc-1g", "")
	if hc.Privileged || hc.PidMode != "" || hc.UTSMode != "" || hc.UsernsMode != "" || len(hc.Devices) > 0 || len(hc.Binds) > 0 {
		t.Errorf("host configuration shares something with the host: %+v", hc)
	}
	if hc.NetworkMode != "none" || hc.IpcMode != "none" || hc.CgroupnsMode != "private" {
		t.Errorf("namespaces: network %q, ipc %q, cgroup %q", hc.NetworkMode, hc.IpcMode, hc.CgroupnsMode)
	}
	if hc.Memory != 1<<28 || hc.MemorySwap != hc.Memory || hc.CPUQuota != 50_000 || hc.PidsLimit == nil || *hc.PidsLimit != 2*64+runscPIDs {
		t.Errorf("limits: %+v", hc.Resources)
	}
	writable := 0
	for _, m := range hc.Mounts {
		if !m.ReadOnly {
			writable++
			if m.Source != "/d" {
				t.Errorf("%s is writable", m.Source)
			}
		}
	}
	if writable != 1 || len(hc.Mounts) != 5 {
		t.Errorf("mounts: %+v", hc.Mounts)
	}
}
