package docker_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"

	"github.com/podspawn/podspawn/sandbox"
	"github.com/podspawn/podspawn/sandbox/docker"
	"github.com/podspawn/podspawn/sandbox/docker/dockertest"
)

func wantKind(t *testing.T, what string, err error, want sandbox.Kind) {
	t.Helper()
	if err == nil || sandbox.KindOf(err) != want || sandbox.Public(err).Hint == "" {
		t.Errorf("%s = %v (kind %q, hint %q), want kind %q with a hint", what, err, sandbox.KindOf(err), sandbox.Public(err).Hint, want)
	}
}

func (e engine) wantNothingLeft(t *testing.T) {
	t.Helper()
	left, err := e.left(context.Background())
	if err != nil || len(left) > 0 {
		t.Errorf("left: %q, %v", left, err)
	}
}

func mustStart(t *testing.T, rt *docker.Runtime, p sandbox.StartParams) sandbox.Container {
	t.Helper()
	c, err := rt.Start(t.Context(), p)
	if err != nil {
		t.Fatalf("Start: %v", err)
	}
	return c
}

func mustDestroy(t *testing.T, rt *docker.Runtime, id sandbox.ID) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 55*time.Second)
	defer cancel()
	if err := rt.Destroy(ctx, id); err != nil {
		t.Errorf("Destroy: %v", err)
	}
}

