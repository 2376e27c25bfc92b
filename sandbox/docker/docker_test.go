package docker_test

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/client"
	"github.com/docker/docker/pkg/stdcopy"

	"github.com/podspawn/podspawn/sandbox"
	"github.com/podspawn/podspawn/sandbox/docker"
	"github.com/podspawn/podspawn/sandbox/docker/dockertest"
	"github.com/podspawn/podspawn/sandbox/runtimetest"
)

const testImage = "podspawn-test/busybox:latest"

// fakeGuest stands for the guest: it stays, and ends on TERM.
const fakeGuest = "#!/bin/sh\ntrap 'exit 0' TERM\nwhile :; do sleep 3600 & wait $!; done\n"

// engine is a Docker engine of the test's own with a client behind the runtime's back.
type engine struct {
	*dockertest.Daemon
	api *client.Client
}

func startEngine(t *testing.T, opts dockertest.Options) engine {
	t.Helper()
	e := engine{Daemon: dockertest.StartWith(t, opts)}
	var err error
	e.api, err = client.NewClientWithOpts(client.WithHost("unix://"+e.Socket), client.WithAPIVersionNegotiation())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.api.Close() })
	return e
}

func (e engine) open(t *testing.T, change func(*docker.Config)) *docker.Runtime {
	t.Helper()
	guest := filepath.Join(t.TempDir(), "guest")
	if err := os.WriteFile(guest, []byte(fakeGuest), 0o755); err != nil {
		t.Fatal(err)
	}
	cfg := docker.Config{
		Socket: e.Socket, GuestPath: guest, GuestTarget: "/.podspawn/guest", SocketTarget: "/.podspawn/run",
		EtcDir: filepath.Join(t.TempDir(), "etc"), Host: "test",
	}
	if change != nil {
		change(&cfg)
	}
	rt, err := docker.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := rt.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return rt
}

func (e engine) params(t *testing.T, rt *docker.Runtime) sandbox.StartParams {
	t.Helper()
	img, err := rt.Image(t.Context(), testImage)
	if err != nil {
		t.Fatalf("Image: %v", err)
	}
	return sandbox.StartParams{
		Sandbox: sandbox.NewID(), ImageID: img.ID, SocketDir: t.TempDir(),
		Resources: sandbox.Resources{CPUs: 1, Memory: 256 << 20, Disk: 1 << 30, PIDs: 256},
		Egress:    sandbox.EgressNone, Deadline: time.Now().Add(time.Hour).Unix(),
	}
}

// exec runs a command in a sandbox. The user is a number: the engine looks names
// up on its own side of gVisor's file system.
func (e engine) exec(ctx context.Context, id sandbox.ID, argv ...string) (string, int, error) {
	cs, err := e.api.ContainerList(ctx, container.ListOptions{Filters: filters.NewArgs(filters.Arg("label", docker.LabelSandbox+"="+string(id)))})
	if err != nil || len(cs) != 1 {
		return "", 0, fmt.Errorf("find container of %s: %d, %w", id, len(cs), err)
	}
	x, err := e.api.ContainerExecCreate(ctx, cs[0].ID, container.ExecOptions{User: "0:0", Cmd: argv, AttachStdout: true, AttachStderr: true})
	if err != nil {
		return "", 0, err
	}
	hj, err := e.api.ContainerExecAttach(ctx, x.ID, container.ExecAttachOptions{})
	if err != nil {
		return "", 0, err
	}
	defer hj.Close()
	// Of a container that died the engine may never close the stream.
	stop := context.AfterFunc(ctx, func() { hj.Close() })
	defer stop()
	var out bytes.Buffer
	if _, err := stdcopy.StdCopy(&out, &out, hj.Reader); err != nil {
		return out.String(), 0, err
	}
	for {
		st, err := e.api.ContainerExecInspect(ctx, x.ID)
		if err != nil || !st.Running {
			return out.String(), st.ExitCode, err
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return out.String(), 0, ctx.Err()
		}
	}
}

// left lists what the engine still has of sandboxes.
func (e engine) left(ctx context.Context) ([]string, error) {
	var out []string
	cs, err := e.api.ContainerList(ctx, container.ListOptions{All: true})
	if err != nil {
		return nil, err
	}
	for _, c := range cs {
		out = append(out, fmt.Sprint(c.Names, c.State, c.Labels))
	}
	nets, err := e.api.NetworkList(ctx, network.ListOptions{Filters: filters.NewArgs(filters.Arg("type", "custom"))})
	if err != nil {
		return nil, err
	}
	for _, n := range nets {
		out = append(out, "network "+n.Name)
	}
	bridges, err := filepath.Glob("/sys/class/net/" + sandbox.BridgePrefix + "*")
	if err != nil {
		return nil, err
	}
	if inLab() {
		out = append(out, bridges...)
	}
	for _, dir := range []string{"data/containers", "data/volumes"} {
		entries, err := os.ReadDir(filepath.Join(e.Dir, dir))
		if err != nil {
			return nil, err
		}
		for _, f := range entries {
			if f.IsDir() {
				out = append(out, filepath.Join(dir, f.Name()))
			}
		}
	}
	return out, nil
}

// inLab reports whether the network is the test's own, so that it may have bridges.
func inLab() bool { return os.Getenv("PODSPAWN_LAB") != "" }

// hostNetworks enforces nothing: nobody reaches anything in these tests.
type hostNetworks struct {
	missing error
	taken   []netip.Prefix
	removed []string
}

func (n *hostNetworks) Check() error { return n.missing }

func (n *hostNetworks) Pool() (netip.Prefix, []netip.Prefix, error) {
	return netip.MustParsePrefix("10.213.7.0/24"), n.taken, nil
}

func (n *hostNetworks) RemoveBridge(_ context.Context, name string) error {
	n.removed = append(n.removed, name)
	return nil
}

func withNetworks(n *hostNetworks) func(*docker.Config) {
	if !inLab() {
		return nil
	}
	return func(c *docker.Config) { c.Networks, c.Resolver = n, netip.MustParseAddr("10.213.7.253") }
}

func TestRuntime(t *testing.T) {
	e := startEngine(t, dockertest.Options{})
	e.ImportBusybox(t, testImage, "USER dev")
	runtimetest.Run(t, func(t *testing.T) runtimetest.Harness {
		return runtimetest.Harness{
			Runtime: e.open(t, withNetworks(&hostNetworks{})), Image: testImage, Networks: inLab(),
			GuestTarget: "/.podspawn/guest", SocketTarget: "/.podspawn/run",
			Exec: e.exec, Left: e.left,
		}
	})
}