// TestNoSandboxWithoutGVisor is 83 of the threat list: the runtime is missing, has
// lost its program, has other flags, or another program is registered under its name.
func TestNoSandboxWithoutGVisor(t *testing.T) {
	dockertest.Need(t)
	runc, err := exec.LookPath("runc")
	if err != nil {
		t.Skip("no runc to stand for another runtime")
	}
	wrapper := filepath.Join(t.TempDir(), "wrapper")
	// runc that swallows our flags, as a malicious or muddled entry would, and the
	// limit that it may not be able to set here: it must get as far as to run the guest.
	script := `#!/bin/sh
bundle= last=
for a; do
	shift
	[ "$last" = --bundle ] && bundle=$a
	last=$a
	case $a in --host-uds*|--overlay2*|--network=*) ;; *) set -- "$@" "$a";; esac
done
[ -z "$bundle" ] || sed -i 's/"rlimits":\[[^]]*\]/"rlimits":[]/' "$bundle/config.json"
exec ` + runc + ` "$@"
`
	if err := os.WriteFile(wrapper, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	other := docker.DaemonRuntimes(dockertest.Runsc())
	for name, r := range other {
		r.Args = append(r.Args, "--host-uds=all")
		other[name] = r
	}
	for name, tc := range map[string]struct {
		runtimes map[string]docker.RuntimeEntry
		check    bool // Check can tell
		start    bool // Start can tell
	}{
		"not registered":    {map[string]docker.RuntimeEntry{}, true, true},
		"program missing":   {docker.DaemonRuntimes("/nonexistent/runsc"), true, true},
		"other flags":       {other, true, false},
		"runc in its place": {docker.DaemonRuntimes(wrapper), false, true},
	} {
		t.Run(name, func(t *testing.T) {
			e := startEngine(t, dockertest.Options{Runtimes: tc.runtimes})
			e.ImportBusybox(t, testImage)
			rt := e.open(t, nil)
			if tc.check {
				wantKind(t, "Check", rt.Check(t.Context()), sandbox.KindUnavailable)
			}
			if tc.start {
				p := e.params(t, rt)
				_, err := rt.Start(t.Context(), p)
				wantKind(t, "Start", err, sandbox.KindUnavailable)
				t.Logf("Start: %v", err)
			}
			e.wantNothingLeft(t)
		})
	}
}

func TestEngineDownIsUnavailable(t *testing.T) {
	rt, err := docker.New(docker.Config{
		Socket: filepath.Join(t.TempDir(), "none.sock"), GuestPath: "/g", GuestTarget: "/t", SocketTarget: "/s",
		EtcDir: t.TempDir(), Host: "test",
	})
	if err != nil {
		t.Fatal(err)
	}
	defer rt.Close()
	id := sandbox.NewID()
	wantKind(t, "Check", rt.Check(t.Context()), sandbox.KindUnavailable)
	_, err = rt.Image(t.Context(), "podspawn/base")
	wantKind(t, "Image", err, sandbox.KindUnavailable)
	_, err = rt.Start(t.Context(), sandbox.StartParams{
		Sandbox: id, ImageID: "sha256:" + "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef", SocketDir: "/d",
		Resources: sandbox.DefaultResources(), Egress: sandbox.EgressNone,
	})
	wantKind(t, "Start", err, sandbox.KindUnavailable)
	wantKind(t, "Destroy", rt.Destroy(t.Context(), id), sandbox.KindUnavailable)
	_, err = rt.List(t.Context())
	wantKind(t, "List", err, sandbox.KindUnavailable)
	wantKind(t, "Watch", rt.Watch(t.Context(), func(sandbox.ID) {}), sandbox.KindUnavailable)
}

func TestFaults(t *testing.T) {
	e := startEngine(t, dockertest.Options{})
	e.ImportBusybox(t, testImage)
	rt := e.open(t, nil)

	t.Run("ImageWithVolumesIsRefused", func(t *testing.T) {
		e.ImportBusybox(t, "podspawn-test/volumes:latest", "VOLUME /data")
		_, err := rt.Image(t.Context(), "podspawn-test/volumes:latest")
		wantKind(t, "Image", err, sandbox.KindInvalidSpec)
	})
	t.Run("GuestThatEndsAtOnceLeavesNothing", func(t *testing.T) {
		guest := filepath.Join(t.TempDir(), "guest")
		if err := os.WriteFile(guest, []byte("no program"), 0o755); err != nil {
			t.Fatal(err)
		}
		bad := e.open(t, func(c *docker.Config) { c.GuestPath = guest })
		if _, err := bad.Start(t.Context(), e.params(t, bad)); err == nil {
			t.Error("Start with a guest that cannot run succeeded")
		}
		e.wantNothingLeft(t)
	})
	t.Run("OtherInstallationsAreNotSeen", func(t *testing.T) {
		p := e.params(t, rt)
		mustStart(t, rt, p)
		defer mustDestroy(t, rt, p.Sandbox)
		other := e.open(t, func(c *docker.Config) { c.Host = "other" })
		if cs, err := other.List(t.Context()); err != nil || len(cs) != 0 {
			t.Errorf("List of another host = %+v, %v, want none", cs, err)
		}
	})
	t.Run("DestroyPaused", func(t *testing.T) {
		p := e.params(t, rt)
		c := mustStart(t, rt, p)
		if err := e.api.ContainerPause(t.Context(), c.ID); err != nil {
			t.Fatal(err)
		}
		mustDestroy(t, rt, p.Sandbox)
		e.wantNothingLeft(t)
	})
	t.Run("DestroyStoppedSandboxProcess", func(t *testing.T) {
		p := e.params(t, rt)
		c := mustStart(t, rt, p)
		in, err := e.api.ContainerInspect(t.Context(), c.ID)
		if err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(in.State.Pid, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		mustDestroy(t, rt, p.Sandbox)
		t.Logf("took %s", time.Since(began))
		if _, err := os.Stat("/proc/" + strconv.Itoa(in.State.Pid)); err == nil {
			t.Error("its process is still there")
		}
		e.wantNothingLeft(t)
	})
	t.Run("DestroyCreatedButNeverStarted", func(t *testing.T) {
		id := sandbox.NewID()
		_, err := e.api.ContainerCreate(t.Context(), &container.Config{
			Image: testImage, Cmd: []string{"sh"}, Labels: map[string]string{docker.LabelSandbox: string(id)},
		}, &container.HostConfig{NetworkMode: "none"}, nil, nil, "")
		if err != nil {
			t.Fatal(err)
		}
		mustDestroy(t, rt, id)
		e.wantNothingLeft(t)
	})
	t.Run("EngineRestart", func(t *testing.T) { // last: it takes the engine away
		p := e.params(t, rt)
		mustStart(t, rt, p)
		returned := make(chan error, 1)
		go func() { returned <- rt.Watch(t.Context(), func(sandbox.ID) {}) }()
		if err := e.Kill(); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-returned:
			wantKind(t, "Watch of an engine that died", err, sandbox.KindUnavailable)
		case <-time.After(30 * time.Second):
			t.Fatal("Watch did not notice that the engine died")
		}
		wantKind(t, "Destroy without an engine", rt.Destroy(t.Context(), p.Sandbox), sandbox.KindUnavailable)
		if err := e.Start(); err != nil {
			t.Fatal(err)
		}
		// The engine ends containers it finds alive at its start, and says so to nobody:
		// the check at the beginning of Watch must find this one.
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		found := false
		_ = rt.Watch(ctx, func(id sandbox.ID) { // ends with our cancel
			if id == p.Sandbox {
				found = true
				cancel()
			}
		})
		if !found {
			t.Error("Watch after the engine's restart does not report the container that ended meanwhile")
		}
		mustDestroy(t, rt, p.Sandbox)
		e.wantNothingLeft(t)
	})
}
